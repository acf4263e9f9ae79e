"""Tasks of a round inside one transaction of the judgement store: adding, counting, taking back what ran out.

``task.open_slots`` and ``task.done`` are never counted up or down: after every change they are computed afresh from the
assignments of the task, so that they cannot drift. A task whose answer is known has no open slots: it is given for
other purposes than to be judged.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Dialect,
    Row,
    String,
    Table,
    TypeDecorator,
    Update,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from rlhf_pipeline.records import Message
from rlhf_pipeline.store.records import NewTask, text_digest
from rlhf_pipeline.store.tables import assignment, event, prompt, response, round_, task, task_response

T = TypeVar("T")


class _Listed(TypeDecorator[Any]):
    """A list as one parameter: PostgreSQL takes arrays, SQLite reads JSON."""

    impl = String
    cache_ok = True

    def __init__(self, item: TypeEngine[Any]) -> None:
        super().__init__()
        self.item = item

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(ARRAY(self.item) if dialect.name == "postgresql" else String())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return list(value) if dialect.name == "postgresql" else json.dumps(list(value))


class among(FunctionElement[bool]):
    """``among(column, "ids")``: that a column is one of a list, in a statement that is made once for every length.

    Statements of every judgement are made once, not each time: making one costs SQLAlchemy as much as running it, and
    ``column.in_(…)`` makes one for each length, which PostgreSQL has to plan again.
    """

    inherit_cache = True

    def __init__(self, column: ColumnElement[Any], name: str = "ids") -> None:
        super().__init__(column, bindparam(name, type_=_Listed(column.type)))


@compiles(among, "postgresql")
def _any(element: among, compiler: SQLCompiler, **how: Any) -> str:
    column, values = element.clauses
    return f"{compiler.process(column, **how)} = ANY ({compiler.process(values, **how)})"


@compiles(among, "sqlite")
def _in_json(element: among, compiler: SQLCompiler, **how: Any) -> str:
    column, values = element.clauses
    listed = compiler.process(values, **how)
    return f"{compiler.process(column, **how)} IN (SELECT value FROM json_each({listed}))"  # noqa: S608 - parameters


def of_round() -> ColumnElement[bool]:
    """That an assignment is of the ``round``.

    Looked up assignment by assignment: a join has PostgreSQL read all tasks of the round for the four that are held.
    """
    found = select(task.c.round_id).where(task.c.id == assignment.c.task_id)
    return found.scalar_subquery() == bindparam("round")


def chunks(items: Sequence[T], size: int = 500) -> Iterator[Sequence[T]]:
    """Pieces that fit into one statement (SQLite takes 32,766 parameters)."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def counts_of() -> tuple[ColumnElement[int], ColumnElement[int]]:
    """``done`` and ``open_slots`` of a task as its assignments have them."""
    ours = and_(assignment.c.task_id == task.c.id, assignment.c.purpose == "judge")
    count = select(func.count()).select_from(assignment)
    done = count.where(ours, assignment.c.state == "done").scalar_subquery()
    taken = count.where(ours, assignment.c.state.in_(("done", "leased"))).scalar_subquery()
    free = and_(task.c.state == "open", task.c.gold.is_(None), task.c.needed > taken)
    return done, case((free, task.c.needed - taken), else_=0)


def _recounting() -> Update:
    done, slots = counts_of()
    return update(task).where(among(task.c.id)).values(done=done, open_slots=slots)


_RECOUNT = _recounting()


def recount(connection: Connection, task_ids: Collection[int]) -> None:
    """Compute ``done`` and ``open_slots`` of these tasks from their assignments."""
    for ids in chunks(sorted(set(task_ids))):
        connection.execute(_RECOUNT, {"ids": ids})


def keep_statistics(connection: Connection, new: Sequence[int]) -> None:
    """Have PostgreSQL count its rows whenever the number of assignments has doubled.

    By itself it looks after a minute, and until then reads whole tables for every judgement: it planned for empty ones.

    Args:
        new: ids of assignments that were just made.
    """
    if connection.dialect.name == "postgresql" and (min(new) - 1).bit_length() < max(new).bit_length():
        connection.execute(text('ANALYZE assignment, judgement, draft, login_session, "user"'))


def lot_of(seed: int, digest: str) -> float:
    """The place of a task in an order by lot, from 0 up to 1: the same in every store."""
    return random.Random(f"{seed}:{digest}").random()


def add_tasks(connection: Connection, round_id: int, tasks: Sequence[NewTask]) -> int:
    """Add the tasks that the round does not have, reopen those that it had retired; returns how many were added."""
    terms = connection.execute(select(round_).where(round_.c.id == round_id)).one()
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
            _insert_tasks(connection, terms, new)
            added += len(new)
    if added and connection.dialect.name == "postgresql":
        # Without numbers of rows it reads whole tables for every judgement, until it counts them minutes later.
        connection.execute(text("ANALYZE task, task_response, response, prompt"))
    return added


def _insert_tasks(connection: Connection, terms: Row[Any], tasks: Sequence[NewTask]) -> None:
    prompt_ids = _prompt_ids(connection, tasks)
    response_ids = _response_ids(connection, tasks, prompt_ids)
    rows = [
        {
            "round_id": terms.id,
            "prompt_id": prompt_ids[t.prompt.id],
            "digest": t.digest,
            "priority": t.priority,
            "needed": t.needed or terms.overlap,
            "open_slots": t.needed or terms.overlap,
            "meta": dict(t.meta),
            "lot": lot_of(terms.shuffle_seed, t.digest),
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


_RUN_OUT = select(assignment.c.id, assignment.c.task_id, assignment.c.user_id).where(
    assignment.c.state == literal_column("'leased'"),  # written out, so that SQLite uses the index of leases
    assignment.c.lease_until < bindparam("now"),
)


def expire(connection: Connection, now: int) -> None:
    """Return the leases that have run out, of whatever round, to the pool."""
    return_to_pool(connection, connection.execute(_RUN_OUT, {"now": now}).all(), "expire", now)


def return_to_pool(connection: Connection, rows: Sequence[Any], verb: str, now: int) -> None:
    """End these leases (rows with id, task_id and user_id); an answer that comes all the same is late."""
    for part in chunks(rows):
        connection.execute(
            update(assignment)
            .where(assignment.c.id.in_([r.id for r in part]))
            .values(
                state="expired",
                lease_until=case((assignment.c.lease_until < now, assignment.c.lease_until), else_=now - 1),
            )
        )
    recount(connection, [r.task_id for r in rows])
    if rows:
        connection.execute(
            insert(event),
            [
                {"at": now, "user_id": r.user_id, "verb": verb, "object": "assignment", "object_id": r.id, "detail": {}}
                for r in rows
            ],
        )


def held_by(round_id: int, user_id: int, ids: Sequence[int]) -> ColumnElement[bool]:
    """That an assignment is one of these, leased to the person in this round."""
    of_round = assignment.c.task_id.in_(select(task.c.id).where(task.c.round_id == round_id))
    return and_(assignment.c.id.in_(ids), assignment.c.user_id == user_id, assignment.c.state == "leased", of_round)
