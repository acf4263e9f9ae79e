"""What happens to a task after it was given: leases, drafts, changes of mind, decisions of an admin, the check."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from rlhf_pipeline.errors import AnswerRefused, StoreError
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Answer, Assignment, Form, NewResponse, NewTask
from rlhf_pipeline.store.tables import assignment, task

MINUTE = 60_000


@pytest.fixture
def store(location: str) -> Iterator[JudgementStore]:
    opened = JudgementStore.open(location)
    yield opened
    opened.close()


def round_of(store: JudgementStore, tasks: int, **terms: Any) -> int:
    given: dict[str, Any] = {"overlap": 1, "seed": 7, "source_digest": "d1", "lease_seconds": 60, **terms}
    round_id = store.open_round("people", **given)
    store.add_tasks(
        round_id,
        [
            NewTask(Prompt((Message("user", f"question {i}"),)), (NewResponse(f"good {i}"), NewResponse(f"bad {i}")))
            for i in range(tasks)
        ],
    )
    return round_id


def tie(held: Assignment, token: str = "") -> Answer:
    return Answer(token or f"token-{held.id}", held.id, "tie")


# Leases


def test_a_lease_that_is_renewed_does_not_run_out(store: JudgementStore) -> None:
    round_id, ann, bob = round_of(store, 2), store.user("ann"), store.user("bob")
    first, second = store.lease(round_id, ann, 2, now=0)
    assert store.renew(round_id, ann, [first.id, second.id, 999], now=50_000) == 2
    assert store.renew(round_id, bob, [first.id], now=50_000) == 0
    assert store.renew(round_id, ann, [first.id], now=100_000) == 1
    assert [a.task_id for a in store.lease(round_id, bob, 2, now=111_000)] == [second.task_id]
    assert store.renew(round_id, ann, [first.id, second.id], now=112_000) == 1, "one went to somebody else"


def test_a_lease_that_is_released_goes_to_the_next_at_once(store: JudgementStore) -> None:
    round_id, ann, bob = round_of(store, 1), store.user("ann"), store.user("bob")
    [held] = store.lease(round_id, ann, 1, now=0)
    assert store.lease(round_id, bob, 1, now=1) == []
    assert store.release(round_id, bob, [held.id], now=1) == 0
    assert store.release(round_id, ann, [held.id], now=1) == 1
    assert store.release(round_id, ann, [held.id], now=1) == 0
    assert store.events(limit=1)[0].verb == "release"
    [given] = store.lease(round_id, bob, 1, now=2)
    assert given.task_id == held.task_id
    assert store.submit(ann, tie(held), now=3).late, "work on a task that was given away is kept, and says so"
    assert not store.submit(bob, tie(given), now=4).late
    assert len(store.judgements(round_id)) == 2


# Drafts


def test_a_draft_comes_back_with_its_task_until_it_is_answered(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 1), store.user("ann")
    [held] = store.lease(round_id, ann, 1)
    assert held.draft is None
    store.save_draft(ann, held.id, {"comment": "so far \x00 \ud800"})
    store.save_draft(ann, held.id, {"comment": "further", "choice": 1})
    assert store.lease(round_id, ann, 1)[0].draft == {"comment": "further", "choice": 1}
    store.save_draft(ann, held.id, None)
    assert store.lease(round_id, ann, 1)[0].draft is None
    store.save_draft(ann, held.id, {"choice": 0})
    store.submit(ann, tie(held))
    found = store.assignment(held.id)
    assert found is not None
    assert found.draft is None
    with pytest.raises(AnswerRefused, match="not this person's"):
        store.save_draft(store.user("bob"), held.id, {})
    with pytest.raises(AnswerRefused, match="larger than 200,000"):
        store.save_draft(ann, held.id, {"comment": "x" * 200_000})


# Changes of mind


def test_past_judgements_are_ones_own_newest_first_and_by_pages(store: JudgementStore) -> None:
    round_id, ann, bob = round_of(store, 5), store.user("ann"), store.user("bob")
    [his] = store.lease(round_id, bob, 1)
    store.submit(bob, tie(his))
    held = store.lease(round_id, ann, 4)
    done = [store.submit(ann, tie(a)) for a in held]
    store.undo(round_id, ann, "undo", of_token=f"token-{held[1].id}")
    store.submit(ann, Answer("again", held[0].id, "skip"))
    past = store.history(round_id, ann)
    assert [p.assignment.id for p in past] == [held[0].id, held[3].id, held[2].id]
    assert (past[0].judgement.choice, past[0].judgement.revision) == ("skip", 2)
    assert past[1].assignment.prompt == held[3].prompt
    assert all(p.editable for p in past)
    [page] = store.history(round_id, ann, limit=1, before=done[3].judgement_id)
    assert page.assignment.id == held[2].id


def test_after_the_edit_window_a_judgement_stays(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 2, edit_minutes=10, lease_seconds=3600), store.user("ann")
    held, other = store.lease(round_id, ann, 2, now=0)
    store.submit(ann, tie(held, "one"), now=0)
    store.submit(ann, Answer("two", held.id, "skip"), now=6 * MINUTE)
    assert store.history(round_id, ann, now=10 * MINUTE)[0].editable
    assert not store.history(round_id, ann, now=10 * MINUTE + 1)[0].editable
    for change in (
        lambda: store.submit(ann, tie(held, "three"), now=10 * MINUTE + 1),
        lambda: store.undo(round_id, ann, "undo", now=10 * MINUTE + 1),
    ):
        with pytest.raises(AnswerRefused, match="can be changed for 10 minutes"):
            change()
    assert store.submit(ann, Answer("two", held.id, "skip"), now=60 * MINUTE).known, "a resend is no change"
    store.submit(ann, tie(other), now=59 * MINUTE)  # a first answer has no such limit
    assert [j.choice for j in store.judgements(round_id)] == ["skip", "tie"]


def test_what_was_taken_back_in_time_may_be_answered_later(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 1, edit_minutes=10), store.user("ann")
    [held] = store.lease(round_id, ann, 1, now=0)
    store.submit(ann, tie(held, "one"), now=0)
    store.undo(round_id, ann, "undo", now=9 * MINUTE)
    assert store.submit(ann, tie(held, "two"), now=30 * MINUTE).revision == 3


def test_all_revisions_are_there_for_who_asks(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 1), store.user("ann")
    [held] = store.lease(round_id, ann, 1)
    store.submit(ann, tie(held, "one"))
    store.undo(round_id, ann, "two")
    store.submit(ann, Answer("three", held.id, "skip"))
    assert [j.client_token for j in store.judgements(round_id)] == ["three"]
    rows = store.judgements(round_id, all_revisions=True)
    assert [(j.client_token, j.choice, j.revision) for j in rows] == [
        ("one", "tie", 1),
        ("two", "withdrawn", 2),
        ("three", "skip", 3),
    ]
    assert [j.supersedes_id for j in rows] == [None, rows[0].id, rows[1].id]


# Decisions


def test_an_admin_decides_and_nothing_is_overwritten(store: JudgementStore) -> None:
    round_id, ann, root = round_of(store, 1), store.user("ann"), store.user("root", "admin")
    [held] = store.lease(round_id, ann, 1)
    store.submit(ann, tie(held))
    good, bad = sorted(store.tasks(round_id)[0].responses, key=lambda r: r.text, reverse=True)
    first = store.adjudicate(held.task_id, root, Answer("a1", 0, "response", good.id, comment="clearly"))
    assert store.adjudicate(held.task_id, root, Answer("a1", 0, "tie")) == first, "the same token, the same decision"
    second = store.adjudicate(held.task_id, root, Answer("", 0, "response", bad.id, comment="on reflection"))
    rows = store.judgements(round_id)
    assert [(j.user, j.purpose, j.choice) for j in rows] == [
        ("ann", "judge", "tie"),
        ("root", "adjudicate", "response"),
    ]
    assert (rows[1].id, rows[1].supersedes_id, rows[1].response_id, rows[1].comment) == (
        second,
        first,
        bad.id,
        "on reflection",
    )
    assert (store.tasks(round_id)[0].done, store.progress(round_id).annotators) == (1, {"ann": 1})
    assert store.history(round_id, root) == []
    assert store.undo(round_id, root, "undo") is None
    event = store.events(limit=1)[0]
    assert (event.verb, event.detail) == (
        "adjudicate",
        {"judgement": second, "choice": "response", "reason": "on reflection"},
    )
    assert store.check() == []


def test_a_ranking_is_decided_by_a_ranking(store: JudgementStore) -> None:
    round_id = round_of(store, 1, form=Form(kind="ranking", rules=("rude",)))
    one = store.tasks(round_id)[0]
    ids = tuple((r.id,) for r in one.responses)
    store.adjudicate(one.id, store.user("root", "admin"), Answer("a1", 0, "ranking", ranking=ids))
    assert store.judgements(round_id)[0].ranking == ids


def test_only_an_admin_decides(store: JudgementStore) -> None:
    round_id = round_of(store, 1)
    task_id = store.tasks(round_id)[0].id
    for name, role in (("ann", "annotator"), ("rita", "reader"), ("Ada", "simulated")):
        with pytest.raises(StoreError, match=f"{name} may not decide"):
            store.adjudicate(task_id, store.user(name, role), Answer("a1", 0, "tie"))
    root = store.user("root", "admin")
    with pytest.raises(StoreError, match="no task 999"):
        store.adjudicate(999, root, Answer("a1", 0, "tie"))
    with pytest.raises(AnswerRefused, match="not one of its task"):
        store.adjudicate(task_id, root, Answer("a1", 0, "response", 999))
    assert store.judgements(round_id) == []


# The check, rounds


def test_the_check_finds_what_was_counted_wrong(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 3), store.user("ann")
    held = store.lease(round_id, ann, 2)
    store.submit(ann, tie(held[0]))
    assert store.check() == []
    with store.database.write() as connection:
        connection.execute(update(task).where(task.c.id == held[1].task_id).values(done=2, open_slots=1))
        connection.execute(update(assignment).where(assignment.c.id == held[0].id).values(state="leased"))
    found = store.check()
    assert f"task {held[1].task_id}: counted 2 done and 1 open, there are 0 and 0" in found
    assert f"assignment {held[0].id}: it is leased, its last judgement is tie" in found


def test_the_check_finds_references_that_lead_nowhere(tmp_path: Path) -> None:
    store = JudgementStore.open(tmp_path / "s.db")
    round_of(store, 1)
    store.close()
    with sqlite3.connect(tmp_path / "s.db") as connection:  # which checks no references
        connection.execute("DELETE FROM prompt")
    store = JudgementStore.open(tmp_path / "s.db")
    assert "task 1 refers to nothing" in store.check()
    store.close()


def test_a_round_keeps_its_judgements_when_its_terms_change(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 2), store.user("ann")
    [held] = store.lease(round_id, ann, 1)
    store.submit(ann, tie(held))
    terms: dict[str, Any] = {
        "form": Form(strength=True, flags=("private",)),
        "order": "uncertainty",
        "gold_rate": 0.1,
        "gold_feedback": True,
        "repeat_rate": 0.05,
        "training_tasks": 3,
        "edit_minutes": 15,
    }
    assert round_of(store, 2, **terms) == round_id
    found = store.round(round_id)
    assert {name: getattr(found, name) for name in terms} == terms
    assert len(store.judgements(round_id)) == 1
    newest = store.events(limit=1)[0]
    assert (newest.verb, newest.object, newest.detail["edit_minutes"]) == ("change", "round", 15)
    assert "overlap" not in newest.detail, "only what changed is noted"
    with pytest.raises(StoreError, match="no round 99"):
        store.round(99)


def test_an_assignment_names_the_guidelines_under_which_it_was_given(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 2, lease_seconds=3600), store.user("ann")
    store.set_guidelines(round_id, "one")
    [first] = store.lease(round_id, ann, 1)
    store.set_guidelines(round_id, "two")
    second = store.lease(round_id, ann, 2)[1]
    assert (first.guideline_version, second.guideline_version, second.round_id) == (1, 2, round_id)
    store.submit(ann, tie(first))
    assert store.judgements(round_id)[0].guideline_version == 1
