"""Answers inside one transaction of the judgement store: recognised, checked, appended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from rlhf_pipeline.errors import AnswerRefused
from rlhf_pipeline.store.records import Answer
from rlhf_pipeline.store.tables import assignment, event, judgement, task, task_response
from rlhf_pipeline.store.tasks import chunks, recount

APP_VERSION = "1"
"""Kept with every judgement: raised when what people see while judging changes."""

STATE_AFTER = {"response": "done", "tie": "done", "all_bad": "done", "skip": "skipped"}
"""The state of an assignment after each choice."""


def known_tokens(connection: Connection, user_id: int, tokens: Sequence[str]) -> dict[str, Row[Any]]:
    """Judgements that these tokens made before.

    Raises:
        AnswerRefused: a token is another person's.
    """
    rows = {
        row.client_token: row
        for part in chunks(tokens)
        for row in connection.execute(select(judgement).where(judgement.c.client_token.in_(part)))
    }
    if any(row.user_id != user_id for row in rows.values()):
        raise AnswerRefused("this token belongs to another person's judgement")
    return rows


def held_assignments(connection: Connection, user_id: int, answers: Sequence[Answer]) -> dict[int, Row[Any]]:
    """The assignments of these answers, with their round."""
    ids = [a.assignment_id for a in answers]
    rows = {
        int(row.id): row
        for part in chunks(ids)
        for row in connection.execute(
            select(assignment, task.c.round_id)
            .join(task, task.c.id == assignment.c.task_id)
            .where(assignment.c.id.in_(part), assignment.c.user_id == user_id)
        )
    }
    missing = [id_ for id_ in ids if id_ not in rows]
    if missing:
        raise AnswerRefused(f"assignment {missing[0]} is not this person's")
    return rows


def insert_answers(
    connection: Connection, user_id: int, answers: Sequence[Answer], held: Mapping[int, Row[Any]], now: int
) -> dict[str, Row[Any]]:
    """Append a person's new answers, close their assignments and recount their tasks; the rows by client token."""
    if not answers:
        return {}
    _check_choices(connection, answers, held)
    last = _last_revisions(connection, [a.assignment_id for a in answers])
    rows = []
    for a in answers:
        before = last.get(a.assignment_id)
        rows.append(
            {
                "assignment_id": a.assignment_id,
                "task_id": held[a.assignment_id].task_id,
                "user_id": user_id,
                "revision": before.revision + 1 if before else 1,
                "supersedes_id": before.id if before else None,
                "client_token": a.client_token,
                "choice": a.choice,
                "response_id": a.response_id,
                "probability": a.probability,
                "margin": a.margin,
                "shown_at": a.shown_at,
                "decided_at": a.decided_at,
                "received_at": now,
                "active_ms": a.active_ms,
                "wall_ms": a.wall_ms,
                "keys_used": a.keys_used,
                "late": held[a.assignment_id].state in ("leased", "expired")
                and held[a.assignment_id].lease_until < now,
                "app_version": APP_VERSION,
            }
        )
    stored = connection.execute(insert(judgement).returning(judgement), rows).all()
    for state in ("done", "skipped"):
        for part in chunks([a.assignment_id for a in answers if STATE_AFTER[a.choice] == state]):
            connection.execute(update(assignment).where(assignment.c.id.in_(part)).values(state=state))
    recount(connection, [row["task_id"] for row in rows])
    connection.execute(
        insert(event),
        [
            {
                "at": now,
                "user_id": user_id,
                "verb": "submit" if row.revision == 1 else "revise",
                "object": "judgement",
                "object_id": row.id,
                "detail": {"late": True} if row.late else {},
            }
            for row in stored
        ],
    )
    return {row.client_token: row for row in stored}


def _check_choices(connection: Connection, answers: Sequence[Answer], held: Mapping[int, Row[Any]]) -> None:
    for a in answers:
        if a.choice not in STATE_AFTER or (a.choice == "response") != (a.response_id is not None):
            raise AnswerRefused(f"{a.choice!r} with response {a.response_id} is not an answer")
    wanted = {(held[a.assignment_id].task_id, a.response_id) for a in answers if a.response_id is not None}
    found = {
        (task_id, response_id)
        for part in chunks(sorted({task_id for task_id, _ in wanted}))
        for task_id, response_id in connection.execute(
            select(task_response.c.task_id, task_response.c.response_id).where(task_response.c.task_id.in_(part))
        )
    }
    for _, response_id in wanted - found:
        raise AnswerRefused(f"response {response_id} is not one of its task")


def _last_revisions(connection: Connection, assignment_ids: Sequence[int]) -> dict[int, Row[Any]]:
    newer = judgement.alias("newer")
    return {
        int(row.assignment_id): row
        for part in chunks(assignment_ids)
        for row in connection.execute(
            select(judgement)
            .outerjoin(newer, newer.c.supersedes_id == judgement.c.id)
            .where(judgement.c.assignment_id.in_(part), newer.c.id.is_(None))
        )
    }


def standing_judgement(connection: Connection, round_id: int, user_id: int, of_token: str | None) -> Row[Any] | None:
    """A person's last judgement that stands, or the one with this token if it stands."""
    newer = judgement.alias("newer")
    query = (
        select(judgement)
        .join(task, task.c.id == judgement.c.task_id)
        .outerjoin(newer, newer.c.supersedes_id == judgement.c.id)
        .where(task.c.round_id == round_id, judgement.c.user_id == user_id)
        .where(newer.c.id.is_(None), judgement.c.choice != "withdrawn")
        .order_by(judgement.c.id.desc())
        .limit(1)
    )
    if of_token is not None:
        query = query.where(judgement.c.client_token == of_token)
    return connection.execute(query).one_or_none()
