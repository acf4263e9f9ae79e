"""What is said of a reward model: accuracies, ceilings and slices by hand, and a sentence for every gate."""

from __future__ import annotations

import random
from typing import Any

import pytest
from scipy.stats import spearmanr

from rlhf_pipeline import reward_evaluation as evaluation
from rlhf_pipeline.reward_evaluation import ScoredPair, Share


def pair(chosen: float, rejected: float, lengths: tuple[int, int] = (5, 5), **more: Any) -> ScoredPair:
    return ScoredPair(chosen, rejected, *lengths, **more)


def test_accuracy_and_length_by_hand() -> None:
    pairs = [
        pair(2.0, 1.0, (5, 4)),  # right; longer wins
        pair(1.0, 0.0, (2, 4)),  # right; shorter wins
        pair(0.0, 3.0, (3, 7)),  # wrong; shorter wins
        pair(0.5, 0.5, (3, 3)),  # tied; of one length
    ]
    right, length = evaluation.accuracy(pairs), evaluation.length_baseline(pairs)
    assert right.value == 2.5 / 4
    assert right.low < right.value < right.high
    assert (length.longer_wins, length.share.value) == (False, 2.5 / 4)
    turned = [pair(p.chosen, p.rejected, (p.rejected_length, p.chosen_length)) for p in pairs]
    assert evaluation.length_baseline(turned).longer_wins


def test_agreement_ceiling_by_hand() -> None:
    # Two judges who are each right in 0.9 agree in 0.9² + 0.1² = 0.82.
    one = evaluation.agreement_ceiling(0.82, 1000, [1, 1])
    assert one is not None
    assert one.value == pytest.approx(0.9)
    assert one.low < 0.9 < one.high
    three = evaluation.agreement_ceiling(0.82, 1000, [3])
    assert three is not None
    assert three.value == pytest.approx(0.9**3 + 3 * 0.9**2 * 0.1)
    two = evaluation.agreement_ceiling(0.82, 1000, [2])
    assert two is not None
    assert two.value == pytest.approx(0.81 / 0.82), "of two, those who agree"
    mixed = evaluation.agreement_ceiling(0.82, 1000, [1, 3])
    assert mixed is not None
    assert mixed.value == pytest.approx((one.value + three.value) / 2)


def test_agreement_ceiling_in_a_simulation() -> None:
    lots = random.Random(0)
    right = agree = both = 0
    for _ in range(20_000):
        votes = [lots.random() < 0.8 for _ in range(5)]
        right += sum(votes) >= 3
        agree += sum(votes[i] == votes[j] for i in range(5) for j in range(i))
        both += 10
    ceiling = evaluation.agreement_ceiling(agree / both, both, [5])
    assert ceiling is not None
    assert ceiling.value == pytest.approx(right / 20_000, abs=0.01)


def test_no_ceiling_where_nothing_was_judged_twice_or_people_agree_like_coins() -> None:
    assert evaluation.agreement_ceiling(0.9, 0, [1]) is None
    assert evaluation.agreement_ceiling(0.5, 100, [1]) is None
    assert evaluation.agreement_ceiling(0.9, 100, []) is None


def test_slices_add_up_and_say_what_they_are() -> None:
    pairs = [
        pair(1, 0, (9, 3), judgements=3, probability=1.0, margin=1.0, source="a", group="x"),
        pair(0, 1, (3, 9), judgements=3, probability=2 / 3, margin=2.0, source="a", group="y"),
        pair(1, 0, (5, 5), judgements=1, margin=2.0, source="b", group="y"),
        pair(1, 0, (5, 6), judgements=4, probability=0.75, source="b", group="y"),
    ]
    rows = {(row["by"], row["name"]): (row["value"], row["pairs"]) for row in evaluation.slices(pairs)}
    assert rows["length", "chosen much longer"] == (1, 1)
    assert rows["length", "chosen much shorter"] == (0, 1)
    assert rows["length", "of like length"] == (1, 2)
    assert rows["agreement", "all agree"] == (1, 1)
    assert rows["agreement", "most agree"] == (1, 1)
    assert rows["agreement", "divided"] == (0, 1)
    assert rows["judgements", "2 or 3"] == (0.5, 2)
    assert rows["strength", "2"] == (0.5, 2)
    assert rows["source", "a"] == (0.5, 2)
    assert rows["group", "y"] == (2 / 3, 3)
    for by in ("length", "source", "group", "judgements"):
        assert sum(count for (of, _), (_, count) in rows.items() if of == by) == 4
    assert evaluation.slices([pair(1, 0), pair(0, 1)]) == [], "one part is no slice"


