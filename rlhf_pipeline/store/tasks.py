"""Tasks of a round inside one transaction of the judgement store: adding, counting, giving out.

``task.open_slots`` and ``task.done`` are never counted up or down: after every change they are computed afresh from the
assignments of the task, so that they cannot drift.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, and_, case, exists, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from rlhf_pipeline.records import Message
from rlhf_pipeline.store.records import NewTask, text_digest
from rlhf_pipeline.store.tables import assignment, event, prompt, response, round_, task, task_response, user

T = TypeVar("T")
TASK_GIVEN = ("leased", "done", "skipped")
"""The states of an assignment after which the task is not given to the same person again."""


def chunks(items: Sequence[T], size: int = 500) -> Iterator[Sequence[T]]:
    """Pieces that fit into one statement (SQLite takes 32,766 parameters)."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def recount(connection: Connection, task_ids: Collection[int]) -> None:
    """Compute ``done`` and ``open_slots`` of these tasks from their assignments."""
    ours = and_(assignment.c.task_id == task.c.id, assignment.c.purpose == "judge")
    count = select(func.count()).select_from(assignment)
    done = count.where(ours, assignment.c.state == "done").scalar_subquery()
    taken = count.where(ours, assignment.c.state.in_(("done", "leased"))).scalar_subquery()
    slots = case((and_(task.c.state == "open", task.c.needed > taken), task.c.needed - taken), else_=0)
    for ids in chunks(sorted(set(task_ids))):
        connection.execute(update(task).where(task.c.id.in_(ids)).values(done=done, open_slots=slots))


def add_tasks(connection: Connection, round_id: int, overlap: int, tasks: Sequence[NewTask]) -> int:
    """Add the tasks that the round does not have, reopen those that it had retired; returns how many were added."""
    added = 0
    for part in chunks(list({t.digest: t for t in tasks}.values())):
        by_digest = {t.digest: t for t in part}
        rows = connection.execute(
            select(task.c.digest, task.c.id, task.c.state).where(
                task.c.round_id == round_id, task.c.digest.in_(by_digest)
            )
        ).all()
        reopened = [row.id for row in rows if row.state != "open"]
        if reopened:
            connection.execute(update(task).where(task.c.id.in_(reopened)).values(state="open"))
            recount(connection, reopened)
        have = {row.digest for row in rows}
        new = [t for t in part if t.digest not in have]
        if new:
            _insert_tasks(connection, round_id, overlap, new)
            added += len(new)
    return added


def _insert_tasks(connection: Connection, round_id: int, overlap: int, tasks: Sequence[NewTask]) -> None:
    prompt_ids = _prompt_ids(connection, tasks)
    response_ids = _response_ids(connection, tasks, prompt_ids)
    rows = [
        {
            "round_id": round_id,
            "prompt_id": prompt_ids[t.prompt.id],
            "digest": t.digest,
            "priority": t.priority,
            "needed": t.needed or overlap,
            "open_slots": t.needed or overlap,
            "meta": dict(t.meta),
        }
        for t in tasks
    ]
    ids = connection.execute(insert(task).returning(task.c.id, sort_by_parameter_order=True), rows).scalars().all()
    connection.execute(
        insert(task_response),
        [
            {
                "task_id": task_id,
                "position": position,
                "response_id": response_ids[prompt_ids[t.prompt.id], text_digest(r.text), r.sampler_digest],
            }
            for task_id, t in zip(ids, tasks, strict=True)
            for position, r in enumerate(t.canonical())
        ],
    )


def _prompt_ids(connection: Connection, tasks: Sequence[NewTask]) -> dict[str, int]:
    rows = {t.prompt.id: {"digest": t.prompt.id, "messages": [m.to_json() for m in t.prompt.messages]} for t in tasks}
    _insert_missing(connection, prompt, list(rows.values()))
    found = connection.execute(select(prompt.c.digest, prompt.c.id).where(prompt.c.digest.in_(rows)))
    return {row.digest: int(row.id) for row in found}


def _response_ids(
    connection: Connection, tasks: Sequence[NewTask], prompt_ids: Mapping[str, int]
) -> dict[tuple[int, str, str], int]:
    rows = [
        {
            "prompt_id": prompt_ids[t.prompt.id],
            "digest": text_digest(r.text),
            "messages": [Message("assistant", r.text).to_json()],
            "sampler_digest": r.sampler_digest,
            "finish": r.finish,
        }
        for t in tasks
        for r in t.responses
    ]
    _insert_missing(connection, response, rows)
    found = connection.execute(
        select(response.c.prompt_id, response.c.digest, response.c.sampler_digest, response.c.id).where(
            response.c.prompt_id.in_(set(prompt_ids.values()))
        )
    )
    return {(int(row[0]), row[1], row[2]): int(row[3]) for row in found}


