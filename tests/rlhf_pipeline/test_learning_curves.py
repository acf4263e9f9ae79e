"""Learning curves: an exact power law is found, its forecast is the law, and noise widens the interval."""

from __future__ import annotations

import pytest

from rlhf_pipeline.learning_curves import Point, fit


def law(pairs: int) -> float:
    return 1 - 2.0 * pairs**-0.3


def test_an_exact_law_is_found_and_continued() -> None:
    curve = fit([Point(n, law(n), 100_000) for n in (100, 200, 400)])
    assert curve is not None
    assert (curve.a, curve.b) == (pytest.approx(2.0, rel=1e-6), pytest.approx(0.3, rel=1e-6))
    assert [one.pairs for one in curve.forecasts] == [600, 800, 1600]
    for one in curve.forecasts:
        assert one.accuracy == pytest.approx(law(one.pairs), rel=1e-6)
        assert one.low < one.accuracy < one.high
        assert one.high - one.low < 0.02


def test_few_held_out_pairs_make_a_wide_interval() -> None:
    sure = fit([Point(n, law(n), 20_000) for n in (100, 400)])
    unsure = fit([Point(n, law(n), 100) for n in (100, 400)])
    assert sure is not None
    assert unsure is not None
    width = [curve.forecasts[-1].high - curve.forecasts[-1].low for curve in (sure, unsure)]
    assert width[1] > 5 * width[0]


def test_precise_points_count_more() -> None:
    curve = fit([Point(100, law(100), 50_000), Point(200, 0.4, 4), Point(400, law(400), 50_000)])
    assert curve is not None
    assert curve.b == pytest.approx(0.3, abs=0.01)


def test_one_size_is_no_curve_and_no_error_is_no_failure() -> None:
    assert fit([Point(100, 0.7, 50)]) is None
    assert fit([Point(100, 0.7, 50), Point(100, 0.8, 50)]) is None
    perfect = fit([Point(100, 0.9, 50), Point(200, 1.0, 50)])
    assert perfect is not None
    assert perfect.forecasts[-1].accuracy <= 1
    assert perfect.to_json()["forecast"][0]["pairs"] == 300
    never_wrong = fit([Point(60, 1.0, 30), Point(120, 1.0, 30)])
    assert never_wrong is not None
    assert never_wrong.forecasts[1].high - never_wrong.forecasts[1].low > 0.02, "30 pairs prove no such certainty"
