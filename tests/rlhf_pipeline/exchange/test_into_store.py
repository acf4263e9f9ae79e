"""Out of a store and into another, on SQLite and PostgreSQL: nothing lost, nothing twice, nothing changed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.exchange import (
    EXPORT_FORMATS,
    JudgedRound,
    Pseudonyms,
    Verdict,
    add_round,
    export,
    into_store,
    read_file,
    read_round,
    write,
)
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Answer, Assignment, Attribute, Form, Gold, JudgementRow, NewResponse, NewTask
from rlhf_pipeline.store.tables import event
from tests.rlhf_pipeline.exchange.judged_rounds import ANN, BOB, a_round, asked, task, there_and_back

NAMES = Pseudonyms(b"s" * 32)
FORM = Form(
    strength=True,
    all_bad=True,
    rules=("is rude",),
    attributes=(Attribute("helpful"),),
    correction=True,
    comment=True,
    flags=("personal data",),
)
NASTY = "a\x00b \ud800 سلام\u202e\n"


@pytest.fixture
def store(location: str) -> Iterator[JudgementStore]:
    opened = JudgementStore.open(location)
    yield opened
    opened.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[JudgementStore]:
    opened = JudgementStore.open(tmp_path / "other.db")
    yield opened
    opened.close()


def new(number: int) -> NewTask:
    texts = (f"good {number}", f"bad {number} {NASTY}")
    prompt = Prompt((Message("user", f"question {number} {NASTY}"),))
    return NewTask(prompt, tuple(NewResponse(t, "eos", "s1") for t in texts), meta={"number": number})


def answer(held: Assignment, choice: str = "response", token: str = "", **more: Any) -> Answer:
    left, right = (r.id for r in held.responses)
    token = token or f"t-{held.user_id}-{held.id}"
    if choice == "skip":
        return Answer(token, held.id, "skip", flags=("personal data",))
    more |= {"rules": {left: (), right: ("is rude",)}, "ratings": {left: {"helpful": 5}, right: {"helpful": 1}}}
    if choice == "tie":
        return Answer(token, held.id, "tie", **more)
    return Answer(
        token, held.id, "response", left, strength=2, shown_at=1, decided_at=2, active_ms=3, wall_ms=4, keys_used=True,
        comment=NASTY, corrected_id=right, correction="better", **more,
    )  # fmt: skip


def filled(store: JudgementStore) -> int:
    """A round with everything in it: skips, ties, a revision, one taken back, gold, a decision, late ones."""
    round_id = store.open_round(
        "people", overlap=2, seed=7, source_digest="d1", lease_seconds=60, form=FORM, gold_rate=0.3
    )
    store.add_tasks(round_id, [new(i) for i in range(8)])
    store.set_guidelines(round_id, "be kind")
    rows = store.tasks(round_id)
    store.set_gold(rows[0].id, Gold("response", rows[0].responses[1].id, "because"))
    ann, bob, eve = store.user("Ann"), store.user("Bob"), store.people.add("Eve", "admin")
    for user in (ann, bob):
        while held := store.lease(round_id, user, 1, now=1000):
            choice = ["response", "tie", "skip"][held[0].task_id % 3]
            store.submit(user, answer(held[0], choice), now=2000 if held[0].task_id % 2 else 200_000)
    mine = store.mine(round_id, ann)
    first = store.assignment(mine[0].assignment_id)
    assert first is not None
    store.submit(ann, answer(first, "tie", "revised-1"), now=3000)
    store.undo(round_id, bob, "undone-1", now=3000)
    store.adjudicate(
        rows[3].id, eve, Answer("decision-1", 0, "response", rows[3].responses[0].id, comment="so"), now=4000
    )
    return round_id


def lines(judged: JudgedRound) -> list[dict[str, Any]]:
    return [json.loads(line) for line in export(judged, "full").content.splitlines()]


def test_a_round_goes_through_a_file_into_another_store_and_nothing_is_lost(
    store: JudgementStore, other: JudgementStore, tmp_path: Path
) -> None:
    before = read_round(store, filled(store), NAMES)
    verdicts = [v for t in before.tasks for v in t.verdicts]
    assert {v.purpose for v in verdicts} == {"judge", "gold", "adjudicate"}
    assert {v.choice for v in verdicts} == {"response", "tie", "skip", "withdrawn"}
    assert {v.late for v in verdicts} == {True, False}
    assert any(v.supersedes for v in verdicts)
    write(export(before, "full"), tmp_path / "judgements.jsonl")
    [read] = read_file(tmp_path / "judgements.jsonl").rounds
    added = add_round(other, read)
    assert (added.judgements, added.known, added.people) == (len(verdicts), 0, 3)
    assert added.round_id is not None
    after = read_round(other, added.round_id, Pseudonyms(b"another salt" * 3))
    judged_before = tuple(t for t in before.tasks if t.verdicts)
    assert after.tasks == judged_before
    assert after.form == before.form == FORM
    ignored = ("name", "source_digest", "overlap")
    for a, b in zip(lines(before), lines(after), strict=True):
        assert {**a, "round": None} == {**b, "round": None}
        assert {k: v for k, v in a["round"].items() if k not in ignored} == {
            k: v for k, v in b["round"].items() if k not in ignored
        }
    assert other.check() == []
    assert [u for (u,) in _people(other)] == ["import"] * 3


def _people(store: JudgementStore) -> list[Any]:
    with store.database.read() as connection:
        return list(connection.execute(text('SELECT role FROM "user" ORDER BY id')))


def test_the_same_file_twice_adds_nothing(store: JudgementStore, tmp_path: Path) -> None:
    for format in EXPORT_FORMATS:
        good = Verdict(ANN, "response", 0, identity="1" * 32)
        judged = a_round(task(good, replace(good, by=BOB, identity="2" * 32)), task(prompt=asked("how?")))
        write(export(judged, format), tmp_path / "x.jsonl")
        [read] = read_file(tmp_path / "x.jsonl").rounds
        first = add_round(store, read)
        assert first.judgements == (1 if EXPORT_FORMATS[format].for_training else 2)
        before = _everything(store)
        (tmp_path / "renamed.jsonl").write_bytes((tmp_path / "x.jsonl").read_bytes())
        [again] = read_file(tmp_path / "renamed.jsonl").rounds
        second = add_round(store, again)
        assert (second.tasks, second.judgements, second.people) == (0, 0, 0)
        assert second.known == first.judgements
        assert _everything(store) == before
    assert store.check() == []


def _everything(store: JudgementStore) -> list[Any]:
    tables = ("event", "judgement", "assignment", "task", "round", '"user"')
    with store.database.read() as connection:
        return [connection.execute(text(f"SELECT count(*) FROM {name}")).scalar() for name in tables]


def test_an_export_into_the_store_that_it_came_from_adds_nothing(store: JudgementStore, tmp_path: Path) -> None:
    round_id = filled(store)
    write(export(read_round(store, round_id, NAMES), "full"), tmp_path / "x.jsonl")
    before = _everything(store)
    [read] = read_file(tmp_path / "x.jsonl").rounds
    assert add_round(store, read).judgements == 0
    assert add_round(store, read, into=round_id).judgements == 0
    assert _everything(store) == before


def test_a_later_export_adds_only_what_is_new(store: JudgementStore, other: JudgementStore, tmp_path: Path) -> None:
    round_id = filled(store)
    first = read_round(store, round_id, NAMES)
    cut = replace(first, tasks=tuple(replace(t, verdicts=t.verdicts[:1]) for t in first.tasks))
    results = []
    for judged in (cut, first):
        write(export(judged, "full"), tmp_path / "x.jsonl")
        [read] = read_file(tmp_path / "x.jsonl").rounds
        results.append(add_round(other, read))
    total = sum(len(t.verdicts) for t in first.tasks)
    assert results[0].round_id == results[1].round_id
    assert (results[1].known, results[1].judgements) == (results[0].judgements, total - results[0].judgements)
    assert other.check() == []


def test_judgements_made_in_a_tool_go_into_the_round_that_was_exported(store: JudgementStore, tmp_path: Path) -> None:
    round_id = store.open_round("people", overlap=2, seed=7, source_digest="d1", lease_seconds=60)
    plain = NewTask(asked("why?"), (NewResponse("a", "eos", "s1"), NewResponse("b", "length", "s1")))
    store.add_tasks(round_id, [plain])
    write(export(read_round(store, round_id, NAMES), "label-studio"), tmp_path / "x.json")
    [row] = json.loads((tmp_path / "x.json").read_text())

    def judged_in_the_tool(side: str) -> None:
        result = {
            "from_name": "comparison",
            "to_name": "answer1,answer2",
            "type": "pairwise",
            "value": {"selected": side},
        }
        row["annotations"] = [{"completed_by": 7, "result": [result]}]
        (tmp_path / "x.json").write_text(json.dumps([row]))

    judged_in_the_tool("left")
    [read] = read_file(tmp_path / "x.json").rounds
    assert add_round(store, read, into=round_id).judgements == 1
    assert add_round(store, read, into=round_id).judgements == 0
    [given] = store.tasks(round_id)
    [kept] = store.judgements(round_id)
    assert (kept.user, kept.response_id, given.done, given.needed) == ("7", given.responses[0].id, 1, 2)
    judged_in_the_tool("right")  # they changed their mind
    [read] = read_file(tmp_path / "x.json").rounds
    assert add_round(store, read, into=round_id).judgements == 1
    [now] = store.judgements(round_id)
    assert (now.response_id, now.revision, now.supersedes_id) == (given.responses[1].id, 2, kept.id)
    judged_in_the_tool("left")  # and back again
    [read] = read_file(tmp_path / "x.json").rounds
    assert add_round(store, read, into=round_id).judgements == 1
    assert store.judgements(round_id)[0].response_id == given.responses[0].id
    assert len(store.rounds()) == 1
    assert store.check() == []


def test_an_imported_task_asks_nobody_again_and_leaves_retired_ones_retired(
    store: JudgementStore, tmp_path: Path
) -> None:
    judged = a_round(task(Verdict(ANN, "response", 0, identity="1" * 32)))
    write(export(judged, "full"), tmp_path / "x.jsonl")
    [read] = read_file(tmp_path / "x.jsonl").rounds
    round_id = add_round(store, read).round_id
    assert round_id is not None
    assert store.lease(round_id, store.user("Cid"), 5) == []
    retired = store.open_round("people", overlap=1, seed=7, source_digest="d1", lease_seconds=60)
    store.add_tasks(retired, [judged.tasks[0].new])
    store.retire_tasks(retired, [])
    [other] = there_and_back(tmp_path, judged, "trl")
    add_round(store, a_round(other), into=retired)
    assert [t.state for t in store.tasks(retired)] == ["retired"]


def test_an_import_that_was_interrupted_goes_on(store: JudgementStore, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = a_round(*(task(Verdict("import", "response", 0), prompt=asked(str(n))) for n in range(600)))
    whole, count = into_store._insert, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 550:
            raise KeyboardInterrupt
        whole(*arguments)

    monkeypatch.setattr(into_store, "_insert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add_round(store, judged)
    monkeypatch.undo()
    added = add_round(store, judged)
    assert (added.judgements, added.known, added.tasks) == (100, 500, 0)
    assert store.check() == []


def test_where_the_order_shown_is_not_known_no_side_is_favoured(store: JudgementStore) -> None:
    tasks = tuple(task(Verdict("import", "response", 0), prompt=asked(str(n))) for n in range(200))
    round_id = add_round(store, a_round(*tasks)).round_id
    assert round_id is not None
    rows = store.judgements(round_id)
    assert 70 < sum(row.left_id == row.response_id for row in rows) < 130
    assert all(v.shown == () for t in read_round(store, round_id, NAMES).tasks for v in t.verdicts)


def test_an_import_is_in_the_audit_trail(store: JudgementStore) -> None:
    round_id = add_round(store, a_round(task(Verdict("import", "tie")))).round_id
    with store.database.read() as connection:
        [detail] = connection.execute(select(event.c.detail).where(event.c.verb == "import")).scalars()
    assert detail == {"name": "people", "judgements": 1}
    assert store.events(limit=1)[0].object_id == round_id


def test_nobody_judges_under_the_name_of_a_person_of_the_store(store: JudgementStore) -> None:
    store.user("Ann")
    with pytest.raises(StoreError, match="ANN is taken"):
        add_round(store, a_round(task(Verdict("ANN", "tie"))))
    assert store.rounds() == []


def test_names_are_in_no_export(store: JudgementStore) -> None:
    judged = read_round(store, filled(store), NAMES)
    for format in EXPORT_FORMATS:
        made = export(judged, format)
        everything = made.content + json.dumps(made.manifest).encode() + b"".join(made.beside.values())
        assert not re.search(rb"\b(Ann|Bob|Eve|ann|bob|eve)\b", everything)


def test_every_field_of_a_judgement_in_the_store_is_in_the_full_export() -> None:
    """A new field of the store must not be forgotten here."""
    elsewhere = {
        "id": "identity", "assignment_id": "purpose", "task_id": "", "user_id": "by", "user": "by", "left_id": "shown",
        "response_id": "response", "corrected_id": "corrected", "shown_order": "shown", "client_token": "identity",
        "supersedes_id": "supersedes",
    }  # fmt: skip
    assert {elsewhere.get(name, name) for name in JudgementRow.__dataclass_fields__} - {""} == set(
        Verdict.__dataclass_fields__
    )
