"""What is an ensemble of reward models good for? Its disagreement as a warning, and its minimum as PPO's reward.

    python benchmarks/reward_ensembles.py --out benchmarks/reward_ensembles.md

The pocket model, few and noisy comparisons by simulated annotators, and the gold judge, which knows what every response
is worth. Each seed has a chain of its own up to an ensemble, and from there PPO twice, hardly held back by KL: on the
minimum over the ensemble, and on its first member alone (Coste et al. 2023, arXiv:2310.02743). Seeds that are finished
are kept in the folder of the runs. A seed takes some minutes of CPU time.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.over_seeds import interval
from rlhf_pipeline.artifacts import complete, open_artifact
from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.data.splits import dialogue_key
from rlhf_pipeline.ensembles import auc
from rlhf_pipeline.generation import generate
from rlhf_pipeline.models import load_causal_lm
from rlhf_pipeline.pocket.annotators import UNREADABLE
from rlhf_pipeline.pocket.grammar import prompts as pocket_prompts
from rlhf_pipeline.pocket.judge import gold
from rlhf_pipeline.records import Preference, read_jsonl
from rlhf_pipeline.reward_models import Ensemble, Spec, load_reward_model
from rlhf_pipeline.tokenization import load_tokenizer
from stages import runner, settings

ROOT = Path(__file__).resolve().parent.parent
MODEL = ModelConfig(name="pocket")
CHAIN = {
    "run.stages": "[sft, sample, collect, reward, ppo]",
    "run.parallel": 1,
    "data.demonstrations.limit": 300,
    "data.held_out": 100,
    "sft.max_steps": 10,
    "sample.prompts": 120,
    "sample.max_new_tokens": 56,
    "sample.held_out_prompts": 10,
    "collect.pairs_per_prompt": 2,
    "collect.panel": "[Carla the careless]",  # errs about as often as people disagree, and as the labels of the paper
    "reward.ensemble": "{members: 4, score: min}",
    "reward.batch_size": 8,
    "reward.epochs": 3,
    "ppo.iterations": 8,
    "ppo.max_new_tokens": 56,
    "ppo.rollout_batch": 48,
    "ppo.learning_rate": 4e-3,
    "ppo.kl_coef": 0.01,
    "ppo.stop": "{every: 2, prompts: 64, judge: gold, keep: last}",
}
PREDICTORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "standard deviation": lambda apart: apart.std(0, ddof=1),
    "standard deviation / size of the mean": lambda apart: apart.std(0, ddof=1) / np.abs(apart.mean(0)).clip(1e-12),
    "smallness of the mean": lambda apart: -np.abs(apart.mean(0)),
}
HEADER = """# Ensembles of reward models

`python benchmarks/reward_ensembles.py {command}`, {date}

The pocket model; {pairs} comparisons by simulated annotators, of which {noise} % prefer the response that
the gold judge finds worse; four adapters, each with a head and an order of its own.

## Does disagreement tell errors?

{count} pairs of responses to prompts that no comparison was about, of which the gold judge says which is better. How
well a number tells the pairs that the ensemble's mean has wrong: area under the ROC curve (0.5 is chance), with the
95 % interval of a bootstrap over pairs and seeds. The second one is what the reward stage calls uncertainty; the third
needs no ensemble's disagreement, only that its mean is near 0.

| | wrong | {predictors} |
| --- | --- | {rules} |
{areas}

## Does the minimum over-optimise less?

PPO with `kl_coef: 0.01` for {iterations} iterations of 48 responses, on the minimum and on the first of the four alone;
after every second {responses} held-out prompts are answered. Proxy (the reward that is trained on) and gold are in
standard deviations of the SFT policy's responses; read: by the gold judge, and the others count as the worst. The peak
is the highest of the scorings, the SFT policy's too. Equal KL: the largest that both policies of a seed reached, by
straight lines between scorings.

| seed | reward | KL | read | proxy | gold | gold at its peak | fall from the peak | proxy - gold | gold at equal KL |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

