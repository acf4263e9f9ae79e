"""Checkpoints of our own loops: whole or not there, verified before use, two kept.

A checkpoint is a folder ``step-000010`` with the state (tensors and plain values, read back with
``weights_only=True``) and its sha256. It is written under a temporary name, synced and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_pipeline import processes
from rlhf_pipeline.artifacts import file_digest

STATE, DIGEST = "state.pt", "checkpoint.json"
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The newest whole checkpoint: its step, its state, and the names of newer ones that are damaged."""

    step: int
    state: dict[str, Any]
    damaged: tuple[str, ...] = ()

    def remark(self) -> str:
        """What the user should know about damaged ones, to be put after a sentence."""
        return f" (damaged and left out: {', '.join(self.damaged)})" if self.damaged else ""


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write ``folder/step-…`` and remove all but the newest two; among several processes the first alone does it.

    Args:
        folder: made when missing.
        step: steps done.
        state: tensors, numbers, strings, and dicts, lists or tuples of them.
    """
    if not processes.is_first():
        return
    final = folder / f"step-{step:06d}"
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    torch.save(dict(state), partial / STATE)
    digest = {"step": step, "sha256": file_digest(partial / STATE)}
    (partial / DIGEST).write_text(json.dumps(digest), encoding="utf-8")
    for path in (partial / STATE, partial / DIGEST, partial):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)  # one that was found damaged
    os.replace(partial, final)
    _sync(folder)
    for old in _names(folder)[KEPT:]:
        shutil.rmtree(folder / old, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose state has its sha256, its tensors on the CPU; null when there is none."""
    damaged: list[str] = []
    for name in _names(folder):
        try:
            digest = json.loads((folder / name / DIGEST).read_text(encoding="utf-8"))
            whole = file_digest(folder / name / STATE) == digest["sha256"]
        except (OSError, ValueError, KeyError):
            whole = False
        if whole:
            state = torch.load(folder / name / STATE, map_location="cpu", weights_only=True)
            return Checkpoint(int(digest["step"]), state, tuple(damaged))
        damaged.append(name)
    return None


def _names(folder: Path) -> list[str]:
    """Newest first; unfinished ones are not among them."""
    if not folder.is_dir():
        return []
    found = (p.name for p in folder.iterdir() if p.is_dir() and p.name.startswith("step-"))
    return sorted((name for name in found if not name.endswith(".partial")), reverse=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
