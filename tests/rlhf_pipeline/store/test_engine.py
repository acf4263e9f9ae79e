from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import event, text

from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store import engine as store_engine
from rlhf_pipeline.store.engine import Database, FairLock, read_url


def test_the_fair_lock_is_handed_on_in_the_order_of_asking() -> None:
    lock, order, asked = FairLock(), [], []

    def ask(number: int) -> None:
        with lock:
            order.append(number)

    with lock:
        for number in range(8):
            thread = threading.Thread(target=ask, args=(number,))
            asked.append(thread)
            thread.start()
            while len(lock._waiting) <= number:
                time.sleep(0.001)
    for thread in asked:
        thread.join()
    assert order == list(range(8))


def test_sqlite_is_durable_and_keeps_its_references(tmp_path: Path) -> None:
    database = Database(tmp_path / "s.db")
    with database.read() as connection:
        pragmas = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in _WANTED}
    assert pragmas == _WANTED
    database.close()


_WANTED = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "recursive_triggers": 1}


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("judgements.db", "sqlite"),
        ("sqlite:////tmp/x.db", "sqlite"),
        ("postgresql://u@h/d", "postgresql+psycopg"),
        ("postgres://u@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg://u@h/d", "postgresql+psycopg"),
    ],
)
def test_paths_and_urls(given: str, driver: str) -> None:
    assert read_url(given).drivername == driver


@pytest.mark.parametrize("given", ["mysql://u@h/d", "sqlite://", "sqlite:///:memory:", "postgresql://u@h:port/d"])
def test_what_no_store_can_be_kept_in(given: str) -> None:
    with pytest.raises(StoreError, match="postgresql\\+psycopg://"):
        read_url(given)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_bytes(b"these are my notes, not a database" * 40)
    with pytest.raises(StoreError, match="not a judgement store"):
        JudgementStore.open(path)
    assert path.read_bytes().startswith(b"these are my notes")


def test_a_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url)")
    with pytest.raises(StoreError, match="holds other tables \\(bookmarks"):
        JudgementStore.open(path)


@pytest.mark.parametrize(("version", "said"), [(99, "pip install --upgrade"), (0, "needs 3 or one before it")])
def test_a_store_of_another_version(location: str, version: int, said: str) -> None:
    store = JudgementStore.open(location)
    with store.database.write() as connection:
        connection.execute(text(f"UPDATE schema_version SET version = {version}"))
    store.close()
    with pytest.raises(StoreError, match=said):
        JudgementStore.open(location)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="its folder exists") as caught:
        JudgementStore.open(tmp_path / "no" / "s.db")
    assert str(tmp_path / "no" / "s.db") in str(caught.value)


def test_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everything, so the store is opened by a child that is nobody."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s.db")
        JudgementStore.open(path).close()
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                JudgementStore.open(path).user("ann")
                said = "opened"
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writer, said.encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        Path(folder).chmod(0o755)
    assert said.startswith("StoreError")
    assert "write access" in said or "may be written" in said


def test_a_full_disk_loses_only_what_was_not_acknowledged(tmp_path: Path) -> None:
    store = JudgementStore.open(tmp_path / "s.db")
    store.user("ann")

    @event.listens_for(store.database.engine, "checkout")
    def no_space(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite's own answer is that of a full disk

    def fill() -> None:
        for number in range(500):
            store.user(f"person {number} " + "x" * 60)

    with pytest.raises(StoreError, match="the disk is full"):
        fill()
    store.close()
    again = JudgementStore.open(tmp_path / "s.db")
    assert again.user("ann") == 1
    again.close()


def test_locked_by_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_engine, "BUSY_SECONDS", 0.05)
    store = JudgementStore.open(tmp_path / "s.db")
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another program keeps the store locked"):
        store.user("ann")
    other.execute("ROLLBACK")
    assert store.user("ann") == 1
    other.close()
    store.close()


def test_no_server_and_no_password_in_the_message() -> None:
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        JudgementStore.open("postgresql://ann:secret@127.0.0.1:1/judgements")
    assert "secret" not in str(caught.value)


def test_a_database_that_is_not_there(postgres: str) -> None:
    with pytest.raises(StoreError, match="createdb"):
        JudgementStore.open(postgres.format(name="nowhere"))


def test_several_openers_make_the_tables_once(location: str) -> None:
    failures: list[BaseException] = []

    def open_it() -> None:
        try:
            JudgementStore.open(location).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
