"""Which tasks a person is given next, inside one transaction of the judgement store.

First the training tasks, then what is to be judged, in the round's order. Between those come, by lot, tasks whose
answer is known (gold) and tasks that the person judged before (repeat): on the screen they are like any other. The lots
depend on the seed, the person and how many tasks they have had, so the same run draws the same tasks.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, case, func, insert, select, update

from rlhf_pipeline.errors import AnswerRefused
from rlhf_pipeline.store.tables import assignment, guideline, round_, task, task_response, user
from rlhf_pipeline.store.tasks import expire, recount, these

TASK_GIVEN = ("leased", "done", "skipped")
"""The states of an assignment after which the task is not given to the same person again."""

REPEAT_AFTER = 30
"""A task comes back to the same person after at least so many others."""

RANDOM_SHARE = 0.1
"""Where the order is by uncertainty, so many tasks are still drawn by lot, as a fair sample of all."""

JUDGES = ("admin", "annotator", "simulated", "import")
"""The roles that are given tasks."""

MIXED_IN = ("judge", "gold", "repeat")


_TERMS = select(
    round_,
    select(func.max(guideline.c.version))
    .where(guideline.c.round_id == round_.c.id)
    .scalar_subquery()
    .label("guideline_version"),
).where(round_.c.id == bindparam("round"))
_PERSON = select(user.c.id, user.c.name, user.c.display_name, user.c.role, user.c.state).where(
    user.c.id == bindparam("person")
)
_HELD = (
    select(assignment.c.id)
    .join(task, task.c.id == assignment.c.task_id)
    .where(assignment.c.user_id == bindparam("person"), assignment.c.state == "leased")
    .where(task.c.round_id == bindparam("round"), assignment.c.purpose != "adjudicate")
    .order_by(case((assignment.c.purpose == "training", 0), else_=1), assignment.c.id)
)
_RENEW = update(assignment).where(assignment.c.id.in_(these())).values(lease_until=bindparam("until"))


def lease(connection: Connection, round_id: int, user_id: int, n: int, now: int) -> list[int]:
    """Ids of the assignments that a person holds: those held before, renewed, and new ones up to n in all.

    Raises:
        AnswerRefused: this person does not judge.
    """
    expire(connection, now)
    terms = connection.execute(_TERMS, {"round": round_id}).one()
    person = connection.execute(_PERSON, {"person": user_id}).one()
    if person.role not in JUDGES or person.state != "active":
        raise AnswerRefused(f"{person.display_name} is given no tasks: {person.state} {person.role}")
    until = now + terms.lease_s * 1000
    held = [int(id_) for id_ in connection.execute(_HELD, {"person": user_id, "round": round_id}).scalars()]
    if held:
        connection.execute(_RENEW, {"ids": held, "until": until})
    if len(held) >= n:
        return held[:n]
    drawn = _draw(connection, terms, person, n - len(held))
    new = []
    for purpose in dict.fromkeys(purpose for _, purpose in drawn):
        task_ids = [id_ for id_, of in drawn if of == purpose]
        assigned = _assign(connection, terms, person, purpose, task_ids, now=now, until=until)
        new += list(zip(((id_, purpose) for id_ in task_ids), assigned, strict=True))
    if drawn:
        recount(connection, [id_ for id_, _ in drawn])
    return held + [dict(new)[one] for one in drawn]


def _draw(connection: Connection, terms: Row[Any], person: Row[Any], n: int) -> list[tuple[int, str]]:
    """The next n tasks of a person, fewer where there are no more, and what each is given for."""
    drawn = [(id_, "training") for id_ in _training(connection, terms, person, n)]
    first, sampled = _pools(connection, terms, person, n - len(drawn))
    mixed = terms.gold_rate > 0 or terms.repeat_rate > 0
    had = _number_given(connection, terms, person) if mixed or sampled else 0
    while len(drawn) < n and (first or sampled):
        lot = random.Random(f"{terms.shuffle_seed}:{person.name}:{had}")
        had += 1
        kind, by_lot = lot.random(), lot.random() < RANDOM_SHARE
        taken = [id_ for id_, _ in drawn]
        if kind < terms.gold_rate:
            found, purpose = _known(connection, terms, person, taken), "gold"
        elif kind < terms.gold_rate + terms.repeat_rate:
            found, purpose = _judged_before(connection, terms, person, taken), "repeat"
        else:
            found, purpose = None, "judge"
        if found is None:
            pool = (sampled or first) if by_lot else (first or sampled)
            found, purpose = pool.pop(0), "judge"
        drawn.append((found, purpose))
    return drawn


def _seen(*purposes: str) -> ColumnElement[bool]:
    """That the person has, or has had, the task (for one of these purposes)."""
    # One list for all tasks: looked up task by task, a person's two thousandth task took SQLite a tenth of a second.
    given = select(assignment.c.task_id).where(
        assignment.c.user_id == bindparam("person"), assignment.c.state.in_(TASK_GIVEN)
    )
    return task.c.id.in_(given.where(assignment.c.purpose.in_(purposes)) if purposes else given)


_FREE = (
    select(task.c.id)
    .where(task.c.round_id == bindparam("round"), task.c.open_slots > 0, ~_seen())
    .limit(bindparam("number"))
)
_BY_LOT, _BY_PRIORITY = (task.c.lot, task.c.id), (task.c.priority.desc(), task.c.id)
_IN_ORDER = {"random": _FREE.order_by(*_BY_LOT), "sequence": _FREE.order_by(*_BY_PRIORITY)}
_MOST_UNCERTAIN = _FREE.where(task.c.lot >= RANDOM_SHARE).order_by(*_BY_PRIORITY)
_SAMPLED = _FREE.where(task.c.lot < RANDOM_SHARE).order_by(*_BY_LOT)


def _pools(connection: Connection, terms: Row[Any], person: Row[Any], n: int) -> tuple[list[int], list[int]]:
    """Tasks to be judged in the round's order, and those that are drawn by lot whatever the order is."""

    def ids(chosen: Select[Any]) -> list[int]:
        given = {"round": terms.id, "person": person.id, "number": n}
        return [int(id_) for id_ in connection.execute(chosen, given).scalars()]

    if n <= 0:
        return [], []
    if terms.order_by in _IN_ORDER:
        return ids(_IN_ORDER[terms.order_by]), []
    return ids(_MOST_UNCERTAIN), ids(_SAMPLED)


