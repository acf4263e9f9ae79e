"""The reward model's part of the report: what it is worth, in tiles, pictures and tables, of ``evaluation.json``."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_pipeline import charts
from rlhf_pipeline.charts import Interval, Series
from rlhf_pipeline.metrics import wilson_interval
from stages.reward_check import EVALUATION
from stages.states import StageState

_BY_LENGTH = ("length_baseline", "other")
_DIMENSIONS = {
    "length": "Length of the chosen response",
    "agreement": "Agreement of the judges",
    "judgements": "Judgements of the pair",
    "strength": "Strength of the preference",
    "source": "Source",
    "group": "Prompts",
}


def section(state: StageState | None, folder: Path) -> dict[str, Any]:
    """What the template shows; lists are empty where there is nothing to show."""
    manifest = state.artifact.manifest if state and state.artifact else None
    metrics = manifest.metrics if manifest else {}
    found = _read(folder / EVALUATION)
    note = ""
    if manifest and metrics.get("accuracy") is None:
        note = "No preference was held out, so how well the reward model judges is not known."
    return {
        "warnings": metrics.get("warnings", []),
        "note": note,
        "tiles": _tiles(found),
        "figures": [item for item in (_accuracy(metrics), *_pictures(found)) if item["svg"]],
        "slices": _slices(found.get("slices", [])),
        "tables": _tables(found),
    }


def _read(path: Path) -> dict[str, Any]:
    """A file that may be missing or half-written: the report says less then."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _figure(caption: str, svg: Any, note: str = "", legend: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    return {"caption": caption, "svg": svg, "note": note, "legend": list(legend)}