def _insert_missing(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(postgresql.insert(table).on_conflict_do_nothing(), rows)
    else:
        connection.execute(sqlite.insert(table).on_conflict_do_nothing(), rows)


def expire(connection: Connection, round_id: int, now: int) -> None:
    """Return the leases of a round that have run out to the pool."""
    query = (
        select(assignment.c.id, assignment.c.task_id, assignment.c.user_id)
        .join(task, task.c.id == assignment.c.task_id)
        .where(assignment.c.state == "leased", assignment.c.lease_until < now, task.c.round_id == round_id)
    )
    rows = connection.execute(query).all()
    if not rows:
        return
    for part in chunks(rows):
        connection.execute(update(assignment).where(assignment.c.id.in_([r.id for r in part])).values(state="expired"))
    recount(connection, [r.task_id for r in rows])
    connection.execute(
        insert(event),
        [
            {"at": now, "user_id": r.user_id, "verb": "expire", "object": "assignment", "object_id": r.id, "detail": {}}
            for r in rows
        ],
    )


def lease(connection: Connection, round_id: int, user_id: int, n: int, now: int) -> list[int]:
    """Ids of the assignments that a person holds: those held before, renewed, and new ones up to n in all."""
    expire(connection, round_id, now)
    lease_s, seed = connection.execute(
        select(round_.c.lease_s, round_.c.shuffle_seed).where(round_.c.id == round_id)
    ).one()
    until = now + lease_s * 1000
    held_query = (
        select(assignment.c.id)
        .join(task, task.c.id == assignment.c.task_id)
        .where(assignment.c.user_id == user_id, assignment.c.state == "leased", task.c.round_id == round_id)
        .order_by(assignment.c.id)
    )
    held = [int(id_) for id_ in connection.execute(held_query).scalars()]
    if held:
        connection.execute(update(assignment).where(assignment.c.id.in_(held)).values(lease_until=until))
    if len(held) >= n:
        return held[:n]
    seen = exists().where(
        assignment.c.task_id == task.c.id, assignment.c.user_id == user_id, assignment.c.state.in_(TASK_GIVEN)
    )
    candidates = (
        select(task.c.id)
        .where(task.c.round_id == round_id, task.c.open_slots > 0, ~seen)
        .order_by(task.c.priority.desc(), task.c.id)
        .limit(n - len(held))
    )
    task_ids = [int(id_) for id_ in connection.execute(candidates).scalars()]
    if not task_ids:
        return held
    new = _assign(connection, round_id, user_id, task_ids, seed=seed, now=now, until=until)
    recount(connection, task_ids)
    return held + new


def _assign(
    connection: Connection, round_id: int, user_id: int, task_ids: Sequence[int], *, seed: int, now: int, until: int
) -> list[int]:
    """Lease these tasks to a person; a lease of the same task that had expired is taken up again, sides as before."""
    rows = connection.execute(
        select(assignment.c.id, assignment.c.task_id).where(
            assignment.c.task_id.in_(task_ids), assignment.c.user_id == user_id, assignment.c.purpose == "judge"
        )
    ).all()
    again = {int(row.task_id): int(row.id) for row in rows}
    if again:
        connection.execute(
            update(assignment)
            .where(assignment.c.id.in_(again.values()))
            .values(state="leased", leased_at=now, lease_until=until)
        )
    fresh = [id_ for id_ in task_ids if id_ not in again]
    orders = _choose_orders(connection, round_id, user_id, fresh, seed)
    if fresh:
        rows_to_add = [
            {
                "task_id": id_,
                "user_id": user_id,
                "shown_order": json.dumps(orders[id_]),
                "state": "leased",
                "leased_at": now,
                "lease_until": until,
            }
            for id_ in fresh
        ]
        added = connection.execute(
            insert(assignment).returning(assignment.c.id, sort_by_parameter_order=True), rows_to_add
        ).scalars()
        again.update(zip(fresh, (int(id_) for id_ in added), strict=True))
    return [again[id_] for id_ in task_ids]


def _choose_orders(
    connection: Connection, round_id: int, user_id: int, task_ids: Sequence[int], seed: int
) -> dict[int, list[int]]:
    """Sides by lot, balanced: first over the people who see a task, then over the tasks that a person sees."""
    if not task_ids:
        return {}
    name = connection.execute(select(user.c.name).where(user.c.id == user_id)).scalar_one()
    sizes = connection.execute(
        select(task.c.id, task.c.digest, func.count())
        .join(task_response, task_response.c.task_id == task.c.id)
        .where(task.c.id.in_(task_ids))
        .group_by(task.c.id, task.c.digest)
    ).all()
    on_task: dict[int, Counter[str]] = defaultdict(Counter)
    shown = select(assignment.c.task_id, assignment.c.shown_order).where(assignment.c.task_id.in_(task_ids))
    for id_, order in connection.execute(shown):
        on_task[int(id_)][order] += 1
    by_person: Counter[str] = Counter()
    of_user = (
        select(assignment.c.shown_order, func.count())
        .join(task, task.c.id == assignment.c.task_id)
        .where(assignment.c.user_id == user_id, task.c.round_id == round_id)
        .group_by(assignment.c.shown_order)
    )
    for order, count in connection.execute(of_user):
        by_person[order] = count
    known = {int(id_): (digest, int(k)) for id_, digest, k in sizes}
    orders = {}
    for id_ in task_ids:
        digest, k = known[id_]
        lot = random.Random(f"{seed}:{digest}:{name}").sample(range(k), k)  # by content: the same in every store
        options = [json.dumps(lot), json.dumps(lot[::-1])]
        best = min(options, key=lambda order: (on_task[id_][order], by_person[order]))
        by_person[best] += 1
        orders[id_] = list(json.loads(best))
    return orders
