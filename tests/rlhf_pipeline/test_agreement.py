"""Agreement against tables worked by hand in the literature, crowd-kit, and what must not matter."""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping
from typing import Any

import pandas
import pytest
from crowdkit.metrics.data import alpha_krippendorff

from rlhf_pipeline.agreement import (
    NO_OVERLAP,
    NO_RATINGS,
    ONE_CATEGORY,
    ONE_RATER,
    cohen_kappa,
    cohen_kappas,
    fleiss_kappa,
    krippendorff_alpha,
    raw_agreement,
)

Ratings = dict[Hashable, dict[Hashable, Any]]


def table(*raters: str) -> Ratings:
    """One string for each rater, one sign for each item; a dot is a missing rating."""
    return {
        item: {rater: row[item] for rater, row in enumerate(raters) if row[item] != "."}
        for item in range(len(raters[0]))
    }


def numbers(ratings: Ratings) -> Ratings:
    return {item: {rater: int(label) for rater, label in given.items()} for item, given in ratings.items()}


# Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011: sections A (binary), B (nominal) and C (missing data).
MEG_OWEN = table("0100000010", "1110010000")
BEN_GERRY = table("aabbdcccedda", "babbbccceddd")
FOUR_OBSERVERS = numbers(table("123321412...", "1233224125.3", ".3332342251.", "12332441251."))

# Fleiss, Measuring nominal scale agreement among many raters, 1971, table 1: how many of six psychiatrists put each of
# 30 patients into each of five categories.
FLEISS_1971 = (
    "00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031 "
    "00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006"
)


def fleiss_1971() -> Ratings:
    return {
        patient: dict(enumerate("".join(str(c) * int(count) for c, count in enumerate(counts))))
        for patient, counts in enumerate(FLEISS_1971.split())
    }


def cross_table(rows: list[list[int]]) -> list[tuple[int, int]]:
    return [(i, j) for i, row in enumerate(rows) for j, count in enumerate(row) for _ in range(count)]


def made_up(seed: int, *, items: int = 60, raters: int = 5, labels: int = 4, missing: float = 0.3) -> Ratings:
    """Raters who are right in two of three cases, with ratings missing at random."""
    rng = random.Random(seed)
    ratings: Ratings = {}
    for item in range(items):
        truth = rng.randrange(labels)
        ratings[item] = {
            rater: truth if rng.random() < 2 / 3 else rng.randrange(labels)
            for rater in range(raters)
            if rng.random() >= missing
        }
    return ratings


@pytest.mark.parametrize(
    ("ratings", "level", "published", "items"),
    [
        (MEG_OWEN, "nominal", 0.095, 10),
        (BEN_GERRY, "nominal", 0.692, 12),
        (FOUR_OBSERVERS, "nominal", 0.743, 11),
        (FOUR_OBSERVERS, "ordinal", 0.815, 11),
        (FOUR_OBSERVERS, "interval", 0.849, 11),
    ],
)
def test_alpha_of_krippendorffs_examples(ratings: Ratings, level: Any, published: float, items: int) -> None:
    alpha = krippendorff_alpha(ratings, level)
    assert alpha.value == pytest.approx(published, abs=5e-4)
    assert alpha.n == items
    assert alpha.low is not None
    assert alpha.high is not None
    assert alpha.low < alpha.value < alpha.high <= 1


def test_fleiss_kappa_of_fleisss_example() -> None:
    ratings = fleiss_1971()
    totals = [sum(label == str(c) for given in ratings.values() for label in given.values()) for c in range(5)]
    assert totals == [26, 26, 30, 55, 43], "the margins printed under the table"
    assert fleiss_kappa(ratings).value == pytest.approx(0.430, abs=5e-4)
    assert raw_agreement(ratings).value == pytest.approx(0.556, abs=5e-4)


def test_cohens_kappa_of_a_table_of_200() -> None:
    # Observed 140 / 200 = 0.70; by chance (120·100 + 60·60 + 20·40) / 200² = 0.41; (0.70 - 0.41) / 0.59.
    kappa = cohen_kappa(cross_table([[88, 14, 18], [10, 40, 10], [2, 6, 12]]))
    assert kappa.value == pytest.approx(0.29 / 0.59)
    assert kappa.n == 200
    # Cohen's own standard error (1960, eq. 7), √(0.7 · 0.3 / (200 · 0.59²)) = 0.0549, gives 0.384 to 0.599; it is a
    # little wide, because it takes the margins as fixed.
    assert (kappa.low, kappa.high) == pytest.approx((0.384, 0.599), abs=0.02)


