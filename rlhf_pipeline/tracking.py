"""A tracker (TensorBoard, Trackio, Weights & Biases, MLflow) beside ``metrics.jsonl``, for loops of our own.

TRL's trainers report by themselves; accelerate's trackers are what they use too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_pipeline.errors import ConfigError

PROJECT = "rlhf-pipeline"


def require_tracker(name: str) -> None:
    """See that a tracker can be used; ``none`` can.

    Raises:
        ConfigError: it is not installed.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        advice = f"pip install {name}, or run.tracking: none"
        raise ConfigError(f"the tracker {name} is not installed", where="run.tracking", advice=advice)


@contextlib.contextmanager
def tracker(name: str, run: str, folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Report rows with a ``step``, as they are written to ``metrics.jsonl``; with ``none`` they go nowhere else.

    Args:
        run: how the tracker shall call this run.
        folder: where TensorBoard's files go.

    Raises:
        ConfigError: the tracker is not installed.
    """
    require_tracker(name)
    if name == "none":
        yield lambda row: None
        return
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # which accelerate's trackers ask whether this process is the one that reports
    made = LOGGER_TYPE_TO_CLASS[name](**_arguments(name, run, folder))
    if hasattr(made, "start"):  # before accelerate 1.12 making it was starting it
        made.start()
    try:
        yield lambda row: made.log(_numbers(row), step=row["step"])
    finally:
        made.finish()


def _arguments(name: str, run: str, folder: Path) -> dict[str, Any]:
    """Each tracker's own words for a project and a run in it."""
    if name == "tensorboard":
        return {"run_name": run, "logging_dir": str(folder)}
    if name == "mlflow":
        return {"experiment_name": PROJECT, "run_name": run}
    return {"run_name": PROJECT, "name": run}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: value
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
