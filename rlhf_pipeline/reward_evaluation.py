"""Has the reward model understood the preferences? Accuracy beside what is possible and what length alone gives, by
slice, calibrated or not, and how easily its mind is changed; with sentences for what a person should know.

Everything is computed from scores: no model is asked here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_pipeline.metrics import GATES, MISCALIBRATED, Gate, wilson_interval

_MOST_SLICES = 12
_CODE = ("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust")
_SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer",
    ),
    "Reasoning": ("math-prm", *_CODE),
}  # fmt: skip
_FLIPPED = 0.05  # a share of pairs that change their order above this is said
_HISTOGRAM_BINS = 24


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A held-out comparison with the scores of its two responses; lengths are in tokens of the response."""

    chosen: float
    rejected: float
    chosen_length: int
    rejected_length: int
    probability: float = 1.0
    margin: float | None = None
    judgements: int = 1
    source: str = ""
    group: str = ""

    @property
    def difference(self) -> float:
        """Positive where the model agrees with the judges."""
        return self.chosen - self.rejected


@dataclass(frozen=True, slots=True)
class Share:
    """A share of some pairs with its 95 % Wilson interval; a tie counts one half."""

    value: float
    low: float
    high: float
    pairs: int

    @staticmethod
    def of(signs: Iterable[float]) -> Share:
        """Of the positive ones among at least one number, zeros counting half."""
        counts = [1.0 if one > 0 else 0.5 if one == 0 else 0.0 for one in signs]
        right = math.fsum(counts)
        return Share(right / len(counts), *wilson_interval(right, len(counts)), len(counts))

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Share.__slots__}


@dataclass(frozen=True, slots=True)
class LengthBaseline:
    """What one gets by always preferring the longer response, or the shorter one: the better of both on these pairs."""

    longer_wins: bool
    share: Share


def accuracy(pairs: Sequence[ScoredPair]) -> Share:
    """How often the chosen response has the higher score."""
    return Share.of(pair.difference for pair in pairs)


def length_baseline(pairs: Sequence[ScoredPair]) -> LengthBaseline:
    """The most that length alone could explain."""
    longer = [pair.chosen_length - pair.rejected_length for pair in pairs]
    by_longer, by_shorter = Share.of(longer), Share.of(-one for one in longer)
    longer_wins = by_longer.value >= by_shorter.value
    return LengthBaseline(longer_wins, by_longer if longer_wins else by_shorter)


def agreement_ceiling(agreement: float, agreement_pairs: int, judgements: Sequence[int]) -> Share | None:
    """The accuracy that a perfect model would have on labels made by people who agree so much.

    Judges who are each right with probability r, independently, agree with probability ``A = r² + (1 - r)²``, so that
    ``r = (1 + √(2A - 1)) / 2``. A label is the majority of its n judgements, ties left out: it is right with
    ``P(X > n/2) / P(X ≠ n/2)`` for X ~ Binomial(n, r), which is what a perfect model has right.

    Args:
        agreement: share of the pairs of judgements of one comparison that say the same.
        agreement_pairs: how many such pairs of judgements there are; the interval is that of their share.
        judgements: behind each held-out label.

    None where nothing was judged twice, or people agree no better than chance.
    """
    if not agreement_pairs or agreement <= 0.5 or not judgements:
        return None
    low, high = wilson_interval(agreement * agreement_pairs, agreement_pairs)
    counts = dict(zip(*np.unique(judgements, return_counts=True), strict=True))

    def ceiling(share: float) -> float:
        right = (1 + math.sqrt(max(0.0, 2 * share - 1))) / 2
        return sum(int(times) * _majority(int(n), right) for n, times in counts.items()) / len(judgements)

    return Share(ceiling(agreement), ceiling(low), ceiling(high), agreement_pairs)


