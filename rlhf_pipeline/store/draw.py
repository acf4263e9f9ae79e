"""Which tasks a person is given next, inside one transaction of the judgement store.

First the training tasks, then what is to be judged, in the round's order. Between those come, by lot, tasks whose
answer is known (gold) and tasks that the person judged before (repeat): on the screen they are like any other. The lots
depend on the seed, the person and how many tasks they have had, so the same run draws the same tasks.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, bindparam, func, insert, select, update

from rlhf_pipeline.errors import AnswerRefused
from rlhf_pipeline.store.open_tasks import BY_LOT, RANDOM_SHARE, TASK_GIVEN, Front, pools, was_given
from rlhf_pipeline.store.tables import assignment, guideline, round_, task, task_response, user
from rlhf_pipeline.store.tasks import among, keep_statistics, of_round, recount

REPEAT_AFTER = 30
"""A task comes back to the same person after at least so many others."""

RENEW_AFTER = 0.25
"""A lease is begun anew with its person's next answer once this share of it has passed: each time is a write."""

JUDGES = ("admin", "annotator", "simulated", "import")
"""The roles that are given tasks."""

MIXED_IN = ("judge", "gold", "repeat")


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A task that is to be given to a person (a row of ``_TERMS``) for a purpose."""

    person: Row[Any]
    purpose: str
    task_id: int

    def lease(self, now: int, until: int) -> dict[str, Any]:
        """What its assignment says while it is held."""
        return {
            "state": "leased",
            "leased_at": now,
            "lease_until": until,
            "form_digest": self.person.form_digest,
            "guideline_version": self.person.guideline_version,
        }


_OF_ROUND = (
    "id", "lease_s", "shuffle_seed", "form_digest", "order_by", "gold_rate", "repeat_rate", "training_tasks",
)  # fmt: skip
_TERMS: Select[Any] = (
    select(
        *(round_.c[name] for name in _OF_ROUND),
        select(func.max(guideline.c.version))
        .where(guideline.c.round_id == round_.c.id)
        .scalar_subquery()
        .label("guideline_version"),
        user.c.id.label("person_id"),
        user.c.name.label("person_name"),
        user.c.display_name,
        user.c.role,
        user.c.state.label("person_state"),
        assignment.c.id.label("held_id"),
        assignment.c.purpose.label("held_for"),
        assignment.c.lease_until.label("held_until"),
    )
    .join_from(round_, user, among(user.c.id, "people"))
    .outerjoin(
        assignment,
        and_(
            assignment.c.user_id == user.c.id,
            assignment.c.state == "leased",
            assignment.c.purpose != "adjudicate",
            of_round(),
        ),
    )
    .where(round_.c.id == bindparam("round"))
)
"""The terms of a round and of people who judge in it: a row for each task that one holds, or one row."""
_RENEW = update(assignment).where(among(assignment.c.id)).values(lease_until=bindparam("until"))


def lease_each(
    connection: Connection,
    round_id: int,
    people: Sequence[int],
    n: int,
    now: int,
    changed: Collection[int] = (),
) -> dict[int, list[int]]:
    """Ids of the assignments that each person holds: those held before, their leases renewed, and new ones up to n.

    Args:
        changed: ids of tasks to recount, together with those that are newly given.

    Raises:
        AnswerRefused: one of them does not judge.
    """
    rows = connection.execute(_TERMS, {"round": round_id, "people": people}).all()
    terms = {int(row.person_id): row for row in rows}
    for row in terms.values():
        if row.role not in JUDGES or row.person_state != "active":
            raise AnswerRefused(f"{row.display_name} is given no tasks: {row.person_state} {row.role}")
    lease_ms = terms[people[0]].lease_s * 1000
    until = now + lease_ms
    holds = sorted(
        (row for row in rows if row.held_id is not None), key=lambda r: (r.held_for != "training", r.held_id)
    )
    if begun := [row.held_id for row in holds if until - row.held_until > RENEW_AFTER * lease_ms]:
        connection.execute(_RENEW, {"ids": begun, "until": until})
    held = {person: [int(row.held_id) for row in holds if row.person_id == person][:n] for person in people}
    drawn: list[Drawn] = []
    wanted = {person: n - len(ids) for person, ids in held.items() if len(ids) < n}
    front = Front.of(connection, terms[people[0]], wanted)
    for person, number in wanted.items():
        taken = Counter(one.task_id for one in drawn if one.purpose == "judge")
        drawn += _draw(connection, terms[person], number, taken, front)
    for one, id_ in zip(drawn, _assign(connection, drawn, now, until), strict=True):
        held[one.person.person_id].append(id_)
    recount(connection, {*changed, *(one.task_id for one in drawn)})
    return held


def _draw(connection: Connection, terms: Row[Any], n: int, taken: Counter[int], front: Front) -> list[Drawn]:
    """The next n tasks of a person, fewer where there are no more, and what each is given for.

    Args:
        taken: how many slots of each task others have been given since it was counted.
    """
    drawn = [Drawn(terms, "training", id_) for id_ in _training(connection, terms, n)]
    first, sampled = pools(connection, terms, n - len(drawn), taken, front)
    mixed = terms.gold_rate > 0 or terms.repeat_rate > 0
    had = _number_given(connection, terms) if mixed or sampled else 0
    while len(drawn) < n and (first or sampled):
        lot = random.Random(f"{terms.shuffle_seed}:{terms.person_name}:{had}")
        had += 1
        kind, by_lot = lot.random(), lot.random() < RANDOM_SHARE
        ours = [one.task_id for one in drawn]
        if kind < terms.gold_rate:
            found, purpose = _known(connection, terms, ours), "gold"
        elif kind < terms.gold_rate + terms.repeat_rate:
            found, purpose = _judged_before(connection, terms, ours), "repeat"
        else:
            found, purpose = None, "judge"
        if found is None:
            pool = (sampled or first) if by_lot else (first or sampled)
            found, purpose = pool.pop(0), "judge"
        drawn.append(Drawn(terms, purpose, found))
    return drawn


def _known_tasks(terms: Row[Any]) -> Select[Any]:
    return (
        select(task.c.id)
        .where(task.c.round_id == terms.id, task.c.gold.is_not(None), task.c.state == "open", ~was_given())
        .order_by(*BY_LOT)
        .params(person=terms.person_id)
    )


def _training(connection: Connection, terms: Row[Any], n: int) -> list[int]:
    if not terms.training_tasks:
        return []
    given = (
        select(func.count())
        .select_from(assignment)
        .join(task, task.c.id == assignment.c.task_id)
        .where(task.c.round_id == terms.id, assignment.c.user_id == terms.person_id, assignment.c.purpose == "training")
        .where(assignment.c.state.in_(TASK_GIVEN))
    )
    missing = terms.training_tasks - connection.execute(given).scalar_one()
    if missing <= 0:
        return []
    return [int(id_) for id_ in connection.execute(_known_tasks(terms).limit(min(n, missing))).scalars()]


def _known(connection: Connection, terms: Row[Any], taken: Sequence[int]) -> int | None:
    query = _known_tasks(terms).where(task.c.id.not_in(taken)).limit(1)
    return connection.execute(query).scalars().one_or_none()


def _judged_before(connection: Connection, terms: Row[Any], taken: Sequence[int]) -> int | None:
    """The task that this person judged longest ago, if enough others came since and it has not come back yet."""
    query = (
        select(task.c.id, assignment.c.purpose, assignment.c.state, task.c.state, was_given("repeat"))
        .join(assignment, assignment.c.task_id == task.c.id)
        .where(task.c.round_id == terms.id, assignment.c.user_id == terms.person_id)
        .where(assignment.c.state.in_(("done", "skipped")), assignment.c.purpose != "adjudicate")
        .order_by(assignment.c.leased_at, assignment.c.id)
    )
    rows = connection.execute(query, {"person": terms.person_id}).all()
    for id_, purpose, state, task_state, repeated in rows[: max(0, len(rows) - REPEAT_AFTER)]:
        if (purpose, state, task_state) == ("judge", "done", "open") and not repeated and id_ not in taken:
            return int(id_)
    return None


def _number_given(connection: Connection, terms: Row[Any]) -> int:
    query = (
        select(func.count())
        .select_from(assignment)
        .join(task, task.c.id == assignment.c.task_id)
        .where(task.c.round_id == terms.id, assignment.c.user_id == terms.person_id, assignment.c.purpose.in_(MIXED_IN))
    )
    return int(connection.execute(query).scalar_one())


_GIVEN = (
    select(
        task.c.id,
        task.c.digest,
        select(func.count()).where(task_response.c.task_id == task.c.id).scalar_subquery().label("responses"),
        assignment.c.id.label("assignment_id"),
        assignment.c.user_id,
        assignment.c.purpose,
        assignment.c.shown_order,
    )
    .outerjoin(assignment, assignment.c.task_id == task.c.id)
    .where(among(task.c.id))
)
_GIVE = insert(assignment).returning(assignment.c.id, sort_by_parameter_order=True)


def _assign(connection: Connection, drawn: Sequence[Drawn], now: int, until: int) -> list[int]:
    """Lease what was drawn; a lease of the same task that had expired is taken up again, sides as before."""
    if not drawn:
        return []
    rows: list[Row[Any]] = list(connection.execute(_GIVEN, {"ids": sorted({one.task_id for one in drawn})}))
    before = {(row.user_id, row.purpose, int(row.id)): row.assignment_id for row in rows}
    ids = {
        one: int(before[key]) for one in drawn if (key := (one.person.person_id, one.purpose, one.task_id)) in before
    }
    for one, id_ in ids.items():
        leased = one.lease(now, until)
        connection.execute(update(assignment).where(assignment.c.id == id_).values(leased))
    fresh = [one for one in drawn if one not in ids]
    if fresh:
        orders = _choose_orders(connection, [one for one in fresh if one.purpose != "repeat"], rows)
        for one in fresh:
            if one.purpose == "repeat":
                orders[one] = _swapped_order(connection, one)
        given = [
            {
                "task_id": one.task_id,
                "shown_order": orders[one],
                "user_id": one.person.person_id,
                "purpose": one.purpose,
                **one.lease(now, until),
            }
            for one in fresh
        ]
        new = [int(id_) for id_ in connection.execute(_GIVE, given).scalars()]
        keep_statistics(connection, new)
        ids.update(zip(fresh, new, strict=True))
    return [ids[one] for one in drawn]


def _swapped_order(connection: Connection, one: Drawn) -> str:
    """The order that the person saw when they judged this task, the other way round."""
    query = select(assignment.c.shown_order).where(
        assignment.c.task_id == one.task_id,
        assignment.c.user_id == one.person.person_id,
        assignment.c.purpose == "judge",
    )
    return json.dumps(json.loads(connection.execute(query).scalar_one())[::-1])


_ORDERS_SHOWN = (
    select(assignment.c.user_id, assignment.c.shown_order, func.count())
    .where(among(assignment.c.user_id, "people"), of_round())
    .group_by(assignment.c.user_id, assignment.c.shown_order)
)


def _choose_orders(connection: Connection, drawn: Sequence[Drawn], given: Sequence[Row[Any]]) -> dict[Drawn, str]:
    """Sides by lot, balanced: first over the people who see a task, then over the tasks that a person sees.

    Args:
        given: rows of ``_GIVEN``, which say in which orders others saw these tasks.
    """
    if not drawn:
        return {}
    on_task: dict[int, Counter[str]] = defaultdict(Counter)
    for row in given:
        if row.shown_order is not None:
            on_task[int(row.id)][row.shown_order] += 1
    by_person: dict[int, Counter[str]] = defaultdict(Counter)
    people = sorted({one.person.person_id for one in drawn})
    for person_id, order, count in connection.execute(_ORDERS_SHOWN, {"people": people, "round": drawn[0].person.id}):
        by_person[person_id][order] = count
    known = {int(row.id): (row.digest, int(row.responses)) for row in given}
    orders = {}
    for one in drawn:
        digest, k = known[one.task_id]
        seen, shown = on_task[one.task_id], by_person[one.person.person_id]
        # By content: the same in every store.
        lot = random.Random(f"{one.person.shuffle_seed}:{digest}:{one.person.person_name}").sample(range(k), k)
        options = [json.dumps(lot), json.dumps(lot[::-1])]
        best = min(options, key=lambda order: (seen[order], shown[order]))
        seen[best] += 1
        shown[best] += 1
        orders[one] = best
    return orders
