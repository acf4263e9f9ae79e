"""Several people's votes on pairs → how likely the first of each pair is the better one, and whom to rely on.

People differ in how often they are right and in how much they like one side of the screen. Both models here know of
each vote on which side the responses stood, so that somebody who always says left counts for nothing, and somebody who
is mostly wrong counts the other way round (Dawid–Skene) or for nothing (noisy Bradley–Terry). A vote may be shared: a
tie is half a vote for each side, and a judge who is 0.8 sure gives 0.8 and 0.2.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rlhf_pipeline.agreement import Floats

Ints = NDArray[np.intp]
Pair = tuple[Hashable, Hashable]

PRIOR_RIGHT = 2.0, 1.0
"""Votes, right and wrong, that everybody is taken to have given for each side before the first real one."""
PRIOR_SPREAD = 2.0
"""Standard deviation of a response's score before anybody has compared it, nats."""
_ITERATIONS, _TOLERANCE = 500, 1e-6


@dataclass(frozen=True, slots=True)
class PairVote:
    """One person's vote on two responses; ``share`` of it goes to ``first`` (0 to 1, a tie is 0.5)."""

    first: Hashable
    second: Hashable
    rater: Hashable
    share: float
    first_is_left: bool


@dataclass(frozen=True, slots=True)
class Rater:
    """What a model thinks of a person.

    Args:
        reliability: Dawid–Skene: how often they name the better response, averaged over both sides (0.5 is guessing).
            Noisy Bradley–Terry: how often they look at the responses at all (0 is guessing).
        left: how often they say left. Dawid–Skene: averaged over which side is better. Noisy Bradley–Terry: when they
            do not look. 0.5 is no liking for a side.
        votes: how many they gave.
    """

    reliability: float
    left: float
    votes: int


@dataclass(frozen=True, slots=True)
class VoteModel:
    """A fitted model: the probability that the first of each pair is the better one, and every rater.

    ``log_likelihood`` is that of the votes, natural logarithm, without the priors.
    """

    probability: dict[Pair, float]
    raters: dict[Hashable, Rater]
    log_likelihood: float


def dawid_skene_pairs(votes: Sequence[PairVote], *, known: Mapping[Pair, float] | None = None) -> VoteModel:
    """Dawid and Skene's model of votes on pairs, by EM from the shares of the votes.

    The truth about a pair is which response is better, either with 1/2 before anybody votes. When the better one stands
    on side t, rater k says side l with ``π^k_tl`` whatever the others say. With ``T_i(t)`` the posterior of pair i, and
    ``n^k_il`` the part of k's vote on i that goes to side l::

        M:  π^k_tl ∝ Σ_i T_i(t) n^k_il + prior_tl
        E:  T_i(t) ∝ Π_k Π_l (π^k_tl)^{n^k_il}

    Dawid and Skene, 1979, eqs. 2.3 to 2.5, https://doi.org/10.2307/2346806, with sides as classes: ``π`` holds skill
    and liking for a side in one. The prior (:data:`PRIOR_RIGHT`) says that people are right rather than wrong, without
    which the mirrored solution would be as likely.

    Args:
        known: pairs whose truth is known, as the probability of the first being better; raters are measured on them.
    """
    if not votes:
        return VoteModel({}, {}, 0.0)
    pairs, i = _numbered([(vote.first, vote.second) for vote in votes])
    raters, k = _numbered([vote.rater for vote in votes])
    share = np.array([vote.share for vote in votes])
    on_left = np.array([vote.first_is_left for vote in votes])
    says_left = np.where(on_left, share, 1 - share)
    given = {pair: p for pair, p in (known or {}).items() if pair in pairs}
    fixed = np.array([pairs[pair] for pair in given], dtype=np.intp)
    fixed_to = np.array(list(given.values()))
    truth = np.bincount(i, share) / np.bincount(i)
    log_likelihood = 0.0
    for _ in range(_ITERATIONS):
        truth[fixed] = fixed_to
        left_true = np.where(on_left, truth[i], 1 - truth[i])
        says = [  # [t][l], one for each rater; side 0 is left
            [_sum(k, t * s, len(raters)) + PRIOR_RIGHT[t_side != l_side] for l_side, s in enumerate(_sides(says_left))]
            for t_side, t in enumerate(_sides(left_true))
        ]
        confusion = np.array([[row[side] / (row[0] + row[1]) for side in (0, 1)] for row in says])
        log = np.log(confusion)[:, :, k]
        if_left, if_right = ((says_left * log[t, 0] + (1 - says_left) * log[t, 1]) for t in (0, 1))
        first = _sum(i, np.where(on_left, if_left, if_right), len(pairs))
        second = _sum(i, np.where(on_left, if_right, if_left), len(pairs))
        before, truth = truth, _sigmoid(first - second)
        log_likelihood = float((np.logaddexp(first, second) - np.log(2)).sum())
        moved = np.abs(truth - before)
        moved[fixed] = 0.0
        if moved.max() <= _TOLERANCE:
            break
    truth[fixed] = fixed_to
    counts = np.bincount(k, minlength=len(raters))
    right, left = (confusion[0, 0] + confusion[1, 1]) / 2, (confusion[0, 0] + confusion[1, 0]) / 2
    return VoteModel(
        {pair: float(truth[number]) for pair, number in pairs.items()},
        {rater: Rater(float(right[n]), float(left[n]), int(counts[n])) for rater, n in raters.items()},
        log_likelihood,
    )


