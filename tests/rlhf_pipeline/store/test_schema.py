"""Stores of version 1, as its own program wrote them, become stores of this version where they stand."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, text

from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.engine import Database
from rlhf_pipeline.store.records import Answer, Form
from rlhf_pipeline.store.schema import SCHEMA_VERSION
from rlhf_pipeline.store.tables import metadata

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def quick_new_stores() -> None:
    """Here every store goes through the migrations themselves."""


@pytest.fixture
def first_version(location: str) -> str:
    """A store that version 1 made and people judged in: a revision, an undo, a skip, late work, retired tasks."""
    if "://" not in location:
        with sqlite3.connect(location) as connection:
            connection.executescript((HERE / "version_1.sqlite.sql").read_text(encoding="utf-8"))
        return location
    import psycopg

    with psycopg.connect(location.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
        connection.execute((HERE / "version_1.postgresql.sql").read_text(encoding="utf-8"))  # type: ignore[call-overload]
    return location


def rows(location: str, statement: str) -> list[tuple[Any, ...]]:
    """What a program that knows nothing of versions reads."""
    if "://" not in location:
        with sqlite3.connect(location) as connection:
            return connection.execute(statement).fetchall()
    import psycopg

    with psycopg.connect(location.replace("postgresql+psycopg", "postgresql")) as connection:
        return connection.execute(statement).fetchall()  # type: ignore[call-overload,no-any-return]


OLD = (
    "SELECT id, assignment_id, task_id, user_id, revision, supersedes_id, client_token, choice, response_id, "
    "probability, margin, shown_at, decided_at, received_at, active_ms, wall_ms, keys_used, late, app_version "
    "FROM judgement ORDER BY id"
)


def test_a_store_of_version_1_is_upgraded_where_it_stands(first_version: str) -> None:
    before = rows(first_version, OLD)
    events = rows(first_version, "SELECT id, at, user_id, verb, object, object_id FROM event ORDER BY id")
    store = JudgementStore.open(first_version)
    assert len(before) == 10
    assert rows(first_version, OLD) == before
    assert rows(first_version, "SELECT id, at, user_id, verb, object, object_id FROM event ORDER BY id") == events
    assert rows(first_version, "SELECT version FROM schema_version") == [(SCHEMA_VERSION,)]
    found = [(j.user, j.choice, j.revision, j.late, j.margin) for j in store.judgements(1)]
    assert found == [
        ("Ann", "response", 1, False, None),
        ("Ann", "response", 2, False, 1.5),
        ("Ann", "skip", 1, False, None),
        *[("Bob", "tie", 1, False, None)] * 3,
        ("Ann", "response", 3, True, None),
    ]
    [round_] = store.rounds()
    assert (round_.form, round_.order, round_.edit_minutes) == (Form(), "sequence", None)
    assert all("\x00b \ud800" in t.responses[0].text + t.responses[1].text for t in store.tasks(1))
    store.close()


def test_an_upgraded_store_takes_judgements_and_stays_append_only(first_version: str) -> None:
    store = JudgementStore.open(first_version)
    store.add_tasks(1, [])
    cat = store.user("Cat")
    [held, *_] = store.lease(1, cat, 9)
    store.submit(cat, Answer("cat-1", held.id, "tie"))
    assert (len(store.judgements(1)), store.user("ann")) == (8, 1)
    for statement in ("UPDATE judgement SET late = late", "DELETE FROM judgement", "DELETE FROM event"):
        with pytest.raises(StoreError, match="append-only"), store.database.write() as connection:
            connection.execute(text(statement))
    store.close()


@pytest.mark.parametrize("made_by", ["this version", "version 1"])
def test_migrations_arrive_at_the_tables_that_the_program_uses(
    made_by: str, location: str, request: pytest.FixtureRequest
) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    if made_by == "version 1":
        request.getfixturevalue("first_version")
    database = Database(location)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        scripts = ScriptDirectory(str(Path(sys.modules["rlhf_pipeline.store"].__file__ or "").parent / "migrations"))
        assert context.get_current_heads() == tuple(scripts.get_heads()) == (f"{SCHEMA_VERSION:04d}",)
        inspector = inspect(connection)
        for table in metadata.tables.values():
            wanted = sum(type(one).__name__ == "CheckConstraint" for one in table.constraints)
            assert len(inspector.get_check_constraints(table.name)) == wanted, table.name
            defaults = {c["name"]: c["default"] for c in inspector.get_columns(table.name)}
            for column in table.columns:
                if column.server_default is not None:
                    assert defaults[column.name] is not None, f"{table.name}.{column.name}"
    database.close()


OPENER = "import sys; from rlhf_pipeline.store import JudgementStore; JudgementStore.open(sys.argv[1]).close()"


def test_several_processes_upgrade_it_once(first_version: str) -> None:
    before = rows(first_version, OLD)
    openers = [
        subprocess.Popen([sys.executable, "-c", OPENER, first_version], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [opener.communicate()[1] for opener in openers] == [""] * 4
    assert rows(first_version, OLD) == before
    assert rows(first_version, "SELECT version_num FROM alembic_version") == [(f"{SCHEMA_VERSION:04d}",)]


KILLED = """
import os, sys
from sqlalchemy import Engine, event
from rlhf_pipeline.store import JudgementStore
left = int(sys.argv[2])
@event.listens_for(Engine, "before_cursor_execute")
def die(connection, cursor, statement, *_):
    global left
    left -= statement.lstrip().split()[0] in ("CREATE", "ALTER", "DROP", "INSERT", "UPDATE", "DELETE")
    if left < 0:
        os.kill(os.getpid(), 9)
JudgementStore.open(sys.argv[1]).close()
"""


@pytest.mark.parametrize("after", [1, 12, 27, 33])
def test_a_kill_in_the_middle_leaves_the_version_that_was(first_version: str, after: int) -> None:
    before = rows(first_version, OLD)
    killed = subprocess.run([sys.executable, "-c", KILLED, first_version, str(after)], capture_output=True, text=True)
    assert killed.returncode == -9, "the kill came after the last statement"
    assert rows(first_version, "SELECT version FROM schema_version") == [(1,)]
    assert rows(first_version, OLD) == before
    store = JudgementStore.open(first_version)
    assert len(store.judgements(1)) == 7
    assert rows(first_version, OLD) == before
    store.close()
