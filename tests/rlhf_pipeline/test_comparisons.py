from __future__ import annotations

import pytest

from rlhf_pipeline.comparisons import best, compared, decided, shown_ends, signed
from rlhf_pipeline.store.forms import is_right
from rlhf_pipeline.store.records import Gold
from tests.rlhf_pipeline.made_up_round import said, task

PAIR = task(1, "one", "two")
THREE = task(1, "one", "two", "three")


@pytest.mark.parametrize(
    ("answer", "label"), [(1, "first"), (2, "second"), ("tie", "tie"), ("all_bad", "all_bad"), ("skip", None)]
)
def test_a_pair(answer: int | str, label: str | None) -> None:
    assert compared(PAIR, said(1, 1, "ann", answer)) == ({(1, 11, 12): label} if label else {})


def test_a_ranking_says_something_of_every_two() -> None:
    row = said(1, 1, "ann", "ranking", ranking=((13,), (11, 12)))
    assert compared(THREE, row) == {(1, 11, 12): "tie", (1, 11, 13): "second", (1, 12, 13): "second"}


def test_a_choice_of_three_leaves_the_other_two_open() -> None:
    assert compared(THREE, said(1, 1, "ann", 2)) == {(1, 11, 12): "second", (1, 12, 13): "first"}
    assert len(compared(THREE, said(1, 1, "ann", "all_bad"))) == 3


@pytest.mark.parametrize(
    ("label", "strength", "number"),
    [("first", 3, 3), ("second", 2, -2), ("tie", None, 0), ("all_bad", None, 0), ("first", None, 1)],
)
def test_strength_has_a_sign(label: str, strength: int | None, number: int) -> None:
    assert signed(label, strength) == number


def test_what_a_judgement_comes_down_to() -> None:
    assert best(said(1, 1, "ann", 2)) == ("response", {12})
    assert best(said(1, 1, "ann", "tie")) == ("tie", set())
    assert best(said(1, 1, "ann", "ranking", ranking=((13, 11), (12,)))) == ("response", {11, 13})


@pytest.mark.parametrize(
    ("row", "gold", "right"),
    [
        (said(1, 1, "ann", 2), Gold("response", 12), True),
        (said(1, 1, "ann", 1), Gold("response", 12), False),
        (said(1, 1, "ann", "tie"), Gold("response", 12), False),
        (said(1, 1, "ann", "tie"), Gold("tie"), True),
        (said(1, 1, "ann", "all_bad"), Gold("tie"), False),
        (said(1, 1, "ann", "ranking", ranking=((12,), (11, 13))), Gold("response", 12), True),
        (said(1, 1, "ann", "ranking", ranking=((12, 11), (13,))), Gold("response", 12), False),
        (said(1, 1, "ann", "ranking", ranking=((11, 12, 13),)), Gold("tie"), True),
        (said(1, 1, "ann", "ranking", ranking=((12, 11), (13,))), Gold("tie"), False),
    ],
)
def test_right_or_wrong(row: object, gold: Gold, right: bool) -> None:
    assert is_right(gold, row) is right


def test_who_won_between_two() -> None:
    row = said(1, 1, "ann", "ranking", ranking=((13,), (11, 12)))
    assert decided(row, THREE, 11, 13) == decided(row, THREE, 13, 11) == (13, 11)
    assert decided(row, THREE, 12, 11) is None
    assert decided(said(1, 1, "ann", "skip"), PAIR, 11, 12) is None
    assert decided(said(1, 1, "ann", 1), PAIR, 12, 11) == (11, 12)


def test_what_was_shown_first_and_last() -> None:
    assert shown_ends(said(1, 1, "ann", 1, shown_order=(13, 11, 12)), THREE) == (13, 12)
    assert shown_ends(said(1, 1, "ann", 1, shown_order=(), left_id=12), PAIR) == (12, 11)