def _known_tasks(terms: Row[Any], person: Row[Any]) -> Select[Any]:
    return (
        select(task.c.id)
        .where(task.c.round_id == terms.id, task.c.gold.is_not(None), task.c.state == "open", ~_seen())
        .order_by(*_BY_LOT)
        .params(person=person.id)
    )


def _training(connection: Connection, terms: Row[Any], person: Row[Any], n: int) -> list[int]:
    if not terms.training_tasks:
        return []
    given = (
        select(func.count())
        .select_from(assignment)
        .join(task, task.c.id == assignment.c.task_id)
        .where(task.c.round_id == terms.id, assignment.c.user_id == person.id, assignment.c.purpose == "training")
        .where(assignment.c.state.in_(TASK_GIVEN))
    )
    missing = terms.training_tasks - connection.execute(given).scalar_one()
    if missing <= 0:
        return []
    return [int(id_) for id_ in connection.execute(_known_tasks(terms, person).limit(min(n, missing))).scalars()]


def _known(connection: Connection, terms: Row[Any], person: Row[Any], taken: Sequence[int]) -> int | None:
    query = _known_tasks(terms, person).where(task.c.id.not_in(taken)).limit(1)
    return connection.execute(query).scalars().one_or_none()


def _judged_before(connection: Connection, terms: Row[Any], person: Row[Any], taken: Sequence[int]) -> int | None:
    """The task that this person judged longest ago, if enough others came since and it has not come back yet."""
    query = (
        select(task.c.id, assignment.c.purpose, assignment.c.state, task.c.state, _seen("repeat"))
        .join(assignment, assignment.c.task_id == task.c.id)
        .where(task.c.round_id == terms.id, assignment.c.user_id == person.id)
        .where(assignment.c.state.in_(("done", "skipped")), assignment.c.purpose != "adjudicate")
        .order_by(assignment.c.leased_at, assignment.c.id)
    )
    rows = connection.execute(query, {"person": person.id}).all()
    for id_, purpose, state, task_state, repeated in rows[: max(0, len(rows) - REPEAT_AFTER)]:
        if (purpose, state, task_state) == ("judge", "done", "open") and not repeated and id_ not in taken:
            return int(id_)
    return None


