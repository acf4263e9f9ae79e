"""Is one policy better than another? Counts, intervals and the sentence that says whether the difference is real."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_pipeline.metrics import wilson_interval

_Z = 1.959964  # the two-sided 95 % point of the normal distribution, as in wilson_interval


@dataclass(frozen=True)
class Comparison:
    """Outcomes of one policy against another, prompt by prompt; only wins and losses are decided."""

    wins: int
    losses: int
    ties: int

    @property
    def decided(self) -> int:
        """Comparisons that have a winner."""
        return self.wins + self.losses

    @property
    def win_rate(self) -> float | None:
        """wins / decided; null when nothing was decided."""
        return self.wins / self.decided if self.decided else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the win rate; (0, 1) when nothing was decided."""
        return wilson_interval(self.wins, self.decided)

    @property
    def is_real(self) -> bool:
        """Whether the interval leaves out one half: the score test at 5 %, whose inverse Wilson's interval is."""
        low, high = self.interval
        return self.decided > 0 and not low <= 0.5 <= high


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error (null for fewer than two values)."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Lengths:
    """Response lengths in tokens, the stop token included, and the share that ended by itself."""

    mean: float
    p95: float
    ended: float


def compare(ours: Sequence[float | None], theirs: Sequence[float | None], tolerance: float = 1e-6) -> Comparison:
    """Count, prompt by prompt, whose response the judge scored higher.

    Args:
        ours: one score per prompt; null where the judge could not read the response.
        theirs: the same for the other policy, in the same order.
        tolerance: scores no further apart than this are a tie.

    A response that cannot be read loses to one that can: leaving the prompt out would reward a policy for falling to
    pieces on the hard ones. Two that cannot be read are a tie.
    """
    wins = losses = ties = 0
    for a, b in zip(ours, theirs, strict=True):
        difference = (-math.inf if a is None else a) - (-math.inf if b is None else b)
        if math.isnan(difference) or abs(difference) <= tolerance:  # nan: neither can be read
            ties += 1
        elif difference > 0:
            wins += 1
        else:
            losses += 1
    return Comparison(wins, losses, ties)


def mean(values: Sequence[float | None]) -> Mean | None:
    """Mean and standard error (``s / √n`` with the unbiased s) of the values that are there; null when none is."""
    there = [v for v in values if v is not None]
    if not there:
        return None
    centre = math.fsum(there) / len(there)
    if len(there) < 2:
        return Mean(centre, None)
    variance = math.fsum((v - centre) ** 2 for v in there) / (len(there) - 1)
    return Mean(centre, math.sqrt(variance / len(there)))


def lengths(counts: Sequence[int], ended: Sequence[bool]) -> Lengths:
    """Length statistics of at least one response; ``p95`` is the smallest count that 95 % do not exceed."""
    ordered = sorted(counts)
    p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
    return Lengths(math.fsum(counts) / len(counts), float(p95), sum(ended) / len(ended))


def comparisons_needed(win_rate: float) -> int | None:
    """Decided comparisons after which a win rate would be told from one half at 95 %; null for exactly one half.

    Wilson's interval leaves out one half if and only if ``|p - 1/2| > z / (2 √n)``, so ``n > z² / (2p - 1)²``.
    """
    if win_rate == 0.5:
        return None
    return math.floor((_Z / (2 * win_rate - 1)) ** 2) + 1


def verdict(name: str, reference: str, result: Comparison) -> str:
    """One sentence or two: who wins, by how much, and whether the difference is real."""
    rate = result.win_rate
    ties = f"; {_count(result.ties, 'tie')}" if result.ties else ""
    if rate is None:
        return f"{name} and {reference} cannot be told apart: no comparison was decided{ties}."
    low, high = result.interval
    numbers = (
        f"it wins {result.wins} of {_count(result.decided, 'decided comparison')} "
        f"({_percent(rate)}, 95 % interval {_percent(low, sign=False)} to {_percent(high)}{ties})"
    )
    if result.is_real:
        verb = "beats" if rate > 0.5 else "loses to"
        return f"{name} {verb} {reference}: {numbers}. The difference is real."
    needed = comparisons_needed(rate)
    more = f" At this win rate it takes about {needed:,} decided comparisons to tell." if needed else ""
    return f"{name} and {reference} cannot be told apart: {numbers}.{more}"


def length_warning(name: str, reference: str, ours: Lengths, theirs: Lengths) -> str | None:
    """A sentence when responses grew by half or more, or end less often by a tenth or more; null otherwise.

    Growing length is the commonest way to please a reward model without being better (Singhal et al., 2310.03716).
    """
    if ours.mean >= 1.5 * theirs.mean:
        factor = ours.mean / theirs.mean
        return (
            f"{name}'s responses are {factor:.1f} times as long as {reference}'s "
            f"({ours.mean:.0f} and {theirs.mean:.0f} tokens): check that it wins by more than length."
        )
    if ours.ended <= theirs.ended - 0.1:
        return f"{name} ends {_percent(ours.ended)} of its responses by itself, {reference} {_percent(theirs.ended)}."
    return None


def overoptimisation_warning(
    name: str, reference: str, score: tuple[Mean, Mean], gold: tuple[Mean, Mean]
) -> str | None:
    """A sentence when the reward model likes a policy better than the reference and the gold judge likes it less.

    Gao et al., 2210.10760. ``score`` and ``gold`` are means as (policy, reference); gold must have fallen by more than
    two standard errors of the difference (of unpaired samples: on the careful side).
    """
    gained, lost = score[0].value - score[1].value, gold[0].value - gold[1].value
    noise = 2 * math.hypot(gold[0].error or 0.0, gold[1].error or 0.0)
    if gained > 0 and lost < -noise:
        return (
            f"{name} is over-optimised: the reward model scores it {gained:+.2f} against {reference}, "
            f"the gold judge {lost:+.2f}."
        )
    return None


def _percent(share: float, *, sign: bool = True) -> str:
    return f"{100 * share:.1f}" + (" %" if sign else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
