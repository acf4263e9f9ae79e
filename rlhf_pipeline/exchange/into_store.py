"""Judgements that were made elsewhere, into a store: the one place besides the store itself that adds to it.

Assignments and judgements are added as they were made (order shown, times, revisions and purposes included), so they do
not go through leases. Nothing that is there is changed, and nothing is added twice:

- a judgement with an identity (our full export) is known wherever in the store it is, be it as the original;
- any other is known where its judge's standing judgement of the task in that round says the same. Where it says
  something else, it is a revision.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from rlhf_pipeline.exchange.judged import (
    IMPORTED,
    ORDER_BY_LOT,
    JudgedRound,
    JudgedTask,
    Verdict,
    identities_of,
    judged_task,
)
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.audit import log_event
from rlhf_pipeline.store.engine import now_ms
from rlhf_pipeline.store.records import JudgementRow, TaskRow
from rlhf_pipeline.store.tables import assignment, judgement
from rlhf_pipeline.store.tasks import chunks, recount

_SAID = (
    "choice", "response", "ranking", "strength", "probability", "margin", "rules", "ratings", "flags", "comment",
    "corrected", "correction",
)  # fmt: skip
_LEASE_SECONDS = 3600
_STATES = {"skip": "skipped", "withdrawn": "expired"}


@dataclass(frozen=True, slots=True)
class Added:
    """What an import added to a store; ``round_id`` is None where there was nothing to add and no round for it."""

    round_id: int | None
    tasks: int
    judgements: int
    known: int
    people: int


def add_round(
    store: JudgementStore,
    judged: JudgedRound,
    *,
    into: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Added:
    """Add a round's tasks and judgements, in a round of their own or ``into`` one that is there.

    What was interrupted goes on when it is called again. ``advance`` hears of so many judgements that are there now.

    Raises:
        StoreError: the store cannot be written, or a judge's name is that of somebody who judges here.
    """
    now = now_ms()
    round_id = into if into is not None else _round_of(store, judged)
    fresh = _without_known(store, judged)
    if round_id is not None:
        fresh = _without_same(store, judged, fresh, round_id)
    total = sum(len(task.verdicts) for task in judged.tasks)
    number = sum(map(len, fresh))
    advance(total - number)
    there = {row.digest for row in store.tasks(round_id)} if round_id is not None else set()
    wanted = [
        task
        for task, verdicts in zip(judged.tasks, fresh, strict=True)
        if (verdicts or not task.verdicts) and task.new.digest not in there
    ]
    if not number and not wanted:
        return Added(round_id, 0, 0, total, 0)
    users = {by: store.user(by, "import") for by in dict.fromkeys(v.by for found in fresh for v in found)}
    if round_id is None:
        round_id = store.open_round(
            judged.name,
            overlap=judged.overlap,
            seed=0,
            source_digest=judged.source_digest,
            lease_seconds=_LEASE_SECONDS,
            form=judged.form,
        )
    store.add_tasks(round_id, [task.new for task in wanted])
    rows = {row.digest: row for row in store.tasks(round_id)}
    _set_gold(store, [(task, rows[task.new.digest]) for task in wanted])
    form_digest = store.round(round_id).form.digest
    judgements = [(rows[task.new.digest], v) for task, found in zip(judged.tasks, fresh, strict=True) for v in found]
    for part in chunks(judgements):  # people who judge meanwhile wait for one part, not for the whole file
        with store.database.write() as connection:
            for row, verdict in part:
                _insert(connection, form_digest, row, verdict, users[verdict.by], now)
            recount(connection, {row.id for row, _ in part})
            detail = {"name": judged.name, "judgements": len(part)}
            log_event(connection, now, None, "import", "round", round_id, detail)
        advance(len(part))
    return Added(round_id, len(wanted), number, total - number, len(users))


def _round_of(store: JudgementStore, judged: JudgedRound) -> int | None:
    return next((terms.id for terms in store.rounds() if terms.source_digest == judged.source_digest), None)


def _without_known(store: JudgementStore, judged: JudgedRound) -> list[tuple[Verdict, ...]]:
    """Of each task the verdicts whose identity is not in the store; those without one stay."""
    if not any(verdict.identity for task in judged.tasks for verdict in task.verdicts):
        return [task.verdicts for task in judged.tasks]
    known = {identity for terms in store.rounds() for identity in identities_of(store, terms).values()}
    return [tuple(v for v in task.verdicts if not v.identity or v.identity not in known) for task in judged.tasks]


def _without_same(
    store: JudgementStore, judged: JudgedRound, fresh: Sequence[tuple[Verdict, ...]], round_id: int
) -> list[tuple[Verdict, ...]]:
    """Of each task the verdicts that say something else than their judge's standing one."""
    of_task: dict[int, list[JudgementRow]] = {}
    for row in store.judgements(round_id):
        of_task.setdefault(row.task_id, []).append(row)
    standing: dict[tuple[str, str, str], Verdict] = {}
    for task in store.tasks(round_id):
        for verdict in judged_task(task, of_task.get(task.id, []), {}, None).verdicts:
            standing[task.digest, verdict.by.casefold(), verdict.purpose] = verdict
    return [
        tuple(
            verdict
            for verdict in verdicts
            if verdict.identity
            or not _says_same(standing.get((task.new.digest, verdict.by.casefold(), verdict.purpose)), verdict)
        )
        for task, verdicts in zip(judged.tasks, fresh, strict=True)
    ]


