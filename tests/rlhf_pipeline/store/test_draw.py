"""Which tasks a person is given, and what for."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select

from rlhf_pipeline.errors import AnswerRefused, StoreError
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.draw import REPEAT_AFTER
from rlhf_pipeline.store.open_tasks import RANDOM_SHARE
from rlhf_pipeline.store.records import Answer, Assignment, Feedback, Gold, NewResponse, NewTask, Submitted
from rlhf_pipeline.store.tables import assignment


@pytest.fixture
def store(location: str) -> Iterator[JudgementStore]:
    opened = JudgementStore.open(location)
    yield opened
    assert opened.check() == [], "what is counted is what is there"
    opened.close()


def pair(number: int) -> NewTask:
    responses = (NewResponse(f"good {number}"), NewResponse(f"bad {number}"))
    return NewTask(Prompt((Message("user", f"question {number}"),)), responses)


def round_of(store: JudgementStore, tasks: int, *, gold: int = 0, overlap: int = 1, **terms: Any) -> int:
    """A round of so many tasks; the last ``gold`` of them have "good" as their known answer."""
    round_id = store.open_round("people", overlap=overlap, seed=7, source_digest="d1", lease_seconds=3600, **terms)
    store.add_tasks(round_id, [pair(i) for i in range(tasks)])
    for task in store.tasks(round_id)[tasks - gold :] if gold else []:
        good = next(r.id for r in task.responses if r.text.startswith("good"))
        store.set_gold(task.id, Gold("response", good, "because"))
    return round_id


def judge(store: JudgementStore, held: Assignment, which: str = "good", **rest: Any) -> Submitted:
    best = next(r.id for r in held.responses if r.text.startswith(which))
    token = rest.pop("token", f"token-{held.id}")
    return store.submit(held.user_id, Answer(token, held.id, "response", best), **rest)


def judge_all(store: JudgementStore, round_id: int, user_id: int, which: str = "good") -> list[Assignment]:
    """What a person is given one by one until nothing is left."""
    given, held = [], store.lease(round_id, user_id, 1)
    while held:
        given += held
        held = list(judge(store, held[0], which, hold=1).next)
    return given


def questions(given: list[Assignment]) -> list[int]:
    return [int(a.prompt[0].content.split()[1]) for a in given]


# Order


def test_in_sequence_tasks_go_out_as_they_were_added(store: JudgementStore) -> None:
    round_id = round_of(store, 12)
    assert questions(judge_all(store, round_id, store.user("ann"))) == list(range(12))


def test_at_random_the_order_is_a_lot_that_the_seed_draws(store: JudgementStore) -> None:
    round_id = round_of(store, 12, order="random", overlap=2)
    store.set_priorities(round_id, {task.id: task.id for task in store.tasks(round_id)})
    orders = [questions(judge_all(store, round_id, store.user(name))) for name in ("ann", "bob")]
    assert orders[0] == orders[1]
    assert orders[0] == sorted(range(12), key=lambda n: random.Random(f"7:{pair(n).digest}").random())
    assert orders[0] not in (list(range(12)), list(range(12))[::-1])


def test_by_uncertainty_the_highest_priority_comes_first_except_for_a_random_tenth(store: JudgementStore) -> None:
    round_id = round_of(store, 120, order="uncertainty")
    store.set_priorities(round_id, {task.id: n % 50 + n / 1000 for n, task in enumerate(store.tasks(round_id))})
    sampled = {n for n in range(120) if random.Random(f"7:{pair(n).digest}").random() < RANDOM_SHARE}
    assert 6 <= len(sampled) <= 18
    given = questions(judge_all(store, round_id, store.user("ann")))
    assert sorted(given) == list(range(120))
    by_priority = [n for n in given if n not in sampled]
    assert by_priority == sorted(by_priority, key=lambda n: -(n % 50 + n / 1000))
    first = sum(n in sampled for n in given[:60])
    assert 2 <= first <= 12, "the sample is drawn along the way, not before or after the others"


# Gold


def test_gold_is_given_at_its_rate_and_needs_nobody(store: JudgementStore) -> None:
    round_id = round_of(store, 80, gold=30, gold_rate=0.25)
    assert store.progress(round_id).wanted == 50
    given = judge_all(store, round_id, store.user("ann"))
    kinds = Counter(a.purpose for a in given)
    assert kinds["judge"] == 50
    assert 8 <= kinds["gold"] <= 30
    assert {a.task_id for a in given if a.purpose == "gold"} <= {t.id for t in store.tasks(round_id) if t.gold}
    assert len({a.task_id for a in given}) == len(given)
    assert given[-1].purpose == "judge", "no gold is left over for the end"
    progress = store.progress(round_id)
    assert (progress.remaining, progress.judgements, progress.annotators) == (0, 50, {"ann": 50})
    assert store.count_of(round_id, store.user("ann"))[0] == len(given), "what a person sees counts gold like the rest"


def test_everybody_gets_the_same_gold_tasks_at_their_own_places(store: JudgementStore) -> None:
    round_id = round_of(store, 44, gold=4, gold_rate=0.25, overlap=2)
    places = []
    for name in ("ann", "bob"):
        given = judge_all(store, round_id, store.user(name))
        places.append([n for n, a in enumerate(given) if a.purpose == "gold"])
        assert {a.task_id for a in given if a.purpose == "gold"} == {t.id for t in store.tasks(round_id) if t.gold}
    assert places[0] != places[1]


def test_gold_is_silent_unless_the_round_says_otherwise(store: JudgementStore) -> None:
    round_id = round_of(store, 2, gold=1, gold_rate=1.0)
    [held] = store.lease(round_id, store.user("ann"), 1)
    assert held.purpose == "gold"
    assert judge(store, held, "bad").feedback is None
    round_of(store, 2, gold=1, gold_rate=1.0, gold_feedback=True)
    [held] = store.lease(round_id, store.user("bob"), 1)
    wrong = judge(store, held, "bad")
    expected = Gold("response", next(r.id for r in held.responses if r.text == "good 1"), "because")
    assert wrong.feedback == Feedback(False, expected, "because")
    again = judge(store, held, "bad")
    assert (again.known, again.feedback) == (True, wrong.feedback)
    with pytest.raises(AnswerRefused, match="has been shown"):
        judge(store, held, "good", token="second thoughts")
    with pytest.raises(AnswerRefused, match="has been shown"):
        store.undo(round_id, held.user_id, "undo-1")


def test_a_task_becomes_gold_and_back(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 3), store.user("ann")
    first = store.tasks(round_id)[0]
    store.set_gold(first.id, Gold("tie"), by=ann)
    assert store.tasks(round_id)[0].gold == Gold("tie")
    assert questions(store.lease(round_id, ann, 9)) == [1, 2]
    store.set_gold(first.id, None)
    assert sorted(questions(store.lease(round_id, ann, 9))) == [0, 1, 2]
    assert [e.verb for e in store.events(user_id=ann) if e.object == "task"] == ["gold"]


@pytest.mark.parametrize(
    "gold", [Gold("response"), Gold("tie", 1), Gold("response", 9999), Gold("skip"), Gold("ranking")]
)
def test_a_known_answer_is_one_to_its_task(store: JudgementStore, gold: Gold) -> None:
    round_id = round_of(store, 1)
    with pytest.raises(StoreError, match="cannot be the known answer"):
        store.set_gold(store.tasks(round_id)[0].id, gold)
    with pytest.raises(StoreError, match="no task 999"):
        store.set_gold(999, Gold("tie"))


# Training


def test_training_comes_first_with_feedback_and_once(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 20, gold=6, training_tasks=4, gold_rate=0.3), store.user("ann")
    held = store.lease(round_id, ann, 6)
    assert [a.purpose for a in held][:4] == ["training"] * 4
    assert "training" not in [a.purpose for a in held[4:]]
    done = judge(store, held[0])
    assert done.feedback is not None
    assert (done.feedback.right, done.feedback.explanation) == (True, "because")
    store.release(round_id, ann, [a.id for a in held[1:]])
    given = [held[0], *judge_all(store, round_id, ann)]
    kinds = Counter(a.purpose for a in given)
    assert (kinds["training"], kinds["judge"]) == (4, 14)
    trained = {a.task_id for a in given if a.purpose == "training"}
    assert not trained & {a.task_id for a in given if a.purpose == "gold"}, "what was taught is no test"
    assert [a.purpose for a in given[:4]] == ["training"] * 4


def test_training_is_as_long_as_there_are_gold_tasks(store: JudgementStore) -> None:
    round_id = round_of(store, 5, gold=2, training_tasks=10)
    given = judge_all(store, round_id, store.user("ann"))
    assert [a.purpose for a in given] == ["training"] * 2 + ["judge"] * 3


# Repeats


def test_a_repeat_is_an_own_task_after_thirty_others_with_sides_swapped(store: JudgementStore) -> None:
    round_id = round_of(store, 60, repeat_rate=0.5)
    given = judge_all(store, round_id, store.user("ann"))
    repeats = [n for n, a in enumerate(given) if a.purpose == "repeat"]
    assert 10 <= len(repeats) <= 29
    assert Counter(a.purpose for a in given)["judge"] == 60
    for n in repeats:
        [first] = [m for m, a in enumerate(given) if a.task_id == given[n].task_id and a.purpose == "judge"]
        assert n - first > REPEAT_AFTER
        assert given[n].responses == given[first].responses[::-1]
    assert len({given[n].task_id for n in repeats}) == len(repeats), "a task comes back once"
    assert store.progress(round_id).judgements == 60


def test_the_first_repeat_comes_when_exactly_thirty_others_came_after_it(store: JudgementStore) -> None:
    given = judge_all(store, round_of(store, 33, repeat_rate=1.0), store.user("ann"))
    assert [a.purpose for a in given[:32]] == ["judge"] * (REPEAT_AFTER + 1) + ["repeat"]
    assert given[31].task_id == given[0].task_id


def test_what_was_skipped_is_not_repeated(store: JudgementStore) -> None:
    round_id, ann = round_of(store, 40, repeat_rate=1.0), store.user("ann")
    for _ in range(36):
        [held] = store.lease(round_id, ann, 1)
        store.submit(ann, Answer(f"skip-{held.id}", held.id, "skip"))
    assert [a.purpose for a in store.lease(round_id, ann, 4)] == ["judge"] * 4


# Everything at once


def test_many_people_at_once_with_every_purpose(store: JudgementStore) -> None:
    """Twelve people in threads, overlap 3, resends, walking away, gold, repeats, training: exact and nothing lost."""
    tasks, gold, overlap = 50, 8, 3
    terms: dict[str, Any] = {"gold_rate": 0.15, "repeat_rate": 0.15, "training_tasks": 2, "order": "random"}
    round_id = round_of(store, tasks, gold=gold, overlap=overlap, **terms)
    acknowledged: set[int] = set()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            lot, person = random.Random(number), store.user(f"person {number}")
            empty = 0
            while empty < 3:
                held = store.lease(round_id, person, lot.choice((1, 2, 3)))
                empty = 0 if held else empty + 1
                if held and lot.random() < 0.1:
                    store.release(round_id, person, [a.id for a in held])  # walks away, and comes back
                    continue
                for given in held:
                    for _ in range(2 if lot.random() < 0.2 else 1):
                        acknowledged.add(judge(store, given, lot.choice(("good", "bad"))).judgement_id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    rows = store.judgements(round_id)
    assert {row.id for row in rows} == acknowledged
    assert len({(row.task_id, row.user_id, row.purpose) for row in rows}) == len(rows)
    counted = Counter(row.task_id for row in rows if row.purpose == "judge")
    assert set(counted.values()) == {overlap}
    assert len(counted) == tasks - gold
    kinds = Counter(row.purpose for row in rows)
    assert kinds["judge"] == (tasks - gold) * overlap
    assert kinds["gold"] > 0
    assert max(Counter(row.user_id for row in rows if row.purpose == "training").values()) == 2
    with store.database.read() as connection:
        assert set(connection.execute(select(assignment.c.state)).scalars()) <= {"done", "expired"}


def test_the_work_of_giving_a_task_hardly_grows_with_what_a_person_has_judged(tmp_path: Path) -> None:
    """Counted in SQLite's own steps: looked up task by task, it grew with the square."""
    store = JudgementStore.open(tmp_path / "s.db")
    round_id, ann = round_of(store, 600, overlap=2), store.user("ann")
    steps = [0]

    def count() -> None:
        steps[0] += 1

    @event.listens_for(store.database.engine, "checkout")
    def watch(connection: sqlite3.Connection, *_: object) -> None:
        connection.set_progress_handler(count, 100)

    held = store.lease(round_id, ann, 500)
    store.submit_many(ann, [Answer(f"token-{a.id}", a.id, "tie") for a in held])
    steps[0] = 0
    assert len(store.lease(round_id, ann, 1)) == 1
    assert 0 < steps[0] * 100 < 100_000
    store.close()


WORKER = """
import sys
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Answer
store = JudgementStore.open(sys.argv[1])
people = [store.user(f"{sys.argv[2]} {n}") for n in range(2)]
empty = 0
while empty < 2:
    for person in people:
        held = store.lease(1, person, 2)
        empty = 0 if held else empty + 1
        for given in held:
            print(store.submit(person, Answer(f"{person}-{given.id}", given.id, "tie")).judgement_id, flush=True)
store.close()
"""


def test_people_in_several_processes_get_exact_overlap(store: JudgementStore, location: str) -> None:
    round_id = round_of(store, 25, overlap=3)
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, location, name], stdout=subprocess.PIPE, text=True)
        for name in ("ann", "bob", "cat")
    ]
    said = [int(line) for worker in workers for line in worker.communicate()[0].split()]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    rows = store.judgements(round_id)
    assert sorted(said) == sorted(row.id for row in rows)
    assert set(Counter(row.task_id for row in rows).values()) == {3}
    assert len({(row.task_id, row.user_id) for row in rows}) == len(rows) == 75
