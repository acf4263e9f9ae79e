"""Does PPO reach what it optimises? The stage, in several seeds, where the optimum is known.

    python benchmarks/ppo_optimum.py --seeds 0 1 2 --out benchmarks/ppo_optimum.md

Two prompts with 31 possible responses each and a score for every one (``tests/stages/known_optimum.py``): the optimum
π_ref exp(score / β) / Z and the highest mean score at every KL can be computed. Takes about ten seconds a run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from tests.stages.known_optimum import train

HEADER = """# PPO and its optimum

`python benchmarks/ppo_optimum.py --seeds {seeds} --out benchmarks/ppo_optimum.md`

100 iterations of 256 responses, LoRA of rank 8 on a Llama with two layers, β = 1, one thread. Distance is the total
variation to π_ref exp(score / β) / Z, of the worse of two prompts; missing is the share of the optimum's gain in
E[score] - β KL that was not reached; above is the largest excess of E[score] over the highest possible one at its KL.

| estimator | seed | distance before | after | missing | above | max abs(ratio - 1) | seconds |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Run every estimator in every seed and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--estimators", nargs="+", default=["gae", "rloo", "grpo"])
    parser.add_argument("--out", type=Path, help="where the table goes; the terminal when left out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = HEADER.format(seeds=" ".join(map(str, arguments.seeds)))
    for estimator in arguments.estimators:
        for seed in arguments.seeds:
            started = time.process_time()
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                found = train(estimator, seed, Path(folder))
            row = (
                f"| {estimator} | {seed} | {found.before:.3f} | {found.after:.3f} | {found.gap:.2%} "
                f"| {found.above:.1e} | {found.ratio_error:.1e} | {time.process_time() - started:.0f} |"
            )
            print(row, flush=True)
            table += row + "\n"
    if arguments.out:
        arguments.out.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
