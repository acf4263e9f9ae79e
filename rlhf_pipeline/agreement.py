"""How far do people agree beyond chance? Krippendorff's alpha, Cohen's and Fleiss' kappa, raw agreement.

Ratings may be missing: each item has the ratings that were given. Where a measure has no value (nobody rated the same
item twice, or only one category was ever used) the estimate says why instead of inventing a number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rater = TypeVar("Rater", bound=Hashable)
Ratings = Mapping[Any, Mapping[Any, Any]]
"""item → rater → label, all hashable; labels of levels above nominal are numbers."""
Level = Literal["nominal", "ordinal", "interval"]

RESAMPLES = 1000
NO_RATINGS = "nothing was rated"
ONE_RATER = "only one person rated"
NO_OVERLAP = "no item was rated by two people"
ONE_CATEGORY = "only one category was used, so agreement by chance is certain"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure with its 95 % interval.

    Args:
        value: None where the measure is undefined; ``why`` then says so in words.
        low, high: None where there is no value, or too little to resample.
        n: items that the value rests on: those with at least two ratings.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def krippendorff_alpha(
    ratings: Ratings,
    level: Level = "nominal",
    *,
    groups: Mapping[Any, Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Krippendorff's alpha, ``1 - D_o / D_e``, for any number of raters and missing ratings.

    With ``n_uc`` ratings c of item u, ``m_u`` ratings of it in all (items with fewer than two are left out),
    coincidences ``o_ck = Σ_u n_uc (n_uk - [c = k]) / (m_u - 1)``, ``n_c = Σ_k o_ck`` and ``n = Σ_c n_c``::

        D_o = Σ_ck o_ck δ²_ck / n        D_e = Σ_ck n_c (n_k - [c = k]) δ²_ck / (n (n - 1))

    ``δ²`` is [c ≠ k] (nominal), ``(c - k)²`` (interval) or ``(Σ_{g=c..k} n_g - (n_c + n_k) / 2)²`` (ordinal).
    Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, https://repository.upenn.edu/asc_papers/43.

    The interval is the percentile bootstrap over items (Zapf et al., 2016, https://doi.org/10.1186/s12874-016-0200-9).

    Args:
        ratings: item → rater → label.
        groups: item → what it belongs to, where items are not independent (the responses of one task): a group is
            drawn as a whole.
        seed, resamples: of the bootstrap.
    """
    return _estimate(
        lambda counts, values, times: _alpha(counts, values, times, level), ratings, groups, seed, resamples
    )


