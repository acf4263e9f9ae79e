"""Answers of several people in one transaction."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import select, text

from rlhf_pipeline.errors import AnswerRefused
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.engine import now_ms
from rlhf_pipeline.store.records import Answer, Assignment, Order, Submitted
from rlhf_pipeline.store.submitting import AT_ONCE, Kept, Submission, Submissions
from rlhf_pipeline.store.tables import task
from tests.rlhf_pipeline.store.test_store import answer, pair

NAMES = ("ann", "bob", "cid", "dan", "eve")


@pytest.fixture
def store(location: str) -> Iterator[JudgementStore]:
    opened = JudgementStore.open(location)
    yield opened
    opened.close()


def together(store: JudgementStore, *calls: Callable[[], object]) -> list[object]:
    """What each call gives or raises, where all but the first wait for the store in their order."""
    with ThreadPoolExecutor(len(calls)) as pool, store.database.write():
        futures = []
        for n, call in enumerate(calls, start=1):
            futures.append(pool.submit(call))
            until(lambda n=n: len(store._submissions._waiting) == n)
    return [future.exception() or future.result() for future in futures]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        time.sleep(0.002)
    raise AssertionError("it did not come to that")


def submit(store: JudgementStore, user_id: int, given: Answer, hold: int = 0) -> Callable[[], object]:
    return lambda: store.submit(user_id, given, hold=hold)


def test_who_waits_is_kept_with_others_and_gets_what_is_left(store: JudgementStore) -> None:
    """Five people, tasks that two are to judge: the last slots go to somebody once, sides stay balanced."""
    round_id = store.open_round("people", overlap=2, seed=7, source_digest="d", lease_seconds=60)
    store.add_tasks(round_id, [pair(n) for n in range(6)])
    people = [store.user(name) for name in NAMES]
    held = {person: store.lease(round_id, person, 1)[0] for person in people}
    calls = [submit(store, person, answer(held[person]), hold=2) for person in people]
    done = together(store, *calls)
    assert all(isinstance(one, Submitted) and not one.known for one in done)
    assert len({one.judgement_id for one in done if isinstance(one, Submitted)}) == len(people)
    given = [a for one in done if isinstance(one, Submitted) for a in one.next]
    assert len(given) == 12 - len(people), "every slot that was left, and no other"
    seen = [(a.user_id, a.task_id) for a in (*held.values(), *given)]
    assert len(set(seen)) == len(seen), "no task twice to one person"
    assert set(Counter(task_id for _, task_id in seen).values()) == {2}
    orders: dict[int, set[str]] = {}
    for a in (*held.values(), *given):
        orders.setdefault(a.task_id, set()).add(a.responses[0].text)
    assert all(len(first) == 2 for first in orders.values()), "each response was first once"
    with store.database.read() as connection:
        assert set(connection.execute(select(task.c.open_slots)).scalars()) == {0}
    assert store.check() == []


def test_one_transaction_keeps_all_that_wait(store: JudgementStore, monkeypatch: pytest.MonkeyPatch) -> None:
    round_id = store.open_round("people", overlap=5, seed=7, source_digest="d", lease_seconds=60)
    store.add_tasks(round_id, [pair(0)])
    people = [store.user(name) for name in NAMES]
    held = {person: store.lease(round_id, person, 1)[0] for person in people}
    sizes: list[int] = []
    keep = store._submissions._keep

    def counted(submissions: Sequence[Submission]) -> Sequence[Kept]:
        sizes.append(len(submissions))
        return keep(submissions)

    monkeypatch.setattr(store._submissions, "_keep", counted)
    together(store, *(submit(store, person, answer(held[person])) for person in people))
    assert sizes == [1, 4]
    assert len(store.judgements(round_id)) == 5


def test_a_refused_answer_refuses_no_other(store: JudgementStore) -> None:
    """Not fitting, somebody else's task, the same token twice, the same task twice: each as if it came alone."""
    round_id = store.open_round("people", overlap=5, seed=7, source_digest="d", lease_seconds=60)
    store.add_tasks(round_id, [pair(n) for n in range(2)])
    ann, bob, cid, dan, eve = (store.user(name) for name in NAMES)
    held: dict[int, Assignment] = {p: store.lease(round_id, p, 1)[0] for p in (ann, bob, cid, dan, eve)}
    wrong = Answer("wrong-token", held[bob].id, "response", 999_999)
    again = replace(answer(held[dan], "tie"), client_token="dan-in-another-tab")
    given = together(
        store,
        submit(store, ann, answer(held[ann])),
        submit(store, bob, wrong, hold=1),
        submit(store, cid, answer(held[cid]), hold=2),
        submit(store, cid, answer(held[cid]), hold=2),
        submit(store, dan, answer(held[dan])),
        submit(store, dan, again),
        submit(store, eve, replace(answer(held[eve]), assignment_id=held[ann].id)),
    )
    assert [type(one) for one in given] == [Submitted, AnswerRefused, *[Submitted] * 4, AnswerRefused]
    first, second = given[2:4]
    assert isinstance(first, Submitted)
    assert isinstance(second, Submitted)
    assert (first.judgement_id, first.known) == (second.judgement_id, False)
    assert second.known
    assert sorted((row.user, row.choice, row.revision) for row in store.judgements(round_id)) == [
        ("ann", "response", 1),
        ("cid", "response", 1),
        ("dan", "tie", 2),
    ]
    assert store.check() == []