def noisy_bradley_terry(
    votes: Sequence[PairVote], *, spread: float = PRIOR_SPREAD, smoothing: float = 1.0
) -> VoteModel:
    """Bradley and Terry's model for people who do not always look, by EM.

    Rater k looks with ``r_k`` and then chooses by the scores; otherwise they say left with ``b_k``::

        P(left) = r_k σ(s_left - s_right) + (1 - r_k) b_k

    Bugakova et al., 2019, Aggregation of pairwise comparisons with reduction of biases, arXiv:1906.03711 (crowd-kit's
    ``NoisyBradleyTerry``). The probability of a pair is ``σ(s_first - s_second)``: what somebody who looks would say.
    Scores are made by steps on the quadratic bound of the logistic (Böhning and Lindsay, 1988,
    https://doi.org/10.1007/BF00049423), which cannot overshoot.

    Args:
        spread: standard deviation of the scores' normal prior, nats; infinity is no prior.
        smoothing: votes of each kind (looking and not, left and right) that everybody is taken to have given.
    """
    if not votes:
        return VoteModel({}, {}, 0.0)
    responses, flat = _numbered([side for vote in votes for side in (vote.first, vote.second)])
    raters, k = _numbered([vote.rater for vote in votes])
    pairs = list(dict.fromkeys((vote.first, vote.second) for vote in votes))
    share = np.array([vote.share for vote in votes])
    on_left = np.array([vote.first_is_left for vote in votes])
    first, second = flat[::2], flat[1::2]
    # A shared vote is two with weights: one for the left side, one for the right.
    left, right = np.tile(np.where(on_left, first, second), 2), np.tile(np.where(on_left, second, first), 2)
    says_left = np.where(on_left, share, 1 - share)
    weight, k2 = np.concatenate([says_left, 1 - says_left]), np.tile(k, 2)
    said = np.repeat([1.0, -1.0], len(votes))
    total = np.bincount(k, minlength=len(raters)).astype(np.float64)
    scores, look, bias = np.zeros(len(responses)), np.full(len(raters), 0.8), np.full(len(raters), 0.5)
    before = np.full(len(votes), 0.5)
    for _ in range(_ITERATIONS):
        looked = look[k2] * _sigmoid(said * (scores[left] - scores[right]))
        guessed = (1 - look[k2]) * np.where(said > 0, bias[k2], 1 - bias[k2])
        eyes = weight * looked / (looked + guessed)
        blind = weight - eyes
        look = (_sum(k2, eyes, len(raters)) + smoothing) / (total + 2 * smoothing)
        blind_left, blind_all = _sum(k2, blind * (said > 0), len(raters)), _sum(k2, blind, len(raters))
        bias = (blind_left + smoothing) / np.maximum(blind_all + 2 * smoothing, 1e-12)
        scores = _better_scores(scores, left, right, said, eyes, spread)
        now = _sigmoid(scores[first] - scores[second])
        if np.abs(now - before).max() <= _TOLERANCE:
            break
        before = now
    looked = look[k2] * _sigmoid(said * (scores[left] - scores[right]))
    guessed = (1 - look[k2]) * np.where(said > 0, bias[k2], 1 - bias[k2])
    place = {pair: (responses[pair[0]], responses[pair[1]]) for pair in pairs}
    return VoteModel(
        {pair: float(_sigmoid(scores[a] - scores[b])) for pair, (a, b) in place.items()},
        {rater: Rater(float(look[n]), float(bias[n]), int(total[n])) for rater, n in raters.items()},
        float((weight * np.log(looked + guessed)).sum()),
    )


def _better_scores(
    scores: Floats, left: Ints, right: Ints, said: Floats, weight: Floats, spread: float, steps: int = 10
) -> Floats:
    """A few steps up the weighted log-likelihood of Bradley and Terry with its prior."""
    pull = spread**-2
    bound = (_sum(left, weight, len(scores)) + _sum(right, weight, len(scores))) / 2 + pull
    for _ in range(steps):
        push = weight * said * _sigmoid(-said * (scores[left] - scores[right]))
        slope = _sum(left, push, len(scores)) - _sum(right, push, len(scores)) - pull * scores
        scores = scores + slope / np.maximum(bound, 1e-12)
    return scores


Value = TypeVar("Value", bound=Hashable)


def _numbered(values: Sequence[Value]) -> tuple[dict[Value, int], Ints]:
    """Each different value's number, in the order in which they first come, and the number of each."""
    numbers: dict[Value, int] = {}
    return numbers, np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.intp)


def _sides(left: Floats) -> tuple[Floats, Floats]:
    return left, 1 - left


def _sum(groups: Ints, values: Floats, size: int) -> Floats:
    """The sum of the values of each group."""
    return np.bincount(groups, values, minlength=size).astype(np.float64)


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(x, -700, 700)))
