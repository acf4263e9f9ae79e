"""Has a rule model understood each of its rules? Does it rank, decide, and know how sure it may be?

Everything is computed from log-odds and votes: no model is asked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_pipeline.calibration import calibrate
from rlhf_pipeline.ensembles import auc
from rlhf_pipeline.metrics import MISCALIBRATED, Gate
from rlhf_pipeline.records import RuleVotes
from rlhf_pipeline.reward_evaluation import Share

_FEWEST = 5  # held-out responses on the rarer side, below which nothing is said of how well a rule is recognised

GATE: Gate = "rules"


def measure_rule(rule: str, log_odds: Sequence[float], votes: Sequence[RuleVotes | None]) -> dict[str, Any]:
    """What held-out responses say of one rule: ``rule``, ``responses``, ``broken`` (counts), ``auc`` with interval
    (the probability that of two responses the one that breaks it has the higher odds), ``accuracy`` at even odds,
    ``baseline`` (always saying what is commoner) and ``calibration``; None where nothing can be said.

    Args:
        log_odds: of the rule being broken, of each response.
        votes: of each response; those that nobody answered, and those on which judges are divided, decide nothing.
    """
    answered = [(z, one) for z, one in zip(log_odds, votes, strict=True) if one is not None]
    decided = [(z, one.verdict == "broken") for z, one in answered if one.verdict != "divided"]
    broken = sum(is_broken for _, is_broken in decided)
    area = auc([z for z, _ in decided], [is_broken for _, is_broken in decided])
    commoner = broken > len(decided) / 2
    return {
        "rule": rule,
        "responses": len(decided),
        "broken": broken,
        "auc": None if area is None else dict(zip(("value", "low", "high"), area, strict=True)),
        "accuracy": Share.of(z if is_broken else -z for z, is_broken in decided).to_json() if decided else None,
        "baseline": Share.of(1.0 if one == commoner else -1.0 for _, one in decided).to_json() if decided else None,
        "calibration": calibrate([z for z, _ in answered], [one.broken for _, one in answered]).to_json()
        if answered
        else None,
    }


def rule_sentence(found: Mapping[str, Any]) -> str:
    """What was measured of a rule, for a person."""
    text = f"rule {found['rule']!r}: broken in {found['broken']:,} of {found['responses']:,} held-out responses"
    if found["auc"] is None:
        return text
    area, right, baseline = found["auc"], found["accuracy"], found["baseline"]
    return (
        f"{text}; recognised with an area under the curve of {area['value']:.2f} (95 %: {area['low']:.2f} to "
        f"{area['high']:.2f}), accuracy {right['value']:.1%} (always the commoner answer: {baseline['value']:.1%})"
    )


def rule_warnings(rows: Sequence[Mapping[str, Any]], unlearnt: Mapping[str, str]) -> list[dict[str, str]]:
    """``{"gate", "sentence"}`` for each rule that cannot be relied on.

    Args:
        rows: of :func:`measure_rule`.
        unlearnt: rules that are not in the model → why.
    """
    sentences = [f"the rule {rule!r} is not learnt, and costs nothing: {why}" for rule, why in unlearnt.items()]
    for row in rows:
        rule, area, fewest = row["rule"], row["auc"], min(row["broken"], row["responses"] - row["broken"])
        if fewest < _FEWEST:
            kind = "broken" if row["broken"] == fewest else "kept"
            sentences.append(
                f"only {fewest} of {row['responses']:,} held-out responses have the rule {rule!r} {kind}, so whether "
                "it is recognised is not known: have more responses judged, or hold out more prompts"
            )
        elif area["low"] <= 0.5:
            sentences.append(
                f"the rule {rule!r} cannot be told from guessing (area under the curve {area['value']:.2f}, 95 % "
                f"{area['low']:.2f} to {area['high']:.2f}): what it costs is noise; have more responses judged, or see "
                "whether the judges agree about it"
            )
        if row["calibration"] and _is_miscalibrated(row["calibration"]):
            sentences.append(
                f"the probability of the rule {rule!r} being broken is {row['calibration']['error']:.1%} away from "
                "what judges say, on average"
            )
    return [{"gate": GATE, "sentence": sentence} for sentence in sentences]


def _is_miscalibrated(calibration: Mapping[str, Any]) -> bool:
    return bool(calibration["error"] > max(MISCALIBRATED, calibration["chance_error"]))
