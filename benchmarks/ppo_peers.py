"""PPO here against TRL 1.12 and LLaMA-Factory 0.9.3: seconds of an iteration and peak memory, interleaved in one run.

    python benchmarks/ppo_peers.py --out benchmarks/ppo_peers.md

Each program runs in an environment of its own, which is made with pip on the first call, on the same random Llama
models, 16 prompts of 32 tokens, at most 48 new tokens, 4 epochs of one minibatch, LoRA of rank 16 on every linear
layer. Ours is ``rlhf run`` itself on a run folder. One run is one process; the first iteration of each is
not counted. Peak memory is the process's largest resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TORCH = "torch==2.13.0"
PACKAGES = {
    "trl": [TORCH, "transformers==5.23.0", "peft==0.21.0", "trl==1.12.0"],
    "llamafactory": [TORCH, "llamafactory==0.9.3", "trl==0.9.6", "numpy<2", "pyarrow<19"],
}
TRUNK = {"ppo.critic.on": "policy_trunk"}
UPPER_HALF = {"sft.lora.top_layers": "half", "reward.lora.top_layers": "half"}
OURS: dict[str, dict[str, object]] = {
    "ours": {},
    "ours, value on policy trunk": TRUNK,
    "ours, value on policy trunk, upper half": {**TRUNK, **UPPER_HALF},
}
WALL_CLOCK = ["-m", "stages"]
CPU_CLOCK = ["-c", "import time; time.monotonic = time.process_time; from stages.__main__ import main; main()"]
HALF = {"tiny": 1, "25m": 3, "110m": 6}  # layers
TRL, TRL_BF16, FACTORY = "TRL 1.12 all-LoRA", "TRL 1.12 all-LoRA, bfloat16 weights", "LLaMA-Factory 0.9.3"
PEERS = (TRL, TRL_BF16, FACTORY)
CONFIG = """
run: {{folder: {folder}, stages: [sft, collect, reward, ppo], device: cpu}}
model: {{name: {model}}}
data:
  demonstrations: {{path: {data}/preferences.jsonl}}
  preferences: {{path: {data}/preferences.jsonl}}
  held_out: 8
sft: {{max_steps: 2, learning_rate: 1.0e-9, warmup: 0, batch_size: 4, max_length: 64}}  # lengths stay the model's
collect: {{judges: imported}}
reward: {{max_steps: 2, warmup: 0, batch_size: 4, max_length: 64}}
ppo: {{rollout_batch: 16, num_ppo_epochs: 4, num_minibatches: 1, max_new_tokens: 48}}
"""
HEADER = """# PPO against TRL and LLaMA-Factory

`python benchmarks/ppo_peers.py {arguments}`

{date}, {threads} of {cores} cores of a CPU {bfloat16} instructions for bfloat16, one process after the other in turns.
Random Llama models (25m: 24.6M weights, 110m: 108.9M), vocabulary 8192, float32; 16 prompts of 32 tokens, at most 48
new tokens, 4 epochs of one minibatch, LoRA of rank 16 on every linear layer. `fixed`: every response has 48 tokens;
`natural`: the end token has probability 1/24, so lengths differ, between programs too. An iteration is sampling,
scoring and learning; {clock}, the median over {counted}, in
brackets the least and the most. Peak memory is the largest resident set of the process, the libraries included.
LLaMA-Factory's PPO always computes in bfloat16 where it can (`torch.autocast`), on a CPU too.
"""
CLOCKS = {
    "wall": "seconds are of wall time",
    "cpu": "seconds are processor time, as the machine had others on it",
}


@dataclass
class Runs:
    """What was measured of one program on one model."""

    seconds: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)  # MiB
    length: list[float] = field(default_factory=list)  # mean tokens of a response


def main() -> None:
    """Make what is needed, run everybody in turn, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["25m", "110m"], choices=["tiny", "25m", "110m"])
    parser.add_argument("--lengths", nargs="+", default=["fixed", "natural"], choices=["fixed", "natural"])
    parser.add_argument("--programs", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--rounds", type=int, default=2, help="turns, each with one process of every program")
    parser.add_argument("--iterations", type=int, default=3, help="of one process, the warm-up included")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "peers", help="environments, models and runs")
    parser.add_argument("--before", default="", help="command to start each timed process with, e.g. 'nice -n -15'")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: processor time, on a busy machine")
    parser.add_argument("--prepare", action="store_true", help="make environments, models and run folders, and leave")
    parser.add_argument("--results", type=Path, help="file that keeps every process's numbers; more calls add to it")
    parser.add_argument("--out", type=Path, help="where the table goes; the terminal when left out")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    names = arguments.programs
    models = [f"{size}-{lengths}" for size in arguments.sizes for lengths in arguments.lengths]
    results = arguments.results or work / "results.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    prepare(names, models, work)
    if arguments.prepare:
        return
    for model in models:
        for _ in range(arguments.rounds):
            for name in names:
                measured = one_process(name, model, work, arguments)
                with results.open("a") as file:
                    file.write(json.dumps({"name": name, "model": model, **measured}) + "\n")
                print(f"{model} {name}: {measured}", flush=True)
    text = table(read(results), arguments)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    print(text)


