"""Build ``report.html``: one page that opens offline, about whatever stages of a run are there.

    rlhf report RUN

The page holds no script and loads nothing: charts are inline SVG, and text of models is escaped wherever it stands.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rlhf_pipeline import artifacts, charts, config
from rlhf_pipeline.alarms import read_alarms
from rlhf_pipeline.charts import Interval, Series
from rlhf_pipeline.metrics import read_metrics
from stages import BY_NAME, evaluate_scores, reward_report
from stages.chain_picture import Node, chain
from stages.settings import Settings
from stages.states import StageState, inspect, partial_folder

EXAMPLES = 20
_POLICY_TITLES = {"base": "Base", "sft": "SFT", "dpo": "DPO", "ppo": "PPO"}
_MEASURES = (
    "win_rate", "win_rate_low", "win_rate_high", "wins", "losses", "ties", "gold", "gold_se", "score", "score_se", "kl",
    "kl_se", "length", "length_p95", "ended", "prompts",
)  # fmt: skip
_JUDGES = {"gold": "the gold judge", "reward_model": "the reward model"}


@dataclass(frozen=True)
class Curve:
    """A chart of ``metrics.jsonl``: a caption, and the keys that are drawn in it with their names."""

    caption: str
    y_label: str
    keys: Mapping[str, str]
    note: str = ""


_CURVES = {
    "sft": (
        Curve("Loss on responses", "nats per token", {"loss": "training", "eval_loss": "held out"}),
        Curve("Token accuracy", "share", {"mean_token_accuracy": "training", "eval_mean_token_accuracy": "held out"}),
    ),
    "reward": (
        Curve("Loss", "nats per pair", {"loss": "training", "eval_loss": "held out"}, "ln 2 = 0.693 is guessing."),
        Curve("Accuracy", "share of pairs", {"accuracy": "training", "eval_accuracy": "held out"}),
        Curve("Margin", "chosen - rejected", {"margin": "training", "eval_margin": "held out"}),
    ),
    "dpo": (
        Curve("Loss", "nats per pair", {"loss": "training", "eval_loss": "held out"}, "It starts at ln 2 = 0.693."),
        Curve("Accuracy", "share of pairs", {"rewards/accuracies": "training", "eval_rewards/accuracies": "held out"}),
        Curve("Margin", "nats · β", {"rewards/margins": "training", "eval_rewards/margins": "held out"}),
    ),
    "ppo": (
        Curve("Score", "reward-model units", {"objective/scores": "score"}, "The reward model's; it should rise."),
        Curve("KL to the SFT policy", "nats per response", {"objective/kl": "KL"}, "Smooth growth to 1–10 is usual."),
        Curve("Objective", "score - β · KL", {"objective/rlhf_reward": "objective"}, "Should rise with the scores."),
        Curve("Entropy", "nats per token", {"objective/entropy": "entropy"}, "A slow decline is healthy."),
        Curve("Response length", "tokens", {"response/length": "length"}, "Rising with scores: length hacking?"),
        Curve("Ended by itself", "share", {"response/ended": "ended"}),
        Curve("Clip fraction", "share of tokens", {"ppo/policy/clipfrac": "policy", "ppo/val/clipfrac": "value"}),
        Curve("Explained variance of the value", "share", {"ppo/val/explained_variance": "value"}),
    ),
}  # fmt: skip


def build(settings: Settings, run_folder: Path) -> Path:
    """Write ``RUN/report.html`` from the stages that are there; returns its path."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": _number, "percent": _percent, "duration": _duration}
    path = run_folder / "report.html"
    artifacts.write_atomically(path, environment.get_template("report.html.j2").render(_page(settings, run_folder)))
    return path


