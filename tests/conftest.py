"""The order of the whole suite: long files first, so that none is left for the end alone; new stores in a tenth of the
time; and a judged round for whoever looks at results."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file; the order within a file stays (give xdist ``--no-loadscope-reorder``, or it sorts by number).

    Files with the most slow tests come first, then those of the whole program, of the stages, the app and the library.
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    kinds = ["tests", "stages", "browser", "annotation_ui"]

    def place(item: pytest.Item) -> tuple[int, int, Path]:
        folder = item.path.parent.name
        return -slow[item.path], kinds.index(folder) if folder in kinds else len(kinds), item.path

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Let no collection of garbage walk over the libraries, which stay: each training asks for one, and would wait half
    a second for it."""
    gc.collect()
    gc.freeze()


_first_store: dict[str, list[tuple[str, Any]]] = {}  # by kind of database: each statement and its values


@pytest.fixture(autouse=True)
def quick_new_stores() -> Iterator[None]:
    """Make the tables of a new store by the statements that made the first one: most tests of stores spend longer on
    the migrations than on anything else. Tests of the migrations replace this fixture."""
    from sqlalchemy import Connection, event

    from rlhf_pipeline.store import schema

    migrate = schema.migrate

    def migrate_or_replay(connection: Connection, version: int | None, now: int) -> None:
        if version is not None:
            return migrate(connection, version, now)
        known = _first_store.get(connection.dialect.name)
        if known is not None:
            for statement, values in known:
                connection.exec_driver_sql(statement, values)
            return None

        def note(_: Any, __: Any, statement: str, values: Any, *___: Any) -> None:
            if not statement.lstrip().startswith(("SELECT", "PRAGMA")):
                made.append((statement, values))

        made: list[tuple[str, Any]] = []
        event.listen(connection, "before_cursor_execute", note)
        migrate(connection, version, now)
        event.remove(connection, "before_cursor_execute", note)
        _first_store[connection.dialect.name] = made
        return None

    with patch.object(schema, "migrate", migrate_or_replay):
        yield


@pytest.fixture(scope="session")
def planted_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with a store half judged by people with known habits, to be copied: seventy judgements are seventy
    commits."""
    from tests.annotation_ui.planted_store import plant

    folder = tmp_path_factory.mktemp("planted")
    store, round_id = plant(folder / "judgements.db", tasks=30, judgements=70)
    store.close()
    return folder, round_id
