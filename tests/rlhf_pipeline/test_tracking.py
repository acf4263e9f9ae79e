"""Rows reach the tracker under their own names, and a tracker that is not there is said before anything is trained."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_pipeline import tracking
from rlhf_pipeline.errors import ConfigError


def test_none_reports_nothing(tmp_path: Path) -> None:
    with tracking.tracker("none", "run/ppo", tmp_path) as report:
        report({"step": 1, "loss": 2.0})
    assert list(tmp_path.iterdir()) == []


def test_an_absent_tracker_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"run.tracking: the tracker no_such_tracker is not installed"),
        tracking.tracker("no_such_tracker", "run/ppo", tmp_path),
    ):
        pass


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_rows_are_logged_with_their_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def log(values: dict[str, Any], step: int | None = None) -> None:
        calls.append((step, values))

    def init(**arguments: Any) -> Any:
        calls.append(arguments)
        return SimpleNamespace(log=log, finish=lambda: calls.append("finished"))

    module = SimpleNamespace(init=init, finish=lambda: calls.append("finished"), __spec__=SimpleNamespace(name=name))
    monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    with tracking.tracker(name, "run/ppo", tmp_path) as report:
        report({"step": 3, "objective/kl": 0.5, "bad": math.nan, "absent": None})
    assert calls == [{"project": "rlhf-pipeline", "name": "run/ppo"}, (3, {"objective/kl": 0.5}), "finished"]
