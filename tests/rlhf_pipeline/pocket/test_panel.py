"""Simulated annotators: the closed form worked by hand, and statistics that show each one's skill and bias."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from rlhf_pipeline.pocket.annotators import PANEL, SimulatedAnnotator


def test_probabilities_worked_by_hand() -> None:
    one = SimulatedAnnotator("one", skill=2.0, position_bias=0.5, length_bias=1.0, tie_width=0.25, lapse=0.1)
    # d = 2 x (5 - 4) + 1 x (10 - 30) / 10 + 0.5 = 0.5; P(a) = sigmoid(0.25), P(b) = sigmoid(-0.75)
    chances = one.probabilities(5.0, 4.0, 10, 30)
    first, second = 1 / (1 + math.exp(-0.25)), 1 / (1 + math.exp(0.75))
    assert chances["a"] == pytest.approx(0.9 * first + 0.05)
    assert chances["b"] == pytest.approx(0.9 * second + 0.05)
    assert chances["tie"] == pytest.approx(0.9 * (1 - first - second))
    assert chances["both_bad"] == 0.0


def test_probabilities_sum_to_one_and_survive_great_differences() -> None:
    for annotator in PANEL.values():
        for gold_a in (None, -2.0, 5.0, 1000.0):
            assert sum(annotator.probabilities(gold_a, 5.0, 10, 20).values()) == pytest.approx(1.0)


def test_a_tie_of_two_bad_responses_is_both_bad() -> None:
    one = SimulatedAnnotator("one", skill=1.0, tie_width=5.0, bad_below=3.0)
    assert one.probabilities(1.0, 2.0, 5, 5)["tie"] == 0 < one.probabilities(1.0, 2.0, 5, 5)["both_bad"]
    assert one.probabilities(1.0, 4.0, 5, 5)["both_bad"] == 0 < one.probabilities(1.0, 4.0, 5, 5)["tie"]


def test_an_unreadable_response_is_worse_than_a_bad_one() -> None:
    assert PANEL["Ada the expert"].probabilities(0.0, None, 5, 5)["a"] > 0.9


def _judgements(annotator: SimulatedAnnotator, seed: int) -> list[tuple[float, float, int, int, str]]:
    rng = random.Random(seed)
    rows = []
    for _ in range(3000):
        gold_a, gold_b = rng.gauss(6, 2), rng.gauss(6, 2)
        length_a, length_b = rng.randint(5, 60), rng.randint(5, 60)
        rows.append((gold_a, gold_b, length_a, length_b, annotator.judge(rng, gold_a, gold_b, length_a, length_b)))
    return rows


def _accuracy(annotator: SimulatedAnnotator) -> float:
    decided = [row for row in _judgements(annotator, 1) if row[4] in ("a", "b")]
    return sum((row[4] == "a") == (row[0] > row[1]) for row in decided) / len(decided)


def test_skill_orders_the_panel() -> None:
    accuracy = {name: _accuracy(annotator) for name, annotator in PANEL.items()}
    assert accuracy["Ada the expert"] > 0.9
    assert accuracy["Ada the expert"] > accuracy["Bruno the steady"] > accuracy["Carla the careless"] > 0.6
    assert accuracy["Finn the contrarian"] < 0.25


def test_biases_show_in_the_statistics() -> None:
    def share(name: str, hit: str) -> float:
        decided = [row for row in _judgements(PANEL[name], 2) if row[4] in ("a", "b")]
        if hit == "left":
            return sum(row[4] == "a" for row in decided) / len(decided)
        return sum((row[4] == "a") == (row[2] > row[3]) for row in decided) / len(decided)

    assert share("Dimitri who likes the left", "left") > 0.6
    assert share("Ada the expert", "left") == pytest.approx(0.5, abs=0.04)
    assert share("Esi who likes it long", "longer") > 0.6
    assert share("Ada the expert", "longer") == pytest.approx(0.5, abs=0.04)


def test_wider_ties_and_the_same_random_state() -> None:
    wide, narrow = SimulatedAnnotator("w", 1.0, tie_width=1.0), SimulatedAnnotator("n", 1.0, tie_width=0.0)
    counts = [Counter(row[4] for row in _judgements(one, 3)) for one in (wide, narrow)]
    assert counts[0]["tie"] > 300
    assert counts[1]["tie"] == 0
    assert _judgements(wide, 4) == _judgements(wide, 4)


def test_how_well_people_see_a_broken_rule_by_hand() -> None:
    one = SimulatedAnnotator("one", skill=0.5, lapse=0.2)
    right = 0.8 / (1 + math.exp(-1.0)) + 0.1
    for broken in (True, False):
        rng = random.Random(1)
        share = sum(one.says_broken(rng, broken) == broken for _ in range(20_000)) / 20_000
        assert share == pytest.approx(right, abs=0.01)
