"""Real preference data through the whole chain: does every stage complete, and is the reward model better than length?

    python benchmarks/real_data.py hh.jsonl.gz pairs.jsonl.gz --limit 600 --out benchmarks/real_data.md

Runs ``configs/hh.yaml`` on each file, in a run folder of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("sft", "collect", "reward", "dpo", "ppo", "evaluate")
HEADER = """# Real preference data through configs/hh.yaml

`python benchmarks/real_data.py FILES … --limit {limit} --out benchmarks/real_data.md`

Model `{model}`, {date}, 2 CPU cores.
Accuracy: of the reward model on held-out prompts, with its Wilson 95 % interval; the baseline knows lengths only.
A model of a million parameters that knows household talk only is a stand-in here: the point is that real data passes
through every stage, and that the reward stage says what the model is worth (here: nothing that length would not give).

| file | pairs trained on | held out | too long | reward accuracy | 95 % interval | length alone | stages complete | s |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Run the recipe on each file and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, help="rows of each file; all when left out")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--set", action="append", default=[], help="override, as of rlhf run")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "real")
    parser.add_argument("--out", type=Path, help="where the table goes; the terminal when left out")
    arguments = parser.parse_args()
    rows = [run_file(path, arguments) for path in arguments.files]
    date = time.strftime("%d %B %Y", time.gmtime())
    header = HEADER.format(limit=arguments.limit or "all", model=arguments.model, date=date)
    table = header + "\n".join(rows) + "\n"
    if arguments.out:
        arguments.out.write_text(table, encoding="utf-8")
    print(table)


def run_file(path: Path, arguments: argparse.Namespace) -> str:
    """The recipe on one file; its row of the table."""
    folder = arguments.runs / path.name.split(".")[0]
    settings = [f"run.folder={folder}", f"data.preferences.path={path}", f"model.name={arguments.model}"]
    settings += [f"data.preferences.limit={arguments.limit}"] if arguments.limit else []
    settings += arguments.set
    command = [sys.executable, "-m", "stages", "run", "configs/hh.yaml"]
    subprocess.run([*command, *(part for s in settings for part in ("--set", s))], check=True, cwd=ROOT)
    manifests = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/manifest.json")}
    reward = manifests["reward"]["metrics"]
    seconds = sum(m["seconds"] for m in manifests.values())  # of work: with run.parallel the run is shorter
    return (
        f"| {path.name} | {reward['rows']['train']:,} | {reward['rows']['held_out']:,} "
        f"| {reward['rows']['overlong']:,} | {reward['accuracy']:.1%} "
        f"| {reward['accuracy_low']:.1%} to {reward['accuracy_high']:.1%} | {reward['length_baseline']:.1%} "
        f"| {sum(name in manifests for name in STAGES)} of {len(STAGES)} | {seconds:.0f} |"
    )


if __name__ == "__main__":
    main()
