"""The picture of the chain: well-formed, escaped, within its frame."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from stages.chain_picture import Node, chain

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg))


def test_text_is_escaped() -> None:
    bad = '</svg><script>alert("x")</script>'
    svg = chain(bad, {"base": Node(bad, "given", (bad, bad), bad)})
    assert "<script" not in svg
    parsed(svg)


@pytest.mark.parametrize("upright", [False, True])
def test_the_chain_stays_within_its_frame(upright: bool) -> None:
    names = ("base", "sft", "sample", "collect", "reward", "dpo", "ppo", "evaluate")
    svg = chain("Chain", {n: Node(n, "complete", ("complete", "12345678 · 44 s"), n) for n in names}, upright=upright)
    root = parsed(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    boxes = [tuple(float(e.attrib[k]) for k in ("x", "y", "width", "height")) for e in root.iter(f"{SVG}rect")]
    assert len(boxes) == 8
    for x, y, w, h in boxes:
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
    for i, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[i + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y, "boxes do not overlap"
    arrows = [e.attrib["d"] for e in root.iter(f"{SVG}path")]
    assert len(arrows) == 10
    for path in arrows:
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", path)]
        xs, ys = numbers[::2], numbers[1::2]
        assert min(numbers) >= 0
        assert max(xs) <= width
        assert max(ys) <= height


def test_stages_that_are_left_out_have_no_arrows() -> None:
    nodes = {n: Node(n, "complete", ("", ""), n) for n in ("base", "sft", "evaluate")}
    assert len(list(parsed(chain("c", nodes)).iter(f"{SVG}path"))) == 1
