"""Do a reward model's margins mean what they say? Reliability curve, calibration error, temperature.

Under Bradley–Terry a margin d between two scores says that the first response is the better one with probability
σ(d). The model's pick is the response that it scores higher, its confidence is σ(|d|).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_pipeline.metrics import wilson_interval

Floats = NDArray[np.float64]

BINS = 10
_DRAWS = 400
_STEEPEST = 100.0
"""The largest 1 / temperature that is looked for."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of like confidence: what the model said on average, and how often its pick was right."""

    confidence: float
    accuracy: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Temperature:
    """T of σ(d / T) that makes the judgements likeliest, with its 95 % interval; above 1 the model is overconfident."""

    value: float
    low: float
    high: float | None
    """None: no upper end, as the margins may say nothing."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far confidence and accuracy are apart."""

    bins: tuple[Bin, ...]
    error: float
    """Expected calibration error, as a share."""
    chance_error: float
    """What 95 % of perfectly calibrated models would stay below on as many pairs."""
    temperature: Temperature | None
    """None: the margins say nothing, or they separate the pairs without an error."""
    error_after: float | None
    """The error once margins are divided by the temperature (which was fitted on the same pairs)."""

    def to_json(self) -> dict[str, Any]:
        temperature = self.temperature
        return {
            "bins": [{name: getattr(one, name) for name in Bin.__slots__} for one in self.bins],
            "error": self.error,
            "chance_error": self.chance_error,
            "temperature": temperature and temperature.value,
            "temperature_low": temperature and temperature.low,
            "temperature_high": temperature and temperature.high,
            "error_after": self.error_after,
        }


def calibrate(margins: Sequence[float], probabilities: Sequence[float], *, seed: int = 0) -> Calibration:
    """Compare confidence with judgements.

    Args:
        margins: score of the chosen response minus that of the rejected one, of at least one pair.
        probabilities: that the chosen response is the better one, by the share of the judges who said so.
        seed: of the draws behind ``chance_error``.
    """
    d, q = np.asarray(margins, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    confidence, right = _folded(d, q)
    place = _bins(confidence)
    bins = []
    for index in np.unique(place):
        here = place == index
        low, high = wilson_interval(float(right[here].sum()), int(here.sum()))
        bins.append(Bin(float(confidence[here].mean()), float(right[here].mean()), low, high, int(here.sum())))
    temperature = fit_temperature(margins, probabilities)
    after = None if temperature is None else expected_calibration_error(d / temperature.value, q)
    draws = np.random.default_rng(seed).random((_DRAWS, len(d))) < confidence
    chance = [_error(confidence, drawn.astype(np.float64), place) for drawn in draws]
    error = _error(confidence, right, place)
    return Calibration(tuple(bins), error, float(np.quantile(chance, 0.95)), temperature, after)


def expected_calibration_error(margins: Sequence[float] | Floats, probabilities: Sequence[float] | Floats) -> float:
    """``Σ_b n_b / n |accuracy_b - confidence_b|`` over ten bins of equal width between 0.5 and 1 (Guo et al. 2017,
    arXiv:1706.04599, equation 3); arguments as for :func:`calibrate`."""
    confidence, right = _folded(np.asarray(margins, dtype=np.float64), np.asarray(probabilities, dtype=np.float64))
    return _error(confidence, right, _bins(confidence))


def fit_temperature(margins: Sequence[float], probabilities: Sequence[float]) -> Temperature | None:
    """The maximum-likelihood T (Guo et al. 2017, arXiv:1706.04599, section 4.2), with a Wald interval of 1 / T.

    The mean of ``q log σ(β d) + (1 - q) log σ(-β d)`` is concave in β = 1 / T, so that its slope has one root, found by
    bisection. None where the root is not within (0, 100).
    """
    d, q = np.asarray(margins, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)

    def slope(beta: float) -> float:
        return float((d * (q - _sigmoid(beta * d))).sum())

    low, high = 0.0, _STEEPEST
    if slope(low) <= 0 or slope(high) >= 0:
        return None
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    beta = (low + high) / 2
    p = _sigmoid(beta * d)
    error = float((p * (1 - p) * d * d).sum()) ** -0.5
    steep, flat = beta + 1.959964 * error, beta - 1.959964 * error
    return Temperature(1 / beta, 1 / steep, 1 / flat if flat > 0 else None)


def _folded(d: Floats, q: Floats) -> tuple[Floats, Floats]:
    """Confidence in the model's pick, and the share of the judges who picked the same; one half where it has none."""
    return _sigmoid(np.abs(d)), np.where(d > 0, q, np.where(d < 0, 1 - q, 0.5))


def _bins(confidence: Floats) -> NDArray[np.intp]:
    return np.minimum((2 * BINS * (confidence - 0.5)).astype(np.intp), BINS - 1)


def _error(confidence: Floats, right: Floats, place: NDArray[np.intp]) -> float:
    apart = np.bincount(place, right - confidence, minlength=BINS)
    return float(np.abs(apart).sum() / len(confidence))


def _sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * x))
