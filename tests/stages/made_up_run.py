"""A run folder as the stages leave it, with made-up numbers, for the tests of what reads one."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from rlhf_pipeline import artifacts
from rlhf_pipeline.alarms import Watch
from stages import BY_NAME, NAMES
from stages.settings import Settings, load

IDENTITY = {
    "base": {"name": "pocket", "revision": None, "digest": "a" * 64},
    "tokenizer": {"tokenizer": "b" * 64, "chat_template": "c" * 64, "eos": [2]},
}
_QUESTIONS = [
    "How do I get a wine stain out of a tablecloth?", "Why do my tomato leaves turn yellow?",
    "My bike chain keeps slipping. What can I do?", "Should I use butter or oil for pancakes?",
    "Thank you, that worked!", "I feel down because my bread never rises.", "What is mulch?",
]  # fmt: skip
_ANSWERS = {
    "base": "Water the roots early. Water the the stain is salt and then. How do I get a",
    "sft": "Rinse it with cold water, then rub in a little salt.",
    "dpo": "Oh, that is annoying, but it can be saved! Rinse the cloth with cold water at once, rub in some salt, "
    "wait ten minutes and wash it as usual. Good luck!",
    "ppo": "Happy to help! Rinse it with cold water first, then rub in salt and leave it for ten minutes before "
    "you wash it. It should come out well.",
}  # fmt: skip
_EVALUATION = {  # win rate, low, high, wins, losses, ties, gold, score, kl, length, ended
    "base": (0.031, 0.016, 0.059, 9, 281, 10, -0.2, -3.4, 41.3, 61.2, 0.22),
    "sft": (None, None, None, None, None, None, 5.1, -0.4, 0.0, 24.2, 0.97),
    "dpo": (0.846, 0.798, 0.884, 226, 41, 33, 7.6, 2.2, 9.8, 31.5, 0.99),
    "ppo": (0.791, 0.739, 0.835, 215, 57, 28, 7.2, 2.6, 6.1, 29.9, 0.995),
}


def make_run(folder: Path, stages: tuple[str, ...] = NAMES) -> Settings:
    """Complete the given stages of a run in a folder; returns its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(f"model: {{name: pocket}}\ndata: {{demonstrations: pocket}}\nrun: {{folder: '{folder}'}}\n")
    settings = load(path)
    digests: dict[str, str] = {}
    for name in (n for n in NAMES if n in stages):
        partial = folder / f"{name}.partial"
        partial.mkdir()
        metrics = write_stage(name, partial)
        stage = BY_NAME[name]
        inputs = {n: digests[n] for n in (*stage.needs, *stage.reads_if_there) if n in digests}
        data = {source: artifacts.source_digest(source) for source in settings.data_sources(stage)}
        digests[name] = artifacts.complete(
            partial, folder / name, stage=name, kind=stage.kind, settings=settings.relevant_to(stage), seed=0,
            inputs=inputs, data=data, base=IDENTITY["base"], tokenizer=IDENTITY["tokenizer"], metrics=metrics,
            device="cpu", seconds=17.0 + 9 * NAMES.index(name),
        ).digest  # fmt: skip
    return settings


def write_stage(name: str, folder: Path) -> dict[str, Any]:
    """A stage's files and metrics."""
    if name in ("sft", "reward", "dpo", "ppo"):
        rows = training_rows(name)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if name == "ppo":
        scorings = [
            {"step": 20 * i, "responses": 64, "kl": 0.7 * i, "kl_se": 0.1, "score": 0.3 * i, "score_se": 0.125,
             "gold": 5.1 + 0.5 * i - 0.06 * i * i, "gold_se": 0.2}
            for i in range(11)
        ]  # fmt: skip
        (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scorings))
        watch = Watch()
        for row in rows:
            watch.see(row | {"rollout/logprob_gap": 0.3 if row["step"] == 7 else 0.0})
        watch.save(folder)
        return {"kept_iteration": 80, "stopped": None}
    if name == "collect":
        found = {"sentences": ["701 decided pairs of 384 prompts count as 655 of equal weight", "1 pair is <odd>"]}
        (folder / "preference_report.json").write_text(json.dumps(found))
        return {
            "judgements": 1536, "pairs": 768, "preferences": 701, "ties": 67, "skipped": 12, "agreement": 0.746,
            "agreement_pairs": 768, "annotators": 5, "left_share": 0.508, "longer_share": 0.617,
        }  # fmt: skip
    if name == "reward":
        (folder / "evaluation.json").write_text(json.dumps(reward_evaluation()))
        return {
            "warnings": ["the reward model is badly calibrated: <b>too</b> sure"], "ceiling": 0.9, "ceiling_low": 0.87,
            "ceiling_high": 0.93,
            "accuracy": 0.812, "accuracy_low": 0.735, "accuracy_high": 0.871, "pairs": 128,
            "length_baseline": 0.586, "length_baseline_low": 0.499, "length_baseline_high": 0.668,
        }  # fmt: skip
    if name == "evaluate":
        metrics = evaluation()
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in responses()))
        return metrics
    return {"loss": 0.93} if name != "sample" else {"prompts": 384, "responses": 1536, "distinct": 0.98}