def test_weighted_kappa_by_hand() -> None:
    # Chance cost, linear: rows 2/4, 1/4, 1/4 and columns 1/4, 2/4, 1/4 give (1·2·2 + 2·2·1 + 1·1 + 1·1 + 2·1 + 1·2)/16.
    pairs = [(0, 0), (0, 1), (1, 2), (2, 1)]
    assert cohen_kappa(pairs, weights="linear").value == pytest.approx(1 - (3 / 4) / (14 / 16))
    assert cohen_kappa(pairs, weights="quadratic").value == pytest.approx(1 - (3 / 4) / (20 / 16))
    assert cohen_kappa(pairs).value == pytest.approx(1 - (3 / 4) / (11 / 16))


@pytest.mark.parametrize("seed", range(5))
def test_alpha_equals_crowd_kit(seed: int) -> None:
    ratings = made_up(seed)
    rows = [(item, rater, label) for item, given in ratings.items() for rater, label in given.items()]
    frame = pandas.DataFrame(rows, columns=["task", "worker", "label"])
    assert krippendorff_alpha(ratings, resamples=1).value == pytest.approx(alpha_krippendorff(frame))

    def squared(a: Any, b: Any) -> float:
        return float(a - b) ** 2

    assert krippendorff_alpha(ratings, "interval", resamples=1).value == pytest.approx(
        alpha_krippendorff(frame, distance=squared)
    )


def test_two_raters_without_gaps_relate_as_they_must() -> None:
    """For two raters, 2n ratings and Scott's pi: alpha = 1 - (1 - 1/2n)(1 - pi), and Fleiss' kappa is Scott's pi."""
    ratings = made_up(3, raters=2, missing=0)
    alpha, pi = krippendorff_alpha(ratings).value, fleiss_kappa(ratings).value
    assert alpha is not None
    assert pi is not None
    assert 1 - alpha == pytest.approx((1 - 1 / (2 * len(ratings))) * (1 - pi))


@pytest.mark.parametrize("measure", [krippendorff_alpha, fleiss_kappa, raw_agreement])
def test_order_and_names_do_not_matter(measure: Any) -> None:
    ratings = made_up(1)
    items = list(ratings)
    random.Random(0).shuffle(items)
    names = {0: "tie", 1: "left", 2: "right", 3: "none"}
    renamed = {
        f"task {item}": {f"person {9 - rater}": names[label] for rater, label in reversed(ratings[item].items())}
        for item in items
    }
    assert measure(renamed).value == pytest.approx(measure(ratings).value)


def test_interval_scale_is_free_of_unit_and_origin_and_ordinal_of_any_growing_change() -> None:
    ratings = made_up(2)

    def changed(by: Any) -> Ratings:
        return {item: {rater: by(label) for rater, label in given.items()} for item, given in ratings.items()}

    interval, ordinal = krippendorff_alpha(ratings, "interval").value, krippendorff_alpha(ratings, "ordinal").value
    assert krippendorff_alpha(changed(lambda x: 3 * x - 7), "interval").value == pytest.approx(interval)
    assert krippendorff_alpha(changed(lambda x: x**3), "interval").value != pytest.approx(interval)
    assert krippendorff_alpha(changed(lambda x: x**3), "ordinal").value == pytest.approx(ordinal)


def test_full_agreement_is_one_and_constant_opposition_is_below_chance() -> None:
    same = table("abcabc", "abcabc")
    opposed = table("ababab", "bababa")
    for measure in (krippendorff_alpha, fleiss_kappa, raw_agreement):
        assert measure(same).value == pytest.approx(1)
    assert fleiss_kappa(opposed).value == pytest.approx(-1)
    assert raw_agreement(opposed).value == 0


def test_guessing_is_about_zero_and_the_interval_says_so() -> None:
    rng = random.Random(0)
    ratings: Ratings = {item: {rater: rng.choice("abt") for rater in range(3)} for item in range(400)}
    for measure in (krippendorff_alpha, fleiss_kappa):
        estimate = measure(ratings)
        assert abs(estimate.value or 0) < 0.05
        assert estimate.low < 0 < estimate.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = krippendorff_alpha(made_up(99, items=20_000), resamples=1).value
    intervals = [krippendorff_alpha(made_up(seed, items=80), resamples=200) for seed in range(100)]
    covered = sum(e.low <= truth <= e.high for e in intervals if e.low is not None and e.high is not None)
    assert 88 <= covered <= 99


