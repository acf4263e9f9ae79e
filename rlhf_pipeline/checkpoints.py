"""Checkpoints of our own loops: whole or not there, verified before use, two kept.

A checkpoint is a folder ``step-000010``: the tensors of the state in ``tensors.safetensors``, everything else in
``state.json``, and the sha256 of both in ``checkpoint.json``. It is written under a temporary name, synced and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from rlhf_pipeline import processes
from rlhf_pipeline.artifacts import file_digest

TENSORS, VALUES, DIGESTS = "tensors.safetensors", "state.json", "checkpoint.json"
KEPT = 2
_PLACE = "tensor"  # what stands in the values where a tensor was: {"tensor": its name}


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
        state: tensors, numbers, strings, null, and lists, tuples or dicts of them; keys are names or whole numbers
            (an optimizer's). Tuples come back as lists.
    """
    if not processes.is_first():
        return
    final = folder / f"step-{step:06d}"
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    values = _apart(dict(state), "", tensors)
    # By way of bytes: safetensors' own files are readable by their owner alone, whatever the umask.
    (partial / TENSORS).write_bytes(serialise(tensors))
    (partial / VALUES).write_text(json.dumps(values), encoding="utf-8")
    digests = {name: file_digest(partial / name) for name in (TENSORS, VALUES)}
    (partial / DIGESTS).write_text(json.dumps({"step": step, "sha256": digests}), encoding="utf-8")
    for path in (*(partial / name for name in (TENSORS, VALUES, DIGESTS)), partial):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)  # one that was found damaged
    os.replace(partial, final)
    _sync(folder)
    for old in _names(folder)[KEPT:]:
        shutil.rmtree(folder / old, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files have their sha256, its tensors on the CPU; null when there is none."""
    damaged: list[str] = []
    for name in _names(folder):
        place = folder / name
        try:
            digests = json.loads((place / DIGESTS).read_text(encoding="utf-8"))
            whole = all(file_digest(place / file) == digests["sha256"][file] for file in (TENSORS, VALUES))
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if whole:
            values = json.loads((place / VALUES).read_text(encoding="utf-8"))
            return Checkpoint(int(digests["step"]), _together(values, load_file(place / TENSORS)), tuple(damaged))
        damaged.append(name)
    return None


def _apart(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON can hold it; each tensor in it goes into ``tensors`` under its place."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().contiguous()
        return {_PLACE: place}
    if isinstance(value, Mapping):
        return {str(key): _apart(inner, f"{place}/{key}", tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_apart(inner, f"{place}/{index}", tensors) for index, inner in enumerate(value)]
    return value


def _together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What :func:`_apart` was given."""
    if isinstance(value, dict):
        if value.keys() == {_PLACE}:
            return tensors[value[_PLACE]]
        return {int(key) if key.isdecimal() else key: _together(inner, tensors) for key, inner in value.items()}
    return [_together(inner, tensors) for inner in value] if isinstance(value, list) else value


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