def _says_same(known: Verdict | None, new: Verdict) -> bool:
    return known is not None and all(getattr(known, name) == getattr(new, name) for name in _SAID)


def _set_gold(store: JudgementStore, tasks: Sequence[tuple[JudgedTask, TaskRow]]) -> None:
    for task, row in tasks:
        if task.gold is not None:
            place = task.gold.response_id
            chosen = None if place is None else row.responses[place].id
            store.set_gold(row.id, replace(task.gold, response_id=chosen))


# Made once: making a statement costs SQLAlchemy more than running it.
_OWN = select(assignment.c.id).where(
    assignment.c.task_id == bindparam("task"),
    assignment.c.user_id == bindparam("user"),
    assignment.c.purpose == bindparam("purpose"),
)
_LAST = (
    select(judgement)
    .where(judgement.c.assignment_id == bindparam("assignment"))
    .order_by(judgement.c.revision.desc())
    .limit(1)
)
_ASSIGN = insert(assignment).returning(assignment.c.id)
_APPEND = insert(judgement)
_SET_STATE = update(assignment).where(assignment.c.id == bindparam("assignment")).values(state=bindparam("now"))


def _insert(connection: Connection, form_digest: str, task: TaskRow, verdict: Verdict, user_id: int, now: int) -> None:
    """Append one judgement to its judge's assignment of the task, which is made where there is none."""
    state = _STATES.get(verdict.choice, "done")
    received = now if verdict.received_at is None else verdict.received_at
    own = {"task": task.id, "user": user_id, "purpose": verdict.purpose}
    known = connection.execute(_OWN, own).scalar_one_or_none()
    before: Row[Any] | None = None
    if known is None:
        given = {
            "task_id": task.id,
            "user_id": user_id,
            "purpose": verdict.purpose,
            "shown_order": json.dumps(list(verdict.shown) or _by_lot(task, verdict.by)),
            "state": state,
            "leased_at": received,
            "lease_until": received,
            "form_digest": form_digest,
            "guideline_version": verdict.guideline_version,
        }
        assignment_id = int(connection.execute(_ASSIGN, given).scalar_one())
    else:
        assignment_id = int(known)
        before = connection.execute(_LAST, {"assignment": assignment_id}).one_or_none()
        connection.execute(_SET_STATE, {"assignment": assignment_id, "now": state})
    revision = before.revision + 1 if before else 1
    row = _row(task, verdict, {r.id: place for place, r in enumerate(task.responses)}) | {
        "assignment_id": assignment_id,
        "task_id": task.id,
        "user_id": user_id,
        "revision": revision,
        "supersedes_id": before.id if before else None,
        "client_token": IMPORTED + (verdict.identity or secrets.token_hex(16)),
        "received_at": received,
    }
    connection.execute(_APPEND, row)


def _row(task: TaskRow, verdict: Verdict, places: Mapping[int, int]) -> dict[str, Any]:
    ids = {place: id_ for id_, place in places.items()}
    ranking = verdict.ranking
    row = {name: getattr(verdict, name) for name in ("choice", "strength", "probability", "margin", "late")}
    row |= {name: getattr(verdict, name) for name in ("shown_at", "decided_at", "active_ms", "wall_ms", "keys_used")}
    return row | {
        "response_id": None if verdict.response is None else ids[verdict.response],
        "ranking": None if ranking is None else [[ids[place] for place in group] for group in ranking],
        "rules": {str(ids[place]): list(broken) for place, broken in verdict.rules.items()} or None,
        "ratings": {str(ids[place]): dict(points) for place, points in verdict.ratings.items()} or None,
        "flags": list(verdict.flags) or None,
        "comment": verdict.comment or None,
        "corrected_id": None if verdict.corrected is None else ids[verdict.corrected],
        "correction": verdict.correction,
        "form_digest": verdict.form_digest or None,
        "guideline_version": verdict.guideline_version,
        "app_version": verdict.app_version if verdict.shown else ORDER_BY_LOT,
    }


def _by_lot(task: TaskRow, by: str) -> list[int]:
    count = len(task.responses)
    return random.Random(f"{task.digest}:{by}").sample(range(count), count)