def prepare(names: Iterable[str], models: list[str], work: Path) -> None:
    """Everything that is not timed: environments, random models, the stages before PPO."""
    make = [sys.executable, str(HERE / "ppo_peer_models.py"), str(work / "models")]
    quietly(make, work / "log.txt")
    for name in names:
        if name in OURS:
            for model in models:
                folder = our_folder(name, model, work)
                if not (folder / "reward" / "manifest.json").exists():
                    folder.parent.mkdir(parents=True, exist_ok=True)
                    values = {"folder": folder, "model": work / "models" / model, "data": work / "models"}
                    folder.with_suffix(".yaml").write_text(CONFIG.format(**values))
                    quietly([*our_command(name, model, work, WALL_CLOCK), "reward"], work / "log.txt")
        else:
            python = environment("llamafactory" if name == FACTORY else "trl", work)
            if name == FACTORY:
                for model in models:
                    if not (work / "factory" / model / "reward" / "adapter_config.json").exists():
                        quietly([*factory_command(python, model, work), "--reward-only"], work / "log.txt")


def environment(name: str, work: Path) -> Path:
    """The environment's Python; it is made where it is missing."""
    folder = work / name
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"making the environment of {name}", flush=True)
        quietly([sys.executable, "-m", "venv", "--clear", str(folder)], work / "log.txt")
        quietly([str(python), "-m", "pip", "install", *PACKAGES[name]], work / "log.txt")
        (folder / "made").touch()
    return python


def one_process(name: str, model: str, work: Path, how: argparse.Namespace) -> dict:
    """Run one program once; seconds of its iterations after the first, and its peak memory."""
    given = ["--iterations", str(how.iterations), "--threads", str(how.threads), "--clock", how.clock]
    scratch = work / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    if name in OURS:
        command = our_command(name, model, work, CPU_CLOCK if how.clock == "cpu" else WALL_CLOCK)
        overrides = (f"ppo.iterations={how.iterations}", f"run.threads={how.threads}")
        command += ["ppo", "--again", *(part for one in overrides for part in ("--set", one))]
    elif name == FACTORY:
        python = environment("llamafactory", work)
        command = [*factory_command(python, model, work), *given]
    else:
        dtype = ["--dtype", "bfloat16" if name == TRL_BF16 else "float32"]
        python = environment("trl", work)
        command = [str(python), str(HERE / "ppo_peer_trl.py"), str(work / "models" / model), *dtype, *given]
    log = scratch / "log.txt"
    with log.open("w") as file:
        whole = [*how.before.split(), *command]
        program = subprocess.Popen(whole, cwd=scratch, env=variables(how.threads), stdout=file, stderr=file)
        _, status, usage = os.wait4(program.pid, 0)  # the peak of this process and of those that it has waited for
    program.returncode = os.waitstatus_to_exitcode(status)
    if program.returncode:
        sys.exit(f"{name} on {model} failed:\n" + "\n".join(log.read_text().splitlines()[-30:]))
    found = our_numbers(our_folder(name, model, work)) if name in OURS else printed_numbers(log)
    return {**found, "peak": usage.ru_maxrss / 1024}


def our_settings(name: str, model: str) -> dict[str, object]:
    """What ours with this name sets."""
    half = HALF[model.split("-")[0]]
    return {key: half if value == "half" else value for key, value in OURS[name].items()}


