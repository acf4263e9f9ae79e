"""Numbers on disk (one JSON line per step) and the intervals that go beside a proportion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_pipeline.errors import TrainingError


class MetricsWriter:
    """Appends one JSON line per step to ``metrics.jsonl``; a resumed run drops the lines after its checkpoint.

    Args:
        path: the file; created when missing. None writes nothing: only one process among several keeps the file.
        resume_step: keep the lines with ``step`` up to this one, drop the rest (0 starts afresh).
    """

    def __init__(self, path: Path | None, resume_step: int = 0) -> None:
        self._file = None
        if path is None:
            return
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line; ``row`` has an integer ``step``. Non-finite numbers become null, as JSON has none."""
        if self._file is None:
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a torn last line (the writer was killed) is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def require_finite(value: float, what: str) -> None:
    """See that what was trained gives numbers: the last step, after which no loss is taken, may be the bad one.

    Raises:
        TrainingError: it is not.
    """
    if not math.isfinite(value):
        raise TrainingError(
            f"after training, {what} is {value}, so the last step went wrong",
            advice="lower learning_rate, raise warmup, or train in float32 (model.dtype: float32)",
        )


def wilson_interval(successes: float, trials: float, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927, https://doi.org/10.2307/2276774); (0, 1) for no trial.

    With p = successes / trials: ``(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)``.
    """
    if trials <= 0:
        return 0.0, 1.0
    p = successes / trials
    centre = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # Rounding must not put the proportion itself outside, as it would at 0 and 1.
    return max(0.0, min(p, (centre - half) / scale)), min(1.0, max(p, (centre + half) / scale))
