"""What more judgements would buy: a power law through the accuracies of models that learnt from parts of the data.

``1 - accuracy(n) = a n^-b`` (Hestness et al. 2017, arXiv:1712.00409, equation 1, without its constant: a few points do
not settle a third parameter). It holds for models that learn from more of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_DRAWS = 500
AHEAD = (1.5, 2.0, 4.0)
"""How many times as many pairs are forecast."""


@dataclass(frozen=True, slots=True)
class Point:
    """A model that learnt from so many pairs, and how many of the held-out ones it has right."""

    pairs: int
    accuracy: float
    held_out: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """The accuracy to expect of so many pairs, with the middle 95 % of forecasts from redrawn points."""

    pairs: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """The fit ``1 - accuracy = a n^-b`` and what it forecasts."""

    a: float
    b: float
    forecasts: tuple[Forecast, ...]

    def to_json(self) -> dict[str, Any]:
        forecasts = [{name: getattr(one, name) for name in Forecast.__slots__} for one in self.forecasts]
        return {"a": self.a, "b": self.b, "forecast": forecasts}


def fit(points: Sequence[Point], *, seed: int = 0) -> Curve | None:
    """Least squares of ``log error`` on ``log n``, each point weighted by its binomial precision.

    Args:
        points: at least two of different size; held-out pairs are the same for all.
        seed: of the redrawn points behind the intervals.

    None where there are fewer. An error of 0 counts as half a pair, as its logarithm would not exist.
    """
    sizes = np.array([point.pairs for point in points], dtype=np.float64)
    if len(set(sizes.tolist())) < 2:
        return None
    trials = np.array([point.held_out for point in points], dtype=np.float64)
    wrong = np.array([(1 - point.accuracy) * point.held_out for point in points], dtype=np.float64)
    a, b = _power_law(sizes, wrong, trials)
    rng = np.random.default_rng(seed)
    redrawn = rng.binomial(trials.astype(int), _share(wrong, trials), (_DRAWS, len(sizes))).astype(np.float64)
    drawn = [_power_law(sizes, one, trials) for one in redrawn]
    forecasts = []
    for times in AHEAD:
        pairs = round(times * sizes.max())
        low, high = np.quantile([_accuracy(one, pairs) for one in drawn], [0.025, 0.975])
        forecasts.append(Forecast(pairs, _accuracy((a, b), pairs), float(low), float(high)))
    return Curve(a, b, tuple(forecasts))


def _power_law(sizes: Floats, wrong: Floats, trials: Floats) -> tuple[float, float]:
    share = _share(wrong, trials)
    weight = np.sqrt(trials * share / (1 - share))  # 1 / standard deviation of log(share), by the delta method
    columns = np.stack([np.ones_like(sizes), -np.log(sizes)], axis=1)
    (log_a, b), *_ = np.linalg.lstsq(columns * weight[:, None], np.log(share) * weight, rcond=None)
    return float(np.exp(log_a)), float(b)


def _share(wrong: Floats, trials: Floats) -> Floats:
    """Of the trials; of none or all of them half a pair less, as few pairs do not prove that nothing else happens."""
    return np.asarray(np.clip(wrong, 0.5, trials - 0.5) / trials)


def _accuracy(law: tuple[float, float], pairs: int) -> float:
    return float(np.clip(1 - law[0] * pairs ** -law[1], 0.0, 1.0))
