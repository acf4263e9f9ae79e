"""Does PPO end the same when it is killed? One run of the stage is killed again and again, and resumed every time.

    python benchmarks/ppo_kills.py --kills 20 --out benchmarks/ppo_kills.md

A kill (SIGKILL) comes either after a random time or in the middle of a random write: at the n-th call of ``os.replace``
or ``os.fsync``, or before a line of the metrics. The adapter and every number but times are then compared with those of
a run that nobody killed. Exits with 1 where one bit differs. Every try is a fork, so that none has to load torch anew.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from rlhf_pipeline import metrics
from stages import ppo
from stages.job import Job
from tests.stages.test_ppo import assert_same, make_inputs, make_job

SETTINGS: dict[str, Any] = {
    "rollout_batch": 4, "num_ppo_epochs": 1, "max_new_tokens": 4, "adaptive_kl": 0.5,
    "stop": {"every": 2, "prompts": 3},
}  # fmt: skip
HEADER = """# PPO killed and resumed

`python benchmarks/ppo_kills.py --kills {kills} --seed {seed} --out benchmarks/ppo_kills.md`

A tiny Llama, {iterations} iterations, a checkpoint after each, held-out scorings, a steered price of KL. {killed} of
{kills} tries were ended by SIGKILL. **The adapter, all metrics but times, and the held-out scorings equal those of the
run without a kill in every bit.**

| try | killed | iterations in the metrics |
| --- | --- | --- |
"""


def main() -> None:
    """Kill, resume, compare, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of when the kills come")
    parser.add_argument("--out", type=Path, help="where the table goes; the terminal when left out")
    parser.add_argument("--iterations", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows, killed = run(folder, arguments.kills, arguments.iterations, random.Random(arguments.seed))
        try:
            compare(folder / "whole", folder / "killed")
        except AssertionError as error:
            sys.exit(f"the resumed run differs: {error}")
    table = HEADER.format(**vars(arguments), killed=killed) + "\n".join(rows) + "\n"
    if arguments.out:
        arguments.out.write_text(table, encoding="utf-8")
    print(table)


def run(folder: Path, kills: int, iterations: int, draw: random.Random) -> tuple[list[str], int]:
    """Write ``whole/`` without a kill and ``killed/`` with so many: a line for each try, and how many were killed."""
    model = make_inputs(folder)
    started = time.monotonic()
    assert attempt(make_job(folder, model, "whole", **SETTINGS, iterations=iterations)) == 0
    duration = time.monotonic() - started
    job = make_job(folder, model, "killed", **SETTINGS, iterations=iterations)
    rows, killed = [], 0
    for number in range(1, kills + 1):
        after = draw.uniform(0, duration / 4) if number % 2 else draw.randint(1, 16)
        status = attempt(job, after)
        assert status in (0, -signal.SIGKILL), f"a try ended with {status}"
        killed += status != 0
        written = len(metrics.read_metrics(job.folder / "metrics.jsonl"))
        how = f"at write {after}" if isinstance(after, int) else f"after {after:.2f} s"
        rows.append(f"| {number} | {how if status else 'no, it came to its end'} | {written} of {iterations} |")
        print(rows[-1], file=sys.stderr, flush=True)
    assert attempt(job) == 0
    return rows, killed


def attempt(job: Job, after: float | int | None = None) -> int:
    """One try to finish the stage, killed after so many seconds (float) or writes (int); its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            if isinstance(after, int):
                die_at_write(after)
            ppo.run(job)
            status = 0
        finally:
            os._exit(status)
    if isinstance(after, float):
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)  # a child that has ended is still there to be waited for
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def die_at_write(count: int) -> None:
    """Let this process be killed just before its ``count``-th write of any kind."""
    left = [count]

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    os.replace, os.fsync = counted(os.replace), counted(os.fsync)
    metrics.MetricsWriter.write = counted(metrics.MetricsWriter.write)


def compare(whole: Path, killed: Path) -> None:
    """Adapter, metrics but for times, and held-out scorings are the same to the bit."""
    assert_same(whole, killed)
    scorings = [metrics.read_metrics(folder / "held_out.jsonl") for folder in (whole, killed)]
    assert len(scorings[0]) > 1
    assert scorings[0] == scorings[1], "held-out scorings"


if __name__ == "__main__":
    main()
