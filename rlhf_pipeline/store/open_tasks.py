"""Which open tasks of a round come next for a person, inside one transaction of the judgement store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, bindparam, func, select

from rlhf_pipeline.store.tables import assignment, task
from rlhf_pipeline.store.tasks import among

TASK_GIVEN = ("leased", "done", "skipped")
"""The states of an assignment after which the task is not given to the same person again."""

RANDOM_SHARE = 0.1
"""Where the order is by uncertainty, so many tasks are still drawn by lot, as a fair sample of all."""


def was_given(*purposes: str) -> ColumnElement[bool]:
    """That the person has, or has had, the task (for one of these purposes)."""
    # One list for all tasks: looked up task by task, a person's two thousandth task took SQLite a tenth of a second.
    given = select(assignment.c.task_id).where(
        assignment.c.user_id == bindparam("person"), assignment.c.state.in_(TASK_GIVEN)
    )
    return task.c.id.in_(given.where(assignment.c.purpose.in_(purposes)) if purposes else given)


_FREE = (
    select(task.c.id, task.c.open_slots)
    .where(task.c.round_id == bindparam("round"), task.c.open_slots > 0, ~was_given())
    .limit(bindparam("number"))
)
BY_LOT, _BY_PRIORITY = (task.c.lot, task.c.id), (task.c.priority.desc(), task.c.id)
_IN_ORDER = {"random": _FREE.order_by(*BY_LOT), "sequence": _FREE.order_by(*_BY_PRIORITY)}


def _front(*order: ColumnElement[Any]) -> Select[Any]:
    place = func.row_number().over(order_by=order).label("place")
    first = (
        select(task.c.id, task.c.open_slots, place)
        .where(task.c.round_id == bindparam("round"), task.c.open_slots > 0)
        .order_by(*order)
        .limit(bindparam("number"))
        .cte("first")
    )
    has = and_(
        assignment.c.task_id == first.c.id,
        among(assignment.c.user_id, "people"),
        assignment.c.state.in_(TASK_GIVEN),
    )
    columns = first.c.id, first.c.open_slots, assignment.c.user_id
    return select(*columns).outerjoin_from(first, assignment, has).order_by(first.c.place)


_FRONT = {"random": _front(*BY_LOT), "sequence": _front(*_BY_PRIORITY)}
_MOST_UNCERTAIN = _FREE.where(task.c.lot >= RANDOM_SHARE).order_by(*_BY_PRIORITY)
_SAMPLED = _FREE.where(task.c.lot < RANDOM_SHARE).order_by(*BY_LOT)


@dataclass(frozen=True, slots=True)
class Front:
    """The first open tasks of a round in its order, read once for all who are given tasks together.

    Attributes:
        tasks: ids with their open slots.
        given: who of them has, or has had, which.
    """

    tasks: Sequence[tuple[int, int]]
    given: Collection[tuple[int, int]]

    @staticmethod
    def of(connection: Connection, terms: Row[Any], wanted: Mapping[int, int]) -> Front:
        """Twice as many as are wanted; none where one person is alone, or the order is another for each."""
        if len(wanted) < 2 or terms.order_by not in _IN_ORDER:
            return Front((), ())
        given = {"round": terms.id, "people": list(wanted), "number": 2 * sum(wanted.values())}
        rows = connection.execute(_FRONT[terms.order_by], given).all()
        tasks = dict.fromkeys((int(row.id), row.open_slots) for row in rows)
        return Front(list(tasks), {(int(row.id), int(row.user_id)) for row in rows if row.user_id is not None})

    def of_person(self, person: int, n: int, taken: Counter[int]) -> list[int]:
        """The first n of a person, fewer where these do not suffice."""
        free = (id_ for id_, slots in self.tasks if slots > taken[id_] and (id_, person) not in self.given)
        return list(islice(free, n))


def pools(
    connection: Connection, terms: Row[Any], n: int, taken: Counter[int], front: Front
) -> tuple[list[int], list[int]]:
    """Tasks to be judged in the round's order, and those that are drawn by lot whatever the order is."""

    def ids(chosen: Select[Any]) -> list[int]:
        given = {"round": terms.id, "person": terms.person_id, "number": n + len(taken)}
        rows = connection.execute(chosen, given)
        return [int(row.id) for row in rows if row.open_slots > taken[row.id]][:n]

    if n <= 0:
        return [], []
    if len(found := front.of_person(terms.person_id, n, taken)) == n:
        return found, []
    if terms.order_by in _IN_ORDER:
        return ids(_IN_ORDER[terms.order_by]), []
    return ids(_MOST_UNCERTAIN), ids(_SAMPLED)
