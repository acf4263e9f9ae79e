"""Whose judgements can be trusted: Dawid–Skene's confusion matrices, and what one person's answers say alone."""

from __future__ import annotations

import re
import statistics
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_pipeline.agreement import Floats, ordered
from rlhf_pipeline.metrics import wilson_interval

READING_WORDS_PER_SECOND = 8.0
"""Twice the speed of silent reading (238 words a minute: Brysbaert, 2019, https://doi.org/10.1016/j.jml.2019.104047)."""

_NEXT_TO_NOTHING = 1e-10  # of a label, as in crowd-kit


@dataclass(frozen=True, slots=True)
class Proportion:
    """``hits`` of ``n`` with the 95 % Wilson interval; without a trial there is no value, and (0, 1) says nothing."""

    hits: int
    n: int
    value: float | None
    low: float
    high: float

    def excludes(self, share: float) -> bool:
        """Whether the interval leaves this share out."""
        return not self.low <= share <= self.high

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Skill:
    """How one rater does by the model's own estimate of the truth.

    Args:
        right: the expected share of the rater's labels that name the true class, ``Σ_i T_i,label / n``.
        chance: the share that somebody would get who gives labels as often as this rater, blind to the item.
        n: labels given.
        confusion: (classes, classes), row = true class, column = label given; rows sum to one.
    """

    right: float
    chance: float
    n: int
    confusion: Floats


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """A fitted model.

    Args:
        classes: every label that was given, in order.
        prior: how common each class is.
        posteriors: item → probability of each class.
        skills: rater → how good and in which way wrong.
        log_likelihood: of the labels given, natural logarithm, without the smoothing's part.
        iterations: of EM until nothing moved (or until the last that was allowed).
    """

    classes: tuple[Any, ...]
    prior: Floats
    posteriors: dict[Hashable, Floats]
    skills: dict[Hashable, Skill]
    log_likelihood: float
    iterations: int


def dawid_skene(
    labels: Sequence[tuple[Hashable, Hashable, Any]],
    *,
    smoothing: float = 0.0,
    iterations: int = 500,
    tolerance: float = 1e-7,
) -> DawidSkene:
    """Maximum-likelihood truth, class frequencies and error rates of each rater, by EM from the shares of the votes.

    Item i has the true class j with probability ``p_j``; rater k then says l with probability ``π^k_jl``, whatever the
    others say. With ``n^k_il`` the times k said l of i, and ``T_ij`` the posterior of class j::

        M:  π^k_jl ∝ Σ_i T_ij n^k_il + smoothing        p_j = Σ_i T_ij / I
        E:  T_ij ∝ p_j Π_k Π_l (π^k_jl)^{n^k_il}

    Dawid & Skene, Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm, 1979, eqs. 2.3 to 2.5,
    https://doi.org/10.2307/2346806.

    Args:
        labels: (item, rater, label); a rater may label an item several times.
        smoothing: added to each cell of the confusion counts. Above zero it keeps raters with few labels away from
            certainty; zero is the paper's estimate.
        iterations: at most so many.
        tolerance: stop when no posterior moves by more.
    """
    items = list(dict.fromkeys(item for item, _, _ in labels))
    raters = list(dict.fromkeys(rater for _, rater, _ in labels))
    classes = ordered({label for _, _, label in labels})
    if not labels:
        return DawidSkene((), np.zeros(0), {}, {}, 0.0, 0)
    places = ({v: n for n, v in enumerate(values)} for values in (items, raters, classes))
    of_item, of_rater, of_class = places
    i = np.array([of_item[item] for item, _, _ in labels])
    k = np.array([of_rater[rater] for _, rater, _ in labels])
    said = np.array([of_class[label] for _, _, label in labels])
    truth = np.zeros((len(items), len(classes)))
    np.add.at(truth, (i, said), 1.0)
    truth /= truth.sum(1, keepdims=True)
    done = 0
    while True:
        prior, confusion = _maximise(truth, i, k, said, len(raters), smoothing)
        joint = _log_joint(prior, confusion, i, k, said, len(items))
        top = joint.max(1, keepdims=True)
        total = top + np.log(np.exp(joint - top).sum(1, keepdims=True))
        before, truth = truth, np.exp(joint - total)
        done += 1
        if done >= iterations or float(np.abs(truth - before).max()) <= tolerance:
            break
    skills = {
        rater: _skill(truth, confusion[index], i[k == index], said[k == index]) for rater, index in of_rater.items()
    }
    return DawidSkene(tuple(classes), prior, dict(zip(items, truth, strict=True)), skills, float(total.sum()), done)