def test_items_of_a_group_are_drawn_together() -> None:
    """Ten copies of each item say no more than one; drawn one by one they would look ten times as good."""
    ratings = made_up(5, items=40)
    copies: Ratings = {(item, copy): given for item, given in ratings.items() for copy in range(10)}
    groups = {key: key[0] for key in copies}

    def width(estimate: Any) -> float:
        return estimate.high - estimate.low

    once, grouped, loose = (
        fleiss_kappa(ratings),
        fleiss_kappa(copies, groups=groups),
        fleiss_kappa(copies),
    )
    assert grouped.value == pytest.approx(once.value) == loose.value
    assert width(grouped) == pytest.approx(width(once), rel=0.15)
    assert width(loose) < width(once) / 2
    pairs = [(given[0], given[1]) for given in ratings.values() if {0, 1} <= given.keys()]
    ten = [pair for pair in pairs for _ in range(10)]
    of = [n for n in range(len(pairs)) for _ in range(10)]
    once, grouped, loose = cohen_kappa(pairs), cohen_kappa(ten, groups=of), cohen_kappa(ten)
    assert grouped.value == pytest.approx(once.value) == loose.value
    assert width(grouped) == pytest.approx(width(once), rel=0.15)
    assert width(loose) < width(once) / 2
    assert cohen_kappas(copies, groups=groups)[0, 1] == cohen_kappa(ten, groups=of)


@pytest.mark.parametrize("measure", [krippendorff_alpha, fleiss_kappa, raw_agreement])
@pytest.mark.parametrize(
    ("ratings", "why"),
    [
        ({}, NO_RATINGS),
        ({1: {}}, NO_RATINGS),
        ({1: {"ann": "a"}, 2: {"ann": "b"}}, ONE_RATER),
        ({1: {"ann": "a"}, 2: {"bob": "b"}}, NO_OVERLAP),
    ],
)
def test_where_nothing_can_be_compared_it_says_why(measure: Any, ratings: Mapping[Any, Any], why: str) -> None:
    estimate = measure(ratings)
    assert (estimate.value, estimate.low, estimate.high, estimate.n, estimate.why) == (None, None, None, 0, why)


def test_one_category_is_undefined_beyond_chance_and_full_raw_agreement() -> None:
    ratings = table("aaa", "aaa")
    assert krippendorff_alpha(ratings).why == fleiss_kappa(ratings).why == ONE_CATEGORY
    assert cohen_kappa([("a", "a")] * 3).why == ONE_CATEGORY
    assert krippendorff_alpha(ratings, "ordinal").why == ONE_CATEGORY
    assert raw_agreement(ratings).value == 1


def test_one_item_has_a_value_and_no_interval() -> None:
    estimate = raw_agreement({1: {"ann": "a", "bob": "b"}})
    assert (estimate.value, estimate.low, estimate.n) == (0, None, 1)
    assert cohen_kappa([]).why == NO_OVERLAP


def test_two_groups_have_an_interval_and_one_has_none() -> None:
    ratings: Ratings = {1: {"ann": "a", "bob": "a"}, 2: {"ann": "a", "bob": "b"}}
    estimate = raw_agreement(ratings, groups={1: "x", 2: "y"})
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0, 1)
    assert raw_agreement(ratings, groups={1: "x", 2: "x"}).low is None


def test_kappas_of_every_two_raters() -> None:
    ratings = table("aabb", "abab", "a...")
    found = cohen_kappas(ratings)
    assert set(found) == {(0, 1)}, "the third shares one item with each"
    assert found[(0, 1)].value == pytest.approx(0)
    assert set(cohen_kappas(ratings, at_least=1)) == {(0, 1), (0, 2), (1, 2)}
    assert set(cohen_kappas(ratings, at_least=1, most=1)) == {(0, 1)}, "those who share most"


def test_labels_of_several_kinds_can_stand_beside_each_other() -> None:
    ratings: Ratings = {1: {"ann": 7, "bob": "tie"}, 2: {"ann": 7, "bob": 7}, 3: {"ann": "tie", "bob": "tie"}}
    assert raw_agreement(ratings).value == pytest.approx(2 / 3)


def test_the_same_seed_gives_the_same_interval() -> None:
    ratings = made_up(0)
    assert krippendorff_alpha(ratings, seed=4) == krippendorff_alpha(ratings, seed=4)
    assert krippendorff_alpha(ratings, seed=4) != krippendorff_alpha(ratings, seed=5)
    assert krippendorff_alpha(ratings).to_json().keys() == {"value", "low", "high", "n", "why"}
