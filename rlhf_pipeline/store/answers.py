"""Answers inside one transaction of the judgement store: recognised, checked, appended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, exists, func, insert, select, update

from rlhf_pipeline.errors import AnswerRefused
from rlhf_pipeline.store.audit import log_each, log_event
from rlhf_pipeline.store.forms import check_answer, form_of, is_right
from rlhf_pipeline.store.records import Answer, Feedback, StoredResponse
from rlhf_pipeline.store.reports import gold_of, responses_by_task
from rlhf_pipeline.store.tables import assignment, draft, judgement, round_, task
from rlhf_pipeline.store.tasks import among, chunks, recount

APP_VERSION = "1"
"""Kept with every judgement: raised when what people see while judging changes."""

STATE_AFTER = {"response": "done", "tie": "done", "all_bad": "done", "ranking": "done", "skip": "skipped"}
"""The state of an assignment after each choice."""


_BY_TOKEN = select(judgement).where(among(judgement.c.client_token, "tokens"))


def known_tokens(connection: Connection, senders: Mapping[str, int]) -> dict[str, Row[Any]]:
    """Judgements that these tokens made before.

    Args:
        senders: by token, who sends it now.

    Raises:
        AnswerRefused: a token is another person's.
    """
    parts = chunks(list(senders))
    rows = {row.client_token: row for part in parts for row in connection.execute(_BY_TOKEN, {"tokens": part})}
    if any(row.user_id != senders[token] for token, row in rows.items()):
        raise AnswerRefused("this token belongs to another person's judgement")
    return rows


_HELD = (
    select(
        assignment,
        task.c.round_id,
        task.c.gold,
        round_.c.gold_feedback,
        round_.c.edit_minutes,
        draft.c.assignment_id.label("drafted"),
        select(func.max(judgement.c.id))
        .where(judgement.c.assignment_id == assignment.c.id)
        .scalar_subquery()
        .label("last_id"),
        select(func.max(judgement.c.revision))
        .where(judgement.c.assignment_id == assignment.c.id)
        .scalar_subquery()
        .label("last_revision"),
        exists().where(among(judgement.c.client_token, "tokens")).label("token_known"),
    )
    .join(task, task.c.id == assignment.c.task_id)
    .join(round_, round_.c.id == task.c.round_id)
    .outerjoin(draft, draft.c.assignment_id == assignment.c.id)
    .where(among(assignment.c.id))
)


def held_assignments(
    connection: Connection, whose: Mapping[int, int], tokens: Sequence[str] = ()
) -> dict[int, Row[Any]]:
    """Assignments with the terms of their round, the known answer of their task, and the last revision, by id.

    Also whether one of the ``tokens`` made a judgement before, of whatever assignment.

    Args:
        whose: by assignment, the person who is to have it.

    Raises:
        AnswerRefused: one is not this person's.
    """
    rows = {
        int(row.id): row
        for part in chunks(list(whose))
        for row in connection.execute(_HELD, {"ids": part, "tokens": tokens})
    }
    for id_, user_id in whose.items():
        if id_ not in rows or rows[id_].user_id != user_id:
            raise AnswerRefused(f"assignment {id_} is not this person's")
    return rows


_STORED = (
    "id", "assignment_id", "task_id", "user_id", "client_token", "revision", "received_at", "late",
    "choice", "response_id", "ranking",
)  # fmt: skip
_STORE = insert(judgement).returning(*(judgement.c[name] for name in _STORED))
_CLOSE = update(assignment).where(among(assignment.c.id)).values(state=bindparam("closed"))
_FORGET_DRAFTS = delete(draft).where(among(draft.c.assignment_id))


def insert_answers(
    connection: Connection,
    received: Sequence[tuple[Answer, int]],
    held: Mapping[int, Row[Any]],
    known: Mapping[int, Sequence[StoredResponse]] | None = None,
) -> dict[str, Row[Any]]:
    """Append new answers and close their assignments; the rows by client token.

    The caller recounts their tasks.

    Args:
        received: each with when it came, UTC epoch milliseconds.
        held: their assignments, by id: whose answer it is.
        known: the responses of some tasks; those of others are read.
    """
    if not received:
        return {}
    answers = [a for a, _ in received]
    tasks = {int(held[a.assignment_id].task_id) for a in answers}
    responses = {id_: {r.id: r.text for r in known[id_]} for id_ in tasks if known and id_ in known}
    if unread := sorted(tasks - responses.keys()):
        responses |= responses_by_task(connection, unread)
    for a, now in received:
        given = held[a.assignment_id]
        check_answer(form_of(connection, given.form_digest), a, responses[given.task_id])
        if a.correction is not None and a.correction == responses[given.task_id][a.corrected_id or 0]:
            raise AnswerRefused("the corrected response is what it was")
        if given.state in ("done", "skipped") and given.purpose != "adjudicate":
            check_editable(connection, given, now)
    rows = [_row(a, held[a.assignment_id], now) for a, now in received]
    named = [name for name in rows[0] if any(row[name] is not None for row in rows)]  # each column takes its time
    stored = connection.execute(_STORE, [{name: row[name] for name in named} for row in rows]).all()
    for state in ("done", "skipped"):
        for part in chunks([a.assignment_id for a in answers if STATE_AFTER[a.choice] == state]):
            connection.execute(_CLOSE, {"ids": part, "closed": state})
    for part in chunks([a.assignment_id for a in answers if held[a.assignment_id].drafted is not None]):
        connection.execute(_FORGET_DRAFTS, {"ids": part})
    log_each(
        connection,
        "judgement",
        [
            (
                int(row.received_at),
                int(row.user_id),
                "submit" if row.revision == 1 else "revise",
                int(row.id),
                {"late": True} if row.late else {},
            )
            for row in stored
        ],
    )
    return {row.client_token: row for row in stored}


def _row(a: Answer, given: Row[Any], now: int) -> dict[str, Any]:
    return {
        "assignment_id": a.assignment_id,
        "task_id": given.task_id,
        "user_id": given.user_id,
        "revision": (given.last_revision or 0) + 1,
        "supersedes_id": given.last_id,
        "client_token": a.client_token,
        "choice": a.choice,
        "response_id": a.response_id,
        "probability": a.probability,
        "margin": a.strength if a.strength is not None else a.margin,
        "shown_at": a.shown_at,
        "decided_at": a.decided_at,
        "received_at": now,
        "active_ms": a.active_ms,
        "wall_ms": a.wall_ms,
        "keys_used": a.keys_used,
        "late": given.state in ("leased", "expired") and given.lease_until < now,
        "app_version": APP_VERSION,
        "strength": a.strength,
        "ranking": [list(group) for group in a.ranking] if a.ranking is not None else None,
        "rules": {str(id_): list(broken) for id_, broken in a.rules.items()} or None,
        "ratings": {str(id_): dict(points) for id_, points in a.ratings.items()} or None,
        "flags": list(a.flags) or None,
        "comment": a.comment or None,
        "corrected_id": a.corrected_id,
        "correction": a.correction,
        "form_digest": given.form_digest,
        "guideline_version": given.guideline_version,
    }


def shows_answer(given: Row[Any]) -> bool:
    """Whether the person is told the known answer of this assignment's task."""
    return given.gold is not None and (given.purpose == "training" or (given.purpose == "gold" and given.gold_feedback))


