"""The report on preferences: counted by hand, on data with planted faults."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlhf_pipeline.metrics import wilson_interval
from rlhf_pipeline.preference_report import components, effective_number, preference_report
from rlhf_pipeline.records import Message, Preference, Prompt


def pref(chosen: str, rejected: str, prompt: str = "q", **rest: Any) -> Preference:
    return Preference(Prompt((Message("user", prompt),)), chosen, rejected, **rest)


def votes(*said: tuple[str, str, str]) -> dict[str, Any]:
    return {"judgements": [{"who": who, "says": says, "shown_first": first} for who, says, first in said]}


def test_what_is_counted_apart() -> None:
    report = preference_report(
        [
            pref("a", "b"),
            pref("a", "c", probability=0.5, tie=True),
            pref("new", "b", "r", meta={"correction": True}),
            pref("x", "y", "s", weak=True, source="weak"),
            pref("y", "x", "s", weak=True, source="weak"),
            pref("x", "z", "s", weak=True, source="self_training"),
        ]
    )
    assert (report.judged, report.ties, report.corrections, report.prompts) == (2, 1, 1, 2)
    assert report.weak == {"weak": 2, "self_training": 1}
    assert (report.duplicates, report.contradictions, report.longer_wins.n) == (0, 0, 1)
    assert report.sentences()[-2:] == [
        "2 pairs were labelled by no judge (weak)",
        "1 pair was labelled by no judge (self_training)",
    ]


def test_duplicates_and_contradictions_whatever_their_case_and_spacing() -> None:
    report = preference_report(
        [pref("Yes.", "no"), pref("yes. ", "NO"), pref("no", "yes.", " Q "), pref("yes.", "no", "other")]
    )
    assert (report.duplicates, report.contradictions, report.cycles) == (2, 1, 0)
    assert {"2 pairs stand more than once", "1 pair was decided both ways"} <= set(report.sentences())


def test_cycles_are_counted_by_prompt() -> None:
    ring = [pref("a", "b"), pref("b", "c"), pref("c", "a"), pref("a", "d")]
    assert (preference_report(ring).cycles, preference_report(ring).in_cycles) == (1, 3)
    assert preference_report([pref("a", "b"), pref("b", "c"), pref("c", "a", "other")]).cycles == 0
    both_ways = [pref("a", "b"), pref("b", "a"), pref("b", "c"), pref("c", "b")]
    assert (preference_report(both_ways).cycles, preference_report(both_ways).contradictions) == (0, 2)
    assert "1 set of responses has no best one: 3 decisions go round in circles" in preference_report(ring).sentences()


def test_components_by_hand() -> None:
    graph: dict[Any, list[Any]] = {1: [2], 2: [3], 3: [1, 4], 4: [5], 5: [4], 6: [5, 6], 7: []}
    assert sorted(sorted(found) for found in components(graph)) == [[1, 2, 3], [4, 5], [6], [7]]
    chain: dict[Any, list[Any]] = {n: [n + 1] for n in range(5000)} | {5000: [0]}
    assert len(components(chain)) == 1  # deeper than Python's stack


def test_lengths_and_sides_with_their_intervals() -> None:
    rows = [pref("long" * n, "s", meta=votes(("u", "chosen", "chosen"), ("v", "tie", "chosen"))) for n in range(1, 21)]
    report = preference_report([*rows, pref("s", "long"), pref("same", "size")])
    assert (report.longer_wins.hits, report.longer_wins.n) == (20, 21)
    assert (report.longer_wins.low, report.longer_wins.high) == pytest.approx(wilson_interval(20, 21))
    assert (report.first_shown_wins.hits, report.first_shown_wins.n) == (20, 20)
    said = " ".join(report.sentences())
    assert "the longer response wins: longer in 95% (95 %: 77% to 99%) of 21" in said
    assert "one side is liked: what was shown first won 100%" in said


def test_agreement_is_of_responses_not_of_sides_or_outcomes() -> None:
    """Who chose what came out as rejected disagrees with who chose the other; which is named first does not matter."""
    rows = [
        pref("a", "b", meta=votes(("u", "chosen", "chosen"), ("v", "chosen", "rejected"))),
        pref("d", "c", meta=votes(("u", "chosen", "rejected"), ("v", "rejected", "rejected"))),
        pref("e", "f", meta=votes(("u", "tie", "chosen"), ("v", "tie", "chosen"))),
        pref("g", "h", meta=votes(("u", "chosen", "chosen"))),
    ]
    report = preference_report(rows)
    assert (report.agreement.value, report.agreement.n) == (pytest.approx(2 / 3), 3)
    assert report.alpha.value is not None
    alone = preference_report(rows[3:])
    assert alone.agreement.value is None
    assert alone.agreement.why


def test_effective_number() -> None:
    assert effective_number([1, 1, 1, 1]) == 4
    assert effective_number([2, 2]) == 2
    assert effective_number([3, 1]) == pytest.approx(1.6)
    assert effective_number([]) == effective_number([0.0]) == 0
    report = preference_report(
        [pref("a", "b", probability=0.75, weight=2.0), pref("c", "d"), pref("e", "f", weight=3.0)]
    )
    assert report.effective == pytest.approx((1 + 1 + 3) ** 2 / (1 + 1 + 9))


def test_prompts_that_are_on_both_sides_but_for_punctuation() -> None:
    rows = [
        pref("a", "b", "How are you?"),
        pref("a", "b", "how are  you"),
        pref("a", "b", "Else"),
        pref("a", "b", "!?"),
    ]
    report = preference_report(rows, is_held_out=lambda p: p.messages[0].content in ("how are  you", "Else", "!?"))
    assert (report.held_out, report.leaks, report.leaked) == (3, 1, ("how are you",))
    assert any("1 of 3 held-out prompts are on the training side" in said for said in report.sentences())
    assert preference_report(rows).leaks == 0


def test_it_is_json_and_nothing_is_not_much() -> None:
    empty = preference_report([])
    assert json.loads(json.dumps(empty.to_json()))["judged"] == 0
    assert empty.sentences() == ["0 decided pairs of 0 prompts count as 0 of equal weight"]