def _tiles(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if "calibration" not in found:
        return []
    calibration, length = found["calibration"], found["length_correlation"]["within_pairs"]
    tiles = [
        (
            "calibration error",
            _percent(calibration["error"]),
            f"up to {_percent(calibration['chance_error'])} is chance",
        ),
    ]
    if calibration["temperature"] is not None:
        sure = "too sure of itself" if calibration["temperature"] > 1 else "too unsure of itself"
        tiles.append(("temperature", f"{calibration['temperature']:.2f}", f"1 is calibrated; here it is {sure}"))
    if length is not None:
        tiles.append(("score and length", f"{length:+.2f}", "rank correlation within pairs; 0 is no liking for length"))
    if found.get("sensitivity"):
        worst = max(found["sensitivity"], key=lambda row: row["value"])
        tiles.append(("changes its mind", _percent(worst["value"]), f"of pairs, by {worst['variant']}"))
    return tiles


def _accuracy(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Beside what the judges' agreement allows, and what the length of the responses alone would give."""
    names = (
        ("Reward model", "accuracy", "reward"),
        ("Judges allow", "ceiling", "sft"),
        ("Length only", "length_baseline", "other"),
    )
    rows = []
    for name, key, colour in names:
        value, low, high = (metrics.get(k) for k in (key, f"{key}_low", f"{key}_high"))
        if value is not None and low is not None and high is not None:
            rows.append(Interval(name, colour, value, low, high))
    plot = charts.interval_plot("Accuracy on held-out preferences", rows, x_label="pairs in the judged order, %")
    note = (
        "Bars are 95 % intervals. Length only is the most that preferring longer (or shorter) responses gets on these "
        "pairs: a reward model should beat it clearly."
    )
    if metrics.get("ceiling") is not None:
        note += " Judges allow is what a perfect model would get, given how often two judges disagree."
    return _figure("Accuracy on held-out preferences", plot, note)


def _pictures(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    figures = []
    if "calibration" in found:
        bins = found["calibration"]["bins"]
        ideal, model = Series("calibrated", "other", [(0.5, 0.5), (1.0, 1.0)]), Series(
            "model", "reward", [(one["confidence"], one["accuracy"]) for one in bins]
        )  # fmt: skip
        plot = charts.line_chart(
            "Calibration",
            [ideal, model],
            x_label="confidence",
            y_label="accuracy",
            step="confidence",
            noisy=False,
            whole=False,
            whiskers=[("reward", one["confidence"], one["low"], one["high"]) for one in bins],
        )
        note = "Below the line it is too sure of itself. Bars are 95 % intervals."
        figures.append(
            _figure("Is it as right as it is sure?", plot, note, [("calibrated", "other"), ("model", "reward")])
        )
    if "scores" in found:
        edges = found["scores"]["edges"]
        middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
        sides = [
            Series(side, colour, list(zip(middles, map(float, found["scores"][side]["counts"]), strict=True)))
            for side, colour in (("chosen", "reward"), ("rejected", "other"))
        ]
        plot = charts.line_chart(
            "Scores", sides, x_label="score", y_label="responses", step="score", noisy=False, whole=False
        )
        figures.append(_figure("Scores of held-out responses", plot, "", [("chosen", "reward"), ("rejected", "other")]))
    if "learning_curve" in found:
        figures.append(_learning_curve(found["learning_curve"], found["pairs"]))
    return figures


def _learning_curve(curve: Mapping[str, Any], held_out: int) -> dict[str, Any]:
    """Accuracy of models that learnt from parts of the pairs, and the forecast of what more would buy."""
    seen = [(float(one["pairs"]), float(one["accuracy"])) for one in curve["points"]]
    ahead = [(float(one["pairs"]), float(one["accuracy"])) for one in curve["forecast"]]
    bars = [("reward", n, *wilson_interval(share * held_out, held_out)) for n, share in seen]
    bars += [("other", float(one["pairs"]), one["low"], one["high"]) for one in curve["forecast"]]
    series = [Series("forecast", "other", [seen[-1], *ahead] if ahead else []), Series("measured", "reward", seen)]
    plot = charts.line_chart(
        "Learning curve", series, x_label="pairs learnt from", y_label="accuracy", step="pairs", noisy=False,
        whiskers=bars,
    )  # fmt: skip
    note = f"Accuracy on the same {held_out:,} held-out pairs. Bars are 95 % intervals."
    legend = [("measured", "reward")]
    if ahead:
        note += " The forecast is a power law of the error, for more judgements of the same kind."
        legend.append(("forecast", "other"))
    return _figure("What more judgements would buy", plot, note, legend)


def _slices(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A picture for each way to divide the pairs."""
    figures = []
    for by, caption in _DIMENSIONS.items():
        parts = [
            Interval(_shortened(row["name"]), "reward", row["value"], row["low"], row["high"])
            for row in rows
            if row["by"] == by
        ]
        plot = charts.interval_plot(
            f"Accuracy: {caption}", parts, x_label="pairs in the judged order, %", size=charts.WIDE
        )
        if plot:
            sizes = ", ".join(f"{row['name']} {row['pairs']:,}" for row in rows if row["by"] == by)
            figures.append(_figure(f"Accuracy by {caption[0].lower()}{caption[1:]}", plot, f"Pairs: {sizes}."))
    return figures


def _tables(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables = []
    if found.get("rules"):
        tables.append(_rules(found["rules"]))
    if found.get("sensitivity"):
        rows = [
            (
                row["variant"],
                _percent(row["value"]),
                _interval(row),
                f"{row['shift']:.2f}",
            )
            for row in found["sensitivity"]
        ]
        columns = ("The same pairs, with …", "order changes", "95 % interval", "mean shift, in standard deviations")
        tables.append({"caption": "Sensitivity", "columns": columns, "rows": rows})
    if found.get("test_sets"):
        rows = []
        for one in found["test_sets"]:
            parts = {one["name"]: one, **{f"— {name}": part for name, part in one["subsets"].items()}}
            rows += [
                (
                    name,
                    _percent(part["value"]),
                    _interval(part),
                    f"{part['pairs']:,}",
                )
                for name, part in parts.items()
            ]
            rows += [(f"— section {name}", _percent(value), "", "") for name, value in one["sections"].items()]
        columns = ("Test set", "accuracy", "95 % interval", "pairs")
        tables.append({"caption": "Test sets", "columns": columns, "rows": rows})
    return tables


def _rules(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How well each rule is recognised."""
    rows = [
        (
            row["rule"],
            f"{row['broken']:,} of {row['responses']:,}",
            f"{row['auc']['value']:.2f} ({row['auc']['low']:.2f} to {row['auc']['high']:.2f})" if row["auc"] else "–",
            *(_percent(row[name]["value"]) if row[name] else "–" for name in ("accuracy", "baseline")),
            _percent(row["calibration"]["error"]) if row["calibration"] else "–",
        )
        for row in measured
    ]
    columns = ("Rule", "broken", "area under the curve (95 %)", "accuracy", "commoner answer", "calibration error")
    return {"caption": "Rules, on held-out responses", "columns": columns, "rows": rows}


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_percent(row['low'])} to {_percent(row['high'])}"


def _shortened(name: str) -> str:
    return name if len(name) <= 22 else name[:21] + "…"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
