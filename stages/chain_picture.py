"""The picture of the chain: the stages, their states and what flows between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from rlhf_pipeline.charts import Point, svg, text


@dataclass(frozen=True)
class Node:
    """A box of the chain: its name, its state (a CSS class too), two short lines, and all there is to say in words."""

    name: str
    state: str
    lines: tuple[str, str]
    detail: str


_PLACES = {
    "base": (0, 0.5), "sft": (1, 0.5), "sample": (2, 0), "collect": (3, 0), "reward": (4, 0), "ppo": (5, 0),
    "dpo": (5, 1), "evaluate": (6, 0.5),
}  # fmt: skip
_ARROWS = (
    ("base", "sft"), ("sft", "sample"), ("sample", "collect"), ("collect", "reward"), ("reward", "ppo"),
    ("collect", "dpo"), ("sft", "dpo"), ("sft", "ppo"), ("ppo", "evaluate"), ("dpo", "evaluate"),
)  # fmt: skip


def chain(title: str, nodes: Mapping[str, Node], *, upright: bool = False) -> Markup:
    """The stages and what flows between them, from left to right, or ``upright`` from top to bottom for a phone."""
    box = (132, 64) if upright else (122, 64)
    pitch = (172, 96) if upright else (156, 100)  # along x and along y
    origin = (96, 44) if upright else (71, 58)

    def centre(name: str) -> Point:
        along, across = _PLACES[name]
        column, row = (across, along) if upright else (along, across)
        return origin[0] + pitch[0] * column, origin[1] + pitch[1] * row

    parts = [
        Markup('<path d="{}" class="arrow"/>').format(_arrow((start, end), centre(start), centre(end), box, upright))
        for start, end in _ARROWS
        if start in nodes and end in nodes
    ]
    for name, node in nodes.items():
        x, y = centre(name)
        parts.append(
            Markup('<g class="node {}"><title>{}</title><rect x="{}" y="{}" width="{}" height="{}" rx="9"/>').format(
                node.state, node.detail, x - box[0] / 2, y - box[1] / 2, *box
            )
        )
        parts.append(Markup('<circle cx="{}" cy="{}" r="4" class="lamp"/>').format(x - box[0] / 2 + 14, y - 16))
        parts.append(text(x - box[0] / 2 + 25, y - 11.5, node.name, "name", "start"))
        parts.append(text(x - box[0] / 2 + 13, y + 6, node.lines[0], "small", "start"))
        parts.append(text(x - box[0] / 2 + 13, y + 22, node.lines[1], "small dim", "start"))
        parts.append(Markup("</g>"))
    width, height = (352, 44 + 96 * 6 + 44) if upright else (71 + 156 * 6 + 71, 58 + 100 + 42)
    words = " ".join(f"{node.detail}." for node in nodes.values())
    return svg(title, words, width, height, parts)


def _arrow(ends: tuple[str, str], start: Point, end: Point, box: tuple[int, int], upright: bool) -> str:
    """The path of one arrow; drawn as if from left to right, and mirrored at the diagonal for the upright picture."""
    (x1, y1), (x2, y2) = start, end
    w, h = box[0] / 2, box[1] / 2
    if upright:
        x1, y1, x2, y2, w, h = y1, x1, y2, x2, h, w
    tip = 3.0
    if ends == ("sft", "ppo"):  # over the top of the stages between them
        rail = y2 - h - 16
        points = [("M", x1, y1 - h), ("L", x1, rail + 12), ("Q", x1, rail, x1 + 12, rail), ("L", x2 - 12, rail)]
        points += [("Q", x2, rail, x2, rail + 12), ("L", x2, y2 - h - tip)]
    elif ends == ("collect", "dpo"):  # down, then along
        points = [
            ("M", x1, y1 + h),
            ("L", x1, y2 - 30),
            ("Q", x1, y2 - 8, x1 + 22, y2 - 8),
            ("L", x2 - w - tip, y2 - 8),
        ]
    elif ends == ("sft", "dpo"):
        y2 += 8
        points = [("M", x1 + w, y1 + 8), ("C", x1 + w + 24, y1 + 8, x1 + w + 10, y2, x1 + w + 46, y2)]
        points += [("L", x2 - w - tip, y2)]
    else:
        middle = (x1 + x2) / 2
        points = [("M", x1 + w, y1), ("C", middle, y1, middle, y2, x2 - w - tip, y2)]
    return " ".join(_step(step, upright) for step in points)


def _step(step: tuple[object, ...], upright: bool) -> str:
    letter, *numbers = step
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    return f"{letter} " + " ".join(f"{b} {a}" if upright else f"{a} {b}" for a, b in pairs)
