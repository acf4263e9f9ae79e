"""Votes on rules by hand: who counts, how often, and what was never asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf_pipeline.aggregate import Counting
from rlhf_pipeline.records import Message, Prompt, RuledResponse, RuleVotes
from rlhf_pipeline.rule_judgements import rule_records
from rlhf_pipeline.store.records import Form, JudgementRow, Purpose, StoredResponse, TaskRow

FORMS = {"one": Form(rules=("rude",)), "two": Form(rules=("rude", "false"))}
MAJORITY = Counting()
PROMPT = Prompt((Message("user", "q"),))


def task(id_: int, *texts: str) -> TaskRow:
    responses = tuple(
        StoredResponse(10 * id_ + place, text, "length" if text.endswith("…") else "eos", "")
        for place, text in enumerate(texts)
    )
    return TaskRow(id_, f"d{id_}", PROMPT, responses, 1, 0, "open", {})


_numbers = iter(range(1, 10_000))


def said(
    user: int, of: TaskRow, broken: dict[str, tuple[str, ...]], *, form: str = "two", purpose: Purpose = "judge"
) -> JudgementRow:
    """A judgement of a task: text → the rules that it breaks."""
    ids = {response.text: response.id for response in of.responses}
    first = of.responses[0].id
    return JudgementRow(
        id=next(_numbers), assignment_id=1, task_id=of.id, user_id=user, user=f"u{user}", choice="response",
        response_id=first, left_id=first, revision=1, late=False, received_at=0, purpose=purpose, form_digest=form,
        rules={ids[text]: rules for text, rules in broken.items()},
    )  # fmt: skip


def votes(*rows: JudgementRow, tasks: list[TaskRow], counting: Counting = MAJORITY) -> dict[str, RuledResponse]:
    return {record.response: record for record in rule_records(tasks, rows, FORMS, counting=counting)[0]}


def test_shares_by_hand_and_what_nobody_was_asked() -> None:
    one, other = task(1, "a", "b"), task(2, "c", "d…")
    rows = [
        said(1, one, {"a": ("rude",), "b": ()}),
        said(2, one, {"a": ("rude", "false"), "b": ("false",)}),
        said(3, one, {"a": (), "b": ()}, form="one"),
        said(1, other, {"c": (), "d…": ("rude",)}, form="one"),
    ]
    records, summaries = rule_records([one, other], rows, FORMS, counting=Counting())
    assert [record.response for record in records] == ["a", "b", "c", "d…"]
    assert records[0].rules == {"rude": RuleVotes(2 / 3, 3), "false": RuleVotes(1 / 2, 2)}
    assert records[1].rules == {"rude": RuleVotes(0.0, 3), "false": RuleVotes(1 / 2, 2)}
    assert records[2].rules == {"rude": RuleVotes(0.0, 1), "false": None}
    assert (records[3].cut, records[2].cut) == (True, False)
    verdicts = [[said["verdict"] for said in record.to_json()["rules"].values()] for record in records]
    assert verdicts == [["broken", "divided"], ["kept", "divided"], ["kept", "unanswered"], ["broken", "unanswered"]]
    assert [RuledResponse.from_json(record.to_json()) for record in records] == records
    rude, false = summaries
    assert (rude.responses, rude.broken, rude.divided) == (4, 2, 0)
    assert (false.responses, false.broken, false.divided) == (2, 0, 2)
    assert rude.sentence().startswith("rule 'rude': broken in 2 of 4 responses; agreement α")
    assert "divided on 2" in false.sentence()


def test_a_person_has_one_vote_on_a_response_wherever_they_see_it() -> None:
    tasks = [task(1, "a", "b"), task(2, "a", "c")]
    rows = [said(1, tasks[0], {"a": ("rude",), "b": ()}), said(2, tasks[0], {"a": (), "b": ()})]
    assert votes(*rows, tasks=tasks)["a"].rules["rude"] == RuleVotes(0.5, 2)
    again = said(1, tasks[1], {"a": (), "c": ()})
    assert votes(*rows, again, tasks=tasks)["a"].rules["rude"] == RuleVotes(0.0, 2)


def test_an_admin_decides_and_gold_repeats_and_training_do_not_count() -> None:
    of = task(1, "a", "b")
    rows = [said(user, of, {"a": ("rude",), "b": ()}) for user in (1, 2)]
    for purpose in ("gold", "repeat", "training"):
        other = said(3, of, {"a": (), "b": ("rude",)}, purpose=purpose)  # type: ignore[arg-type]
        assert votes(*rows, other, tasks=[of])["a"].rules["rude"] == RuleVotes(1.0, 2)
    decision = said(9, of, {"a": (), "b": ("rude",)}, purpose="adjudicate")
    found = votes(*rows, decision, tasks=[of])
    assert found["a"].rules["rude"] == RuleVotes(0.0, 2)
    assert found["b"].rules["rude"] == RuleVotes(1.0, 2)


def test_late_work_and_flagged_tasks_are_left_out_by_rule() -> None:
    of = task(1, "a", "b")
    rows = [said(1, of, {"a": ("rude",), "b": ()}), replace(said(2, of, {"a": (), "b": ()}), late=True)]
    assert votes(*rows, tasks=[of])["a"].rules["rude"] == RuleVotes(0.5, 2)
    assert votes(*rows, tasks=[of], counting=Counting(late=False))["a"].rules["rude"] == RuleVotes(1.0, 1)
    flagged = replace(rows[0], flags=("personal data",))
    assert votes(flagged, tasks=[of], counting=Counting(flagged=False)) == {}


def test_skips_and_rounds_without_rules_say_nothing() -> None:
    of = task(1, "a", "b")
    skip = replace(said(1, of, {}), choice="skip", response_id=None)
    assert votes(skip, tasks=[of]) == {}
    assert rule_records([of], [said(1, of, {})], {}, counting=Counting()) == ([], [])


def test_dawid_skene_believes_the_reliable() -> None:
    """Two who agree with each other on thirty responses outweigh one who says the opposite; by majority one decides
    where only they and one other answered."""
    tasks = [task(i, f"a{i}", f"b{i}") for i in range(1, 31)]
    rows = []
    for number, of in enumerate(tasks):
        right = {f"a{of.id}": ("rude",) if number % 2 else (), f"b{of.id}": ()}
        wrong = {text: () if broken else ("rude",) for text, broken in right.items()}
        rows += [said(1, of, right, form="one"), said(3, of, wrong, form="one")]
        rows += [said(2, of, right, form="one")] if number < 20 else []
    by_share = votes(*rows, tasks=tasks)
    weighed = votes(*rows, tasks=tasks, counting=Counting("dawid_skene"))
    disputed = [f"a{i}" for i in range(21, 31)]
    assert {by_share[text].rules["rude"].broken for text in disputed} == {0.5}  # type: ignore[union-attr]
    for number, text in zip(range(20, 30), disputed, strict=True):
        vote = weighed[text].rules["rude"]
        assert vote is not None
        assert vote.broken == pytest.approx(number % 2, abs=0.1)
        assert vote.judgements == 2