def fleiss_kappa(
    ratings: Ratings,
    *,
    groups: Mapping[Any, Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Fleiss' kappa, ``(P_o - P_e) / (1 - P_e)``, for any number of raters, who need not be the same for each item.

    ``P_o`` is the mean over items of ``Σ_c n_uc (n_uc - 1) / (m_u (m_u - 1))``, ``P_e = Σ_c p_c²`` with ``p_c`` the
    mean over items of ``n_uc / m_u``. With the same number of ratings for each item this is Fleiss, 1971,
    https://doi.org/10.1037/h0031619; with different numbers, Gwet's form (Handbook of Inter-Rater Reliability, 2014),
    here over the items with two ratings or more. Interval and arguments as for :func:`krippendorff_alpha`.
    """
    return _estimate(lambda counts, _, times: _fleiss(counts, times), ratings, groups, seed, resamples)


def raw_agreement(
    ratings: Ratings,
    *,
    groups: Mapping[Any, Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Share of the pairs of ratings of one item that are equal: ``Σ_u Σ_c n_uc (n_uc - 1) / Σ_u m_u (m_u - 1)``."""
    return _estimate(lambda counts, _, times: _raw(counts, times), ratings, groups, seed, resamples)


def cohen_kappa(
    pairs: Sequence[tuple[Any, Any]],
    *,
    weights: Literal["linear", "quadratic"] | None = None,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Cohen's kappa of two raters, ``1 - Σ w_ck p_ck / Σ w_ck p_c· p_·k``.

    ``w`` is [c ≠ k] (Cohen, 1960, https://doi.org/10.1177/001316446002000104), or the distance between the places of
    the two categories in the order of all, linear or squared (Cohen, 1968, https://doi.org/10.1037/h0026256).
    The interval is the percentile bootstrap over items.

    Args:
        pairs: one (first rater's label, second rater's label) for each item that both rated.
        groups: what each item belongs to, where items are not independent; a group is drawn as a whole.
    """
    if not pairs:
        return Estimate(None, None, None, 0, NO_OVERLAP)
    values = ordered({label for pair in pairs for label in pair})
    place = {label: index for index, label in enumerate(values)}
    cells = np.array([place[a] * len(values) + place[b] for a, b in pairs], dtype=np.intp)
    apart: Floats = np.abs(np.subtract.outer(np.arange(len(values)), np.arange(len(values)))).astype(np.float64)
    cost = apart if weights == "linear" else apart**2 if weights == "quadratic" else np.sign(apart)

    def kappa(table: Floats) -> float | None:
        shares = table.reshape(cost.shape) / table.sum()
        by_chance = float((cost * np.outer(shares.sum(1), shares.sum(0))).sum())
        return None if by_chance <= 1e-15 else 1.0 - float((cost * shares).sum()) / by_chance

    def count(times: Floats | None = None) -> Floats:
        return np.bincount(cells, times, minlength=cost.size).astype(np.float64)

    if groups is None:
        tables = _alike(count(), seed, resamples)
    else:
        tables = (count(times) for times in _grouped(_numbered(groups), seed, resamples))
    return _bootstrap(kappa, tables, len(pairs))


def cohen_kappas(
    ratings: Mapping[Any, Mapping[Rater, Any]],
    *,
    at_least: int = 2,
    most: int | None = None,
    groups: Mapping[Any, Hashable] | None = None,
    seed: int = 0,
) -> dict[tuple[Rater, Rater], Estimate]:
    """Cohen's kappa of every two raters who rated at least so many items in common, most in common first.

    With ``most``, of that many pairs of raters at most; ``groups`` as for :func:`krippendorff_alpha`.
    """
    shared: dict[tuple[Rater, Rater], list[Any]] = defaultdict(list)
    for item, given in ratings.items():
        for pair in combinations(ordered(set(given)), 2):
            shared[pair].append(item)
    enough = [pair for pair, items in shared.items() if len(items) >= at_least]
    enough.sort(key=lambda pair: -len(shared[pair]))
    return {
        (a, b): cohen_kappa(
            [(ratings[item][a], ratings[item][b]) for item in shared[a, b]],
            groups=[groups[item] for item in shared[a, b]] if groups is not None else None,
            seed=seed,
        )
        for a, b in enough[:most]
    }


def ordered(labels: set[Any]) -> list[Any]:
    """Labels in order; those that cannot be compared with each other by what they are written as."""
    try:
        return sorted(labels)
    except TypeError:
        return sorted(labels, key=repr)


def _estimate(
    measure: Callable[[Floats, Sequence[Any], Floats], float | None],
    ratings: Ratings,
    groups: Mapping[Any, Hashable] | None,
    seed: int,
    resamples: int,
) -> Estimate:
    """``measure(counts, values, times)``: n_uc (items, categories), the categories, how often each item counts."""
    items = [item for item, given in ratings.items() if len(given) >= 2]
    if not items:
        raters = {rater for given in ratings.values() for rater in given}
        return Estimate(None, None, None, 0, (NO_RATINGS, ONE_RATER, NO_OVERLAP)[min(len(raters), 2)])
    values = ordered({label for item in items for label in ratings[item].values()})
    place = {label: index for index, label in enumerate(values)}
    counts = np.zeros((len(items), len(values)))
    for row, item in enumerate(items):
        for label in ratings[item].values():
            counts[row, place[label]] += 1
    if groups is None:  # items with the same counts are alike, and there are few kinds
        counts, alike = np.unique(counts, axis=0, return_counts=True)
        draws = _alike(alike.astype(np.float64), seed, resamples)
    else:
        draws = _grouped(_numbered([groups[item] for item in items]), seed, resamples)
    return _bootstrap(lambda times: measure(counts, values, times), draws, len(items))


def _numbered(groups: Sequence[Hashable]) -> NDArray[np.intp]:
    """Each group's number, in the order in which they first come."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(group, len(seen)) for group in groups], dtype=np.intp)


def _alike(times: Floats, seed: int, resamples: int) -> Iterator[Floats]:
    """How often each kind of item is there, first as it is, then in samples drawn anew."""
    yield times
    n = int(times.sum())
    if n > 1:
        yield from np.random.default_rng(seed).multinomial(n, times / n, size=resamples).astype(np.float64)


def _grouped(group_of: NDArray[np.intp], seed: int, resamples: int) -> Iterator[Floats]:
    """How often each item is there, first once, then in samples of whole groups."""
    yield np.ones(len(group_of))
    random, groups = np.random.default_rng(seed), int(group_of.max()) + 1
    if groups > 1:
        for _ in range(resamples):
            yield np.bincount(random.integers(groups, size=groups), minlength=groups).astype(np.float64)[group_of]


def _bootstrap(measure: Callable[[Floats], float | None], draws: Iterator[Floats], n: int) -> Estimate:
    """The measure of the first draw, and between which values it falls in the others.

    Draws in which it is undefined (one category) are left out; an interval needs most of the draws.
    """
    value = measure(next(draws))
    if value is None:
        return Estimate(None, None, None, n, ONE_CATEGORY)
    drawn = [measure(times) for times in draws]
    defined = [found for found in drawn if found is not None]
    if len(defined) <= len(drawn) / 2:
        return Estimate(value, None, None, n)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Estimate(value, float(low), float(high), n)


def _alpha(counts: Floats, values: Sequence[Any], weights: Floats, level: Level) -> float | None:
    """Alpha of items that count ``weights`` times each."""
    given = counts.sum(1)
    scaled = counts * (weights / (given - 1))[:, None]
    coincidences = scaled.T @ counts - np.diag(scaled.sum(0))
    n_c: Floats = coincidences.sum(1)
    n = float(n_c.sum())
    distance = _distance(n_c, values, level)
    expected = float((np.outer(n_c, n_c) * distance).sum())
    if n <= 1 or expected <= 1e-12:
        return None
    return float(1.0 - (n - 1) * (coincidences * distance).sum() / expected)


def _distance(n_c: Floats, values: Sequence[Any], level: Level) -> Floats:
    """δ² (categories, categories); zero on the diagonal."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    # Ordinal: |Σ_{g≤k} n_g - n_k/2 - (Σ_{g≤c} n_g - n_c/2)| is the number of ratings from the middle of c to that of k.
    place = np.cumsum(n_c) - n_c / 2 if level == "ordinal" else np.asarray(values, dtype=np.float64)
    return np.subtract.outer(place, place) ** 2


def _fleiss(counts: Floats, weights: Floats) -> float | None:
    given = counts.sum(1)
    weights = weights / weights.sum()
    observed = float(weights @ ((counts * (counts - 1)).sum(1) / (given * (given - 1))))
    by_chance = float(((weights @ (counts / given[:, None])) ** 2).sum())
    return None if by_chance >= 1 - 1e-12 else (observed - by_chance) / (1 - by_chance)


def _raw(counts: Floats, weights: Floats) -> float | None:
    given = counts.sum(1)
    return float(weights @ (counts * (counts - 1)).sum(1) / (weights @ (given * (given - 1))))
