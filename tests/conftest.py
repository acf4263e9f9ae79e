"""The order of the whole suite: long files first, so that none is left for the end alone; and a judged round for
whoever looks at results."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

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


@pytest.fixture(scope="session")
def planted_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with a store half judged by people with known habits, to be copied: seventy judgements are seventy
    commits."""
    from tests.annotation_ui.planted_store import plant

    folder = tmp_path_factory.mktemp("planted")
    store, round_id = plant(folder / "judgements.db", tasks=30, judgements=70)
    store.close()
    return folder, round_id