def our_folder(name: str, model: str, work: Path) -> Path:
    """The run folder: of all that makes the stages before PPO the same."""
    early = [str(value) for key, value in our_settings(name, model).items() if not key.startswith("ppo.")]
    return work / "ours" / "-".join([model, *early])


def our_command(name: str, model: str, work: Path, program: list[str]) -> list[str]:
    """``rlhf run`` on this run folder."""
    config = our_folder(name, model, work).with_suffix(".yaml")
    overrides = [part for key, value in our_settings(name, model).items() for part in ("--set", f"{key}={value}")]
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, *program, "run", str(config), *overrides]


def factory_command(python: Path, model: str, work: Path) -> list[str]:
    """The driver of LLaMA-Factory on this model."""
    driver = str(HERE / "ppo_peer_llamafactory.py")
    return [str(python), driver, str(work / "models" / model), str(work / "models"), str(work / "factory" / model)]


def our_numbers(folder: Path) -> dict:
    """From the metrics that every run writes."""
    rows = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    phases = ("seconds/rollout", "seconds/score", "seconds/train")
    split = [[row[phase] for phase in phases] for row in rows[1:]]
    return {
        "seconds": [sum(parts) for parts in split],
        "split": [statistics.median(parts) for parts in zip(*split, strict=True)],
        "length": statistics.mean(row["response/length"] for row in rows),
    }


def printed_numbers(log: Path) -> dict:
    """What a driver printed last."""
    return json.loads(next(x for x in reversed(log.read_text().splitlines()) if x.startswith("RESULT "))[7:])


def quietly(command: list[str], log: Path) -> None:
    """Run a command; its output goes to a file, and its end is shown where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        ended = subprocess.run(command, cwd=log.parent, env=variables(), stdout=file, stderr=subprocess.STDOUT)
    if ended.returncode:
        sys.exit(f"{' '.join(command)} failed:\n" + "\n".join(log.read_text().splitlines()[-30:]))


def variables(threads: int = 1) -> dict[str, str]:
    """The environment's variables: so many threads, and no network."""
    return os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


def read(results: Path) -> dict[tuple[str, str], Runs]:
    """Every process's numbers, by model and program."""
    runs: dict[tuple[str, str], Runs] = {}
    for line in results.read_text().splitlines():
        row = json.loads(line)
        of = runs.setdefault((row["model"], row["name"]), Runs())
        of.seconds += row["seconds"]
        of.peak.append(row["peak"])
        of.length.append(row["length"])
    return runs


def table(runs: dict[tuple[str, str], Runs], how: argparse.Namespace) -> str:
    """Markdown: every program's numbers, then ours as ratios to each of the others."""
    counts = sorted({len(of.seconds) for of in runs.values()})
    counted = f"{counts[0]} to {counts[-1]} iterations" if len(counts) > 1 else f"{counts[0]} iterations"
    values = {
        "arguments": f"--sizes {' '.join(how.sizes)} --rounds {how.rounds} --iterations {how.iterations} "
        f"--threads {how.threads} --clock {how.clock} --out FILE",
        "bfloat16": "with" if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else "without",
        "date": time.strftime("%d %B %Y", time.gmtime()),
        "cores": os.cpu_count(),
        "threads": how.threads,
        "counted": counted,
        "clock": CLOCKS[how.clock],
    }
    lines = [HEADER.format(**values)]
    lines += ["| model | program | s an iteration | peak MiB | tokens a response |", "| --- | --- | --- | --- | --- |"]
    for (model, name), of in runs.items():
        spread = f"{statistics.median(of.seconds):.2f} [{min(of.seconds):.2f} – {max(of.seconds):.2f}]"
        lines.append(f"| {model} | {name} | {spread} | {max(of.peak):.0f} | {statistics.mean(of.length):.1f} |")
    lines += ["", "Ours as a share of theirs, time / memory:", ""]
    lines += [f"| model | ours | {' | '.join(PEERS)} |", "| --- | --- |" + " --- |" * len(PEERS)]
    for (model, name), of in runs.items():
        if name in PEERS:
            continue
        cells = []
        for peer in PEERS:
            other = runs.get((model, peer))
            cells.append(f"{ratio(of.seconds, other.seconds)} / {max(of.peak) / max(other.peak):.2f}" if other else "–")
        lines.append(f"| {model} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Of the medians."""
    return f"{statistics.median(ours) / statistics.median(theirs):.2f}"


if __name__ == "__main__":
    main()
