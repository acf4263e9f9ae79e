"""Inline SVG for pages: lines, points and intervals.

Colours come from the page's CSS classes, so that one picture serves light, dark and print. Every text is escaped; every
picture has a title and a description in words.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]

SMALL, WIDE = (340, 215), (480, 270)  # where three and where two pictures stand beside each other
_RIGHT, _TOP, _BOTTOM = 14, 14, 40
_MOST_POINTS = 300


@dataclass(frozen=True)
class Series:
    """Points in order of x, drawn in the colour of CSS class ``c-COLOUR``."""

    name: str
    colour: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval: a row of :func:`interval_plot`."""

    name: str
    colour: str
    value: float
    low: float
    high: float


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    step: str = "step",
    noisy: bool = True,
    whole: bool = True,
    whiskers: Sequence[tuple[str, float, float, float]] = (),
    size: tuple[int, int] = SMALL,
) -> Markup:
    """Curves over time; more than 60 points are drawn faintly, with their running mean on top, if they are ``noisy``.

    Args:
        title: names the picture for those who cannot see it; the page shows it as a caption.
        series: those without points are left out; with none left, the result is empty.
        step: what x counts, in the description.
        whole: x counts things, of which there is no half.
        whiskers: vertical intervals as ``(colour, x, low, high)``.
    """
    drawn = [Series(s.name, s.colour, thin(s.points)) for s in series if s.points]
    if not drawn:
        return Markup("")
    ends = [(x, y) for _, x, low, high in whiskers for y in (low, high)]
    frame = _Frame.around([*ends, *(p for s in drawn for p in s.points)], size, whole_x=whole)
    parts = [frame.axes(x_label, y_label)]
    parts += [
        _line(frame.x(x), frame.y(a), frame.x(x), frame.y(b), f"whisker c-{colour}") for colour, x, a, b in whiskers
    ]
    for s in drawn:
        calm = running_mean(s.points) if noisy and len(s.points) > 60 else s.points
        if calm is not s.points:
            parts.append(_polyline(frame, s.points, f"line faint c-{s.colour}"))
        parts.append(_polyline(frame, calm, f"line c-{s.colour}"))
        if len(s.points) <= 20:
            parts += [
                _dot(frame, p, s.colour, f"{s.name}, {step} {_number(p[0])}: {_number(p[1])}", 3) for p in s.points
            ]
    words = [
        f"{s.name}: {_number(s.points[0][1])} at {step} {_number(s.points[0][0])}, "
        f"{_number(s.points[-1][1])} at {step} {_number(s.points[-1][0])}."
        for s in drawn
    ]
    return svg(title, " ".join(words), *size, parts)


def scatter(
    title: str,
    trail: Series | None,
    marks: Sequence[tuple[str, str, Point]],
    *,
    x_label: str,
    y_label: str,
    size: tuple[int, int] = SMALL,
) -> Markup:
    """A trail of points joined in order, fading in with time, and named marks ``(name, colour, (x, y))`` on top."""
    points = list(thin(trail.points, 120)) if trail else []
    if not points and not marks:
        return Markup("")
    frame = _Frame.around([*points, *(m[2] for m in marks)], size)
    parts = [frame.axes(x_label, y_label)]
    if trail and points:
        parts.append(_polyline(frame, points, f"line faint c-{trail.colour}"))
        for index, p in enumerate(points):
            opacity = 0.25 + 0.75 * (index + 1) / len(points)
            label = f"{trail.name}, {index + 1} of {len(points)}: {_number(p[0])}, {_number(p[1])}"
            parts.append(_dot(frame, p, trail.colour, label, 2.6, opacity))
    for (name, colour, p), y in zip(marks, _spread([frame.y(m[2][1]) + 4 for m in marks], 14), strict=True):
        parts.append(_dot(frame, p, colour, f"{name}: {_number(p[0])}, {_number(p[1])}", 6))
        at_right = frame.x(p[0]) + 12 + 7.5 * len(name) > size[0]
        x = frame.x(p[0]) + (-10 if at_right else 10)
        parts.append(text(x, y, name, f"mark c-{colour}", "end" if at_right else "start"))
    words = [f"{name}: {x_label} {_number(p[0])}, {y_label} {_number(p[1])}." for name, _, p in marks]
    return svg(title, " ".join(words), *size, parts)


