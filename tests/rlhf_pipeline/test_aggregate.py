from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlhf_pipeline.aggregate import Counting, aggregate, demonstrations, raw_agreement
from rlhf_pipeline.records import Message, Preference, Prompt
from rlhf_pipeline.store.records import Gold, JudgementRow, Purpose, StoredResponse, TaskRow

A, B = 1, 2


def task(id_: int = 1) -> TaskRow:
    responses = (StoredResponse(id_ * 10 + A, "short", None, ""), StoredResponse(id_ * 10 + B, "much longer", None, ""))
    return TaskRow(id_, f"d{id_}", Prompt((Message("user", f"q{id_}"),)), responses, 1, 0, "open", {"origin": "x"})


def vote(user: int, choice: int | str, *, task_id: int = 1, sure: float | None = None, left: int = A) -> JudgementRow:
    response = task_id * 10 + choice if isinstance(choice, int) else None
    kind = "response" if isinstance(choice, int) else choice
    return JudgementRow(
        id=user + 100 * task_id,
        assignment_id=user + 100 * task_id,
        task_id=task_id,
        user_id=user,
        user=f"u{user}",
        choice=kind,  # type: ignore[arg-type]
        response_id=response,
        left_id=task_id * 10 + left,
        probability=sure,
        margin=2.0 * user if response else None,
        revision=1,
        late=False,
        received_at=0,
        active_ms=None,
    )


@pytest.mark.parametrize(
    ("votes", "chosen", "probability"),
    [
        ([vote(1, A)], "short", 1.0),
        ([vote(1, B), vote(2, B), vote(3, A)], "much longer", 2 / 3),
        ([vote(1, A), vote(2, "tie")], "short", 0.75),
        ([vote(1, A), vote(2, "all_bad")], "short", 0.75),
        ([vote(1, A), vote(2, "skip")], "short", 1.0),
        ([vote(1, A, sure=0.6)], "short", 0.6),
        ([vote(1, A, sure=0.6), vote(2, B, sure=0.9)], "much longer", 0.65),
    ],
)
def test_majority_and_share_by_hand(votes: list[JudgementRow], chosen: str, probability: float) -> None:
    [preference], _ = aggregate([task()], votes, source="people")
    assert (preference.chosen, preference.probability) == (chosen, pytest.approx(probability))
    assert preference.rejected == ({"short", "much longer"} - {chosen}).pop()
    assert preference.judgements == sum(v.choice != "skip" for v in votes)


@pytest.mark.parametrize(("choice", "cut"), [(A, (False, True)), (B, (True, False))])
def test_what_was_cut_off_stays_known(choice: int, cut: tuple[bool, bool]) -> None:
    one = task()
    responses = (replace(one.responses[0], finish="eos"), replace(one.responses[1], finish="length"))
    corrected = replace(vote(1, choice), correction="better", corrected_id=10 + B)
    found, _ = aggregate([replace(one, responses=responses)], [corrected], source="people")
    assert [(p.chosen_cut, p.rejected_cut) for p in found] == [cut, (False, True)]


@pytest.mark.parametrize("votes", [[vote(1, "tie")], [vote(1, A), vote(2, B)], [vote(1, A, sure=0.5)]])
def test_what_comes_out_even_is_kept_as_a_tie(votes: list[JudgementRow]) -> None:
    [tie], summary = aggregate([task()], votes, source="people")
    assert (tie.tie, tie.probability, tie.margin, tie.chosen, tie.rejected) == (True, 0.5, None, "short", "much longer")
    assert (summary.pairs, summary.ties, summary.preferences, summary.judgements) == (1, 1, 0, len(votes))


def test_votes_and_margin_are_kept_with_the_preference() -> None:
    [preference], _ = aggregate([task()], [vote(1, A), vote(2, A), vote(3, B), vote(4, "tie")], source="people")
    assert preference.meta["votes"] == {"chosen": 2, "rejected": 1, "tie": 1, "all_bad": 0, "skip": 0}
    assert preference.meta["origin"] == "x"
    assert not preference.tie
    assert preference.margin == pytest.approx(3.0)
    assert preference.source == "people"


