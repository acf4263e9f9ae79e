"""What do PPO's cheaper modes cost in quality? Each at equal episodes in several seeds, judged by the gold judge.

    python benchmarks/ppo_modes.py --seeds 0 1 2 3 4 --out benchmarks/ppo_modes.md

The pocket model on the demo's chain. One chain up to the reward model has adapters on all layers, one on the upper
half; PPO starts from them in every mode and seed, in a process of its own. What is finished in ``--runs`` is not run
again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.over_seeds import interval
from rlhf_pipeline.allocator import give_back_freed_memory
from rlhf_pipeline.metrics import read_metrics
from stages import ppo, settings
from stages.job import Job

ROOT = Path(__file__).resolve().parent.parent
CHAIN = {"run.stages": "[sft, sample, collect, reward]"}
TOP = {"sft.lora.top_layers": 2, "reward.lora.top_layers": 2}
CHAINS: dict[str, dict[str, Any]] = {"all": {}, "top": TOP}
TRUNK = {"ppo.critic.on": "policy_trunk"}
MODES: dict[str, tuple[str, dict[str, Any]]] = {  # the chain that PPO starts from, and what is set
    "plain": ("all", {}),
    "reward_features": ("all", {"ppo.critic.on": "reward_features"}),
    "policy_trunk": ("all", TRUNK),
    "rloo": ("all", {"ppo.estimator": "rloo", "ppo.samples_per_prompt": 4}),
    "top_layers 2, policy_trunk": ("top", TRUNK),
}
HEADER = """# PPO's cheaper modes

`python benchmarks/ppo_modes.py --seeds {seeds} --modes {modes} --iterations {iterations} --out benchmarks/ppo_modes.md`

The pocket model, float32, one thread; `configs/demo.yaml` with {iterations} iterations of 128 responses, from one SFT
policy and one reward model with adapters on all layers, and from others with adapters on the upper 2 of 4. `rloo` has 4
responses to each prompt. Gold is the gold judge's mean over {responses} held-out prompts, with the 95 % interval over
seeds; the difference is to the plain mode with the same seed. CPU seconds are of the whole stage, two held-out scorings
included; memory is what the process grew by. Means over seeds. {date}.

| mode | seeds | gold of SFT | gold | difference | KL | CPU s | time | peak MiB | memory |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--modes", nargs="+", default=list(MODES), choices=list(MODES), help="plain is always among them"
    )
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "modes")
    parser.add_argument("--out", type=Path, help="where the table goes; the terminal when left out")
    arguments = parser.parse_args()
    give_back_freed_memory()  # as ``rlhf run`` does, before torch is imported
    import torch

    torch.set_num_threads(1)
    for name, changes in CHAINS.items():
        run_chain(arguments.runs / name, changes)
    found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES if mode == "plain" or mode in arguments.modes}
    for seed in arguments.seeds:
        for mode, measured in found.items():
            chain, changes = MODES[mode]
            folder = arguments.runs / f"{re.sub(r'[^a-z0-9]+', '-', mode)}-{arguments.iterations}-{seed}"
            if not (folder / "result.json").exists():
                run_ppo(arguments.runs / chain, folder, changes, seed, arguments.iterations)
            measured.append(json.loads((folder / "result.json").read_text()))
            print(f"seed {seed}, {mode}: {measured[-1]}", flush=True)
    values = {
        "seeds": " ".join(map(str, arguments.seeds)), "iterations": arguments.iterations,
        "modes": " ".join(f'"{mode}"' for mode in found if mode != "plain"),
        "responses": found["plain"][0]["responses"], "date": time.strftime("%d %B %Y", time.gmtime()),
    }  # fmt: skip
    table = HEADER.format(**values) + "\n".join(line(mode, found[mode], found["plain"]) for mode in found) + "\n"
    if arguments.out:
        arguments.out.write_text(table, encoding="utf-8")
    print(table)


def run_chain(folder: Path, changes: dict[str, Any]) -> None:
    """The demo up to the reward model."""
    overrides = {**CHAIN, **changes, "run.folder": folder}
    command = [sys.executable, "-m", "stages", "run", str(ROOT / "configs" / "demo.yaml")]
    command += [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    subprocess.run(command, check=True, cwd=ROOT)


def run_ppo(chain: Path, folder: Path, changes: dict[str, Any], seed: int, iterations: int) -> None:
    """PPO in one mode and seed, in a fork of this process; writes ``result.json``."""
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted try would be resumed, and its seconds lost
    folder.mkdir(parents=True)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if (child := os.fork()) == 0:
        status = 1
        try:
            stop = {"every": iterations, "prompts": 300, "judge": "gold", "keep": "last"}
            changes = {**changes, "ppo.iterations": iterations, "ppo.stop": json.dumps(stop)}
            chosen = settings.load(chain, [f"{key}={value}" for key, value in changes.items()])
            inputs: Any = {name: SimpleNamespace(folder=chain / name) for name in ("sft", "reward")}
            ppo.run(Job(chosen.ppo, chosen, folder, inputs, chain, seed, "cpu"))
            status = 0
        finally:
            os._exit(status)
    _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"PPO in {folder} ended with status {status}")
    first, *_, last = read_metrics(folder / "held_out.jsonl")
    kept = {name: last[name] for name in ("gold", "gold_se", "kl", "responses")}
    result = {"start": first["gold"], **kept, "seconds": used.ru_utime + used.ru_stime,
              "memory": used.ru_maxrss * 1024 - before}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


def line(mode: str, rows: list[dict[str, Any]], plain: list[dict[str, Any]]) -> str:
    """One mode as a row of the table."""
    apart = [row["gold"] - other["gold"] for row, other in zip(rows, plain, strict=True)]
    seconds, memory = (average(rows, name) / average(plain, name) for name in ("seconds", "memory"))
    return (
        f"| {mode} | {len(rows)} | {average(rows, 'start'):.2f} | {shown([row['gold'] for row in rows])} | "
        f"{'–' if mode == 'plain' else shown(apart, signed=True)} | {average(rows, 'kl'):.2f} | "
        f"{average(rows, 'seconds'):.0f} | {seconds:.2f} | {average(rows, 'memory') / 2**20:.0f} | {memory:.2f} |"
    )


def average(rows: list[dict[str, Any]], name: str) -> float:
    """The mean over seeds."""
    return math.fsum(row[name] for row in rows) / len(rows)


def shown(values: list[float], signed: bool = False) -> str:
    """The mean over seeds with its 95 % interval."""
    centre, half = interval(values)
    return f"{centre:{'+' if signed else ''}.2f}" + (f" ± {half:.2f}" if math.isfinite(half) else "")


if __name__ == "__main__":
    main()
