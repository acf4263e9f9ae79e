"""The audit trail, and the check that what the store has counted is what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, exists, func, insert, or_, select, text

from rlhf_pipeline.store.records import Event
from rlhf_pipeline.store.tables import assignment, event, judgement, task, task_response, user
from rlhf_pipeline.store.tasks import counts_of


def log_event(
    connection: Connection,
    at: int,
    user_id: int | None,
    verb: str,
    thing: str,
    id_: int | None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add a row to the audit trail: who did what to what, when."""
    log_each(connection, thing, [(at, user_id, verb, id_, detail or {})])


def log_each(
    connection: Connection,
    thing: str,
    rows: Sequence[tuple[int, int | None, str, int | None, Mapping[str, Any]]],
) -> None:
    """Add a row for each (at, user id, verb, id, detail) to the audit trail."""
    values = [
        {"at": at, "user_id": user_id, "verb": verb, "object": thing, "object_id": id_, "detail": dict(detail)}
        for at, user_id, verb, id_, detail in rows
    ]
    if values:
        connection.execute(insert(event), values)


def events_of(connection: Connection, limit: int, before: int | None, user_id: int | None) -> list[Event]:
    """The newest rows of the audit trail, or those before a row, newest first."""
    query = (
        select(event, user.c.display_name)
        .outerjoin(user, user.c.id == event.c.user_id)
        .order_by(event.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(event.c.id < before)
    if user_id is not None:
        query = query.where(event.c.user_id == user_id)
    return [
        Event(
            id=int(row.id),
            at=int(row.at),
            user_id=row.user_id,
            user=row.display_name,
            verb=row.verb,
            object=row.object,
            object_id=row.object_id,
            detail=row.detail,
        )
        for row in connection.execute(query)
    ]


def differences(connection: Connection) -> list[str]:
    """What does not agree in the store, one line each; empty where all is well."""
    found = []
    if connection.dialect.name == "sqlite":
        found += [f"SQLite: {row[0]}" for row in connection.execute(text("PRAGMA integrity_check")) if row[0] != "ok"]
        found += [
            f"{row[0]} {row[1]} refers to nothing" for row in connection.execute(text("PRAGMA foreign_key_check"))
        ]
    done, slots = counts_of()
    counted = select(task.c.id, task.c.done, task.c.open_slots, done.label("is_done"), slots.label("is_open"))
    for row in connection.execute(counted.order_by(task.c.id)):
        if (row.done, row.open_slots) != (row.is_done, row.is_open):
            found.append(
                f"task {row.id}: counted {row.done} done and {row.open_slots} open, "
                f"there are {row.is_done} and {row.is_open}"
            )
    newer = judgement.alias("newer")
    stands = (
        select(judgement.c.assignment_id, judgement.c.choice, func.count().over(partition_by=judgement.c.assignment_id))
        .outerjoin(newer, newer.c.supersedes_id == judgement.c.id)
        .where(newer.c.id.is_(None))
        .subquery()
    )
    states = select(assignment.c.id, assignment.c.state, stands.c.choice, stands.c[2]).outerjoin(
        stands, stands.c.assignment_id == assignment.c.id
    )
    for id_, state, choice, number in connection.execute(states.order_by(assignment.c.id)):
        wanted = {None: None, "withdrawn": None, "skip": "skipped"}.get(choice, "done")
        if (number or 1) > 1:
            found.append(f"assignment {id_}: {number} judgements stand")
        elif wanted != (state if state in ("done", "skipped") else None):
            found.append(f"assignment {id_}: it is {state}, its last judgement is {choice or 'not there'}")
    of_task = exists().where(
        task_response.c.task_id == judgement.c.task_id, task_response.c.response_id == judgement.c.response_id
    )
    own = exists().where(
        and_(
            assignment.c.id == judgement.c.assignment_id,
            assignment.c.task_id == judgement.c.task_id,
            assignment.c.user_id == judgement.c.user_id,
        )
    )
    strange = select(judgement.c.id).where(or_(and_(judgement.c.response_id.is_not(None), ~of_task), ~own))
    found += [f"judgement {id_}: it is not of its task or person" for id_ in connection.execute(strange).scalars()]
    return found