def test_unjudged_and_skipped_pairs_are_no_preferences() -> None:
    preferences, summary = aggregate([task(1), task(2)], [vote(1, "skip", task_id=2)], source="people")
    assert preferences == []
    assert (summary.pairs, summary.skipped, summary.judgements, summary.agreement) == (0, 1, 0, None)


def test_agreement_counts_pairs_of_judges() -> None:
    # Task 1: A A B → of three pairs one agrees. Task 2: tie tie → one of one. Task 3: one judge → none. Task 4: a tie
    # and "none is good" → none of one.
    rows = [vote(1, A), vote(2, A), vote(3, B), *(vote(u, "tie", task_id=2) for u in (1, 2)), vote(1, A, task_id=3)]
    rows += [vote(1, "tie", task_id=4), vote(2, "all_bad", task_id=4)]
    assert raw_agreement(rows) == (pytest.approx(0.4), 5)


def test_side_and_length_shares() -> None:
    rows = [vote(1, A, left=A), vote(2, A, left=B), vote(3, B, left=B), vote(4, B, left=B), vote(5, "tie")]
    _, summary = aggregate([task()], rows, source="people")
    assert (summary.left_share, summary.longer_share, summary.annotators) == (0.75, 0.5, 5)


# What counts


@pytest.mark.parametrize("purpose", ["gold", "repeat", "training"])
def test_only_what_was_given_to_be_judged_counts(purpose: Purpose) -> None:
    other = replace(vote(2, B), purpose=purpose)
    [preference], summary = aggregate([task()], [vote(1, A), other], source="people")
    assert (preference.chosen, preference.probability, preference.judgements) == ("short", 1.0, 1)
    assert (summary.judgements, summary.annotators, summary.agreement_pairs) == (1, 1, 0)
    assert aggregate([task()], [other], source="people")[0] == []


def test_late_work_counts() -> None:
    [preference], _ = aggregate([task()], [vote(1, A), replace(vote(2, A), late=True)], source="people")
    assert preference.judgements == 2


def decided(choice: int | str, id_: int = 900) -> JudgementRow:
    return replace(vote(9, choice), id=id_, purpose="adjudicate")


def test_an_admins_decision_takes_the_place_of_the_votes() -> None:
    votes = [vote(1, A), vote(2, A), vote(3, B), vote(4, "skip")]
    [preference], summary = aggregate([task()], [*votes, decided(B)], source="people")
    assert (preference.chosen, preference.probability, preference.judgements) == ("much longer", 1.0, 3)
    assert preference.meta["adjudicated"] is True
    assert preference.meta["votes"] == {"chosen": 1, "rejected": 2, "tie": 0, "all_bad": 0, "skip": 1}
    assert (summary.adjudicated, summary.judgements, summary.annotators) == (1, 3, 3)
    [last], _ = aggregate([task()], [*votes, decided(B), decided(A, 901)], source="people")
    assert last.chosen == "short"


@pytest.mark.parametrize(("choice", "counts"), [("tie", (1, 1, 0)), ("all_bad", (1, 1, 0)), ("skip", (0, 0, 1))])
def test_an_admin_may_decide_for_neither(choice: str, counts: tuple[int, int, int]) -> None:
    preferences, summary = aggregate([task()], [vote(1, A), decided(choice)], source="people")
    assert [p.tie for p in preferences] == [True] * counts[1]
    assert (summary.pairs, summary.ties, summary.skipped) == counts


# Rankings


def ranked(user: int, *groups: tuple[int, ...]) -> JudgementRow:
    return replace(vote(user, "ranking"), ranking=groups)


def three() -> TaskRow:
    responses = tuple(StoredResponse(i, text, None, "") for i, text in ((1, "one"), (2, "two"), (3, "three")))
    return TaskRow(1, "d1", Prompt((Message("user", "q"),)), responses, 1, 0, "open", {})


def pairs_of(*rows: JudgementRow) -> list[tuple[str, str, float]]:
    preferences, _ = aggregate([three()], rows, source="people")
    assert sum(p.weight for p in preferences) == pytest.approx(1.0)
    assert {p.meta["task"] for p in preferences} == {"d1"}
    return [(p.chosen, p.rejected, pytest.approx(p.probability)) for p in preferences]


