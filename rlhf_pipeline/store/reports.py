"""Reading the judgement store: tasks, assignments, current judgements and progress."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Label, and_, case, func, select

from rlhf_pipeline.records import Prompt, messages_from_json
from rlhf_pipeline.store.records import Assignment, JudgementRow, Progress, StoredResponse, TaskRow
from rlhf_pipeline.store.tables import assignment, judgement, prompt, response, task, task_response, user
from rlhf_pipeline.store.tasks import chunks


def responses_of(connection: Connection, task_ids: Sequence[int]) -> dict[int, tuple[StoredResponse, ...]]:
    """Task id → its responses in canonical order."""
    found: dict[int, list[StoredResponse]] = defaultdict(list)
    for ids in chunks(task_ids):
        query = (
            select(
                task_response.c.task_id,
                response.c.id,
                response.c.messages,
                response.c.finish,
                response.c.sampler_digest,
            )
            .join(response, response.c.id == task_response.c.response_id)
            .where(task_response.c.task_id.in_(ids))
            .order_by(task_response.c.task_id, task_response.c.position)
        )
        for task_id, id_, messages, finish, sampler in connection.execute(query):
            found[int(task_id)].append(StoredResponse(int(id_), messages[-1]["content"], finish, sampler))
    return {task_id: tuple(items) for task_id, items in found.items()}


def assignments_by_id(connection: Connection, ids: Sequence[int]) -> list[Assignment]:
    """Assignments with their prompt and responses as shown, in the order of the ids."""
    rows = [
        row
        for part in chunks(ids)
        for row in connection.execute(
            select(assignment, prompt.c.messages)
            .join(task, task.c.id == assignment.c.task_id)
            .join(prompt, prompt.c.id == task.c.prompt_id)
            .where(assignment.c.id.in_(part))
        )
    ]
    responses = responses_of(connection, [int(row.task_id) for row in rows])
    found = {
        int(row.id): Assignment(
            id=int(row.id),
            task_id=int(row.task_id),
            user_id=int(row.user_id),
            state=row.state,
            lease_until=int(row.lease_until),
            prompt=messages_from_json(row.messages),
            responses=tuple(responses[int(row.task_id)][p] for p in json.loads(row.shown_order)),
        )
        for row in rows
    }
    return [found[id_] for id_ in ids if id_ in found]


def tasks_of(connection: Connection, round_id: int) -> list[TaskRow]:
    """Every task of a round, retired ones included, in the order in which they were added."""
    query = (
        select(task, prompt.c.messages)
        .join(prompt, prompt.c.id == task.c.prompt_id)
        .where(task.c.round_id == round_id)
        .order_by(task.c.id)
    )
    rows = connection.execute(query).all()
    responses = responses_of(connection, [int(row.id) for row in rows])
    return [
        TaskRow(
            id=int(row.id),
            digest=row.digest,
            prompt=Prompt(messages_from_json(row.messages)),
            responses=responses[int(row.id)],
            needed=row.needed,
            done=row.done,
            state=row.state,
            meta=row.meta,
        )
        for row in rows
    ]


def judgements_of(connection: Connection, round_id: int, user_id: int | None = None) -> list[JudgementRow]:
    """The current judgements and skips of a round (or of one person in it), oldest first."""
    newer = judgement.alias("newer")
    # The first of the canonical positions in the order shown leads to the response on the left.
    query = (
        select(judgement, user.c.display_name, assignment.c.shown_order)
        .join(task, task.c.id == judgement.c.task_id)
        .join(user, user.c.id == judgement.c.user_id)
        .join(assignment, assignment.c.id == judgement.c.assignment_id)
        .outerjoin(newer, newer.c.supersedes_id == judgement.c.id)
        .where(task.c.round_id == round_id, newer.c.id.is_(None), judgement.c.choice != "withdrawn")
        .order_by(judgement.c.id)
    )
    if user_id is not None:
        query = query.where(judgement.c.user_id == user_id)
    rows = connection.execute(query).all()
    positions: dict[int, dict[int, int]] = defaultdict(dict)
    for part in chunks(sorted({int(row.task_id) for row in rows})):
        places = select(task_response.c.task_id, task_response.c.position, task_response.c.response_id)
        for task_id, position, response_id in connection.execute(places.where(task_response.c.task_id.in_(part))):
            positions[int(task_id)][position] = int(response_id)
    return [
        JudgementRow(
            id=int(row.id),
            assignment_id=int(row.assignment_id),
            task_id=int(row.task_id),
            user_id=int(row.user_id),
            user=row.display_name,
            choice=row.choice,
            response_id=row.response_id,
            left_id=positions[int(row.task_id)][json.loads(row.shown_order)[0]],
            probability=row.probability,
            margin=row.margin,
            revision=row.revision,
            late=row.late,
            received_at=int(row.received_at),
            active_ms=row.active_ms,
        )
        for row in rows
    ]


def progress_of(connection: Connection, round_id: int, now: int) -> Progress:
    """How far a round is, from its open tasks and their assignments."""

    def number(state: str, *also: ColumnElement[bool]) -> Label[Any]:
        is_so = and_(assignment.c.state == state, *also)
        return func.coalesce(func.sum(case((is_so, 1), else_=0)), 0).label(state)

    live = assignment.c.lease_until >= now
    query = (
        select(task.c.needed, number("done"), number("skipped"), number("leased", live))
        .outerjoin(assignment, (assignment.c.task_id == task.c.id) & (assignment.c.purpose == "judge"))
        .where(task.c.round_id == round_id, task.c.state == "open")
        .group_by(task.c.id, task.c.needed)
    )
    rows = connection.execute(query).all()
    people = (
        select(user.c.display_name, func.count())
        .join(assignment, assignment.c.user_id == user.c.id)
        .join(task, task.c.id == assignment.c.task_id)
        .where(task.c.round_id == round_id, task.c.state == "open", assignment.c.state.in_(("done", "skipped")))
        .group_by(user.c.id, user.c.display_name)
        .order_by(func.count().desc(), user.c.display_name)
    )
    return Progress(
        tasks=len(rows),
        settled=sum(row.done + row.skipped >= row.needed for row in rows),
        wanted=sum(row.needed for row in rows),
        remaining=sum(max(0, row.needed - row.done - row.skipped) for row in rows),
        judgements=sum(row.done for row in rows),
        skips=sum(row.skipped for row in rows),
        leased=sum(row.leased for row in rows),
        annotators={row[0]: row[1] for row in connection.execute(people)},
    )