def interval_plot(
    title: str,
    rows: Sequence[Interval],
    *,
    x_label: str,
    chance: float = 0.5,
    low: float = 0.0,
    percent: bool = True,
    size: tuple[int, int] = SMALL,
) -> Markup:
    """Values between ``low`` and 1 with their intervals, one row each, beside a line where chance would be.

    They are written as shares in per cent, or else as they are.
    """
    if not rows:
        return Markup("")
    written = _percent if percent else "{:.2f}".format
    width, left, right = size[0], 22 + 9.2 * max(len(row.name) for row in rows), 72
    row_height = min(66.0, max(34.0, (size[1] - 52) / len(rows)))
    bottom = 12 + row_height * len(rows)

    def x(value: float) -> float:
        return left + (width - left - right) * (max(low, value) - low) / (1 - low)

    parts = []
    for tick in (t / 4 for t in range(math.ceil(4 * low), 5)):
        parts.append(_line(x(tick), 8, x(tick), bottom, "rule"))
        label = f"{100 * tick:.0f}" if percent else f"{tick:g}"
        parts.append(text(x(tick), bottom + 16, label, "tick", "middle"))
    parts.append(_line(x(chance), 4, x(chance), bottom, "chance"))
    words = []
    for index, row in enumerate(rows):
        y = 12 + row_height * (index + 0.5)
        label = f"{row.name}: {written(row.value)}, 95 % interval {written(row.low)} to {written(row.high)}"
        words.append(f"{label}.")
        inside = _line(x(row.low), y, x(row.high), y, f"whisker c-{row.colour}")
        inside += Markup('<circle cx="{:.1f}" cy="{:.1f}" r="6" class="dot c-{}"/>').format(x(row.value), y, row.colour)
        parts.append(Markup("<g><title>{}</title>{}</g>").format(label, inside))
        parts.append(text(left - 12, y + 4.5, row.name, "name", "end"))
        parts.append(text(width - 4, y + 4.5, written(row.value), "value", "end"))
    parts.append(text((left + width - right) / 2, bottom + 34, x_label, "axis", "middle"))
    return svg(title, " ".join(words), width, bottom + 40, parts)


def thin(points: Sequence[Point], most: int = _MOST_POINTS) -> Sequence[Point]:
    """At most so many points: the means of equal stretches."""
    if len(points) <= most:
        return points
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    groups = [points[a:b] for a, b in itertools.pairwise(edges)]
    return [(math.fsum(x for x, _ in g) / len(g), math.fsum(y for _, y in g) / len(g)) for g in groups]


