"""Reading the judgement store: tasks, assignments, current judgements and progress."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Label, Row, and_, bindparam, case, func, select

from rlhf_pipeline.records import Prompt, messages_from_json
from rlhf_pipeline.store.forms import form_of
from rlhf_pipeline.store.records import Assignment, Gold, JudgementRow, Progress, Round, StoredResponse, TaskRow
from rlhf_pipeline.store.tables import assignment, draft, judgement, prompt, response, round_, task, task_response, user
from rlhf_pipeline.store.tasks import among, chunks, of_round

_RESPONSES = (
    select(task_response.c.task_id, response.c.id, response.c.messages, response.c.finish, response.c.sampler_digest)
    .join(response, response.c.id == task_response.c.response_id)
    .where(among(task_response.c.task_id))
    .order_by(task_response.c.task_id, task_response.c.position)
)


def responses_of(connection: Connection, task_ids: Sequence[int]) -> dict[int, tuple[StoredResponse, ...]]:
    """Task id → its responses in canonical order."""
    found: dict[int, list[StoredResponse]] = defaultdict(list)
    for ids in chunks(task_ids):
        for task_id, id_, messages, finish, sampler in connection.execute(_RESPONSES, {"ids": ids}):
            found[int(task_id)].append(StoredResponse(int(id_), messages[-1]["content"], finish, sampler))
    return {task_id: tuple(items) for task_id, items in found.items()}


def responses_by_task(connection: Connection, task_ids: Sequence[int]) -> dict[int, dict[int, str]]:
    """Task id → response id → its text."""
    return {id_: {r.id: r.text for r in found} for id_, found in responses_of(connection, task_ids).items()}


def gold_of(kept: Mapping[str, Any] | None) -> Gold | None:
    """The known answer of a task as it is kept in its row."""
    return Gold(**kept) if kept is not None else None


def rounds_of(connection: Connection, round_id: int | None = None) -> list[Round]:
    """Every round, oldest first, or the one of this id."""
    query = select(round_).order_by(round_.c.number)
    if round_id is not None:
        query = query.where(round_.c.id == round_id)
    return [
        Round(
            id=int(row.id),
            number=row.number,
            name=row.name,
            source_digest=row.source_digest,
            overlap=row.overlap,
            lease_s=row.lease_s,
            form=form_of(connection, row.form_digest),
            order=row.order_by,
            gold_rate=row.gold_rate,
            gold_feedback=row.gold_feedback,
            repeat_rate=row.repeat_rate,
            training_tasks=row.training_tasks,
            edit_minutes=row.edit_minutes,
        )
        for row in connection.execute(query)
    ]


_ASSIGNMENTS = (
    select(assignment, prompt.c.messages, task.c.round_id, draft.c.answer)
    .join(task, task.c.id == assignment.c.task_id)
    .join(prompt, prompt.c.id == task.c.prompt_id)
    .outerjoin(draft, draft.c.assignment_id == assignment.c.id)
    .where(among(assignment.c.id))
)


def assignments_by_id(
    connection: Connection, ids: Sequence[int], known: dict[int, tuple[StoredResponse, ...]] | None = None
) -> list[Assignment]:
    """Assignments with their prompt and responses as shown, in the order of the ids.

    Args:
        known: the responses of some tasks in canonical order; those of others are read and added.
    """
    responses = {} if known is None else known
    rows = [row for part in chunks(ids) for row in connection.execute(_ASSIGNMENTS, {"ids": part})]
    if unread := sorted({int(row.task_id) for row in rows} - responses.keys()):
        responses.update(responses_of(connection, unread))
    found = {
        int(row.id): Assignment(
            id=int(row.id),
            task_id=int(row.task_id),
            user_id=int(row.user_id),
            state=row.state,
            lease_until=int(row.lease_until),
            prompt=messages_from_json(row.messages),
            responses=tuple(responses[int(row.task_id)][p] for p in json.loads(row.shown_order)),
            purpose=row.purpose,
            form=form_of(connection, row.form_digest),
            round_id=int(row.round_id),
            guideline_version=row.guideline_version,
            draft=row.answer,
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
            priority=row.priority,
            gold=gold_of(row.gold),
        )
        for row in rows
    ]


def judgements_of(
    connection: Connection,
    round_id: int,
    user_id: int | None = None,
    *,
    all_revisions: bool = False,
    newest: int | None = None,
    before: int | None = None,
) -> list[JudgementRow]:
    """The judgements and skips of a round (or of one person in it), oldest first.

    Args:
        all_revisions: also those that were revised or withdrawn since, and the rows that withdrew them.
        newest: only so many, the newest.
        before: only those before this judgement.
    """
    newer = judgement.alias("newer")
    query = (
        select(judgement, user.c.display_name, assignment.c.shown_order, assignment.c.purpose)
        .join(task, task.c.id == judgement.c.task_id)
        .join(user, user.c.id == judgement.c.user_id)
        .join(assignment, assignment.c.id == judgement.c.assignment_id)
        .where(task.c.round_id == round_id)
        .order_by(judgement.c.id.desc())
        .limit(newest)
    )
    if not all_revisions:
        query = query.outerjoin(newer, newer.c.supersedes_id == judgement.c.id)
        query = query.where(newer.c.id.is_(None), judgement.c.choice != "withdrawn")
    if user_id is not None:
        query = query.where(judgement.c.user_id == user_id)
    if before is not None:
        query = query.where(judgement.c.id < before)
    rows = connection.execute(query).all()[::-1]
    places: dict[int, dict[int, int]] = defaultdict(dict)
    for part in chunks(sorted({int(row.task_id) for row in rows})):
        of_task = select(task_response.c.task_id, task_response.c.position, task_response.c.response_id)
        for task_id, position, response_id in connection.execute(of_task.where(task_response.c.task_id.in_(part))):
            places[int(task_id)][position] = int(response_id)
    return [_judgement(row, places[int(row.task_id)]) for row in rows]


def _judgement(row: Row[Any], places: Mapping[int, int]) -> JudgementRow:
    # The canonical positions in the order shown lead to the responses from left to right.
    shown = tuple(places[position] for position in json.loads(row.shown_order))
    return JudgementRow(
        id=int(row.id),
        assignment_id=int(row.assignment_id),
        task_id=int(row.task_id),
        user_id=int(row.user_id),
        user=row.display_name,
        choice=row.choice,
        response_id=row.response_id,
        left_id=shown[0],
        probability=row.probability,
        margin=row.margin,
        revision=row.revision,
        late=row.late,
        received_at=int(row.received_at),
        active_ms=row.active_ms,
        purpose=row.purpose,
        shown_order=shown,
        client_token=row.client_token,
        shown_at=row.shown_at,
        decided_at=row.decided_at,
        wall_ms=row.wall_ms,
        keys_used=row.keys_used,
        form_digest=row.form_digest or "",
        guideline_version=row.guideline_version,
        app_version=row.app_version,
        supersedes_id=row.supersedes_id,
        strength=row.strength,
        ranking=tuple(tuple(group) for group in row.ranking) if row.ranking is not None else None,
        rules={int(id_): tuple(broken) for id_, broken in (row.rules or {}).items()},
        ratings={int(id_): dict(points) for id_, points in (row.ratings or {}).items()},
        flags=tuple(row.flags or ()),
        comment=row.comment,
        corrected_id=row.corrected_id,
        correction=row.correction,
    )


def progress_of(connection: Connection, round_id: int, now: int) -> Progress:
    """How far a round is, from its open tasks and their assignments; tasks whose answer is known do not count."""

    def number(state: str, *also: ColumnElement[bool]) -> Label[Any]:
        is_so = and_(assignment.c.state == state, *also)
        return func.coalesce(func.sum(case((is_so, 1), else_=0)), 0).label(state)

    live = assignment.c.lease_until >= now
    of_task = (
        select(task.c.needed, number("done"), number("skipped"), number("leased", live))
        .outerjoin(assignment, (assignment.c.task_id == task.c.id) & (assignment.c.purpose == "judge"))
        .where(task.c.round_id == round_id, task.c.state == "open", task.c.gold.is_(None))
        .group_by(task.c.id, task.c.needed)
        .subquery()
    )
    missing = of_task.c.needed - of_task.c.done - of_task.c.skipped

    def total(of: ColumnElement[int]) -> ColumnElement[int]:
        return func.coalesce(func.sum(of), 0)

    # Added up in the database: a page asks every second, and a round has many tasks.
    sums = connection.execute(
        select(
            func.count(),
            total(case((missing <= 0, 1), else_=0)),
            total(of_task.c.needed),
            total(case((missing > 0, missing), else_=0)),
            total(of_task.c.done),
            total(of_task.c.skipped),
            total(of_task.c.leased),
        ).select_from(of_task)
    ).one()
    tasks, settled, wanted, remaining, judgements, skips, leased = map(int, sums)
    people = (
        select(user.c.display_name, func.count())
        .join(assignment, assignment.c.user_id == user.c.id)
        .join(task, task.c.id == assignment.c.task_id)
        .where(task.c.round_id == round_id, task.c.state == "open", task.c.gold.is_(None))
        .where(assignment.c.purpose == "judge", assignment.c.state.in_(("done", "skipped")))
        .group_by(user.c.id, user.c.display_name)
        .order_by(func.count().desc(), user.c.display_name)
    )
    return Progress(
        tasks=tasks,
        settled=settled,
        wanted=wanted,
        remaining=remaining,
        judgements=judgements,
        skips=skips,
        leased=leased,
        annotators={row[0]: row[1] for row in connection.execute(people)},
    )


_COUNTS = (
    select(func.count(), func.count(case((assignment.c.purpose == "judge", 1))))
    .select_from(assignment)
    .where(assignment.c.user_id == bindparam("person"), assignment.c.state.in_(("done", "skipped")))
    .where(assignment.c.purpose != "adjudicate", of_round())
)


def counts_of_person(connection: Connection, round_id: int, user_id: int) -> tuple[int, int]:
    """How many tasks of a round a person has judged or skipped, and how many of them were to be judged."""
    every, judged = connection.execute(_COUNTS, {"person": user_id, "round": round_id}).one()
    return int(every), int(judged)