def _majority(judges: int, right: float) -> float:
    """How probable it is that most of them are right, where it is not a tie."""
    chance = [math.comb(judges, k) * right**k * (1 - right) ** (judges - k) for k in range(judges + 1)]
    tied = chance[judges // 2] if judges % 2 == 0 else 0.0
    return math.fsum(chance[judges // 2 + 1 :]) / (1 - tied)


def slices(pairs: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    """Accuracy within parts of the pairs: ``{"by", "name", "value", "low", "high", "pairs"}``.

    A dimension of which all pairs are in one part says nothing and is left out; of sources and groups with many names
    the smallest come together as "others".
    """
    margins = sorted({pair.margin for pair in pairs if pair.margin is not None})
    dimensions: dict[str, Callable[[ScoredPair], str | None]] = {
        "length": _by_length,
        "agreement": _by_agreement,
        "judgements": lambda pair: "1" if pair.judgements == 1 else "2 or 3" if pair.judgements < 4 else "4 or more",
        "strength": _by_strength(margins),
        "source": lambda pair: pair.source or None,
        "group": lambda pair: pair.group or None,
    }
    rows = []
    for by, name_of in dimensions.items():
        parts: dict[str, list[ScoredPair]] = {}
        for pair in pairs:
            if (name := name_of(pair)) is not None:
                parts.setdefault(name, []).append(pair)
        if len(parts) > 1:
            rows += [{"by": by, "name": name, **accuracy(part).to_json()} for name, part in _most(parts).items()]
    return rows


def _by_length(pair: ScoredPair) -> str:
    ratio = pair.chosen_length / max(1, pair.rejected_length)
    return "chosen much shorter" if ratio < 2 / 3 else "chosen much longer" if ratio > 1.5 else "of like length"


def _by_agreement(pair: ScoredPair) -> str | None:
    if pair.judgements < 2:
        return None
    return "all agree" if pair.probability > 0.999 else "most agree" if pair.probability >= 0.75 else "divided"


def _by_strength(margins: Sequence[float]) -> Callable[[ScoredPair], str | None]:
    """By the judges' margin: each value of a few, or else in three parts of like size."""
    if len(margins) <= 4:
        return lambda pair: None if pair.margin is None else f"{pair.margin:g}"
    first, second = np.quantile(margins, [1 / 3, 2 / 3])

    def name(pair: ScoredPair) -> str | None:
        if pair.margin is None:
            return None
        return "small" if pair.margin <= first else "middle" if pair.margin <= second else "large"

    return name


def _most(parts: Mapping[str, list[ScoredPair]]) -> dict[str, list[ScoredPair]]:
    order = sorted(parts, key=lambda name: (-len(parts[name]), name))
    kept = {name: parts[name] for name in order[:_MOST_SLICES]}
    if rest := [pair for name in order[_MOST_SLICES:] for pair in parts[name]]:
        kept["others"] = rest
    return kept


def distribution(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """How the scores lie: quantiles of each side, and counts of both over bins of equal width."""
    sides = {"chosen": [pair.chosen for pair in pairs], "rejected": [pair.rejected for pair in pairs]}
    edges = np.histogram_bin_edges([*sides["chosen"], *sides["rejected"]], _HISTOGRAM_BINS)
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
    rows = {
        side: {
            "mean": float(np.mean(scores)),
            "std": float(np.std(scores)),
            "quantiles": dict(zip(map(str, quantiles), np.quantile(scores, quantiles).tolist(), strict=True)),
            "counts": np.histogram(scores, edges)[0].tolist(),
        }
        for side, scores in sides.items()
    }
    return {"edges": edges.tolist(), **rows}


def length_correlation(pairs: Sequence[ScoredPair]) -> dict[str, float | None]:
    """Spearman's correlation of score and response length, over all responses and within pairs; None if undefined.

    Within pairs (the difference of scores against that of lengths) the prompt, which moves both, is held fixed.
    """
    lengths = [length for pair in pairs for length in (pair.chosen_length, pair.rejected_length)]
    scores = [score for pair in pairs for score in (pair.chosen, pair.rejected)]
    # Each pair in both directions: which response was chosen must not lend the correlation a sign.
    apart = [sign * (pair.chosen_length - pair.rejected_length) for pair in pairs for sign in (1, -1)]
    differences = [sign * pair.difference for pair in pairs for sign in (1, -1)]
    return {"all": spearman(lengths, scores), "within_pairs": spearman(apart, differences)}


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's correlation of mid-ranks (Spearman 1904); None for constants."""
    ranks = []
    for values in (x, y):
        _, place, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    a, b = (one - one.mean() for one in ranks)
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else None


def sensitivity(name: str, before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """What writing the same pairs otherwise does to them.

    Args:
        name: of the variant.
        before, after: difference of the two scores of each pair.

    Returns:
        ``{"variant", "value", "low", "high", "pairs", "shift"}``: the share of pairs whose order changes, and the mean
        change of the difference in standard deviations of the differences.
    """
    flips = Share.of(1.0 if x != y else -1.0 for x, y in zip(np.sign(before), np.sign(after), strict=True))
    moved = math.fsum(abs(a - b) for a, b in zip(before, after, strict=True)) / len(before)
    return {"variant": name, **flips.to_json(), "shift": moved / (float(np.std(before)) or 1.0)}


def rewardbench_sections(subsets: Mapping[str, Share]) -> dict[str, float]:
    """RewardBench's scores of its sections (Lambert et al. 2024, arXiv:2403.13787, section 4), where they are complete.

    The mean over a section's pairs; mathematics counts as much as all code together.
    """
    weights = {name: float(share.pairs) for name, share in subsets.items()}
    weights["math-prm"] = sum(weights.get(name, 0.0) for name in _CODE)
    scores = {}
    for section, names in _SECTIONS.items():
        if set(names) <= subsets.keys():
            total = sum(weights[name] for name in names)
            scores[section] = sum(weights[name] * subsets[name].value for name in names) / total
    return scores


def warnings(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """``{"gate", "sentence"}`` for each of :data:`GATES` that an evaluation of preferences does not pass."""
    found: dict[Gate, str] = {}
    right, length, calibration = (evaluation[key] for key in ("accuracy", "length_baseline", "calibration"))
    interval = f"{right['value']:.1%}, 95 % interval {right['low']:.1%} to {right['high']:.1%}"
    if right["low"] <= 0.5:
        found["chance"] = (
            f"the reward model cannot be told from guessing on {right['pairs']:,} held-out pairs ({interval}): do not "
            "train a policy on it; collect more judgements, or look at how well the judges agree"
        )
    elif right["low"] <= length["value"]:
        found["length"] = (
            f"the reward model is not shown to be better than always preferring the {length['direction']} response "
            f"({length['value']:.1%}; the model {interval}): a policy may learn length from it and nothing else"
        )
    if calibration["error"] > max(MISCALIBRATED, calibration["chance_error"]):
        factor = calibration["temperature"]
        if factor is None:
            over = sum(one["pairs"] * (one["confidence"] - one["accuracy"]) for one in calibration["bins"]) > 0
        else:
            over = factor > 1
        remedy = "" if factor is None else f"; dividing its scores by {factor:.2f} would mend most of that"
        found["calibration"] = (
            f"the reward model is badly calibrated: its confidence is {calibration['error']:.1%} away from its "
            f"accuracy on average, {'too sure' if over else 'too unsure'} of itself{remedy}"
        )
    moved = [one for one in evaluation["sensitivity"] if one["low"] > _FLIPPED]
    if moved:
        words = ", ".join(f"{one['variant']} ({one['value']:.1%})" for one in moved)
        found["template"] = (
            "the reward model depends on how a text is written rather than on what it says; share of pairs whose order "
            f"changes: {words}. Score only what this program renders"
        )
    return [{"gate": gate, "sentence": found[gate]} for gate in GATES if gate in found]