def feedback_on(given: Row[Any], stored: Row[Any]) -> Feedback | None:
    """What the person learns after a judgement; None where nothing may be said."""
    if not shows_answer(given) or stored.choice == "withdrawn":
        return None
    gold = gold_of(given.gold)
    assert gold is not None
    return Feedback(is_right(gold, stored), gold, gold.explanation)


def check_editable(connection: Connection, given: Row[Any], now: int) -> None:
    """See that a judgement that stands may still be changed.

    Raises:
        AnswerRefused: its time is over, or the person has been told the answer.
    """
    if shows_answer(given):
        raise AnswerRefused("the answer to this task has been shown: it cannot be changed any more")
    if given.edit_minutes is None:
        return
    first = select(func.min(judgement.c.received_at)).where(judgement.c.assignment_id == given.id)
    if now - int(connection.execute(first).scalar_one()) > given.edit_minutes * 60_000:
        raise AnswerRefused(f"judgements can be changed for {given.edit_minutes} minutes; this one is older")


def is_editable(connection: Connection, given: Row[Any], now: int) -> bool:
    """Whether a judgement that stands may still be changed."""
    try:
        check_editable(connection, given, now)
    except AnswerRefused:
        return False
    return True


def keep_draft(
    connection: Connection, user_id: int, assignment_id: int, answer: Mapping[str, Any] | None, now: int
) -> None:
    """Keep what a person has not finished, in place of what was kept before (None: forget it).

    Raises:
        AnswerRefused: the assignment is not this person's.
    """
    held_assignments(connection, {assignment_id: user_id})
    connection.execute(_FORGET_DRAFTS, {"ids": [assignment_id]})
    if answer is not None:
        row = {"assignment_id": assignment_id, "answer": dict(answer), "updated_at": now}
        connection.execute(insert(draft).values(row))


def take_back(connection: Connection, target: Row[Any], client_token: str, lease_until: int, now: int) -> None:
    """Supersede a judgement by a row that says it was withdrawn, and lease its task to the person again."""
    connection.execute(
        insert(judgement).values(
            assignment_id=target.assignment_id,
            task_id=target.task_id,
            user_id=target.user_id,
            revision=target.revision + 1,
            supersedes_id=target.id,
            client_token=client_token,
            choice="withdrawn",
            received_at=now,
            late=False,
            app_version=APP_VERSION,
        )
    )
    connection.execute(
        update(assignment)
        .where(assignment.c.id == target.assignment_id)
        .values(state="leased", leased_at=now, lease_until=lease_until)
    )
    recount(connection, [target.task_id])
    log_event(connection, now, target.user_id, "undo", "judgement", int(target.id))


def standing_judgement(connection: Connection, round_id: int, user_id: int, of_token: str | None) -> Row[Any] | None:
    """A person's last judgement that stands, or the one with this token if it stands."""
    newer = judgement.alias("newer")
    query = (
        select(judgement)
        .join(task, task.c.id == judgement.c.task_id)
        .join(assignment, assignment.c.id == judgement.c.assignment_id)
        .outerjoin(newer, newer.c.supersedes_id == judgement.c.id)
        .where(task.c.round_id == round_id, judgement.c.user_id == user_id, assignment.c.purpose != "adjudicate")
        .where(newer.c.id.is_(None), judgement.c.choice != "withdrawn")
        .order_by(judgement.c.id.desc())
        .limit(1)
    )
    if of_token is not None:
        query = query.where(judgement.c.client_token == of_token)
    return connection.execute(query).one_or_none()
