"""The order of the whole suite: files with the most slow tests first, so that none is left for the end alone."""

from __future__ import annotations

from collections import Counter

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file; the order within a file stays (give xdist ``--no-loadscope-reorder``, or it sorts by number)."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (-slow[item.path], item.path))
