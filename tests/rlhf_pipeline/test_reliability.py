"""Reliability against Dawid and Skene's own example, crowd-kit, planted annotators, and shares counted by hand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas
import pytest
from crowdkit.aggregation import DawidSkene as CrowdKit

from rlhf_pipeline.metrics import wilson_interval
from rlhf_pipeline.reliability import (
    DawidSkene,
    count_words,
    dawid_skene,
    length_bias,
    median_seconds,
    position_bias,
    proportion,
    self_agreement,
    too_fast,
)

Labels = list[tuple[Any, Any, Any]]

# Dawid & Skene, 1979, table 1: 45 patients, the first anaesthetist's three assessments, then those of four others.
ANAESTHETISTS = """
111 1 1 1 1  333 4 3 3 4  112 2 1 2 2  222 3 1 2 1  222 3 2 2 2  222 3 3 2 2  122 2 1 1 1  333 3 4 3 3  222 2 2 2 3
232 2 2 2 3  444 4 4 4 4  222 3 3 4 3  111 1 1 1 1  222 3 2 1 2  121 1 1 1 1  111 2 1 1 1  111 1 1 1 1  111 1 1 1 1
222 2 2 2 1  222 1 3 2 2  222 2 2 2 2  222 2 2 2 1  222 3 2 2 2  221 2 2 2 2  111 1 1 1 1  111 1 1 1 1  232 2 2 2 2
111 1 1 1 1  111 1 1 1 1  112 1 1 2 1  111 1 1 1 1  333 3 2 3 3  111 1 1 1 1  222 2 2 2 2  222 3 2 3 2  433 4 3 4 3
221 2 2 3 2  232 3 2 3 3  333 3 4 3 2  111 1 1 1 1  111 1 1 1 1  121 2 1 1 1  232 2 2 2 2  121 1 1 1 1  222 2 2 2 2
"""
SKILLS = {"ann": 0.95, "bob": 0.85, "cem": 0.75, "dan": 0.65, "eve": 0.5}
"""How often each says the truth about a pair; besides them there is "left", who always says left."""


def anaesthetists() -> Labels:
    rows = [row.split() for line in ANAESTHETISTS.strip().splitlines() for row in line.split("  ")]
    return [
        (patient, observer, int(sign))
        for patient, row in enumerate(rows, 1)
        for observer, signs in enumerate(row, 1)
        for sign in signs
    ]


def planted(seed: int, *, items: int = 300, each: int = 4) -> Labels:
    """Pairs that ``each`` of six people judge; the sides are shuffled, so that saying left is guessing."""
    rng = random.Random(seed)
    labels: Labels = []
    for item in range(items):
        truth, other = rng.sample(["first", "second"], 2)
        for name in rng.sample([*SKILLS, "left"], each):
            skill = 0.5 if name == "left" else SKILLS[name]
            labels.append((item, name, truth if rng.random() < skill else other))
    return labels


def frame(labels: Labels) -> pandas.DataFrame:
    return pandas.DataFrame(labels, columns=["task", "worker", "label"])


def test_the_anaesthetists_of_the_paper() -> None:
    model = dawid_skene(anaesthetists())
    assert model.classes == (1, 2, 3, 4)
    assert model.prior == pytest.approx([0.40, 0.42, 0.11, 0.07], abs=0.005)
    # Table 2, first observer.
    expected = [[0.89, 0.11, 0, 0], [0.07, 0.88, 0.05, 0], [0, 0.34, 0.66, 0], [0, 0, 0.56, 0.44]]
    assert model.skills[1].confusion == pytest.approx(np.array(expected), abs=0.005)
    assert (model.skills[1].n, model.skills[2].n) == (135, 45)
    assert model.posteriors[11] == pytest.approx([0, 0, 0, 1], abs=1e-6)
    assert model.posteriors[1] == pytest.approx([1, 0, 0, 0], abs=1e-3)
    assert model.iterations < 100


def scattered(seed: int) -> Labels:
    """A few labels at random: raters without overlap, classes that some never meet."""
    rng = random.Random(seed)
    items = rng.choice((3, 6, 12))
    return [(item, rater, rng.choice("abcd")) for item in range(items) for rater in range(6) if rng.random() < 0.4]


CASES = {"paper": anaesthetists(), "four": planted(0), "three": planted(1, each=3)} | {
    f"scattered {seed}": scattered(seed) for seed in range(6)
}


@pytest.mark.parametrize("labels", CASES.values(), ids=CASES)
@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_posteriors_equal_crowd_kits(labels: Labels, iterations: int) -> None:
    oracle = CrowdKit(n_iter=iterations, tol=-float("inf")).fit_predict_proba(frame(labels))
    model = dawid_skene(labels, iterations=iterations, tolerance=0.0)
    ours = np.array([model.posteriors[task] for task in oracle.index])
    assert ours == pytest.approx(oracle[list(model.classes)].to_numpy(), abs=1e-6)


def test_each_step_of_em_raises_the_likelihood() -> None:
    labels = planted(2)
    steps = [dawid_skene(labels, iterations=n, tolerance=0.0).log_likelihood for n in range(1, 30)]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(steps))
    assert steps[-1] > steps[0]


def test_the_likelihood_by_hand() -> None:
    """Two raters agree on two items: either class has probability 1/2, and given it the labels are certain."""
    model = dawid_skene([(1, "ann", "a"), (1, "bob", "a"), (2, "ann", "b"), (2, "bob", "b")])
    assert model.log_likelihood == pytest.approx(2 * np.log(0.5))
    assert model.skills["ann"].right == pytest.approx(1)
    assert model.skills["ann"].chance == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(5))
def test_planted_annotators_are_ranked_right(seed: int) -> None:
    model = dawid_skene(planted(seed, items=1000), smoothing=1.0)
    found = {name: skill.right for name, skill in model.skills.items()}
    assert sorted(SKILLS, key=lambda name: -found[name]) == list(SKILLS)
    for name, skill in SKILLS.items():
        assert found[name] == pytest.approx(skill, abs=0.06)
    assert found["left"] == pytest.approx(0.5, abs=0.06)
    assert model.skills["left"].chance == pytest.approx(0.5, abs=0.03)


def test_the_truth_is_found_more_often_than_by_majority() -> None:
    rng = random.Random(7)
    people = {"good": 0.95, "bad": 0.55, "worse": 0.55}
    labels = [
        (item, name, "right" if rng.random() < p else "wrong") for item in range(800) for name, p in people.items()
    ]
    model = dawid_skene(labels)
    right = model.classes.index("right")
    by_model = sum(p[right] > 0.5 for p in model.posteriors.values())
    votes = pandas.DataFrame(labels).groupby(0)[2].apply(lambda said: (said == "right").sum() >= 2).sum()
    assert by_model > votes


def same(a: DawidSkene, b: DawidSkene, names: dict[Any, Any], classes: dict[Any, Any]) -> None:
    column = [b.classes.index(classes[c]) for c in a.classes]
    for rater, skill in a.skills.items():
        other = b.skills[names[rater]]
        assert other.right == pytest.approx(skill.right, abs=1e-5)
        assert other.confusion[np.ix_(column, column)] == pytest.approx(skill.confusion, abs=1e-4)
    assert b.log_likelihood == pytest.approx(a.log_likelihood)


def test_order_and_names_do_not_matter() -> None:
    labels = anaesthetists()
    shuffled = random.Random(0).sample(labels, len(labels))
    classes = {1: "d", 2: "b", 3: "a", 4: "c"}
    renamed = [(f"patient {i}", f"observer {k}", classes[said]) for i, k, said in shuffled]
    same(dawid_skene(labels), dawid_skene(renamed), {k: f"observer {k}" for k in range(1, 6)}, classes)


@pytest.mark.parametrize(
    "labels",
    [
        [(1, "ann", "a")],
        [(1, "ann", "a"), (2, "ann", "b")],
        [(1, "ann", "a"), (1, "bob", "a")],
        [(1, "ann", "a"), (2, "bob", "b")],
    ],
    ids=["one label", "one rater", "one class", "no overlap"],
)
@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_little_to_go_by_gives_finite_numbers(labels: Labels, smoothing: float) -> None:
    model = dawid_skene(labels, smoothing=smoothing)
    for posterior in model.posteriors.values():
        assert posterior.sum() == pytest.approx(1)
    for skill in model.skills.values():
        assert 0 <= skill.right <= 1
        assert skill.confusion.sum(1) == pytest.approx(np.ones(len(model.classes)))
    assert np.isfinite(model.log_likelihood)


def test_nothing_at_all() -> None:
    assert dawid_skene([]).skills == {}


def test_many_labels_of_one_item_do_not_underflow() -> None:
    labels = [(item, rater, "ab"[item % 2]) for item in range(4) for rater in range(3000)]
    assert dawid_skene(labels, smoothing=1.0).posteriors[0] == pytest.approx([1, 0])


def test_smoothing_keeps_a_rater_of_one_label_from_certainty() -> None:
    labels = [*planted(3), (0, "new", "first")]
    assert dawid_skene(labels).skills["new"].confusion.max() == pytest.approx(1)
    assert dawid_skene(labels, smoothing=1.0).skills["new"].confusion.max() < 0.7


def test_a_proportion_has_wilsons_interval() -> None:
    found = proportion([True] * 8 + [False] * 2)
    assert (found.hits, found.n, found.value) == (8, 10, 0.8)
    assert (found.low, found.high) == wilson_interval(8, 10)
    assert not found.excludes(0.5)
    assert found.excludes(0.1)
    nothing = proportion([])
    assert (nothing.value, nothing.low, nothing.high) == (None, 0, 1)
    assert found.to_json()["value"] == 0.8


def test_position_bias_counts_wins_of_what_was_shown_first() -> None:
    found = position_bias([(0, 1), (0, 1), (1, 0), (0, 3), (2, 2)])
    assert (found.hits, found.n) == (3, 4)


def test_length_bias_leaves_equal_lengths_out() -> None:
    found = length_bias([(30, 10), (10, 30), (5, 5), (31, 30)])
    assert (found.hits, found.n) == (2, 3)


def test_self_agreement_counts_what_was_said_again() -> None:
    found = self_agreement([("a", "a"), ("a", "b"), ("tie", "tie")])
    assert (found.hits, found.n) == (2, 3)


@pytest.mark.parametrize(
    ("times", "expected"),
    [([1000, None, 3000], 2.0), ([4000], 4.0), ([1000, 2000, 9000], 2.0), ([None], None), ([], None)],
)
def test_median_seconds(times: Sequence[int | None], expected: float | None) -> None:
    assert median_seconds(times) == expected


def test_too_fast_is_faster_than_eight_words_a_second() -> None:
    found = too_fast([(9_999, 80), (10_000, 80), (None, 80), (500, 100)])
    assert (found.hits, found.n) == (2, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("two words", 2),
        ("don't  stop, now!", 4),
        ("سلام دنیا", 2),
        ("你好世界", 2),
        ("ok 你好", 2),
        ("", 0),
        (" \n", 0),
    ],
)
def test_words_of_several_scripts(text: str, words: float) -> None:
    assert count_words(text) == words
