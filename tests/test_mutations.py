"""The planted mistakes of ``benchmarks/mutations.py``: each still fits the source, and its tests are there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks.mutations import Mistake, mistakes

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("mistake", mistakes(), ids=lambda m: m.name)
def test_it_can_be_planted(mistake: Mistake) -> None:
    changed = mistake.planted((ROOT / mistake.file).read_text(encoding="utf-8"))
    ast.parse(changed)
    for path in mistake.paths(ROOT):
        file, _, name = path.split("[")[0].partition("::")
        functions = [n.name for n in ast.walk(ast.parse(Path(file).read_text())) if isinstance(n, ast.FunctionDef)]
        assert name in functions or not name, path


def test_names_differ() -> None:
    names = [mistake.name for mistake in mistakes()]
    assert len(set(names)) == len(names) >= 40


def test_a_piece_that_does_not_occur_once_is_refused() -> None:
    mistake = Mistake("one", "x.py", find="a", replace="b", tests=())
    assert mistake.planted("cat") == "cbt"
    for source in ("dog", "banana"):
        with pytest.raises(ValueError, match=r"one: its piece of x.py occurs \d times, not once"):
            mistake.planted(source)
