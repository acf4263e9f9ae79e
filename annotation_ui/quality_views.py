"""A round's quality report as the admin pages show it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from annotation_ui.fragments import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    block,
    figure,
    lasting,
    number,
    percent,
    quiet,
    share,
    shown,
    table,
    tile,
    when,
    with_interval,
)  # fmt: skip
from annotation_ui.render import visible
from rlhf_pipeline.agreement import Estimate
from rlhf_pipeline.annotators import AnnotatorQuality
from rlhf_pipeline.charts import Interval, Series, interval_plot, line_chart
from rlhf_pipeline.quality import QualityReport

_WIDE = (940, 250)


def overview(report: QualityReport) -> str:
    """The round at a glance: four numbers, the progress, and what to look at."""
    progress, forecast = report.progress, report.forecast
    done = progress.wanted - progress.remaining
    alpha = next(m.estimate for m in report.measures if m.name.startswith("Krippendorff"))
    share = f"{100 * done / progress.wanted:.0f} %" if progress.wanted else "–"
    tiles = [
        tile("Judged", share, f"{done:,} of {progress.wanted:,} judgements, {progress.settled:,} tasks settled"),
        tile("Done", *_finish(report)),
        tile("Agreement", number(alpha.value), _alpha_words(alpha)),
        tile("People", f"{len(report.annotators):,}", f"{progress.leased:,} tasks are with them now"),
    ]
    chart = _progress_chart(report)
    parts = [Markup('<div class="tiles">{}</div>').format(Markup("").join(tiles))]
    if chart:
        pace = (
            f"{forecast.per_day:,.0f} judgements a day in the last {lasting(forecast.window_ms)}. "
            if forecast.per_day
            else ""
        )
        rest = f"About {lasting(forecast.judging_ms)} of judging are left." if forecast.judging_ms else ""
        parts.append(figure("Judgements", chart, pace + rest))
    parts.append(_findings(report))
    return block(Markup('<div class="sheet">{}</div>').format(Markup("").join(parts)))


def _finish(report: QualityReport) -> tuple[str, str]:
    forecast = report.forecast
    if forecast.finish is None or forecast.earliest is None:
        return ("✓" if forecast.remaining <= 0 and report.progress.wanted else "–"), forecast.why
    early = lasting(forecast.earliest - report.at)
    span = f"{early} to {lasting(forecast.latest - report.at)}" if forecast.latest else f"{early} or more"
    return f"in {lasting(forecast.finish - report.at)}", f"{when(forecast.finish)}; {span} from now"


def _alpha_words(alpha: Estimate) -> str:
    if alpha.value is None:
        return f"Krippendorff's α: {alpha.why}"
    interval = f", 95 % interval {alpha.low:.2f} to {alpha.high:.2f}" if alpha.low is not None else ""
    return f"Krippendorff's α over {alpha.n:,} comparisons{interval}"


def _progress_chart(report: QualityReport) -> Markup:
    if len(report.timeline) < 3:
        return Markup("")
    start, now, wanted = report.timeline[0][0], report.at, report.progress.wanted
    unit, name = next(
        ((u, n) for u, n in ((DAY_MS, "days"), (HOUR_MS, "hours")) if now - start >= 3 * u), (MINUTE_MS, "minutes")
    )
    judged = [((at - start) / unit, float(n)) for at, n in report.timeline]
    series = [Series("judgements", "one", judged)]
    finish = report.forecast.finish
    # A forecast far beyond what is known would squeeze it into a corner.
    if finish is not None and finish - now <= 3 * (now - start):
        end = ((finish - start) / unit, judged[-1][1] + report.forecast.remaining)
        series.append(Series("forecast", "two", [judged[-1], end]))
        series.append(Series("needed", "rest", [(0.0, float(wanted)), (end[0], float(wanted))]))
    return line_chart(
        "Judgements over time",
        series,
        x_label=f"{name} since the first",
        y_label="judgements",
        step=name,
        noisy=False,
        size=_WIDE,
    )


def _findings(report: QualityReport) -> Markup:
    """What needs somebody's eyes, worst first; nothing where nothing does."""
    found = [
        Markup("{}: {}").format(shown(person.user), " ".join(person.notes))
        for person in report.annotators
        if person.notes
    ]
    undecided = sum(not d.adjudicated for d in report.disagreements)
    if undecided:
        found.append(
            Markup("{} of {} tasks were judged differently and are not decided.").format(
                f"{undecided:,}", f"{report.progress.tasks:,}"
            )
        )
    if report.late:
        found.append(Markup("{} judgements came after their time was over; they count.").format(f"{report.late:,}"))
    items = Markup("").join(Markup("<li>{}</li>").format(text) for text in found)
    return Markup('<section class="card"><h2>To look at</h2>{}</section>').format(
        Markup('<ul class="findings">{}</ul>').format(items) if found else Markup("<p>Nothing stands out.</p>")
    )


