"""The ``rlhf`` command for tests: called in this process (fast) or as a program of its own, on toy-sized runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from rlhf_pipeline.artifacts import find_damage, open_artifact
from stages import NAMES

ROOT = Path(__file__).parent.parent
STEPS = {"max_steps": 2, "batch_size": 4, "log_every": 1, "save_every": 1, "max_length": 256}
TOY: dict[str, Any] = {
    "run": {"device": "cpu"},
    "model": {"name": "pocket"},
    "data": {
        "demonstrations": {"path": "pocket", "limit": 40},
        "prompts": {"path": "pocket", "limit": 40},
        "held_out": 0.25,
    },
    "sft": STEPS,
    "sample": {"prompts": 10, "held_out_prompts": 6, "responses": 2, "max_new_tokens": 8},
    "collect": {"judges": "simulated"},
    "reward": STEPS,
    "dpo": STEPS,
    "ppo": {
        "iterations": 2,
        "rollout_batch": 4,
        "num_minibatches": 1,
        "num_ppo_epochs": 1,
        "max_new_tokens": 8,
        "save_every": 1,
    },
    "evaluate": {"prompts": 6, "max_new_tokens": 8},
}


@dataclass(frozen=True)
class Result:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    def states(self) -> dict[str, str]:
        """Of ``rlhf status --json``: state by stage."""
        return {name: row["state"] for name, row in json.loads(self.out)["stages"].items()}


def rlhf(*arguments: Any) -> Result:
    """Call the command line in this process."""
    from stages.__main__ import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    called = mock.patch.object(sys, "argv", ["rlhf", *map(str, arguments)])
    with called, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return Result(code, out.getvalue(), err.getvalue())


def program(*arguments: Any, environment: Mapping[str, str] | None = None) -> Result:
    """Run ``python -m stages`` as a program of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "stages", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        timeout=200,
    )
    return Result(ended.returncode, ended.stdout, ended.stderr)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the changed keys; sections are merged, everything else is replaced."""
    both = dict(base)
    for key, value in changes.items():
        inside = isinstance(value, dict) and isinstance(both.get(key), dict) and "path" not in value
        both[key] = merged(both[key], value) if inside else value
    return both


def write_config(folder: Path, changes: Mapping[str, Any] | None = None, *, run: str = "run") -> Path:
    """A toy configuration whose run folder is ``folder/run``."""
    values = merged(merged(TOY, {"run": {"folder": str(folder / run)}}), changes or {})
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def complete_stages(run_folder: Path) -> set[str]:
    """The stages with a manifest, every one of which is whole."""
    found = {name for name in NAMES if (run_folder / name / "manifest.json").is_file()}
    for name in found:
        assert not find_damage(open_artifact(run_folder / name)), f"{name} counts as complete and is damaged"
    return found