def test_a_late_answer_takes_its_slot_before_the_next_person_draws(store: JudgementStore) -> None:
    round_id = store.open_round("people", overlap=1, seed=7, source_digest="d", lease_seconds=60)
    store.add_tasks(round_id, [pair(0)])
    ann, bob = store.user("ann"), store.user("bob")
    [held] = store.lease(round_id, ann, 1, now=0)
    late, asked = store._keep(
        [Submission(ann, [answer(held)], None, 100_000), Submission(bob, (), 1, 100_000, round_id)]
    )
    assert late.submitted[0].late
    assert asked.holds == ()


@pytest.mark.parametrize("order", ["sequence", "random", "uncertainty"])
@pytest.mark.parametrize("tasks", [40, 9])
def test_who_asks_together_is_given_what_they_would_be_given_one_by_one(
    store: JudgementStore, order: Order, tasks: int
) -> None:
    """With tasks that some have judged before, and with few: what is read once for all does not suffice for each."""
    now = now_ms()
    given = []
    for name, many in (("alone", False), ("together", True)):
        round_id = store.open_round(name, overlap=3, seed=7, source_digest="d", lease_seconds=60, order=order)
        store.add_tasks(round_id, [pair(n) for n in range(tasks)])
        people = [store.user(name) for name in NAMES]
        for person, n in zip(people, (0, 3, 1, 4, 2), strict=True):
            for _ in range(n):
                store.submit(person, fresh(store.lease(round_id, person, 1, now=now)[0]), now=now)
        asked = [Submission(person, (), 4, now, round_id) for person in people]
        kept = store._keep(asked) if many else [store._keep([one])[0] for one in asked]
        digests = {row.id: row.digest for row in store.tasks(round_id)}
        given.append([[(digests[a.task_id], [r.text for r in a.responses]) for a in one.holds] for one in kept])
    assert given[0] == given[1]
    assert (sum(map(len, given[0])) == 20) == (tasks == 40), "few are enough for some only"
    assert store.check() == []


def test_postgresql_plans_for_the_rows_that_there_are(postgres_database: str) -> None:
    """By itself it counts them after a minute; at 2, 4, 8 … assignments it is told to, so it knows at least half."""
    store = JudgementStore.open(postgres_database)
    round_id = store.open_round("people", overlap=5, seed=7, source_digest="d", lease_seconds=60)
    store.add_tasks(round_id, [pair(n) for n in range(5)])
    for name in NAMES:
        store.lease(round_id, store.user(name), 4)
    with store.database.read() as connection:
        known = connection.execute(text("SELECT reltuples FROM pg_class WHERE oid = 'assignment'::regclass"))
        assert known.scalar_one() >= 10, "of twenty"
    store.close()


def fresh(given: Assignment) -> Answer:
    """An answer with a token of its own, in whichever round."""
    return replace(answer(given), client_token=f"token-of-{given.id}")


class Queue:
    """Submissions without a database: what was kept together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.queue = Submissions(self.keep)
        self.go, self.begun = threading.Event(), threading.Event()

    def keep(self, submissions: Sequence[Submission]) -> Sequence[Kept]:
        self.begun.set()
        self.go.wait(10)
        self.batches.append([one.user_id for one in submissions])
        if any(one.user_id == 13 for one in submissions):
            raise (KeyboardInterrupt if len(submissions) > 1 else AnswerRefused)("thirteen")
        return [Kept([], ()) for _ in submissions]

    def run(self, numbers: Sequence[int]) -> list[BaseException | Kept]:
        with ThreadPoolExecutor(len(numbers)) as pool:
            futures = []
            for n, number in enumerate(numbers, start=1):
                futures.append(pool.submit(self.queue.submit, Submission(number, (), None, 0)))
                until(lambda n=n: len(self.queue._waiting) == n)
                self.begun.wait(10)
            self.go.set()
        return [future.exception() or future.result() for future in futures]


def test_no_more_than_so_many_at_once() -> None:
    queue = Queue()
    queue.run(range(20, 20 + AT_ONCE + 4))
    assert [len(batch) for batch in queue.batches] == [1, AT_ONCE, 3]
    assert [number for batch in queue.batches for number in batch] == list(range(20, 20 + AT_ONCE + 4)), (
        "first come, first served"
    )


def test_a_thread_that_is_ended_leaves_nobody_waiting() -> None:
    """Who keeps for others and is ended takes nothing with it: the next one does it."""
    queue = Queue()
    first, ended, refused, last = queue.run([1, 2, 13, 3])
    assert isinstance(first, Kept)
    assert isinstance(ended, KeyboardInterrupt)
    assert isinstance(refused, BaseException)
    assert isinstance(last, Kept)
    assert queue.queue._waiting == []
