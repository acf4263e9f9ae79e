"""Rounds inside one transaction of the judgement store: opened, their terms changed, their tasks retired."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.store.audit import log_event
from rlhf_pipeline.store.records import Form, Gold
from rlhf_pipeline.store.tables import form as form_table
from rlhf_pipeline.store.tables import guideline, round_, task, task_response
from rlhf_pipeline.store.tasks import chunks, recount


def keep_form(connection: Connection, form: Form, now: int) -> str:
    """The digest of a form, which is in the store from now on."""
    kept = select(form_table.c.digest).where(form_table.c.digest == form.digest)
    if connection.execute(kept).one_or_none() is None:
        connection.execute(insert(form_table).values(digest=form.digest, questions=form.to_json(), created_at=now))
    return form.digest


def open_round(
    connection: Connection,
    name: str,
    source_digest: str,
    seed: int,
    form: Form,
    terms: Mapping[str, Any],
    now: int,
) -> int:
    """The id of the round of this name over this source, made if new; its terms are these from now on."""
    terms = {**terms, "form_digest": keep_form(connection, form, now)}
    known = connection.execute(
        select(round_).where(round_.c.name == name, round_.c.source_digest == source_digest)
    ).one_or_none()
    if known is None:
        number = connection.execute(select(func.coalesce(func.max(round_.c.number), 0) + 1)).scalar_one()
        fixed = {"name": name, "number": number, "source_digest": source_digest, "shuffle_seed": seed}
        added = insert(round_).values(**fixed, created_at=now, **terms).returning(round_.c.id)
        round_id = int(connection.execute(added).scalar_one())
        log_event(connection, now, None, "open", "round", round_id, {"name": name, **terms})
        return round_id
    changed = {key: value for key, value in terms.items() if known._mapping[key] != value}
    if changed:
        connection.execute(update(round_).where(round_.c.id == known.id).values(**changed))
        log_event(connection, now, None, "change", "round", known.id, changed)
    if "overlap" in changed:
        of_round = (task.c.round_id == known.id) & (task.c.needed == known.overlap)
        connection.execute(update(task).where(of_round).values(needed=changed["overlap"]))
        recount(connection, connection.execute(select(task.c.id).where(task.c.round_id == known.id)).scalars().all())
    return int(known.id)


def retire_tasks(connection: Connection, round_id: int, keep: Collection[str], now: int) -> int:
    """Close the open tasks whose digest is not among these; returns how many."""
    rows = connection.execute(
        select(task.c.id, task.c.digest).where(task.c.round_id == round_id, task.c.state == "open")
    ).all()
    kept = set(keep)
    gone = [int(row.id) for row in rows if row.digest not in kept]
    for ids in chunks(gone):
        connection.execute(update(task).where(task.c.id.in_(ids)).values(state="retired"))
    recount(connection, gone)
    if gone:
        log_event(connection, now, None, "retire", "task", round_id, {"tasks": len(gone)})
    return len(gone)


def newest_guidelines(connection: Connection, round_id: int) -> Row[Any] | None:
    """The row of the newest guidelines of a round."""
    query = select(guideline).where(guideline.c.round_id == round_id).order_by(guideline.c.version.desc()).limit(1)
    return connection.execute(query).one_or_none()


def set_gold(connection: Connection, task_id: int, gold: Gold | None, by: int | None, now: int) -> None:
    """Make a task one whose answer is known, or (None) one that is judged like the others.

    Raises:
        StoreError: there is no such task, or the answer is not one to it.
    """
    if connection.execute(select(task.c.id).where(task.c.id == task_id)).one_or_none() is None:
        raise StoreError(f"there is no task {task_id}")
    kept = None
    if gold is not None:
        responses = select(task_response.c.response_id).where(task_response.c.task_id == task_id)
        is_one = gold.response_id in set(connection.execute(responses).scalars())
        if gold.choice not in ("response", "tie", "all_bad") or is_one != (gold.choice == "response"):
            raise StoreError(
                f"{gold.choice!r} with response {gold.response_id} cannot be the known answer to task {task_id}",
                advice="Name the better one of its responses, or tie or all_bad with none.",
            )
        kept = {"choice": gold.choice, "response_id": gold.response_id, "explanation": gold.explanation}
    connection.execute(update(task).where(task.c.id == task_id).values(gold=kept))
    recount(connection, [task_id])
    log_event(connection, now, by, "gold" if kept else "no gold", "task", task_id, kept)


def set_guidelines(connection: Connection, round_id: int, markdown: str, now: int) -> int:
    """Keep what the people of a round are told; returns the version, a new one only where the text is new."""
    last = newest_guidelines(connection, round_id)
    if last is not None and last.markdown == markdown:
        return int(last.version)
    version = int(last.version) + 1 if last is not None else 1
    connection.execute(insert(guideline).values(round_id=round_id, version=version, markdown=markdown, created_at=now))
    return version


def set_priorities(connection: Connection, round_id: int, priorities: Mapping[int, float], now: int) -> None:
    """Keep priorities by task id."""
    for id_, priority in priorities.items():
        of_task = (task.c.id == id_) & (task.c.round_id == round_id)
        connection.execute(update(task).where(of_task).values(priority=priority))
    log_event(connection, now, None, "prioritise", "task", round_id, {"tasks": len(priorities)})