def test_a_ranking_is_all_of_its_pairs() -> None:
    assert pairs_of(ranked(1, (3,), (1,), (2,))) == [("one", "two", 1.0), ("three", "one", 1.0), ("three", "two", 1.0)]


def test_equals_of_a_ranking_are_a_tie() -> None:
    preferences, summary = aggregate([three()], [ranked(1, (1, 2), (3,))], source="people")
    assert [(p.chosen, p.rejected, p.tie, p.weight) for p in preferences] == [
        ("one", "two", True, 1 / 3),
        ("one", "three", False, 1 / 3),
        ("two", "three", False, 1 / 3),
    ]
    assert (summary.pairs, summary.ties, summary.preferences) == (3, 1, 2)
    assert [p for _, _, p in pairs_of(ranked(1, (1, 2, 3)))] == [0.5] * 3


def test_rankings_of_several_people_are_votes_on_each_pair() -> None:
    # one before two: yes yes no; one before three: yes tie yes; two before three: yes no yes
    rows = [ranked(1, (1,), (2,), (3,)), ranked(2, (1, 3), (2,)), ranked(3, (2,), (1,), (3,))]
    assert pairs_of(*rows) == [("one", "two", 2 / 3), ("one", "three", 5 / 6), ("two", "three", 2 / 3)]
    [first, *_], _ = aggregate([three()], [*rows, replace(vote(4, "all_bad"))], source="people")
    assert first.meta["votes"] == {"chosen": 2, "rejected": 1, "tie": 0, "all_bad": 1, "skip": 0}
    assert first.probability == pytest.approx(2.5 / 4)


def test_rankings_agree_pair_by_pair() -> None:
    # of the three pairs the two people say the same of one before two and of one before three
    assert raw_agreement([ranked(1, (1,), (2,), (3,)), ranked(2, (1,), (3,), (2,))]) == (pytest.approx(2 / 3), 3)


def test_a_ranking_says_nothing_of_sides_and_lengths() -> None:
    _, summary = aggregate([three()], [ranked(1, (1,), (2,), (3,))], source="people")
    assert (summary.left_share, summary.longer_share, summary.judgements) == (None, None, 1)


# Corrections


def corrected(user: int, text: str, choice: int | str = "all_bad") -> JudgementRow:
    return replace(vote(user, choice), corrected_id=10 + A, correction=text)


def test_a_correction_is_better_than_the_original_and_a_demonstration() -> None:
    rows = [corrected(1, "right", B), corrected(2, "right", B), corrected(3, "also right"), vote(4, B)]
    rows.append(replace(corrected(5, "a test"), purpose="gold"))
    preferences, summary = aggregate([task()], rows, source="people")
    assert [(p.chosen, p.rejected, p.judgements, p.meta.get("correction")) for p in preferences] == [
        ("much longer", "short", 4, None),
        ("right", "short", 2, True),
        ("also right", "short", 1, True),
    ]
    assert (summary.preferences, summary.corrections, summary.pairs) == (1, 2, 1)
    assert [(d.prompt, d.response) for d in demonstrations([task()], rows)] == [
        (task().prompt, "right"),
        (task().prompt, "also right"),
    ]


# The votes themselves


def test_the_votes_stay_with_the_preference_under_other_names() -> None:
    rows = [
        replace(vote(1, A), shown_order=(10 + B, 10 + A), strength=2, late=True),
        vote(2, "tie"),
        vote(3, B, sure=0.9, left=B),
        replace(vote(4, "all_bad"), flags=("personal data",)),
        vote(5, "skip"),
    ]
    [preference], _ = aggregate([task()], rows, source="people", who=lambda name: f"<{name}>")
    assert preference.meta["judgements"] == [
        {"who": "<u1>", "says": "chosen", "shown_first": "rejected", "strength": 2, "late": True},
        {"who": "<u2>", "says": "tie", "shown_first": "chosen"},
        {"who": "<u3>", "says": "rejected", "shown_first": "rejected", "sure": 0.9},
        {"who": "<u4>", "says": "all_bad", "shown_first": "chosen", "flags": ["personal data"]},
    ]
    one, two, three_ = pairs_with_votes(ranked(1, (3,), (1, 2)))
    assert [p.meta["judgements"][0]["says"] for p in (one, two, three_)] == ["tie", "chosen", "chosen"]