def running_mean(points: Sequence[Point]) -> list[Point]:
    """Each y as the mean over a window of a tenth of the curve around it, of which the ends have one half."""
    reach = max(1, len(points) // 20)
    calm = []
    for index, (x, _) in enumerate(points):
        window = points[max(0, index - reach) : index + reach + 1]
        calm.append((x, math.fsum(y for _, y in window) / len(window)))
    return calm


def ticks(low: float, high: float, about: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart; only ``whole`` ones if so wished) that cover a range."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    """A plot's area: from data to pixels."""

    x_ticks: list[float]
    y_ticks: list[float]
    width: int
    height: int
    left: float

    @staticmethod
    def around(points: Iterable[Point], size: tuple[int, int], *, whole_x: bool = False) -> _Frame:
        xs, ys = zip(*points, strict=True)
        y_ticks = ticks(min(ys), max(ys), 4)
        left = 31 + 6.3 * max(map(len, _tick_labels(y_ticks)))
        return _Frame(ticks(min(xs), max(xs), 4, whole=whole_x), y_ticks, *size, left)

    def x(self, value: float) -> float:
        share = (value - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        return self.left + (self.width - self.left - _RIGHT) * share

    def y(self, value: float) -> float:
        share = (value - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return self.height - _BOTTOM - (self.height - _TOP - _BOTTOM) * share

    def axes(self, x_label: str, y_label: str) -> Markup:
        parts = []
        for tick, label in zip(self.y_ticks, _tick_labels(self.y_ticks), strict=True):
            parts.append(
                _line(self.left, self.y(tick), self.width - _RIGHT, self.y(tick), "zero" if tick == 0 else "rule")
            )
            parts.append(text(self.left - 7, self.y(tick) + 4, label, "tick", "end"))
        for tick, label in zip(self.x_ticks, _tick_labels(self.x_ticks), strict=True):
            inside = min(self.x(tick), self.width - 3.2 * len(label))  # the last label would stand half outside
            parts.append(text(inside, self.height - _BOTTOM + 16, label, "tick", "middle"))
        parts.append(text((self.left + self.width - _RIGHT) / 2, self.height - 6, x_label, "axis", "middle"))
        middle = (_TOP + self.height - _BOTTOM) / 2
        turned = Markup(
            '<text x="12" y="{0:.0f}" class="axis" text-anchor="middle" transform="rotate(-90 12 {0:.0f})">'
        )
        parts.append(turned.format(middle) + escape(y_label) + Markup("</text>"))
        return Markup("").join(parts)


def svg(title: str, words: str, width: float, height: float, parts: Iterable[Markup]) -> Markup:
    """A picture of these parts, with its name and what it shows in words for those who cannot see it."""
    number = f"{zlib.crc32(f'{title}{words}{width}'.encode()):x}"  # the same picture, the same id
    return Markup(
        '<svg viewBox="0 0 {w:.0f} {h:.0f}" role="img" aria-labelledby="t{n} d{n}" xmlns="http://www.w3.org/2000/svg">'
        '<title id="t{n}">{title}</title><desc id="d{n}">{words}</desc>{body}</svg>'
    ).format(w=width, h=height, n=number, title=title, words=words, body=Markup("").join(parts))


def _polyline(frame: _Frame, points: Sequence[Point], css: str) -> Markup:
    places = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    return Markup('<polyline points="{}" class="{}"/>').format(places, css)


def _dot(frame: _Frame, p: Point, colour: str, label: str, radius: float, opacity: float = 1.0) -> Markup:
    return Markup(
        '<circle cx="{:.1f}" cy="{:.1f}" r="{}" opacity="{:.2f}" class="dot c-{}"><title>{}</title></circle>'
    ).format(frame.x(p[0]), frame.y(p[1]), radius, opacity, colour, label)


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, css)


def text(x: float, y: float, words: str, css: str, anchor: str) -> Markup:
    """Words at a place, escaped; ``anchor`` is start, middle or end."""
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>').format(
        x, y, css, anchor, escape(words)
    )


def _spread(heights: Sequence[float], apart: float) -> list[float]:
    """Move labels down until no two are closer than ``apart``; order and everything that has room stay."""
    placed = list(heights)
    order = sorted(range(len(placed)), key=placed.__getitem__)
    for before, after in itertools.pairwise(order):
        placed[after] = max(placed[after], placed[before] + apart)
    return placed


def _tick_labels(values: Sequence[float]) -> list[str]:
    """The same number of decimals for all, as many as tell them apart; powers of ten where those would be many."""
    decimals = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
    if decimals > 4 or max(map(abs, values)) >= 1e6:
        return [f"{value:.1e}" if value else "0" for value in values]
    return [f"{value:,.{decimals}f}" for value in values]


def _number(value: float) -> str:
    """Three or four significant digits, without a trailing zero."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
