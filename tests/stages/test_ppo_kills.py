"""``kill -9`` before every kind of write of a PPO run, which ends with the bits of one that nobody interrupted.

Twenty at random times and writes are in ``benchmarks/ppo_kills.md``.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from benchmarks.ppo_kills import SETTINGS, attempt, compare
from stages import ppo
from tests.stages.test_ppo import make_inputs, make_job


@pytest.mark.slow
def test_killed_before_any_write_it_ends_the_same(tmp_path: Path) -> None:
    model = make_inputs(tmp_path)
    ppo.run(make_job(tmp_path, model, "whole", **SETTINGS, iterations=6))
    job = make_job(tmp_path, model, "killed", **SETTINGS, iterations=6)
    # The SFT policy's scoring, an iteration's line, a checkpoint's three files, their folder, its rename, its place.
    for write in (1, 2, 3, 4, 5, 6, 7, 8, 12):  # the last one in the third iteration, resumed after the first
        assert attempt(job, write) == -signal.SIGKILL
    ppo.run(job)
    compare(tmp_path / "whole", tmp_path / "killed")
