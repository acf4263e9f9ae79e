"""How fast a round goes and when it will be done."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

DAY_MS = 86_400_000
LONGEST_WINDOW_MS = 7 * DAY_MS
STRETCHES = 8
_T = 2.364624  # the two-sided 95 % point of Student's t with STRETCHES - 1 degrees of freedom
FEWEST = 8
MOST_POINTS = 200


@dataclass(frozen=True, slots=True)
class Forecast:
    """When the judgements that are still needed will be there, if people go on as they did lately.

    Args:
        remaining: judgements still to come.
        window_ms: how long "lately" is: since the first judgement, at most seven days.
        per_day: judgements in 24 hours at that pace, nights and breaks included; None where there is no forecast.
        finish, earliest, latest: UTC epoch milliseconds, the last two from the 95 % interval of the pace; ``latest`` is
            None where the pace may be too slow to tell.
        judging_ms: time that people would have to spend on what remains, at the median of their time so far.
        why: why there is no forecast.
    """

    remaining: int
    window_ms: int
    per_day: float | None
    finish: int | None
    earliest: int | None
    latest: int | None
    judging_ms: int | None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def forecast(received: Sequence[int], remaining: int, *, now: int, active_ms: Sequence[int | None] = ()) -> Forecast:
    """Extrapolate the pace of the last seven days (or since the first judgement).

    The window is cut into eight equal stretches with N judgements in all. The pace is their mean; finish = now +
    remaining / pace. With s² the larger of their variance and their mean (the variance if judgements came singly, as a
    Poisson process; people who work in bursts make it larger), the pace until the end is within
    ``mean ± t √(s² / 8 · (1 + N / remaining))``: the second term is the chance in what is still to come.

    Args:
        received: when each judgement came, UTC epoch milliseconds, in any order.
        active_ms: the time each took, None where it is not known.
    """
    known = [ms for ms in active_ms if ms is not None]
    judging = round(remaining * statistics.median(known)) if known else None
    window = min(LONGEST_WINDOW_MS, now - min(received)) if received else 0
    inside = [at for at in received if now - window <= at <= now]

    def without(why: str) -> Forecast:
        return Forecast(remaining, window, None, None, None, None, judging, why)

    if remaining <= 0:
        return without("everything is judged")
    if not received:
        return without("nobody has judged yet")
    if not inside:
        return without("nobody has judged in the last seven days")
    if window < STRETCHES:
        return without("the first judgement came only now")
    if len(inside) < FEWEST:
        return without(f"too few judgements to tell: {len(inside)} of at least {FEWEST}")
    stretch = window / STRETCHES
    counts = [0] * STRETCHES
    for at in inside:
        counts[min(STRETCHES - 1, int((at - (now - window)) / stretch))] += 1
    mean = len(inside) / STRETCHES
    half = _T * math.sqrt(max(statistics.variance(counts), mean) / STRETCHES * (1 + len(inside) / remaining))

    def after(pace: float) -> int:
        return now + math.ceil(remaining / pace * stretch)

    return Forecast(
        remaining,
        window,
        per_day=mean / stretch * DAY_MS,
        finish=after(mean),
        earliest=after(mean + half),
        latest=after(mean - half) if mean - half > 0 else None,
        judging_ms=judging,
    )


def timeline(received: Sequence[int], now: int) -> list[tuple[int, int]]:
    """(time, judgements so far) from the first judgement to now, at most 200 points apart from the ends."""
    times = sorted(received)
    if not times:
        return []
    step = max(1, math.ceil(len(times) / MOST_POINTS))
    points = [(times[0], 0)] + [(times[n - 1], n) for n in range(step, len(times) + 1, step)]
    if points[-1] != (now, len(times)):
        points.append((now, len(times)))
    return points
