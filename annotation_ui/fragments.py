"""Pieces of the admin pages' HTML: every text is escaped where it is put in.

A page is one block without a line break in it: Gradio's Markdown then leaves it as it is.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from markupsafe import Markup

from annotation_ui.render import visible
from rlhf_pipeline.reliability import Proportion

DAY_MS, HOUR_MS, MINUTE_MS = 86_400_000, 3_600_000, 60_000


def block(html: Markup) -> str:
    """One block of HTML for Gradio's Markdown, which takes a blank line for the end of it."""
    return str(html).replace("\r", "").replace("\n", "&#10;")


def notice(text: str, *, good: bool = True) -> str:
    """A sentence about what was just done, or why it was not."""
    if not text:
        return ""
    if good:
        return block(Markup('<div role="status" class="notice good">{}</div>').format(shown(text)))
    return block(Markup('<div role="alert" class="notice bad">{}</div>').format(shown(text)))


def shown(text: str) -> Markup:
    """A person's text on one line, isolated from the direction of what is around it."""
    return Markup("<bdi>{}</bdi>").format(visible(text))


def when(at: int | None) -> str:
    """A time in words, UTC."""
    if at is None:
        return "never"
    return datetime.datetime.fromtimestamp(at / 1000, datetime.UTC).strftime("%-d %b %Y, %H:%M UTC")


def lasting(ms: float) -> str:
    """A duration in words, rounded as people say it."""
    for unit, name in ((DAY_MS, "day"), (HOUR_MS, "hour"), (MINUTE_MS, "minute")):
        if ms >= 1.5 * unit or (unit == MINUTE_MS and ms >= unit):
            count = round(ms / unit)
            return f"{count} {name}{'' if count == 1 else 's'}"
    return "less than a minute"


def tile(name: str, value: str, words: str) -> Markup:
    """A number that is to be seen first, and what it says."""
    return Markup('<div class="tile"><h2>{}</h2><strong>{}</strong><p>{}</p></div>').format(name, value, words)


def figure(caption: str, picture: Markup, note: str) -> Markup:
    """A picture with its caption above and a note below."""
    below = Markup('<p class="note">{}</p>').format(note) if note else ""
    return Markup("<figure><figcaption>{}</figcaption>{}{}</figure>").format(caption, picture, below)


_ROW_HEAD, _CELL = Markup('<th scope="row"{}>{}</th>'), Markup("<td{}>{}</td>")
_TABLE = Markup(
    '<div class="scroll" tabindex="0" role="region" aria-label="{}">'
    "<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> Markup:
    """A table whose first ``left`` columns are words; it scrolls by itself where it is too wide, also by keyboard."""
    css = [Markup(' class="words"') if i < left else "" for i in range(len(heads))]
    head = Markup("").join(Markup('<th scope="col"{}>{}</th>').format(c, h) for c, h in zip(css, heads, strict=True))
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                _ROW_HEAD.format(css[i], cell) if i == 0 else _CELL.format(css[i], cell) for i, cell in enumerate(row)
            )
        )
        for row in rows
    )
    return _TABLE.format(", ".join(h for h in heads if h), head, body)


def with_interval(value: float | None, low: float | None, high: float | None, *, in_percent: bool = False) -> Markup:
    """A value with its interval below it."""
    written = percent if in_percent else number
    interval = f"{written(low)} – {written(high)}" if low is not None and high is not None else "no interval"
    return Markup("{}<small>{}</small>").format(written(value), interval)


def share(of: Proportion) -> Markup:
    """A proportion with its interval and number below it."""
    if of.value is None:
        return quiet("–")
    return Markup("{}<small>{} – {}, n {}</small>").format(percent(of.value), percent(of.low), percent(of.high), of.n)


def quiet(text: str) -> Markup:
    """Words where a number is missing."""
    return Markup('<span class="quiet">{}</span>').format(text)


def percent(value: float | None) -> str:
    """A share in whole per cent."""
    return "–" if value is None else f"{100 * value:.0f} %"


def number(value: float | None) -> str:
    """Two decimals."""
    return "–" if value is None else f"{value:.2f}"
