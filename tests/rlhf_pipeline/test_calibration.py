"""Calibration: numbers worked by hand, models of known calibration, and an independent optimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from rlhf_pipeline.calibration import calibrate, expected_calibration_error, fit_temperature


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_error_by_hand() -> None:
    # confidence 0.92 three times, right in two: 0.253 apart; confidence 0.63 once, wrong: 0.63 apart
    margins = [logit(0.92), logit(0.92), -logit(0.92), -logit(0.63)]
    expected = 0.75 * (0.92 - 2 / 3) + 0.25 * 0.63
    assert expected_calibration_error(margins, [1.0] * 4) == pytest.approx(expected)
    bins = calibrate(margins, [1.0] * 4).bins
    assert [(one.pairs, round(one.confidence, 6)) for one in bins] == [(1, 0.63), (3, 0.92)]
    assert bins[1].accuracy == pytest.approx(2 / 3)
    assert bins[1].low < 2 / 3 < bins[1].high


def test_votes_count_as_shares_and_a_tie_is_half() -> None:
    assert expected_calibration_error([logit(0.8)], [0.8]) == pytest.approx(0)
    assert expected_calibration_error([-logit(0.8)], [0.2]) == pytest.approx(0), "the same pair, named the other way"
    assert expected_calibration_error([0.0], [1.0]) == 0


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(factor: float) -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(scale=1.5, size=4000)
    flipped = np.where(rng.random(4000) < 1 / (1 + np.exp(-true)), 1, -1)  # the judges' choice is the chosen side
    margins = (true * flipped * factor).tolist()
    found = calibrate(margins, [1.0] * 4000)
    assert found.temperature is not None
    assert found.temperature.high is not None
    assert found.temperature.low < factor < found.temperature.high
    assert (found.error > found.chance_error) == (factor != 1.0)
    assert found.error_after is not None
    assert found.error_after < 0.03


def test_temperature_is_the_likeliest() -> None:
    rng = np.random.default_rng(3)
    d, q = rng.normal(0.6, 2, 300), rng.choice([0.6, 0.8, 1.0], 300)

    def loss(t: float) -> float:
        return float((q * np.logaddexp(0, -d / t) + (1 - q) * np.logaddexp(0, d / t)).mean())

    reference = minimize_scalar(loss, bounds=(0.05, 50), method="bounded", options={"xatol": 1e-9})
    found = fit_temperature(d.tolist(), q.tolist())
    assert found is not None
    assert found.value == pytest.approx(reference.x, rel=1e-4)


def test_margins_that_say_nothing_or_everything_have_no_temperature() -> None:
    assert fit_temperature([1.0, -2.0], [1.0, 1.0]) is None
    assert fit_temperature([1.0, 2.0], [1.0, 1.0]) is None
    assert calibrate([1.0, -2.0], [1.0, 1.0]).to_json()["temperature"] is None