def _page(settings: Settings, run_folder: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    states = inspect(settings, run_folder)
    evaluation = _read_json(_folder("evaluate", states, run_folder) / "metrics.json")
    made = [s.artifact.manifest for s in states.values() if s.artifact]
    return {
        "run": run_folder.resolve().name,
        "folder": str(run_folder),
        "model": settings.model.name,
        "seed": settings.run.seed,
        "built": datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
        "finished": max((_day(m.created) for m in made), default=None),
        "seconds": sum(m.seconds for m in made),
        "stages": [_stage_row(s) for s in states.values()],
        "chain": chain("The chain of stages", _nodes(settings, states)),
        "chain_upright": chain("The chain of stages", _nodes(settings, states), upright=True),
        "titles": _POLICY_TITLES,
        "evaluation": _evaluation(evaluation),
        "curves": {name: _curves(name, states, run_folder) for name in _CURVES if name in states},
        "ppo_path": _ppo_path(states, run_folder),
        "held_out": _held_out(states, run_folder),
        "alarms": [one.sentence() for one in read_alarms(_folder("ppo", states, run_folder))],
        "judgements": _judgements(states),
        "preferences": _preferences(_folder("collect", states, run_folder)),
        "reward": reward_report.section(states.get("reward"), _folder("reward", states, run_folder)),
        "examples": _examples(_folder("evaluate", states, run_folder) / "responses.jsonl"),
        "settings": config.dump(settings),
        "versions": made[-1].versions if made else artifacts.versions(),
        "git": made[-1].git if made else None,
    }


def _stage_row(state: StageState) -> dict[str, Any]:
    manifest = state.artifact.manifest if state.artifact else None
    return {
        "name": state.name,
        "summary": BY_NAME[state.name].summary,
        "state": state.state,
        "reasons": list(state.reasons),
        "digest": state.artifact.digest if state.artifact else None,
        "seconds": manifest.seconds if manifest else None,
        "device": manifest.device if manifest else None,
        "created": _day(manifest.created) if manifest else None,
        "metrics": {k: v for k, v in manifest.metrics.items() if isinstance(v, int | float | str)} if manifest else {},
    }


def _nodes(settings: Settings, states: Mapping[str, StageState]) -> dict[str, Node]:
    """The boxes of the chain; stages that the run leaves out are drawn as such."""
    name = settings.model.name.rstrip("/").rsplit("/", 1)[-1]
    shown = name if len(name) <= 15 else name[:14] + "…"
    nodes = {"base": Node("base", "given", ("base model", shown), f"base model: {settings.model.name}")}
    for stage in BY_NAME:
        state = states.get(stage)
        if state is None:
            nodes[stage] = Node(stage, "absent", ("not in this run", ""), f"{stage}: not in this run")
            continue
        second, detail = "", f"{stage}: {state.state}"
        if state.artifact:
            manifest = state.artifact.manifest
            second = f"{state.artifact.digest[:8]} · {_roughly(manifest.seconds)}"
            detail += f", digest {state.artifact.digest[:12]}, {_duration(manifest.seconds)} on {manifest.device}"
        if state.reasons:
            detail += f" ({'; '.join(state.reasons[:3])})"
        nodes[stage] = Node(stage, state.state, (state.state, second), detail)
    return nodes


def _evaluation(metrics: Any) -> dict[str, Any] | None:
    """The table of policies and its pictures; null until there is an evaluation."""
    if not isinstance(metrics, dict) or not metrics.get("policies"):
        return None
    policies: dict[str, dict[str, Any]] = {n: dict.fromkeys(_MEASURES) | p for n, p in metrics["policies"].items()}
    judge = metrics.get("judge")
    rows = [
        Interval(_POLICY_TITLES.get(n, n), n, p["win_rate"], p["win_rate_low"], p["win_rate_high"])
        for n, p in policies.items()
        if p["win_rate"] is not None
    ]
    key, unit = ("gold", "gold score") if judge == "gold" else ("score", "reward-model score")
    marks = [
        (_POLICY_TITLES.get(name, name), name, (p["kl"], p[key]))
        for name, p in policies.items()
        if p["kl"] is not None and p[key] is not None
    ]
    return {
        "policies": policies,
        "summary": metrics.get("summary", []),
        "judge": _JUDGES.get(judge or "", "nobody"),
        "rules": {
            "caption": "Responses that break a rule, by the rule model (in brackets by the gold judge)",
            "columns": ("Rule", *(_POLICY_TITLES.get(name, name) for name in policies)),
            "rows": evaluate_scores.rule_rows(policies),
        },
        "prompts": max(p["prompts"] or 0 for p in policies.values()),
        "win_rates": charts.interval_plot(
            "Win rates against SFT", rows, x_label="wins among decided comparisons, %", size=charts.WIDE
        ),
        "frontier": charts.scatter(
            "Distance from SFT and quality",
            None,
            marks,
            x_label="KL to SFT, nats per response",
            y_label=unit,
            size=charts.WIDE,
        ),
        "frontier_unit": unit,
    }


def _curves(stage: str, states: Mapping[str, StageState], run_folder: Path) -> list[dict[str, Any]]:
    rows = read_metrics(_folder(stage, states, run_folder) / "metrics.jsonl")
    figures = []
    for curve in _CURVES[stage]:
        series = [
            Series(name, "other" if index else stage, points)
            for index, (key, name) in enumerate(curve.keys.items())
            if (points := _points(rows, key))
        ]
        svg = charts.line_chart(f"{stage}: {curve.caption}", series, x_label="step", y_label=curve.y_label)
        if svg:
            legend = [(s.name, s.colour) for s in series] if len(series) > 1 else []
            figures.append({"caption": curve.caption, "note": curve.note, "svg": svg, "legend": legend})
    return figures


def _ppo_path(states: Mapping[str, StageState], run_folder: Path) -> Markup:
    """Score against KL over PPO's steps."""
    rows = read_metrics(_folder("ppo", states, run_folder) / "metrics.jsonl") if "ppo" in states else []
    points = [(x, y) for row in rows if (x := _finite(row, "objective/kl")) is not None
              and (y := _finite(row, "objective/scores")) is not None]  # fmt: skip
    if not points:
        return Markup("")
    return charts.scatter(
        "PPO: score against KL", Series("step", "ppo", points),
        [("start", "ppo", points[0]), ("end", "ppo", points[-1])] if len(points) > 1 else [],
        x_label="KL to SFT, nats per response", y_label="score",
    )  # fmt: skip


def _preferences(folder: Path) -> list[str]:
    """What ``collect`` found out about the preferences, in sentences."""
    found = _read_json(folder / "preference_report.json")
    return [str(sentence) for sentence in found["sentences"]] if isinstance(found, dict) else []


def _held_out(states: Mapping[str, StageState], run_folder: Path) -> dict[str, Any] | None:
    """PPO's held-out scorings against their KL: what the reward model says, and the gold judge where there is one.

    Both are counted from the SFT policy's mean in standard deviations of its responses (Gao et al. 2022,
    arXiv:2210.10760, figure 1), so that they can be drawn in one picture.
    """
    rows = read_metrics(_folder("ppo", states, run_folder) / "held_out.jsonl") if "ppo" in states else []
    series = [
        Series(name, colour, points)
        for name, colour, key in (("reward model", "reward", "score"), ("gold judge", "ppo", "gold"))
        if len(points := _against_kl(rows, key)) > 2
    ]
    if not series:
        return None
    svg = charts.line_chart(
        "PPO: held-out scores against KL", series, x_label="KL to SFT, nats per response",
        y_label="standard deviations of SFT", step="KL", noisy=False,
    )  # fmt: skip
    state = states["ppo"]
    kept = state.artifact.manifest.metrics.get("kept_iteration") if state.artifact else None
    note = "Where the gold judge falls while the reward model rises, the policy is over-optimised." * (len(series) > 1)
    note += f" The policy of iteration {kept} is kept." if kept is not None else ""
    legend = [(s.name, s.colour) for s in series]
    return {"caption": "Held-out scores against KL", "note": note.strip(), "svg": svg, "legend": legend}


def _against_kl(rows: Sequence[Mapping[str, Any]], key: str) -> list[charts.Point]:
    """``(KL, number)`` of each scoring, the number in standard deviations of the first one's responses."""
    first = rows[0] if rows else {}
    mean, error, count = (_finite(first, name) for name in (key, f"{key}_se", "responses"))
    if mean is None or not error or not count:
        return []
    pairs = ((_finite(row, "kl"), _finite(row, key)) for row in rows)
    return [(x, (y - mean) / (error * count**0.5)) for x, y in pairs if x is not None and y is not None]


def _judgements(states: Mapping[str, StageState]) -> list[tuple[str, str, str]]:
    """What the judgements say of themselves: ``(label, value, note)``."""
    state = states.get("collect")
    if not state or not state.artifact:
        return []
    metrics = state.artifact.manifest.metrics
    tiles = [("judgements", _number(metrics.get("judgements")), f"by {_number(metrics.get('annotators'))} judges")]
    tiles.append(
        ("preferences", _number(metrics.get("preferences")),
         f"{_number(metrics.get('ties'))} pairs came out even, {_number(metrics.get('skipped'))} were skipped")
    )  # fmt: skip
    if metrics.get("agreement") is not None:
        note = f"of {_number(metrics.get('agreement_pairs'))} pairs of judgements of one task say the same"
        tiles.append(("agreement", _percent(metrics["agreement"]), note))
    if metrics.get("longer_share") is not None:
        tiles.append(("longer response chosen", _percent(metrics["longer_share"]), "by characters; 50 % is no liking"))
    if metrics.get("left_share") is not None:
        tiles.append(("left side chosen", _percent(metrics["left_share"]), "50 % is no liking for a side"))
    return tiles


def _examples(path: Path) -> list[dict[str, Any]]:
    """The first prompts of the evaluation, whose order is that of their digests: not picked by anybody."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if len(rows) == EXAMPLES:
                    break
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                empty = {"text": "", "ended": True, "gold": None, "score": None}
                rows.append({**row, "responses": {n: empty | r for n, r in row["responses"].items()}})
    return rows


def _folder(stage: str, states: Mapping[str, StageState], run_folder: Path) -> Path:
    """Where a stage's files are: finished, or what it has written so far."""
    state = states.get(stage)
    finished = run_folder / stage
    return (
        finished
        if state is None or state.artifact or stage not in BY_NAME
        else partial_folder(run_folder, BY_NAME[stage])
    )


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[charts.Point]:
    return [(float(row["step"]), y) for row in rows if "step" in row and (y := _finite(row, key)) is not None]


def _finite(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else None


def _read_json(path: Path) -> Any:
    """A file that may be missing, damaged or half-written: the report says less then, and does not fail."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _day(created: str) -> str:
    return created.replace("T", " ")[:16]


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _roughly(seconds: float) -> str:
    """One number and unit, for the small boxes of the chain."""
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )
