from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import select, text

from rlhf_pipeline.errors import AnswerRefused, StoreError
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Answer, Assignment, NewResponse, NewTask
from rlhf_pipeline.store.tables import assignment, judgement, task

SECOND = 1000
NASTY = "a\x00b \ud800 <script>alert(1)</script> سلام\u202e דוגמה\n\n  trailing  "


def pair(number: int, *, needed: int | None = None, meta: dict[str, object] | None = None) -> NewTask:
    prompt = Prompt((Message("user", f"question {number}"),))
    responses = (NewResponse(f"good {number}", "eos", "s1"), NewResponse(f"bad {number}", "length", "s1"))
    return NewTask(prompt, responses, needed=needed, meta=meta or {})


@pytest.fixture
def store(location: str) -> Iterator[JudgementStore]:
    opened = JudgementStore.open(location)
    yield opened
    opened.close()


def round_of(store: JudgementStore, tasks: int, *, overlap: int = 1, lease_seconds: int = 60) -> int:
    round_id = store.open_round("people", overlap=overlap, seed=7, source_digest="d1", lease_seconds=lease_seconds)
    store.add_tasks(round_id, [pair(i) for i in range(tasks)])
    return round_id


def answer(held: Assignment, choice: str = "good", token: str | None = None) -> Answer:
    """The answer that prefers the response whose text starts with ``choice``, or "tie" or "skip"."""
    token = token or f"t{held.user_id}-{held.id}"
    if choice in ("tie", "skip"):
        return Answer(token, held.id, choice)  # type: ignore[arg-type]
    chosen = next(r.id for r in held.responses if r.text.startswith(choice))
    return Answer(token, held.id, "response", chosen)


def test_a_judgement_is_kept_against_the_response_with_the_order_shown(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 1), store.user("Ann")
    [held] = store.lease(round_id, ann, 3)
    assert held.prompt == (Message("user", "question 0"),)
    assert {(r.text, r.finish, r.sampler_digest) for r in held.responses} == {
        ("good 0", "eos", "s1"),
        ("bad 0", "length", "s1"),
    }
    submitted = store.submit(ann, answer(held))
    [row] = store.judgements(round_id)
    good = next(r.id for r in held.responses if r.text == "good 0")
    assert (row.id, row.user, row.choice, row.response_id) == (submitted.judgement_id, "Ann", "response", good)
    assert row.left_id == held.responses[0].id
    assert (row.revision, row.late, submitted.known) == (1, False, False)


def test_what_a_person_holds_is_given_again_and_filled_up(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 5), store.user("ann")
    first = store.lease(round_id, ann, 2)
    assert [a.id for a in store.lease(round_id, ann, 2)] == [a.id for a in first]
    assert [a.id for a in store.lease(round_id, ann, 3)][:2] == [a.id for a in first]
    submitted = store.submit(ann, answer(first[0]), hold=3)
    assert len(submitted.next) == 3
    assert first[0].id not in {a.id for a in submitted.next}


def test_two_people_never_hold_the_same_task_at_overlap_one(store: JudgementStore) -> None:
    round_id = round_of(store, 4)
    ann, bob = store.user("ann"), store.user("bob")
    a, b = store.lease(round_id, ann, 3), store.lease(round_id, bob, 3)
    assert (len(a), len(b)) == (3, 1)
    assert not {x.task_id for x in a} & {x.task_id for x in b}


def test_priority_comes_before_the_order_of_adding(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 2), store.user("ann")
    store.add_tasks(round_id, [replace(pair(9), priority=1.0)])
    assert [a.prompt[0].content for a in store.lease(round_id, ann, 3)] == ["question 9", "question 0", "question 1"]


def test_a_lease_that_ran_out_returns_and_late_work_is_kept(store: JudgementStore) -> None:
    round_id = round_of(store, 1, lease_seconds=60)
    ann, bob = store.user("ann"), store.user("bob")
    [held] = store.lease(round_id, ann, 1, now=0)
    assert store.lease(round_id, bob, 1, now=60 * SECOND) == []
    [given] = store.lease(round_id, bob, 1, now=61 * SECOND)
    assert given.task_id == held.task_id
    assert not store.submit(bob, answer(given), now=62 * SECOND).late
    assert store.submit(ann, answer(held, "bad"), now=63 * SECOND).late
    assert [(r.user, r.late) for r in store.judgements(round_id)] == [("bob", False), ("ann", True)]
    assert store.tasks(round_id)[0].done == 2


def test_a_lease_that_ran_out_is_taken_up_again_with_the_same_sides(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 1, lease_seconds=60), store.user("ann")
    [held] = store.lease(round_id, ann, 1, now=0)
    assert store.progress(round_id, now=100 * SECOND).leased == 0
    assert store.lease(round_id, store.user("bob"), 0, now=100 * SECOND) == []
    [again] = store.lease(round_id, ann, 1, now=101 * SECOND)
    assert (again.id, again.responses) == (held.id, held.responses)


def test_the_same_token_again_is_the_same_judgement(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 2), store.user("ann")
    held = store.lease(round_id, ann, 1)[0]
    first = store.submit(ann, answer(held), hold=1)
    again = store.submit(ann, answer(held, "bad", token=answer(held).client_token), hold=1)
    assert (again.known, again.judgement_id) == (True, first.judgement_id)
    assert [a.id for a in again.next] == [a.id for a in first.next]
    assert len(store.judgements(round_id)) == 1


def test_a_second_answer_is_a_revision_and_the_first_stays_in_the_table(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 1), store.user("ann")
    [held] = store.lease(round_id, ann, 1)
    first = store.submit(ann, answer(held, "good", "one"))
    second = store.submit(ann, answer(held, "tie", "two"))
    assert second.revision == 2
    assert [(r.id, r.choice, r.revision) for r in store.judgements(round_id)] == [(second.judgement_id, "tie", 2)]
    with store.database.read() as connection:
        rows = connection.execute(select(judgement.c.id, judgement.c.supersedes_id).order_by(judgement.c.id)).all()
    assert [tuple(row) for row in rows] == [(first.judgement_id, None), (second.judgement_id, first.judgement_id)]
    assert store.progress(round_id).judgements == 1


def test_undo_takes_the_last_judgement_back_once(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 2), store.user("ann")
    first, second = store.lease(round_id, ann, 2)
    store.submit(ann, answer(first))
    store.submit(ann, answer(second))
    undone = store.undo(round_id, ann, "u1")
    assert undone is not None
    assert (undone.id, undone.state) == (second.id, "leased")
    again = store.undo(round_id, ann, "u1")
    assert again is not None
    assert again.id == second.id
    assert [r.assignment_id for r in store.judgements(round_id)] == [first.id]
    assert store.progress(round_id).remaining == 1
    assert store.submit(ann, answer(second, "bad", "anew")).revision == 3
    assert [r.assignment_id for r in store.mine(round_id, ann)] == [second.id, first.id]


def test_undo_of_a_named_judgement_and_of_nothing(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 2), store.user("ann")
    first, second = store.lease(round_id, ann, 2)
    store.submit(ann, answer(first, token="one"))
    store.submit(ann, answer(second, token="two"))
    undone = store.undo(round_id, ann, "u", of_token="one")
    assert undone is not None
    assert undone.id == first.id
    assert store.undo(round_id, ann, "v", of_token="one") is None
    assert store.undo(round_id, store.user("bob"), "w") is None


def test_a_skip_leaves_the_place_to_others_and_settles_the_task(store: JudgementStore) -> None:
    round_id = round_of(store, 1)
    ann, bob = store.user("ann"), store.user("bob")
    [held] = store.lease(round_id, ann, 1)
    store.submit(ann, answer(held, "skip"))
    progress = store.progress(round_id)
    assert (progress.settled, progress.remaining, progress.judgements, progress.skips) == (1, 0, 0, 1)
    assert store.lease(round_id, ann, 1) == []
    assert len(store.lease(round_id, bob, 1)) == 1
    undone = store.undo(round_id, ann, "u")
    assert undone is not None
    store.submit(ann, answer(undone, "tie", "anew"))
    assert [r.choice for r in store.judgements(round_id)] == ["tie"]


def test_answers_that_do_not_fit_are_refused_and_change_nothing(store: JudgementStore) -> None:
    round_id = round_of(store, 2)
    ann, bob = store.user("ann"), store.user("bob")
    first, second = store.lease(round_id, ann, 2)
    stranger = second.responses[0].id
    for refused in (
        lambda: store.submit(bob, answer(first)),
        lambda: store.submit(ann, Answer("x", 999_999, "tie")),
        lambda: store.submit(ann, Answer("x", first.id, "response", stranger)),
        lambda: store.submit(ann, Answer("x", first.id, "response")),
        lambda: store.submit(ann, Answer("x", first.id, "tie", first.responses[0].id)),
        lambda: store.submit(ann, Answer("x", first.id, "withdrawn")),  # type: ignore[arg-type]
        lambda: store.submit_many(ann, [answer(first), Answer("x", second.id, "response", 999_999)]),
    ):
        with pytest.raises(AnswerRefused):
            refused()
    assert store.judgements(round_id) == []
    store.submit(ann, answer(first, token="mine"))
    store.release(round_id, ann, [second.id])
    [theirs] = store.lease(round_id, bob, 1)
    with pytest.raises(AnswerRefused, match="another person"):
        store.submit(bob, answer(theirs, token="mine"))


def test_judgements_and_events_cannot_be_changed(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 1), store.user("ann")
    store.submit(ann, answer(store.lease(round_id, ann, 1)[0]))
    statements = ["UPDATE judgement SET choice='tie', response_id=NULL", "DELETE FROM judgement", "DELETE FROM event"]
    if store.database.engine.dialect.name == "sqlite":
        statements.append("INSERT OR REPLACE INTO judgement SELECT * FROM judgement")
    else:
        statements.append("TRUNCATE judgement")
    for statement in statements:
        with pytest.raises(StoreError, match="append-only"), store.database.write() as connection:
            connection.execute(text(statement))
    assert store.judgements(round_id)[0].choice == "response"


def test_opening_the_same_round_again_changes_nothing(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 3), store.user("ann")
    store.submit(ann, answer(store.lease(round_id, ann, 1)[0]))
    assert round_of(store, 3) == round_id
    assert store.add_tasks(round_id, [pair(i) for i in range(5)]) == 2
    assert len(store.tasks(round_id)) == 5
    assert len(store.judgements(round_id)) == 1


def test_another_source_makes_another_round_and_keeps_the_first(store: JudgementStore) -> None:
    first, ann = round_of(store, 2), store.user("ann")
    store.submit(ann, answer(store.lease(first, ann, 1)[0]))
    second = store.open_round("people", overlap=1, seed=7, source_digest="d2", lease_seconds=60)
    store.add_tasks(second, [pair(0)])
    assert second != first
    assert [(r.number, r.name, r.source_digest) for r in store.rounds()] == [(1, "people", "d1"), (2, "people", "d2")]
    assert (len(store.judgements(first)), len(store.judgements(second))) == (1, 0)
    assert len(store.lease(second, ann, 5)) == 1


def test_a_new_overlap_asks_more_people(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 2), store.user("ann")
    store.submit(ann, answer(store.lease(round_id, ann, 1)[0]))
    store.add_tasks(round_id, [pair(9, needed=3)])
    assert store.open_round("people", overlap=2, seed=7, source_digest="d1", lease_seconds=60) == round_id
    assert [(t.needed, t.done) for t in store.tasks(round_id)] == [(2, 1), (2, 0), (3, 0)]
    assert store.progress(round_id).remaining == 6
    assert len(store.lease(round_id, store.user("bob"), 9)) == 3


def test_retired_tasks_go_to_nobody_and_come_back(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 3), store.user("ann")
    store.submit(ann, answer(store.lease(round_id, ann, 1)[0]))
    assert store.retire_tasks(round_id, [pair(2).digest]) == 2
    assert [a.prompt[0].content for a in store.lease(round_id, ann, 9)] == ["question 2"]
    assert store.progress(round_id).tasks == 1
    assert len(store.judgements(round_id)) == 1
    assert store.add_tasks(round_id, [pair(1)]) == 0
    assert len(store.lease(round_id, ann, 9)) == 2


def test_sides_are_balanced_for_each_person_and_each_task(store: JudgementStore) -> None:
    round_id = round_of(store, 40, overlap=2)
    left: dict[int, list[int]] = defaultdict(list)
    for name in ("ann", "bob"):
        held = store.lease(round_id, store.user(name), 40)
        firsts = [a.responses[0].text.startswith("good") for a in held]
        assert 12 <= sum(firsts) <= 28
        for a in held:
            left[a.task_id].append(a.responses[0].id)
    assert all(first != second for first, second in left.values())
    [alone] = [store.user("cat")]
    other = store.open_round("alone", overlap=1, seed=1, source_digest="d", lease_seconds=60)
    store.add_tasks(other, [pair(i) for i in range(40)])
    canonical = {t.id: t.responses[0].id for t in store.tasks(other)}
    assert sum(a.responses[0].id == canonical[a.task_id] for a in store.lease(other, alone, 40)) == 20


def test_any_text_is_kept_exactly(store: JudgementStore) -> None:
    round_id = store.open_round("people", overlap=1, seed=7, source_digest="d1", lease_seconds=60)
    prompt = Prompt((Message("system", NASTY), Message("user", "x" * 100_000)))
    store.add_tasks(round_id, [NewTask(prompt, (NewResponse(NASTY), NewResponse("")), meta={"source": NASTY})])
    [held] = store.lease(round_id, store.user("ann"), 1)
    assert held.prompt == prompt.messages
    assert {r.text for r in held.responses} == {NASTY, ""}
    assert store.tasks(round_id)[0].meta == {"source": NASTY}


def test_guidelines_get_a_version_when_they_change(store: JudgementStore) -> None:
    round_id = round_of(store, 0)
    assert store.guidelines(round_id) == ""
    assert [store.set_guidelines(round_id, text_) for text_ in ("one", "one", "two")] == [1, 1, 2]
    assert store.guidelines(round_id) == "two"


def test_a_store_reopened_holds_everything(location: str) -> None:
    store = JudgementStore.open(location)
    round_id, ann = round_of(store, 2), store.user("ann")
    store.submit(ann, answer(store.lease(round_id, ann, 1)[0]))
    store.close()
    store = JudgementStore.open(location)
    assert len(store.judgements(round_id)) == 1
    assert store.progress(round_id).annotators == {"ann": 1}
    store.close()


@pytest.mark.parametrize("overlap", [1, 3])
def test_many_people_at_once_get_exact_overlap(store: JudgementStore, overlap: int) -> None:
    """12 people in threads, leases that run out, walking away, resends: nothing lost, nothing doubled."""
    round_id = round_of(store, 24, overlap=overlap, lease_seconds=3600)
    acknowledged: list[tuple[int, int]] = []
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            lot, ann = random.Random(number), store.user(f"person {number % 12}")
            empty = 0
            while empty < 3:
                held = store.lease(round_id, ann, lot.choice((1, 2)))
                empty = 0 if held else empty + 1
                for given in held:
                    token = f"{ann}-{given.id}"
                    for _ in range(2 if lot.random() < 0.3 else 1):
                        done = store.submit(ann, replace(answer(given), client_token=token))
                        acknowledged.append((done.judgement_id, given.task_id))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(14)]  # two people have two tabs
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    rows = store.judgements(round_id)
    assert {row.id for row in rows} == {id_ for id_, _ in acknowledged}
    assert set(Counter(row.task_id for row in rows).values()) == {overlap}
    assert len({(row.task_id, row.user_id) for row in rows}) == len(rows) == 24 * overlap
    with store.database.read() as connection:
        assert {tuple(r) for r in connection.execute(select(task.c.done, task.c.open_slots))} == {(overlap, 0)}
        assert set(connection.execute(select(assignment.c.state)).scalars()) == {"done"}


WRITER = """
import sys
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Answer
store = JudgementStore.open(sys.argv[1])
ann = store.user("ann")
while True:
    held = store.lease(1, ann, 2)
    for given in held:
        store.submit(ann, Answer(f"t{given.id}", given.id, "tie"))
        print(f"t{given.id}", flush=True)
"""


def test_kill_loses_nothing_acknowledged(location: str) -> None:
    store = JudgementStore.open(location)
    round_id = round_of(store, 400)
    for rounds in (1, 2):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, location], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        said = [writer.stdout.readline().strip() for _ in range(15)]
        writer.kill()
        said += [line.strip() for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        writer.wait()
        with store.database.read() as connection:
            stored = set(connection.execute(select(judgement.c.client_token)).scalars())
        assert set(said) <= stored
        assert len(stored) >= 15 * rounds
    rows = store.judgements(round_id)
    assert len({row.task_id for row in rows}) == len(rows)
    ann = store.user("ann")
    assert len(store.lease(round_id, ann, 400)) == 400 - len(rows)
    store.close()