def agreement(report: QualityReport) -> str:
    """Every measure with its interval, and Cohen's kappa of every two people."""
    rows = []
    for measure in report.measures:
        e = measure.estimate
        cells = (with_interval(e.value, e.low, e.high), e.n) if e.value is not None else (quiet(e.why), e.n)
        rows.append((shown(measure.question), measure.name, *cells))
    plotted = [
        Interval(m.name if i < 3 else f"{m.question[:18]} α", "one", e.value, e.low, e.high)
        for i, m in enumerate(report.measures)
        if (e := m.estimate).value is not None and e.low is not None and e.high is not None
    ]
    kappas = [
        (
            shown(k.names[0]),
            shown(k.names[1]),
            with_interval(e.value, e.low, e.high) if e.value is not None else quiet(e.why),
            e.n,
        )
        for k in report.kappas
        if (e := k.estimate)
    ]
    low = -0.25 if any(row.low < 0 for row in plotted) else 0.0
    chart = interval_plot(
        "Agreement", plotted, x_label="1 is full agreement, 0 what chance gives (share: all that agrees)", chance=0.0,
        low=low, percent=False, size=(520, 250),
    )  # fmt: skip
    parts = [table(("Question", "Measure", "Value", "Items"), rows, left=2)]
    if chart:
        parts.append(figure("Agreement with 95 % intervals", chart, ""))
    parts.append(Markup("<h2>Every two people</h2>"))
    parts.append(
        table(("Person", "and", "Cohen's κ", "Comparisons"), kappas, left=2)
        if kappas
        else Markup('<p class="empty">Nobody has judged ten tasks in common with somebody else yet.</p>')
    )
    return block(Markup('<div class="sheet">{}</div>').format(Markup("").join(parts)))


def annotators(report: QualityReport) -> str:
    """Each person's numbers, pictures of three of them, and notes."""
    if not report.annotators:
        return block(Markup('<div class="sheet"><p class="empty">Nobody has judged yet.</p></div>'))
    heads = (
        "Person", "Judged", "Reliability", "Known answers", "Same again", "Chose first", "Chose longer", "Ties",
        "Too fast", "Median", "Last",
    )  # fmt: skip
    rows = [
        (
            shown(p.user),
            Markup("{}{}").format(
                f"{p.judgements:,}", Markup("<small>{} skipped</small>").format(p.skips) if p.skips else ""
            ),
            with_interval(p.reliability.right, p.reliability.low, p.reliability.high, in_percent=True)
            if p.reliability
            else quiet("–"),
            *(share(s) for s in (p.gold, p.repeats, p.first_shown, p.longer)),
            *(percent(s.value) for s in (p.ties, p.too_fast)),
            "–" if p.median_seconds is None else f"{p.median_seconds:.0f} s",
            Markup("<span>{}</span>").format(f"{lasting(report.at - p.last_at)} ago"),
        )
        for p in report.annotators
    ]
    notes = [(shown(p.user), " ".join(p.notes)) for p in report.annotators if p.notes]
    parts = [table(heads, rows)]
    if notes:
        parts.append(Markup("<h2>Notes</h2>") + table(("Person", "What stands out"), notes, left=2))
    figures = [figure(*one) for one in _people_charts(report.annotators) if one[1]]
    parts.append(Markup('<div class="grid">{}</div>').format(Markup("").join(figures)))
    return block(Markup('<div class="sheet">{}</div>').format(Markup("").join(parts)))


def _people_charts(people: Sequence[AnnotatorQuality]) -> list[tuple[str, Markup, str]]:
    """Caption, picture and note of each; of the twenty people who judged most."""
    few = people[:20]
    skilled = [(p, r.right, r.low, r.high) for p in few if (r := p.reliability)]
    known = [(p, s.value, s.low, s.high) for p in few if (s := p.gold)]
    first = [(p, s.value, s.low, s.high) for p in few if (s := p.first_shown)]
    return [
        (
            "Reliability",
            _plot("Reliability", "expected share that is right, %", skilled),
            "By Dawid and Skene's model of all judgements; 50 is guessing between two.",
        ),
        ("Known answers", _plot("Known answers", "right, %", known), ""),
        (
            "Chose what was shown first",
            _plot("Chose what was shown first", "of decided pairs, %", first),
            "The sides are shuffled: 50 is no habit.",
        ),
    ]


def _plot(title: str, x_label: str, rows: Iterable[tuple[AnnotatorQuality, float | None, float, float]]) -> Markup:
    drawn = [Interval(_short(p.user), "one", v, low, high) for p, v, low, high in rows if v is not None]
    return interval_plot(title, drawn, x_label=x_label, size=(420, 215))


def _short(name: str) -> str:
    text = visible(name)
    return text if len(text) <= 16 else text[:15] + "…"