def test_many_margins_come_in_thirds_and_many_groups_as_others() -> None:
    pairs = [pair(1, 0, margin=float(i), group=f"g{i}") for i in range(30)]
    rows = evaluation.slices(pairs)
    assert {row["name"]: row["pairs"] for row in rows if row["by"] == "strength"} == {
        "small": 10, "middle": 10, "large": 10,
    }  # fmt: skip
    groups = [row for row in rows if row["by"] == "group"]
    assert len(groups) == 13
    assert (groups[-1]["name"], groups[-1]["pairs"]) == ("others", 18)


def test_distribution_counts_everything() -> None:
    pairs = [pair(float(i), -float(i)) for i in range(1, 11)]
    found = evaluation.distribution(pairs)
    assert sum(found["chosen"]["counts"]) == sum(found["rejected"]["counts"]) == 10
    assert found["chosen"]["mean"] == -found["rejected"]["mean"] == 5.5
    assert found["chosen"]["quantiles"]["0.5"] == 5.5
    assert (found["edges"][0], found["edges"][-1]) == (-10, 10)


def test_spearman_is_scipys_and_length_is_taken_within_pairs() -> None:
    lots = random.Random(2)
    x, y = [lots.randrange(9) for _ in range(50)], [lots.randrange(9) for _ in range(50)]
    assert evaluation.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert evaluation.spearman([1, 1], [1, 2]) is None
    # Longer prompts' responses score lower, but of each pair the longer one scores higher.
    pairs = [pair(-10.0 * i + 1, -10.0 * i, (10 * i + 9, 10 * i + 1)) for i in range(20)]
    pairs += [pair(-10.0 * i, -10.0 * i + 1, (10 * i + 1, 10 * i + 9)) for i in range(20)]
    found = evaluation.length_correlation(pairs)
    assert found["all"] is not None
    assert found["all"] < -0.9
    assert found["within_pairs"] == pytest.approx(1)


def test_sensitivity_by_hand() -> None:
    row = evaluation.sensitivity("spaces", [1.0, -1.0, 3.0, -3.0], [2.0, 1.0, 3.0, 0.0])
    assert row["value"] == 2 / 4, "one changed its sign, one became a tie"
    assert row["shift"] == pytest.approx((1 + 2 + 0 + 3) / 4 / 5**0.5)
    assert evaluation.sensitivity("none", [1.0], [1.0])["value"] == 0


def test_rewardbench_sections() -> None:
    code = {f"hep-{name}": Share(0.5, 0, 1, 164) for name in ("cpp", "go", "java", "js", "python", "rust")}
    found = evaluation.rewardbench_sections(
        {**code, "math-prm": Share(0.9, 0, 1, 447), "donotanswer": Share(1, 0, 1, 9)}
    )
    assert found == {"Reasoning": pytest.approx(0.7)}, "mathematics as much as code; safety is not complete"


NEVER_WRONG = {
    "error": 0.48, "chance_error": 0.06, "temperature": None,
    "bins": [{"pairs": 30, "confidence": 0.52, "accuracy": 1.0}],
}  # fmt: skip


def measured(**changes: Any) -> dict[str, Any]:
    good = {
        "accuracy": {"value": 0.8, "low": 0.75, "high": 0.85, "pairs": 300},
        "length_baseline": {"value": 0.6, "direction": "longer"},
        "calibration": {"error": 0.03, "chance_error": 0.06, "temperature": 1.1},
        "sensitivity": [{"variant": "two spaces", "value": 0.01, "low": 0.0, "high": 0.03, "pairs": 200}],
    }
    return {**good, **changes}


@pytest.mark.parametrize(
    ("changes", "gates", "words"),
    [
        ({}, [], ""),
        ({"accuracy": {"value": 0.53, "low": 0.47, "high": 0.6, "pairs": 300}}, ["chance"], "from guessing on 300"),
        ({"length_baseline": {"value": 0.76, "direction": "shorter"}}, ["length"], "the shorter response (76.0%"),
        ({"calibration": {"error": 0.2, "chance_error": 0.06, "temperature": 2.5}}, ["calibration"], "too sure"),
        ({"calibration": {"error": 0.2, "chance_error": 0.06, "temperature": 0.5}}, ["calibration"], "too unsure"),
        ({"calibration": NEVER_WRONG}, ["calibration"], "too unsure of itself"),
        ({"calibration": {"error": 0.2, "chance_error": 0.3, "temperature": 2.5}}, [], ""),
        ({"sensitivity": [{"variant": "two spaces", "value": 0.2, "low": 0.12}]}, ["template"], "two spaces (20.0%)"),
    ],
)  # fmt: skip
def test_gates(changes: dict[str, Any], gates: list[str], words: str) -> None:
    found = evaluation.warnings(measured(**changes))
    assert [one["gate"] for one in found] == gates
    assert all(words in one["sentence"] for one in found)
