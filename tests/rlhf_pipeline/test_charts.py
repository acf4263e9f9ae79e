"""The pictures: well-formed, escaped, with words for those who cannot see them, and numbers where they belong."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from rlhf_pipeline.charts import Interval, Series, interval_plot, line_chart, running_mean, scatter, thin, ticks

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg))


def words(svg: str) -> tuple[str, str]:
    root = parsed(svg)
    ids = {e.get("id"): e.text or "" for e in root if e.get("id")}
    title, description = root.attrib["aria-labelledby"].split()
    return ids[title], ids[description]


def test_ticks() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(0, 200) == [0, 50, 100, 150, 200]
    assert ticks(-0.3, 2.6) == [-1, 0, 1, 2, 3]
    assert ticks(1, 3, whole=True) == [1, 2, 3], "there is no step one and a half"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.3, 2.6), (5, 5), (0, 0), (1e-5, 3e-5), (0, 1e9), (-7, -6.99)])
def test_ticks_are_round_and_cover(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 3 <= len(found) <= 9
    step = found[1] - found[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-6


@pytest.mark.parametrize("height", [2e-5, 0.004, 0.3, 7, 1234, 3e7])
def test_labels_of_ticks_differ_and_fit(height: float) -> None:
    points = [(0.0, 0.4 * height), (9.0, height)]
    root = parsed(line_chart("t", [Series("s", "sft", points)], x_label="x", y_label="y"))
    labels = [e for e in root.findall(f"{SVG}text") if e.get("class") == "tick" and e.get("text-anchor") == "end"]
    texts = [e.text or "" for e in labels]
    assert len(set(texts)) == len(texts) >= 3
    for e, text in zip(labels, texts, strict=True):
        assert float(e.attrib["x"]) - 6.2 * len(text) > 18, "beside the name of the axis, not upon it"


def test_thin_keeps_the_mean_and_the_ends_close() -> None:
    points = [(float(i), 2.0 * i) for i in range(10_000)]
    few = thin(points, 100)
    assert len(few) == 100
    assert sum(y for _, y in few) / 100 == pytest.approx(sum(y for _, y in points) / 10_000)
    assert few[0] == (49.5, 99.0)
    assert thin(points[:100], 100) == points[:100]


def test_running_mean() -> None:
    assert running_mean([(0, 1), (1, 3), (2, 8)]) == [(0, 2), (1, 4), (2, 5.5)]
    noisy = [(float(i), (-1.0) ** i) for i in range(400)]
    assert max(abs(y) for _, y in running_mean(noisy)) <= 1 / 21 + 1e-9


def test_line_chart_says_what_it_shows() -> None:
    svg = line_chart("Loss", [Series("training", "sft", [(1, 3.0), (50, 1.25)])], x_label="step", y_label="nats")
    assert words(svg) == ("Loss", "training: 3 at step 1, 1.25 at step 50.")
    assert len(parsed(svg).findall(f"{SVG}polyline")) == 1
    assert line_chart("Loss", [Series("none", "sft", [])], x_label="", y_label="") == ""


def test_points_stand_where_the_ticks_say() -> None:
    svg = line_chart("t", [Series("s", "sft", [(0, 0), (100, 4)])], x_label="x", y_label="y")
    root = parsed(svg)
    first, last = (tuple(map(float, p.split(","))) for p in root.find(f"{SVG}polyline").attrib["points"].split())  # type: ignore[union-attr]
    texts = {e.text: e for e in root.findall(f"{SVG}text") if e.get("class") == "tick"}
    assert float(texts["100"].attrib["x"]) == pytest.approx(last[0], abs=0.1)
    assert float(texts["4"].attrib["y"]) - 4 == pytest.approx(last[1], abs=0.1)
    assert first[0] < last[0]
    assert first[1] > last[1], "up is more"


def test_many_points_are_drawn_faintly_below_their_mean() -> None:
    svg = line_chart("t", [Series("s", "ppo", [(i, i % 7) for i in range(2000)])], x_label="x", y_label="y")
    classes = [e.get("class") for e in parsed(svg).findall(f"{SVG}polyline")]
    assert classes == ["line faint c-ppo", "line c-ppo"]
    assert len(svg) < 15_000


@pytest.mark.parametrize("points", [[(1.0, 2.0)], [(5.0, 0.0), (5.0, 0.0)], [(0.0, 1e-9), (1.0, 1e9)]])
def test_degenerate_ranges_are_drawn(points: list[tuple[float, float]]) -> None:
    svg = line_chart("t", [Series("s", "sft", points)], x_label="x", y_label="y")
    assert "nan" not in svg
    assert "inf" not in svg.replace("information", "")
    parsed(svg)


def test_interval_plot() -> None:
    rows = [Interval("DPO", "dpo", 0.8, 0.7, 0.9), Interval("PPO", "ppo", 0.5, 0.4, 0.6)]
    svg = interval_plot("Win rates", rows, x_label="wins")
    title, description = words(svg)
    assert title == "Win rates"
    assert description.startswith("DPO: 80.0 %, 95 % interval 70.0 % to 90.0 %.")
    root = parsed(svg)
    chance = next(e for e in root.iter(f"{SVG}line") if e.get("class") == "chance")
    dots = [float(e.attrib["cx"]) for e in root.iter(f"{SVG}circle")]
    assert dots[1] == pytest.approx(float(chance.attrib["x1"])), "50 % lies on the line of chance"
    assert dots[0] > dots[1]
    assert interval_plot("none", [], x_label="") == ""


def test_scatter_keeps_labels_apart() -> None:
    marks = [(name, name, (1.0, 1.0)) for name in ("sft", "dpo", "ppo")]
    svg = scatter("t", None, [*marks, ("base", "base", (40.0, 0.0))], x_label="x", y_label="y")
    heights = sorted(float(e.attrib["y"]) for e in parsed(svg).iter(f"{SVG}text") if "mark" in e.attrib["class"])[:3]
    assert heights[1] - heights[0] >= 14
    assert heights[2] - heights[1] >= 14
    assert scatter("t", None, [], x_label="", y_label="") == ""


def test_text_is_escaped_everywhere() -> None:
    bad = '</svg><script>alert("x")</script>'
    pictures = [
        line_chart(bad, [Series(bad, "sft", [(0, 1), (1, 2)])], x_label=bad, y_label=bad),
        scatter(bad, Series(bad, "ppo", [(0, 1)]), [(bad, "sft", (0, 0))], x_label=bad, y_label=bad),
        interval_plot(bad, [Interval(bad, "sft", 0.5, 0.4, 0.6)], x_label=bad),
    ]
    for svg in pictures:
        assert "<script" not in svg
        parsed(svg)


def test_values_that_are_no_shares_have_their_own_scale() -> None:
    rows = [Interval("alpha", "sft", 0.0, -0.6, 0.25), Interval("kappa", "dpo", 1.0, 0.5, 1.0)]
    svg = interval_plot("Agreement", rows, x_label="beyond chance", chance=0, low=-0.5, percent=False)
    assert words(svg)[1].startswith("alpha: 0.00, 95 % interval -0.60 to 0.25.")
    root = parsed(svg)
    ticks_at = {e.text: float(e.attrib["x"]) for e in root.iter(f"{SVG}text") if e.get("class") == "tick"}
    assert list(ticks_at) == ["-0.5", "-0.25", "0", "0.25", "0.5", "0.75", "1"]
    dots = [float(e.attrib["cx"]) for e in root.iter(f"{SVG}circle")]
    assert dots == pytest.approx([ticks_at["0"], ticks_at["1"]], abs=0.1)
    whisker = next(e for e in root.iter(f"{SVG}line") if "whisker" in e.attrib["class"])
    assert float(whisker.attrib["x1"]) == pytest.approx(ticks_at["-0.5"], abs=0.1), "what is below the scale ends at it"


def test_what_only_grows_is_drawn_as_it_is() -> None:
    svg = line_chart("t", [Series("s", "sft", [(i, i) for i in range(100)])], x_label="x", y_label="y", noisy=False)
    assert [e.get("class") for e in parsed(svg).findall(f"{SVG}polyline")] == ["line c-sft"]
