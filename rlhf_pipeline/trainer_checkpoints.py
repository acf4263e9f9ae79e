"""Checkpoints that transformers' Trainer writes: sealed once whole, verified before they are resumed from.

The Trainer writes straight into ``checkpoint-N`` and resumes from the highest number, whole or not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_pipeline.artifacts import file_digest, write_atomically

COMPLETE = "complete.json"
_PREFIX = "checkpoint-"


def seal(folder: Path, **facts: int) -> None:
    """Write ``complete.json`` into a checkpoint: size and sha256 of every file, and what the Trainer does not keep."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMPLETE):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": file_digest(path)}
    write_atomically(folder / COMPLETE, json.dumps({**facts, "files": files}))


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is as it was sealed; newer ones that are not are moved to ``folder/broken``."""
    found = [p for p in folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit()]
    for checkpoint in sorted(found, key=lambda p: int(p.name.removeprefix(_PREFIX)), reverse=True):
        problem = _problem_of(checkpoint)
        if problem is None:
            return checkpoint
        say(f"{checkpoint.name} is not used: {problem}")
        (folder / "broken").mkdir(exist_ok=True)
        os.replace(checkpoint, folder / "broken" / f"{checkpoint.name}-{len(list((folder / 'broken').iterdir()))}")
    return None


def read_complete(checkpoint: Path) -> dict[str, Any]:
    """What was sealed into a checkpoint."""
    return dict(json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8")))


def _problem_of(checkpoint: Path) -> str | None:
    try:
        sealed = read_complete(checkpoint)["files"]
    except (OSError, ValueError, KeyError):
        return "writing it was interrupted"
    for name, expected in sealed.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"] or file_digest(path) != expected["sha256"]:
            return f"{name} is damaged"
    return None
