"""Numbers on disk (one JSON line per step), what a phase costs, and the intervals that go beside a proportion."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from rlhf_pipeline.errors import TrainingError

Gate = Literal["chance", "length", "calibration", "template", "rules"]
"""What is asked of a reward model before anything is trained on it."""
GATES: tuple[Gate, ...] = ("chance", "length", "calibration", "template", "rules")
MISCALIBRATED = 0.05
"""An expected calibration error above this is said, if chance alone does not explain it."""


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


COSTS = ("seconds/", "tokens_per_second/", "memory/")
"""How the names of numbers start that differ from run to run, and that no result depends on."""


class Phases:
    """Seconds, tokens per second and peak memory of an iteration's phases.

    Args:
        device: ``cpu`` or ``cuda``. A GPU counts the peak of each phase anew; on a CPU it is the process's peak so far,
            so that the phase in which it rises is the one that needs it.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._seconds: dict[str, float] = {}
        self._peak: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what happens inside as one phase."""
        self._ready()
        started = time.monotonic()
        yield
        self._peak[name] = self._ready() / 2**30
        self._seconds[name] = time.monotonic() - started

    def row(self, tokens: Mapping[str, float]) -> dict[str, float]:
        """The numbers by name; memory is in GiB. ``tokens`` is what each phase has worked through."""
        return {
            **{f"seconds/{name}": seconds for name, seconds in self._seconds.items()},
            **{f"tokens_per_second/{name}": count / self._seconds[name] for name, count in tokens.items()},
            **{f"memory/{name}": peak for name, peak in self._peak.items()},
        }

    def _ready(self) -> float:
        """Wait for the GPU; the peak in bytes since the last call, or of the process."""
        if not self._cuda:
            return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
        import torch

        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return float(peak)


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