def reward_evaluation() -> dict[str, Any]:
    """What ``reward`` measures, of made-up scores."""
    from rlhf_pipeline import reward_evaluation as evaluation
    from rlhf_pipeline.calibration import calibrate

    lots = random.Random(5)
    pairs = [
        evaluation.ScoredPair(
            lots.gauss(1.2, 1.1), lots.gauss(-0.4, 1.1), lots.randint(8, 40), lots.randint(8, 40),
            judgements=lots.choice([1, 2, 3]), source=lots.choice(["people", "imported"]),
            group=lots.choice(["gardening", "cooking", "bicycles"]),
        )
        for _ in range(300)
    ]  # fmt: skip
    differences = [pair.difference for pair in pairs]
    moved = [d + lots.gauss(0, 0.1) for d in differences]
    return {
        "calibration": calibrate([2 * d for d in differences], [1.0] * 300).to_json(),
        "slices": evaluation.slices(pairs),
        "scores": evaluation.distribution(pairs),
        "length_correlation": evaluation.length_correlation(pairs),
        "sensitivity": [evaluation.sensitivity("two spaces", differences, moved)],
        "test_sets": [
            {"name": "bench.jsonl", **evaluation.accuracy(pairs).to_json(), "sections": {"Safety": 0.71},
             "subsets": {"donotanswer": evaluation.accuracy(pairs[:80]).to_json()}}
        ],
        "pairs": len(pairs),
        "learning_curve": _learning_curve(len(pairs)),
        "rules": _rules(),
    }  # fmt: skip


def _rules() -> list[dict[str, Any]]:
    """One that is recognised, and one that nobody broke."""
    from rlhf_pipeline.records import RuleVotes
    from rlhf_pipeline.rule_evaluation import measure_rule

    broken, kept = RuleVotes(1.0, 2), RuleVotes(0.0, 2)
    odds = [i % 7 - 3.0 for i in range(90)]
    return [
        measure_rule("Do not be <rude>.", odds, [broken if one > 1 else kept for one in odds]),
        measure_rule("Do not sing.", odds, [kept] * 90),
    ]


def _learning_curve(held_out: int) -> dict[str, Any]:
    """Of models that learnt from 500, 1,000 and 2,000 pairs."""
    from rlhf_pipeline.learning_curves import Point, fit

    shares = {500: 0.64, 1000: 0.71, 2000: 0.76}
    curve = fit([Point(pairs, share, held_out) for pairs, share in shares.items()])
    assert curve is not None
    return {"points": [{"pairs": pairs, "accuracy": share} for pairs, share in shares.items()], **curve.to_json()}


def training_rows(name: str) -> list[dict[str, Any]]:
    lots = random.Random(name)

    def curve(step: int, start: float, end: float, noise: float) -> float:
        return end + (start - end) * math.exp(-step / 60) + lots.gauss(0, noise)

    rows: list[dict[str, Any]] = []
    for step in range(1, 201):
        shared = {"step": step, "learning_rate": 2e-4, "grad_norm": 0.8}
        if name == "ppo":
            kl = max(0.0, 6 * step / 200 + lots.gauss(0, 0.3))
            row = {
                "objective/kl": kl, "objective/scores": curve(step, -0.4, 2.5, 0.15),
                "objective/rlhf_reward": curve(step, -0.4, 2.2, 0.15), "objective/entropy": curve(step, 1.4, 0.9, 0.03),
                "response/length": curve(step, 24, 30, 0.8), "response/ended": min(1, curve(step, 0.97, 0.995, 0.005)),
                "ppo/policy/clipfrac": abs(curve(step, 0.12, 0.05, 0.02)), "ppo/val/clipfrac": 0.03,
                "ppo/val/explained_variance": curve(step, -0.2, 0.6, 0.05),
            }  # fmt: skip
        elif name == "sft":
            row = {"loss": curve(step, 3.1, 0.9, 0.06), "mean_token_accuracy": curve(step, 0.4, 0.75, 0.01)}
        else:
            prefix = "rewards/" if name == "dpo" else ""
            accuracy, margin = ("accuracies", "margins") if name == "dpo" else ("accuracy", "margin")
            row = {
                "loss": curve(step, 0.69, 0.42, 0.05), f"{prefix}{accuracy}": min(1, curve(step, 0.5, 0.84, 0.05)),
                f"{prefix}{margin}": curve(step, 0, 2.1, 0.2),
            }  # fmt: skip
        rows.append(shared | row)
        if name != "ppo" and step % 50 == 0:
            rows.append({"step": step, "eval_loss": row["loss"] + 0.04})
    return rows


def evaluation() -> dict[str, Any]:
    keys = (
        "win_rate",
        "win_rate_low",
        "win_rate_high",
        "wins",
        "losses",
        "ties",
        "gold",
        "score",
        "kl",
        "length",
        "ended",
    )
    policies = {
        name: dict(zip(keys, values, strict=True))
        | {"gold_se": 0.11, "score_se": 0.08, "kl_se": 0.31, "length_p95": 44.0, "prompts": 300, "read": 0.98}
        | {"rules": {"Do not be <rude>.": {"model": 0.213, "gold": 0.197}, "Do not sing.": {"model": 0, "gold": None}}}
        for name, values in _EVALUATION.items()
    }
    summary = [
        "dpo beats sft: it wins 226 of 267 decided comparisons (84.6 %, 95 % interval 79.8 to 88.4 %; 33 ties). "
        "The difference is real.",
        "ppo beats sft: it wins 215 of 272 decided comparisons (79.0 %, 95 % interval 73.9 to 83.5 %; 28 ties). "
        "The difference is real.",
    ]
    return {"policies": policies, "judge": "gold", "summary": summary}


def responses() -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": f"{i:016x}",
            "prompt": [{"role": "user", "content": _QUESTIONS[i % len(_QUESTIONS)]}],
            "responses": {
                name: {"text": text, "ended": name != "base", "length": 20, "score": i / 10, "gold": 5.0, "kl": 0.5}
                for name, text in _ANSWERS.items()
            },
        }
        for i in range(24)
    ]