def pairs_with_votes(*rows: JudgementRow) -> list[Preference]:
    return aggregate([three()], rows, source="people")[0]


def test_late_and_flagged_work_counts_by_rule() -> None:
    rows = [
        vote(1, A),
        replace(vote(2, B), late=True),
        vote(1, A, task_id=2),
        replace(vote(2, A, task_id=2), flags=("x",)),
    ]
    tasks = [task(1), task(2)]
    [first, second], summary = aggregate(tasks, rows, source="people")
    assert (first.tie, second.judgements, summary.late, summary.flagged) == (True, 2, 0, 0)
    [first, second], summary = aggregate(tasks, rows, source="people", counting=Counting(late=False))
    assert (first.tie, first.chosen, summary.late, summary.judgements) == (False, "short", 1, 3)
    [only], summary = aggregate(tasks, rows, source="people", counting=Counting(flagged=False))
    assert (only.prompt, summary.flagged, summary.pairs) == (task(1).prompt, 2, 1)


# Reliability


def panel(tasks: int = 40, known: int = 0) -> tuple[list[TaskRow], list[JudgementRow]]:
    """User 1 is right (the better response is A in even tasks), 2 says left, 3 says right; sides vary."""
    made, rows = [], []
    for id_ in range(1, tasks + 1):
        better, left = (A, B)[id_ % 2], (A, B)[id_ // 2 % 2]
        gold = Gold("response", id_ * 10 + better) if id_ <= known else None
        made.append(replace(task(id_), gold=gold))
        says = {1: better, 2: left, 3: A + B - left}
        rows += [vote(user, said, task_id=id_, left=left) for user, said in says.items()]
        rows += [vote(4, better, task_id=id_, left=left)] if id_ % 3 else []
    return made, rows


@pytest.mark.parametrize("rule", ["dawid_skene", "noisy_bradley_terry"])
def test_who_likes_a_side_counts_for_less(rule: Any) -> None:
    tasks, rows = panel()
    unsure, _ = aggregate(tasks, rows, source="people")
    sure, summary = aggregate(tasks, rows, source="people", counting=Counting(rule), who=lambda name: f"<{name}>")
    assert min(p.probability for p in unsure) == pytest.approx(2 / 3)
    assert min(p.probability for p in sure) > 0.75
    assert all(p.chosen == ("short", "much longer")[i % 2] for i, p in enumerate(sure, 1))
    assert [p.meta["votes"] for p in sure] == [p.meta["votes"] for p in unsure]
    assert summary.raters["<u1>"].reliability > summary.raters["<u2>"].reliability + 0.3
    assert summary.raters["<u2>"].left > 0.9 > 0.1 > summary.raters["<u3>"].left
    assert aggregate(tasks, rows, source="people")[1].raters == {}


def test_known_answers_and_decisions_measure_people_and_stay_what_they_are() -> None:
    tasks, rows = panel(20, known=10)
    rows = [replace(row, purpose="gold") if row.task_id <= 10 else row for row in rows if row.user_id in (1, 2)]
    found, summary = aggregate(tasks, rows, source="people", counting=Counting("dawid_skene"))
    assert len(found) == 10  # gold is no preference
    assert summary.raters["u1"].votes == 20
    assert all(p.chosen == ("short", "much longer")[i % 2] for i, p in enumerate(found, 11))
    ruling = replace(decided(B), task_id=12, response_id=120 + B)
    found, _ = aggregate(tasks, [*rows, ruling], source="people", counting=Counting("dawid_skene"))
    assert (found[1].chosen, found[1].probability) == ("much longer", 1.0)


@pytest.mark.parametrize("rule", ["dawid_skene", "noisy_bradley_terry"])
def test_a_pair_that_everybody_calls_even_is_a_tie_whatever_the_rule(rule: Any) -> None:
    tasks, rows = panel()
    rows = [replace(row, choice="tie", response_id=None) if row.task_id == 3 else row for row in rows]
    found, _ = aggregate(tasks, rows, source="people", counting=Counting(rule))
    assert [p.tie for p in found] == [i == 3 for i in range(1, 41)]
