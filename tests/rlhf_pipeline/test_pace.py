from __future__ import annotations

import itertools
import random

import pytest

from rlhf_pipeline.pace import DAY_MS, LONGEST_WINDOW_MS, forecast, timeline

NOW = 1_800_000_000_000
HOUR = 3_600_000


def evenly(count: int, over: int) -> list[int]:
    return [NOW - over + round((i + 0.5) * over / count) for i in range(count - 1)] + [NOW - over]


def test_a_steady_pace_by_hand() -> None:
    """80 judgements in 8 hours are 10 an hour: 40 more take four hours."""
    found = forecast(evenly(80, 8 * HOUR), 40, now=NOW, active_ms=[30_000, None, 60_000, 30_000])
    assert found.window_ms == 8 * HOUR
    assert found.per_day == pytest.approx(240)
    assert found.finish == pytest.approx(NOW + 4 * HOUR, abs=2)
    # Ten in each hour, and as a Poisson process their variance would be ten: 10 ± 2.3646 √(10 / 8 · (1 + 80 / 40)).
    assert found.earliest == pytest.approx(NOW + 40 / (10 + 2.3646 * 3.75**0.5) * HOUR, abs=60_000)
    assert found.latest == pytest.approx(NOW + 40 / (10 - 2.3646 * 3.75**0.5) * HOUR, abs=60_000)
    assert found.judging_ms == 40 * 30_000


def test_bursts_make_it_less_certain() -> None:
    steady = forecast(evenly(80, 8 * HOUR), 40, now=NOW)
    bursts = [NOW - 8 * HOUR + i * 1000 for i in range(40)] + [NOW - 3 * HOUR + i * 1000 for i in range(40)]
    uneven = forecast(bursts, 40, now=NOW)
    assert uneven.finish == pytest.approx(steady.finish, abs=2)
    assert uneven.earliest is not None
    assert steady.earliest is not None
    assert uneven.earliest < steady.earliest
    # 40, 0, 0, 0, 0, 40, 0, 0: s² = (2 · 30² + 6 · 10²) / 7, and 40 are still to come.
    half = 2.3646 * (2400 / 7 / 8 * (1 + 80 / 40)) ** 0.5
    assert uneven.earliest == pytest.approx(NOW + 40 / (10 + half) * HOUR, abs=1000)
    assert uneven.latest is None, "at the slow end of the interval it would never be done"


def test_eight_judgements_are_enough_and_one_may_be_left() -> None:
    found = forecast(evenly(8, 8 * HOUR), 1, now=NOW)
    assert found.finish == NOW + HOUR
    assert found.why == ""


def test_only_the_last_seven_days_count() -> None:
    old = [NOW - 30 * DAY_MS + i * 1000 for i in range(5000)]
    recent = evenly(70, 7 * DAY_MS)
    found = forecast([*old, *recent], 100, now=NOW)
    assert found.window_ms == LONGEST_WINDOW_MS
    assert found.per_day == pytest.approx(10)


@pytest.mark.parametrize(
    ("received", "remaining", "why"),
    [
        ([NOW], 0, "everything is judged"),
        ([], 5, "nobody has judged yet"),
        ([NOW - 8 * DAY_MS] * 20, 5, "nobody has judged in the last seven days"),
        ([NOW - 1000] * 3, 5, "too few judgements to tell: 3 of at least 8"),
        ([NOW] * 20, 5, "the first judgement came only now"),
    ],
)
def test_without_a_forecast_it_says_why(received: list[int], remaining: int, why: str) -> None:
    found = forecast(received, remaining, now=NOW)
    assert (found.finish, found.earliest, found.latest, found.per_day, found.why) == (None, None, None, None, why)


def test_the_interval_covers_the_finish_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        rng = random.Random(seed)
        at, times = 0.0, []
        while len(times) < 300:  # a Poisson process of one a minute
            at += rng.expovariate(1 / 60_000)
            times.append(round(at))
        seen = [t for t in times if t <= 100 * 60_000]
        found = forecast(seen, 150 - len(seen), now=100 * 60_000) if len(seen) < 150 else None
        if found is None or found.finish is None:
            continue
        late = found.latest if found.latest is not None else float("inf")
        covered += (found.earliest or 0) <= times[149] <= late
    assert 184 <= covered <= 199


def test_order_does_not_matter() -> None:
    times = evenly(80, 8 * HOUR)
    assert forecast(times[::-1], 40, now=NOW) == forecast(times, 40, now=NOW)
    assert timeline(times[::-1], NOW) == timeline(times, NOW)


def test_timeline_begins_at_nothing_and_ends_now() -> None:
    assert timeline([], NOW) == []
    assert timeline([NOW - 20, NOW - 30], NOW) == [(NOW - 30, 0), (NOW - 30, 1), (NOW - 20, 2), (NOW, 2)]
    assert timeline([NOW], NOW) == [(NOW, 0), (NOW, 1)]
    assert timeline([NOW - 5, NOW], NOW) == [(NOW - 5, 0), (NOW - 5, 1), (NOW, 2)]
    many = timeline(range(NOW - 5000, NOW), NOW)
    assert len(many) <= 203
    assert many[0][1] == 0
    assert many[-1] == (NOW, 5000)
    assert all(a <= b for (_, a), (_, b) in itertools.pairwise(many))