def _maximise(
    truth: Floats, i: NDArray[np.intp], k: NDArray[np.intp], said: NDArray[np.intp], raters: int, smoothing: float
) -> tuple[Floats, Floats]:
    classes = truth.shape[1]
    counts = np.full((raters, classes, classes), smoothing)
    np.add.at(counts.transpose(0, 2, 1), (k, said), truth[i])
    # A class that none of a rater's items has leaves that row open. Equal shares among the labels that the rater gives
    # say nothing for or against it, and what never happened is next to impossible, but not for ever.
    used = np.zeros((raters, 1, classes))
    used[k, 0, said] = _NEXT_TO_NOTHING
    counts = np.maximum(counts, used)
    return truth.mean(0), counts / counts.sum(2, keepdims=True)


def _log_joint(
    prior: Floats, confusion: Floats, i: NDArray[np.intp], k: NDArray[np.intp], said: NDArray[np.intp], items: int
) -> Floats:
    """``log p_j + Σ log π^k_j,label`` (items, classes)."""
    joint = np.tile(np.log(np.maximum(prior, _NEXT_TO_NOTHING)), (items, 1))
    np.add.at(joint, i, np.log(confusion[k, :, said]))
    return joint


def _skill(truth: Floats, confusion: Floats, i: NDArray[np.intp], said: NDArray[np.intp]) -> Skill:
    n = len(said)
    says = np.bincount(said, minlength=truth.shape[1]) / n
    chance = float((says * truth[i].mean(0)).sum())
    return Skill(float(truth[i, said].mean()), chance, n, confusion)


def proportion(hits: Iterable[bool]) -> Proportion:
    """The share of what is true."""
    flags = list(hits)
    n, yes = len(flags), sum(flags)
    return Proportion(yes, n, yes / n if n else None, *wilson_interval(yes, n))


def position_bias(places: Iterable[tuple[int, int]]) -> Proportion:
    """How often the response shown first won, of (winner's place, loser's place).

    The order is shuffled for everybody, so that 0.5 is no bias.
    """
    return proportion(winner < loser for winner, loser in places if winner != loser)


def length_bias(lengths: Iterable[tuple[int, int]]) -> Proportion:
    """How often the longer response won, of (winner's length, loser's length); equal lengths are left out.

    Longer responses may be better: compare with the share among everybody, not with 0.5.
    """
    return proportion(winner > loser for winner, loser in lengths if winner != loser)


def self_agreement(pairs: Iterable[tuple[Hashable, Hashable]]) -> Proportion:
    """How often somebody says the same again, of (first label, second label) for the items that were repeated."""
    return proportion(first == second for first, second in pairs)


def median_seconds(active_ms: Iterable[int | None]) -> float | None:
    """The median over the judgements whose time is known."""
    known = [ms / 1000 for ms in active_ms if ms is not None]
    return statistics.median(known) if known else None


def too_fast(reading: Iterable[tuple[int | None, float]]) -> Proportion:
    """How often somebody decided before the text could be read, of (active milliseconds, words shown).

    Sooner than at :data:`READING_WORDS_PER_SECOND`; judgements whose time is not known are left out.
    """
    return proportion(ms / 1000 < words / READING_WORDS_PER_SECOND for ms, words in reading if ms is not None)


_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")  # kana and Han


def count_words(text: str) -> float:
    """Words as the eye reads them; scripts without spaces count half a word for each sign."""
    signs = len(_UNSPACED.findall(text))
    return len(re.findall(r"\w+", _UNSPACED.sub(" ", text))) + signs / 2
