"""Tasks, people, the audit trail and exports as the admin pages show them.

Texts of models and people are escaped, or go through :mod:`annotation_ui.render`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from markupsafe import Markup

from annotation_ui.fragments import block, shown, table, when
from annotation_ui.render import to_html, visible
from rlhf_pipeline.comparisons import best
from rlhf_pipeline.exchange.export import EXPORT_FORMATS
from rlhf_pipeline.quality import Disagreement
from rlhf_pipeline.reliability import Proportion
from rlhf_pipeline.store.people import Person
from rlhf_pipeline.store.records import Event, Gold, JudgementRow, TaskRow

_LEVELS = {1: "slightly better", 2: "better", 3: "much better"}


def task_label(task: TaskRow, split: Disagreement | None, right: Proportion | None = None) -> str:
    """A task in a list: its number, how far people agree, how many were right if that is known, how it begins."""
    words = " ".join(visible(task.prompt.messages[-1].content).split())
    begins = words if len(words) <= 60 else words[:59] + "…"
    agree = f" · {100 * split.agreement:.0f} % agree" if split else ""
    known = f" · {right.hits} of {right.n} right" if right and right.n else ""
    return f"{task.id}{agree}{known} · {begins}"


def task_sheet(task: TaskRow, rows: Sequence[JudgementRow]) -> str:
    """A task with everything that people said of it."""
    talk = Markup("").join(
        Markup('<div class="turn"><div class="who">{}</div><div class="text" dir="auto">{}</div></div>').format(
            m.role, _rendered(m.content)
        )
        for m in task.prompt.messages
    )
    answers = Markup("").join(
        Markup('<article><h3>Response {}{}</h3><div class="text" dir="auto">{}</div></article>').format(
            place, _votes(response.id, rows), _rendered(response.text)
        )
        for place, response in enumerate(task.responses, 1)
    )
    listed = [
        (
            shown(row.user),
            _PURPOSES[row.purpose],
            said(task, row),
            _remarks(task, row),
            "–" if row.active_ms is None else f"{row.active_ms / 1000:.0f} s",
            when(row.received_at),
        )
        for row in sorted(rows, key=lambda row: (row.purpose == "adjudicate", row.received_at))
    ]
    known = _known(task, task.gold) if task.gold else Markup("")
    judged = (
        table(("Person", "As", "Answer", "Remarks", "Time", "When"), listed, left=4)
        if listed
        else Markup('<p class="empty">Nobody has judged this task yet.</p>')
    )
    return block(
        Markup('<div class="sheet task">{}<div class="talk">{}</div><div class="answers">{}</div>{}</div>').format(
            known, talk, answers, judged
        )
    )


_PURPOSES = {
    "judge": "judgement",
    "gold": "known answer",
    "repeat": "again",
    "training": "training",
    "adjudicate": "decision",
}


def said(task: TaskRow, row: JudgementRow) -> str:
    """An answer in words; responses by their number on this page."""
    number = {response.id: place for place, response in enumerate(task.responses, 1)}
    if row.choice == "ranking" and row.ranking:
        return " > ".join(" = ".join(str(number[id_]) for id_ in group) for group in row.ranking)
    if row.response_id is not None:
        strength = f", {_LEVELS[row.strength]}" if row.strength in _LEVELS else ""
        return f"Response {number[row.response_id]}{strength}"
    return {"tie": "Tie", "all_bad": "None is good", "skip": "Skipped"}.get(row.choice, row.choice)


def _remarks(task: TaskRow, row: JudgementRow) -> Markup:
    number = {response.id: place for place, response in enumerate(task.responses, 1)}
    found = [Markup("Flag: {}").format(shown(flag)) for flag in row.flags]
    found += [Markup("{} breaks {}").format(number[r], shown(rule)) for r, rules in row.rules.items() for rule in rules]
    for id_, points in sorted(row.ratings.items(), key=lambda item: number.get(item[0], 0)):
        if points:
            each = Markup(", ").join(Markup("{} {}").format(shown(name), value) for name, value in points.items())
            found.append(Markup("{}: {}").format(number[id_], each))
    if row.comment:
        found.append(Markup("“{}”").format(shown(row.comment)))
    if row.correction and row.corrected_id in number:
        text = Markup('<details><summary>Corrected response {}</summary><div class="text">{}</div></details>')
        found.append(text.format(number[row.corrected_id], _rendered(row.correction)))
    if row.late:
        found.append(Markup("late"))
    return Markup("<br>").join(found)


def _votes(response_id: int, rows: Sequence[JudgementRow]) -> Markup:
    votes = sum(response_id in best(row)[1] for row in rows if row.purpose == "judge")
    decided = any(response_id in best(row)[1] for row in rows if row.purpose == "adjudicate")
    text = f"{votes} {'vote' if votes == 1 else 'votes'}"
    return Markup('<span class="votes">{}{}</span>').format(text, " · decided" if decided else "")


def _known(task: TaskRow, gold: Gold) -> Markup:
    number = {response.id: place for place, response in enumerate(task.responses, 1)}
    right = (
        f"Response {number[gold.response_id]}"
        if gold.response_id in number
        else {"tie": "Tie"}.get(gold.choice, "None is good")
    )
    return Markup('<div class="notice good">The answer is known: {}. {}</div>').format(right, shown(gold.explanation))


def _rendered(text: str) -> Markup:
    return Markup(to_html(text))  # noqa: S704  # sanitised there


def people(everybody: Sequence[Person]) -> str:
    """Everybody with their role, programs last."""
    ordered = sorted(everybody, key=lambda p: (p.role in ("simulated", "import"), p.name.casefold()))
    rows = [
        (
            shown(p.name),
            p.role,
            Markup('<span class="state {}">{}</span>').format(p.state, p.state),
            "yes" if p.has_password else "no",
            when(p.created_at),
            when(p.last_seen_at),
        )
        for p in ordered
    ]
    return block(
        Markup('<div class="sheet">{}</div>').format(
            table(("Name", "Role", "State", "Password", "Since", "Last seen"), rows, left=6)
        )
    )


def invitation(address: str, days: int) -> str:
    """The link that is to be handed on; it is shown once."""
    html = Markup(
        '<div class="sheet"><div class="notice good">Hand this address on. It is good for one person, once, '
        'within {} days, and is shown only now.<code class="link">{}</code></div></div>'
    )
    return block(html.format(days, address))


def audit(events: Sequence[Event]) -> str:
    """The audit trail, newest first."""
    rows = [
        (
            when(e.at),
            shown(e.user) if e.user else "the command line",
            e.verb,
            e.object if e.object_id is None else f"{e.object} {e.object_id}",
            Markup("<code>{}</code>").format(visible(json.dumps(e.detail, ensure_ascii=False))) if e.detail else "",
        )
        for e in events
    ]
    return block(
        Markup('<div class="sheet">{}</div>').format(table(("When", "Who", "Did", "To what", "Details"), rows, left=5))
    )


def exports(round_id: int) -> str:
    """A link for each format, with what it cannot carry."""
    rows = [
        (
            Markup('<a href="/api/v1/rounds/{}/export?format={}" download>{}</a>').format(round_id, name, name),
            "; ".join(format_.lacks),
        )
        for name, format_ in EXPORT_FORMATS.items()
    ]
    return block(Markup('<div class="sheet">{}</div>').format(table(("Format", "What it leaves out"), rows, left=2)))
