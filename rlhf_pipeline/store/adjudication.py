"""An admin's decision on a task inside one transaction of the judgement store: it decides, and overwrites nothing."""

from __future__ import annotations

import json

from sqlalchemy import Connection, insert, select, update

from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.store.answers import held_assignments, insert_answers
from rlhf_pipeline.store.audit import log_event
from rlhf_pipeline.store.records import Answer, Form
from rlhf_pipeline.store.rounds import keep_form
from rlhf_pipeline.store.tables import assignment, task_response, user


def adjudicate(connection: Connection, task_id: int, user_id: int, answer: Answer, now: int) -> int:
    """Keep an admin's answer to a task, whoever judged it before; returns the judgement's id.

    Raises:
        StoreError: the person is no admin, or there is no such task.
        AnswerRefused: the answer is not one to the task.
    """
    person = connection.execute(select(user).where(user.c.id == user_id)).one_or_none()
    if person is None or person.role != "admin" or person.state != "active":
        raise StoreError(
            f"{person.display_name if person else f'person {user_id}'} may not decide tasks",
            advice="Only an admin may: rlhf users role RUN NAME admin",
        )
    places = select(task_response.c.position).where(task_response.c.task_id == task_id)
    positions = connection.execute(places.order_by(task_response.c.position)).scalars().all()
    if not positions:
        raise StoreError(f"there is no task {task_id}")
    form = Form(kind="ranking" if answer.ranking is not None else "pair", all_bad=True, comment=True)
    own = select(assignment.c.id).where(
        assignment.c.task_id == task_id, assignment.c.user_id == user_id, assignment.c.purpose == "adjudicate"
    )
    assignment_id = connection.execute(own).scalar_one_or_none()
    if assignment_id is None:
        added = insert(assignment).values(
            task_id=task_id,
            user_id=user_id,
            purpose="adjudicate",
            shown_order=json.dumps(list(positions)),
            state="leased",
            leased_at=now,
            lease_until=now,
            form_digest=keep_form(connection, form, now),
        )
        assignment_id = connection.execute(added.returning(assignment.c.id)).scalar_one()
    else:
        connection.execute(
            update(assignment)
            .where(assignment.c.id == assignment_id)
            .values(form_digest=keep_form(connection, form, now))
        )
    placed = Answer(
        answer.client_token,
        assignment_id,
        answer.choice,
        answer.response_id,
        ranking=answer.ranking,
        comment=answer.comment,
    )
    held = held_assignments(connection, {assignment_id: user_id})
    stored = insert_answers(connection, [(placed, now)], held)[placed.client_token]
    detail = {"judgement": int(stored.id), "choice": answer.choice, "reason": answer.comment or ""}
    log_event(connection, now, user_id, "adjudicate", "task", task_id, detail)
    return int(stored.id)