def _number_given(connection: Connection, terms: Row[Any], person: Row[Any]) -> int:
    query = (
        select(func.count())
        .select_from(assignment)
        .join(task, task.c.id == assignment.c.task_id)
        .where(task.c.round_id == terms.id, assignment.c.user_id == person.id, assignment.c.purpose.in_(MIXED_IN))
    )
    return int(connection.execute(query).scalar_one())


_TAKEN = select(assignment.c.id, assignment.c.task_id).where(
    assignment.c.task_id.in_(these()),
    assignment.c.user_id == bindparam("person"),
    assignment.c.purpose == bindparam("of"),
)
_GIVE = insert(assignment).returning(assignment.c.id, sort_by_parameter_order=True)


def _assign(
    connection: Connection,
    terms: Row[Any],
    person: Row[Any],
    purpose: str,
    task_ids: Sequence[int],
    *,
    now: int,
    until: int,
) -> list[int]:
    """Lease these tasks to a person; a lease of the same task that had expired is taken up again, sides as before."""
    given = {
        "state": "leased",
        "leased_at": now,
        "lease_until": until,
        "form_digest": terms.form_digest,
        "guideline_version": terms.guideline_version,
    }
    rows = connection.execute(_TAKEN, {"ids": task_ids, "person": person.id, "of": purpose}).all()
    again = {int(row.task_id): int(row.id) for row in rows}
    if again:
        connection.execute(update(assignment).where(assignment.c.id.in_(again.values())).values(given))
    fresh = [id_ for id_ in task_ids if id_ not in again]
    if fresh:
        if purpose == "repeat":
            orders = _swapped_orders(connection, person, fresh)
        else:
            orders = _choose_orders(connection, terms, person, fresh)
        whose = {"user_id": person.id, "purpose": purpose, **given}
        rows_of = [{"task_id": id_, "shown_order": orders[id_], **whose} for id_ in fresh]
        added = connection.execute(_GIVE, rows_of).scalars()
        again.update(zip(fresh, (int(id_) for id_ in added), strict=True))
    return [again[id_] for id_ in task_ids]


def _swapped_orders(connection: Connection, person: Row[Any], task_ids: Sequence[int]) -> dict[int, str]:
    """The order that the person saw when they judged these tasks, the other way round."""
    query = select(assignment.c.task_id, assignment.c.shown_order).where(
        assignment.c.task_id.in_(task_ids), assignment.c.user_id == person.id, assignment.c.purpose == "judge"
    )
    return {int(id_): json.dumps(json.loads(order)[::-1]) for id_, order in connection.execute(query)}


_SIZES = (
    select(task.c.id, task.c.digest, func.count())
    .join(task_response, task_response.c.task_id == task.c.id)
    .where(task.c.id.in_(these()))
    .group_by(task.c.id, task.c.digest)
)
_SHOWN_TO_OTHERS = select(assignment.c.task_id, assignment.c.shown_order).where(assignment.c.task_id.in_(these()))
_SHOWN_TO_PERSON = (
    select(assignment.c.shown_order, func.count())
    .join(task, task.c.id == assignment.c.task_id)
    .where(assignment.c.user_id == bindparam("person"), task.c.round_id == bindparam("round"))
    .group_by(assignment.c.shown_order)
)


def _choose_orders(
    connection: Connection, terms: Row[Any], person: Row[Any], task_ids: Sequence[int]
) -> dict[int, str]:
    """Sides by lot, balanced: first over the people who see a task, then over the tasks that a person sees."""
    sizes = connection.execute(_SIZES, {"ids": task_ids}).all()
    on_task: dict[int, Counter[str]] = defaultdict(Counter)
    for id_, order in connection.execute(_SHOWN_TO_OTHERS, {"ids": task_ids}):
        on_task[int(id_)][order] += 1
    by_person: Counter[str] = Counter()
    for order, count in connection.execute(_SHOWN_TO_PERSON, {"person": person.id, "round": terms.id}):
        by_person[order] = count
    known = {int(id_): (digest, int(k)) for id_, digest, k in sizes}
    orders = {}
    for id_ in task_ids:
        digest, k = known[id_]
        # By content: the same in every store.
        lot = random.Random(f"{terms.shuffle_seed}:{digest}:{person.name}").sample(range(k), k)
        options = [json.dumps(lot), json.dumps(lot[::-1])]
        best = min(options, key=lambda order: (on_task[id_][order], by_person[order]))
        by_person[best] += 1
        orders[id_] = best
    return orders