Minimum less one model, mean over seeds with its 95 % interval (Student's t):

| gold at the end | fall from the peak | proxy - gold | gold at equal KL |
| --- | --- | --- | --- |
{difference}

{verdict}

{curves}
"""


def main() -> None:
    """Run what is not there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--pairs", type=int, default=300, help="prompts that are answered twice, for the first table")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ensembles")
    parser.add_argument("--set", action="append", default=[], help="override, as of rlhf run")
    parser.add_argument("--out", type=Path, help="where the tables go; the terminal alone when left out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = [of_seed(seed, given.runs / f"seed-{seed}", given.pairs, given.set) for seed in given.seeds]
    command = ["--seeds", *map(str, given.seeds), *(f"--set {one}" for one in given.set)]
    text = report(given.seeds, found, " ".join([*command, "--out benchmarks/reward_ensembles.md"]))
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    print(text)


def of_seed(seed: int, folder: Path, pairs: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Both arms of one seed: the curves of PPO, and each member's opinion of fresh pairs."""
    done = folder / "result.json"
    if not done.is_file():
        whole, alone = (folder / name.replace(" ", "-") for name in ("minimum", "one model"))
        curve = curve_of(seed, whole, overrides)
        if not alone.is_dir():
            shutil.rmtree(unfinished := folder / "copy", ignore_errors=True)
            shutil.copytree(whole, unfinished, ignore=shutil.ignore_patterns("ppo"))
            leave_first(unfinished / "reward")
            unfinished.rename(alone)
        result = {
            "curves": {"one model": curve_of(seed, alone, overrides), "minimum": curve},
            "comparisons": open_artifact(whole / "reward").manifest.metrics["rows"]["train"],
            "members": opinions(whole, pairs),
            "noise": noise(whole),
        }
        done.write_text(json.dumps(result), encoding="utf-8")
    return json.loads(done.read_text(encoding="utf-8"))


def curve_of(seed: int, folder: Path, overrides: Sequence[str]) -> list[dict[str, float]]:
    """Run the chain, or what of it is not there yet, and say how PPO went."""
    values = {**CHAIN, "run.folder": folder, "run.seed": seed}
    runner.run(settings.load(ROOT / "configs" / "demo.yaml", [*(f"{k}={v}" for k, v in values.items()), *overrides]))
    return normalised([json.loads(line) for line in (folder / "ppo" / "held_out.jsonl").read_text().splitlines()])


def leave_first(folder: Path) -> None:
    """Make of a finished ensemble its first member alone."""
    spec, manifest = Spec.read(folder), open_artifact(folder).manifest
    assert spec is not None
    assert spec.combination is not None
    combination = replace(spec.combination, rule="mean", offsets=spec.combination.offsets[:1])
    replace(spec, members=spec.members[:1], combination=combination).write(folder)
    made_by = {k: v for k, v in asdict(manifest).items() if k not in ("files", "created", "versions", "git", "schema")}
    complete(folder.rename(folder.with_suffix(".partial")), folder, **made_by)


def normalised(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """KL, proxy and gold by iteration; gold as the proxy is: less the SFT policy's mean, by the deviation there.

    What the gold judge cannot read has the score by which the simulated annotators go there, the worst.
    """
    gold = [row["read"] * (row["gold"] or 0.0) + (1 - row["read"]) * UNREADABLE for row in rows]
    first = rows[0]
    deviation = first["gold_se"] * math.sqrt(first["read"] * first["responses"])
    return [
        {
            "step": row["step"],
            "responses": row["responses"],
            "read": row["read"],
            "kl": row["kl"],
            "proxy": row["score"] - first["score"],
            "gold": (value - gold[0]) / deviation,
        }
        for row, value in zip(rows, gold, strict=True)
    ]


def noise(folder: Path) -> float:
    """The share of the decided comparisons that prefer what the gold judge finds worse, or cannot read."""
    wrong = []
    for one in map(Preference.from_json, read_jsonl(folder / "collect" / "preferences.jsonl")):
        sides = ((one.chosen, one.chosen_cut), (one.rejected, one.rejected_cut))
        scores = [gold(one.prompt.messages, side, not cut) for side, cut in sides]
        better, worse = (UNREADABLE if score is None else score for score in scores)
        if not one.tie:
            wrong.append(better < worse)
    return statistics.mean(wrong)


def opinions(folder: Path, count: int) -> list[list[float]]:
    """``(members, pairs)``: by how much each member scores the better of two responses above the worse.

    Pairs to whose prompts there are comparisons in the chain's folder are left out.
    """
    judged = [Preference.from_json(row) for row in read_jsonl(folder / "collect" / "preferences.jsonl")]
    known = {dialogue_key(one.prompt) for one in judged}
    pairs = [sides for key, sides in fresh_pairs(count) if key not in known]
    members = load_reward_model(MODEL, folder / "reward", device="cpu")
    assert isinstance(members, Ensemble)
    scored = np.array(members.member_scores([side[place] for place in (0, 1) for side in pairs]))
    apart: list[list[float]] = (scored[:, : len(pairs)] - scored[:, len(pairs) :]).tolist()
    return apart


@functools.cache
def fresh_pairs(count: int) -> list[tuple[str, tuple[list[int], list[int]]]]:
    """The ids of two responses of the pocket model to each of so many prompts, the better one first.

    Left out are responses that the gold judge finds equally good, or cannot read.
    """
    chat = load_tokenizer(MODEL)
    prompts = pocket_prompts(count, 10**6)
    ids = [chat.encode_prompt(prompt.messages) for prompt in prompts]
    drawn = generate(
        load_causal_lm(MODEL, device="cpu"),
        [one for one in ids for _ in range(2)],
        stop_ids=chat.stop_ids,
        pad_id=chat.pad_id,
        max_new_tokens=56,
        temperature=1.0,
        top_p=1.0,
        seed=0,
        batch_size=200,
    )
    pairs = []
    for place, prompt in enumerate(prompts):
        two = drawn[2 * place : 2 * place + 2]
        scores = [gold(prompt.messages, chat.decode_response(one.ids), one.ended) for one in two]
        first, second = (-math.inf if score is None else score for score in scores)
        if min(first, second) > -math.inf and abs(first - second) > 1e-9:
            high = second > first
            pairs.append((dialogue_key(prompt), (ids[place] + two[high].ids, ids[place] + two[not high].ids)))
    return pairs


def report(seeds: Sequence[int], found: Sequence[dict[str, Any]], command: str) -> str:
    """Both tables, what they say, and the curves."""
    rows, apart, alone = [], [], []
    for seed, one in zip(seeds, found, strict=True):
        measured = {name: of_curve(curve, shared_kl(one["curves"])) for name, curve in one["curves"].items()}
        rows += [curve_line(seed, name, values) for name, values in measured.items()]
        first, second = measured["one model"], measured["minimum"]
        apart.append({key: second[key] - first[key] for key in first})
        alone.append(first)
    keys = ("gold", "fall", "gap", "equal")
    gaps = {key: interval([one[key] for one in apart]) for key in keys}
    areas, verdicts = area_lines(seeds, found)
    curve = found[0]["curves"]["one model"]
    return HEADER.format(
        command=command, date=time.strftime("%d %B %Y", time.gmtime()),
        pairs=from_to(one["comparisons"] for one in found),
        count=from_to(len(one["members"][0]) for one in found),
        predictors=" | ".join(PREDICTORS), rules=" | ".join("---" for _ in PREDICTORS), areas="\n".join(areas),
        iterations=curve[-1]["step"], responses=curve[0]["responses"], rows="\n".join(rows),
        difference="| " + " | ".join(f"{mean:+.2f} ± {half:.2f}" for mean, half in gaps.values()) + " |",
        noise=from_to(round(100 * one["noise"]) for one in found),
        verdict="\n".join([*verdicts, fell(alone), *less(gaps)]),
        curves="\n\n".join(map(curves, seeds, found)),
    )  # fmt: skip


def from_to(numbers: Iterable[int]) -> str:
    """What these numbers lie between."""
    ordered = sorted(numbers)
    return f"{ordered[0]}" if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


def shared_kl(by_arm: dict[str, list[dict[str, float]]]) -> float:
    """The largest KL that every arm reached."""
    return min(max(row["kl"] for row in rows) for rows in by_arm.values())


def of_curve(rows: list[dict[str, float]], kl: float) -> dict[str, float]:
    """What one run of PPO comes to."""
    last, peak = rows[-1], max(row["gold"] for row in rows)
    after = next(place for place, row in enumerate(rows) if row["kl"] >= kl)
    low, high = rows[max(0, after - 1)], rows[after]
    share = (kl - low["kl"]) / (high["kl"] - low["kl"]) if high["kl"] > low["kl"] else 1.0
    return {
        "kl": last["kl"],
        "read": last["read"],
        "proxy": last["proxy"],
        "gold": last["gold"],
        "peak": peak,
        "fall": peak - last["gold"],
        "gap": last["proxy"] - last["gold"],
        "equal": low["gold"] + share * (high["gold"] - low["gold"]),
    }


def area_lines(seeds: Sequence[int], found: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """A line for each seed and one for all together; and in words what tells errors."""
    members = [np.array(one["members"]) for one in found]
    lines = [f"| seed {seed} | {line(of)} |" for seed, of in zip(seeds, ([m] for m in members), strict=True)]
    lines.append(f"| all | {line(members)} |")
    said = []
    for name, predictor in PREDICTORS.items():
        value, low, high = area(members, predictor)
        shown = "predicts errors" if low > 0.5 else "is not shown to predict errors"
        said.append(f"- The {name} {shown} ({value:.2f}, {low:.2f} to {high:.2f}).")
    return lines, said


def line(members: Sequence[np.ndarray]) -> str:
    wrong = np.concatenate([one.mean(0) <= 0 for one in members]).mean()
    cells = " | ".join("{:.2f} ({:.2f}–{:.2f})".format(*area(members, of)) for of in PREDICTORS.values())
    return f"{wrong:.0%} | {cells}"


def area(members: Sequence[np.ndarray], predictor: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float, float]:
    """The mean over seeds of the area under the curve, with the interval of a bootstrap over seeds and over pairs."""
    lot = np.random.default_rng(0)
    values = [predictor(one) for one in members]
    wrong = [one.mean(0) <= 0 for one in members]

    def mean(places: Sequence[tuple[int, np.ndarray]]) -> float:
        found = [auc(values[i][rows].tolist(), wrong[i][rows].tolist()) for i, rows in places]
        return statistics.mean(one[0] for one in found if one is not None)

    def drawn() -> list[tuple[int, np.ndarray]]:
        chosen = lot.integers(len(members), size=len(members))
        return [(i, lot.integers(len(values[i]), size=len(values[i]))) for i in chosen]

    low, high = np.quantile([mean(drawn()) for _ in range(200)], [0.025, 0.975])
    return mean([(i, np.arange(len(one))) for i, one in enumerate(values)]), float(low), float(high)


def fell(alone: Sequence[dict[str, float]]) -> str:
    """In words: whether there is any over-optimisation of one model to have less of."""
    (proxy, proxy_half), (gold, gold_half) = (interval([one[key] for one in alone]) for key in ("proxy", "gold"))
    shown = "is shown" if proxy > proxy_half and gold < -gold_half else "is not shown"
    return (
        f"- That PPO over-optimises one model (its proxy rises while gold falls) {shown}: proxy {proxy:+.2f} ±"
        f" {proxy_half:.2f}, gold {gold:+.2f} ± {gold_half:.2f}."
    )


def less(gaps: dict[str, tuple[float, float]]) -> list[str]:
    """In words: whether the minimum over-optimises less, by each way to measure it."""
    ways = {
        "ends with more gold": gaps["gold"],
        "falls less from its peak": (-gaps["fall"][0], gaps["fall"][1]),
        "has a smaller gap between proxy and gold": (-gaps["gap"][0], gaps["gap"][1]),
        "has more gold at equal KL": gaps["equal"],
    }
    shown = {True: "shown", False: "not shown by these seeds"}
    return [
        f"- The minimum {way}: {shown[mean > half]} ({mean:+.2f} ± {half:.2f})." for way, (mean, half) in ways.items()
    ]


def curve_line(seed: int, name: str, of: dict[str, float]) -> str:
    numbers = " | ".join(f"{of[key]:+.2f}" for key in ("proxy", "gold", "peak", "fall", "gap", "equal"))
    return f"| {seed} | {name} | {of['kl']:.2f} | {of['read']:.0%} | {numbers} |"


def curves(seed: int, found: dict[str, Any]) -> str:
    """Every scoring of both arms: KL, proxy, gold."""
    one, least = found["curves"]["one model"], found["curves"]["minimum"]
    points = "\n".join(
        f"{a['step']:3d} " + " ".join(f"{row['kl']:7.2f} {row['proxy']:+6.2f} {row['gold']:+6.2f}" for row in (a, b))
        for a, b in zip(one, least, strict=True)
    )
    return f"Seed {seed}\n\n```\nit.  one: KL  proxy   gold  min: KL  proxy  gold\n{points}\n```"


if __name__ == "__main__":
    main()
