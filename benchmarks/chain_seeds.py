"""Does the chain do what it says? The demo in several seeds, judged by the gold judge on held-out prompts.

    python benchmarks/chain_seeds.py --seeds 0 1 2 --out benchmarks/chain_seeds.md

Each seed runs the whole of ``configs/demo.yaml`` in a folder of its own. The table gives each policy's win rate against
SFT over the decided comparisons, with its Wilson 95 % interval, and the share of SFT samples that the gold judge reads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """# The demo chain in several seeds

`python benchmarks/chain_seeds.py --seeds {seeds} --out benchmarks/chain_seeds.md`

Gold judge, {prompts} held-out prompts, 2 CPU cores, {date}. A win rate is over the decided comparisons.

| seed | policy | win rate against SFT | 95 % interval | wins – losses – ties | gold | KL to SFT | tokens | read |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Run the seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.yaml")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "seeds")
    parser.add_argument("--set", action="append", default=[], help="override, as of rlhf run")
    parser.add_argument("--out", type=Path, help="where the table goes; the terminal when left out")
    arguments = parser.parse_args()
    rows, seconds, prompts = [], [], 0
    for seed in arguments.seeds:
        metrics, took = run_seed(seed, arguments.config, arguments.runs / f"seed-{seed}", arguments.set)
        seconds.append(f"{took:.0f}")
        for name, row in metrics["policies"].items():
            prompts = row["prompts"]
            rows.append(line(seed, name, row))
    header = HEADER.format(
        seeds=" ".join(map(str, arguments.seeds)), prompts=prompts, date=time.strftime("%d %B %Y", time.gmtime())
    )
    table = header + "\n".join(rows) + f"\n\nSeconds of the whole chain, by seed: {', '.join(seconds)}.\n"
    if arguments.out:
        arguments.out.write_text(table, encoding="utf-8")
    print(table)


def run_seed(seed: int, config: Path, folder: Path, overrides: list[str]) -> tuple[dict, float]:
    """The chain with one seed; returns the evaluation's metrics and the seconds until the last stage was done."""
    settings = [f"run.folder={folder}", f"run.seed={seed}", *overrides]
    command = [sys.executable, "-m", "stages", "run", str(config), *(part for s in settings for part in ("--set", s))]
    subprocess.run(command, check=True, cwd=ROOT)
    return json.loads((folder / "evaluate" / "metrics.json").read_text()), seconds_until(folder, "evaluate")


def seconds_until(folder: Path, stage: str) -> float:
    """The time of a stage and of the longest way to it: stages that do not need each other run at once."""
    manifest = json.loads((folder / stage / "manifest.json").read_text())
    return manifest["seconds"] + max((seconds_until(folder, name) for name in manifest["inputs"]), default=0.0)


def line(seed: int, name: str, row: dict) -> str:
    """One policy of one seed as a row of the table."""
    won = "–" if row["win_rate"] is None else f"{row['win_rate']:.1%}"
    interval = "–" if row["win_rate"] is None else f"{row['win_rate_low']:.1%} to {row['win_rate_high']:.1%}"
    counts = "–" if row["win_rate"] is None else f"{row['wins']} – {row['losses']} – {row['ties']}"
    numbers = " | ".join("–" if row[k] is None else f"{row[k]:.2f}" for k in ("gold", "kl", "length"))
    return f"| {seed} | {name} | {won} | {interval} | {counts} | {numbers} | {row['read']:.1%} |"


if __name__ == "__main__":
    main()
