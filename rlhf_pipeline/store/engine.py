"""The judgement store's connection: SQLite or PostgreSQL, one writer at a time, and errors that say what to do.

Writers queue up first come, first served: in the process by :class:`FairLock` (SQLite's own busy wait is not fair: with
50 threads the unluckiest waited 2.6 s, with the lock 0.1 s), between processes by ``BEGIN IMMEDIATE`` on SQLite and an
advisory lock on PostgreSQL. With one writer at a time the count of judgements per task is exact on both databases
without retries.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.store import schema

BUSY_SECONDS = 10.0
"""How long a writer waits for another process before it gives up."""

ADVISORY_KEY = 0x524C4846
"""PostgreSQL's advisory lock that every writing transaction of a store takes ("RLHF")."""


_ONE_WRITER = text("SELECT pg_advisory_xact_lock(:key)")


def now_ms() -> int:
    """The time now in UTC epoch milliseconds."""
    return time.time_ns() // 1_000_000


class FairLock:
    """A lock that is handed on in the order in which it was asked for."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._held = False

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False


class Database:
    """One open database; :meth:`read` and :meth:`write` are its only ways in.

    Raises:
        StoreError: what :func:`explain` makes of any failure.
    """

    def __init__(self, location: str | Path) -> None:
        self.url = read_url(location)
        self.where = self.url.render_as_string(hide_password=True)
        if self.url.get_backend_name() == "sqlite":
            self.where = str(self.url.database)
        self._lock = FairLock()
        try:
            self.engine = self._engine()
            self._prepare()
        except (SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
            raise explain(error, self.where) from error

    def _engine(self) -> Engine:
        if self.url.get_backend_name() != "sqlite":
            # No ping before each use: after a restart of the server one call fails, which its caller makes again.
            # Last in, first out: the few connections that are at work have the statements prepared.
            return create_engine(
                self.url, pool_size=10, max_overflow=20, pool_use_lifo=True, connect_args={"connect_timeout": 10}
            )
        engine = create_engine(self.url, connect_args={"timeout": BUSY_SECONDS}, pool_size=10, max_overflow=50)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _prepare(self) -> None:
        """Create the tables in an empty database, bring an earlier store up to date, refuse anything else."""
        with self._transaction(writing=False) as connection:
            version = schema.version_of(connection, self.where)
        if version == schema.SCHEMA_VERSION:
            return
        with self._transaction(writing=True, references=False) as connection:
            version = schema.version_of(connection, self.where)  # another process may have been first
            if version != schema.SCHEMA_VERSION:
                schema.migrate(connection, version, now_ms())

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the store and changes nothing."""
        with self._explained(), self._transaction(writing=False) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The one writing transaction; what it wrote is on the disk when the block ends without an exception."""
        with self._explained(), self._lock, self._transaction(writing=True) as connection:
            yield connection

    def close(self) -> None:
        """Close every connection; an open SQLite store leaves no journal behind."""
        self.engine.dispose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise explain(error, self.where) from error

    @contextmanager
    def _transaction(self, *, writing: bool, references: bool = True) -> Iterator[Connection]:
        """One transaction; without ``references`` SQLite checks none in it, so that tables can be copied."""
        with self.engine.connect() as connection:
            connection = connection.execution_options(writing=writing)
            if not writing and connection.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            if not references and connection.dialect.name == "sqlite":
                _check_references(connection, False)
            try:
                with connection.begin():
                    if writing and connection.dialect.name == "postgresql":
                        connection.execute(_ONE_WRITER, {"key": ADVISORY_KEY})
                    yield connection
            finally:
                if not references and connection.dialect.name == "sqlite":
                    _check_references(connection, True)


def _check_references(connection: Connection, checked: bool) -> None:
    """SQLite changes this outside of transactions only."""
    raw = connection.connection.dbapi_connection
    assert raw is not None
    raw.cursor().execute(f"PRAGMA foreign_keys={'ON' if checked else 'OFF'}")


def read_url(location: str | Path) -> URL:
    """A file path or a database URL → the URL that SQLAlchemy opens.

    Raises:
        StoreError: the URL cannot be read or names a database that is neither SQLite nor PostgreSQL.
    """
    if isinstance(location, Path) or "://" not in location:
        return URL.create("sqlite", database=str(location))
    advice = "Use a file path, sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE."
    try:
        url = make_url(location)
    except (ArgumentError, ValueError) as error:
        raise StoreError("the store's URL cannot be read", advice=advice) from error
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise StoreError(f"{url.drivername} is not a database that judgements can be kept in", advice=advice)
    if url.drivername == "sqlite" and url.database in (None, "", ":memory:"):
        raise StoreError("a store in memory would lose every judgement", advice=advice)
    return url


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite alone
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # an acknowledged judgement survives a power cut: one fsync for each commit
        "foreign_keys=ON",
        "recursive_triggers=ON",  # INSERT OR REPLACE deletes: without this it would slip past the triggers
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


_CAUSES = (
    # (what the driver says, what it means, what to do)
    ("file is not a database", "this file is not a judgement store", "Name another file; this one was left alone."),
    ("malformed", "the store's file is damaged", "Restore it from a copy, or run `sqlite3 FILE .recover`."),
    ("disk is full", "the disk is full", "Free some space and start again: nothing acknowledged was lost."),
    ("no space left", "the disk is full", "Free some space and start again: nothing acknowledged was lost."),
    ("disk i/o error", "the disk cannot be read or written", "Check the disk and the free space on it."),
    ("readonly", "no permission to write the store", "Give this user write access to the file and its folder."),
    ("read-only", "no permission to write the store", "Give this user write access to the file and its folder."),
    ("permission denied", "no permission to use the store", "Give this user access to it."),
    ("unable to open", "the store's file cannot be opened", "Check that its folder exists and may be written."),
    ("database is locked", "another program keeps the store locked", "Close that program, then try again."),
    ("password authentication failed", "the password is wrong", "Correct user and password in the URL."),
    ("does not exist", "the database is not there", "Create it with `createdb`, or correct the URL."),
    ("connection", "the database server cannot be reached", "Check that it runs, and host and port in the URL."),
    ("no module named 'psycopg", "psycopg is not installed", "pip install 'rlhf-pipeline[postgres]'"),
)


def explain(error: BaseException, where: str) -> StoreError:
    """A driver's error as one that a person can act on."""
    said = str(error.orig if isinstance(error, DBAPIError) and error.orig else error).strip()
    first = said.splitlines()[0] if said else type(error).__name__
    for sign, meaning, advice in _CAUSES:
        if sign in said.lower():
            return StoreError(meaning, where=where, advice=advice, details=[first])
    if isinstance(error, PoolTimeout):
        return StoreError("too many connections at once", where=where, advice="Try again in a moment.")
    if isinstance(error, NoSuchModuleError):
        return StoreError("the database driver is missing", where=where, details=[first])
    return StoreError("the judgement store failed", where=where, details=[first])
