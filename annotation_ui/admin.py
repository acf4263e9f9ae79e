"""The second Gradio page, for admins and readers: progress, agreement, people and what needs a decision.

Layout and wiring only: what somebody may see or do is asked in :mod:`annotation_ui.desk` by every event, whatever the
page shows. All events are direct calls (``queue=False``): nothing is lost when a tab closes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from annotation_ui import quality_views, record_views
from annotation_ui.desk import KINDS, Desk, Snapshot, right_of
from annotation_ui.fragments import block, notice, shown
from rlhf_pipeline.errors import PipelineError, StoreError
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.people import ROLES
from rlhf_pipeline.store.records import Choice, Round

_CSS = (Path(__file__).parent / "static" / "admin.css").read_text(encoding="utf-8")
HEAD = f'<link rel="stylesheet" href="/app/page.css"><style>{_CSS}</style>'
MOST_RESPONSES = 9
CHANGES = (*((f"make {role}", role) for role in ROLES), ("block", "block"), ("unblock", "unblock"))
_PRIVATE: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def admin_page(store: JudgementStore, *, accounts: Callable[[], bool] = lambda: True) -> gr.Blocks:
    """The page, to be mounted with :data:`HEAD` as ``head``.

    Args:
        store: of which every round can be looked at.
        accounts: whether people have accounts with passwords by now; until then whoever is signed in may do everything.
    """
    desk = Desk(store, accounts=accounts)
    page: gr.Blocks = gr.Blocks(title="Judgements: results", analytics_enabled=False, fill_width=True)
    with page, gr.Column(elem_id="desk"):
        with gr.Row(elem_id="desk-head"):
            head = _html("title")
            round_ = _choice([], label="Round", elem_id="round", filterable=False)
            refresh = gr.Button("Refresh", elem_id="refresh")
        said = _html("said")
        with gr.Tabs(elem_id="desk-tabs"):
            with gr.Tab("Overview"):
                overview = _html("overview")
            with gr.Tab("Agreement"):
                agreement = _html("agreement")
            with gr.Tab("Annotators"):
                annotators = _html("annotators")
            with gr.Tab("Tasks"):
                tasks = _Tasks()
            with gr.Tab("Export"):
                exports = _html("exports")
            with gr.Tab("People", visible=False) as people_tab:
                people = _People()
            with gr.Tab("Audit trail", visible=False) as audit_tab:
                trail = _Trail()
        of_round = [overview, agreement, annotators, exports, tasks.kind, tasks.pick, *tasks.shown]

        def show(user_id: int, round_id: int | None, *, fresh: bool = False) -> tuple[Any, ...]:
            desk.caller(user_id)
            if round_id is None:
                empty = block(Markup('<div class="sheet"><p class="empty">There is no round yet.</p></div>'))
                return "", empty, *(gr.skip() for _ in of_round[1:])
            seen = desk.look(user_id, _chosen(round_id), fresh=fresh)
            return "", *_sheets(seen), "disagree", *tasks.listed(desk, user_id, seen.terms.id, "disagree")

        def arrive(user_id: int) -> tuple[Any, ...]:
            rounds, leads, name = desk.rounds(user_id), desk.leads(user_id), desk.caller(user_id).name
            chosen = rounds[0].id if rounds else None
            pick = gr.update(choices=[(_round_label(r), r.id) for r in rounds], value=chosen, visible=len(rounds) > 1)
            may = gr.update(visible=leads)
            return *show(user_id, chosen), _title(name, leads), pick, may, may, may

        _on(page.load, arrive, [], said, [*of_round, head, round_, people_tab, audit_tab, tasks.decisions])
        _on(round_.input, show, [round_], said, of_round)
        _on(refresh.click, lambda user_id, at: show(user_id, at, fresh=True), [round_], said, of_round)
        tasks.wire(desk, round_, said)
        people.wire(desk, people_tab, said)
        trail.wire(desk, audit_tab, said)
    return page


def _on(
    trigger: Any,
    act: Callable[..., Sequence[Any]],
    inputs: list[Any],
    said: Any,
    outputs: list[Any],
    *,
    with_site: bool = False,
) -> None:
    """Call ``act(user id, inputs)`` on an event; it gives a sentence to say and the outputs' values.

    What is refused is said, and everything stays as it was. ``with_site`` puts the address under which the browser
    knows the site after the user's id; the guard has seen to it that it is ours.
    """

    def event(request: gr.Request, *given: Any) -> tuple[Any, ...]:
        try:
            site = [str(request.headers.get("origin", ""))] if with_site else []
            text, *values = act(int(request.username or 0), *site, *given)
        except PipelineError as error:
            refused = f"{error.what}. {error.advice}" if error.advice else error.what
            return notice(refused, good=False), *(gr.skip() for _ in outputs)
        return notice(text), *values

    trigger(event, inputs, [said, *outputs], **_PRIVATE)


def _chosen(value: Any) -> int:
    """An id that comes from the browser.

    Raises:
        StoreError: it is none.
    """
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 16:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise StoreError("nothing is chosen")
    return int(value)


def _choice(choices: Sequence[Any], **options: Any) -> gr.Dropdown:
    """A dropdown whose choices come from the store.

    The desk says what may be chosen: Gradio's memory of the choices is lost when the program starts again.
    """
    made = gr.Dropdown(list(choices), **options)
    made.preprocess = lambda payload: payload  # type: ignore[method-assign]
    return made


def _html(id_: str) -> gr.Markdown:
    """A place for our own HTML, in which every foreign text is escaped; nothing in it is formatted again."""
    return gr.Markdown("", elem_id=f"desk-{id_}", sanitize_html=False, latex_delimiters=[])


def _title(name: str, leads: bool) -> str:
    html = Markup('<div><h1>Results</h1><p>{} · {} · <a href="/">judge</a></p></div>')
    return block(html.format(shown(name), "may decide and change" if leads else "may read"))


def _round_label(terms: Round) -> str:
    return f"{terms.number} · {terms.name}"


def _sheets(seen: Snapshot) -> tuple[str, ...]:
    return (
        quality_views.overview(seen.report),
        quality_views.agreement(seen.report),
        quality_views.annotators(seen.report),
        record_views.exports(seen.terms.id),
    )


class _Tasks:
    """Tasks one by one: those people disagree on first; admins decide them or make them known questions."""

    def __init__(self) -> None:
        with gr.Row():
            self.kind = _choice([(name, kind) for kind, name in KINDS.items()], value="disagree", label="Show",
                                elem_id="task-kind", filterable=False)  # fmt: skip
            self.pick = _choice(
                [],
                label="Task (choose it, or type its number and press Tab)",
                elem_id="task-pick",
                allow_custom_value=True,
            )
        self.sheet = _html("task")
        with gr.Column(visible=False, elem_id="decisions") as self.decisions:
            with gr.Column(visible=False, elem_id="about-decision") as self.about:
                self.reason = gr.Textbox(
                    label="Reason (kept with the decision)", lines=2, max_length=2000, elem_id="reason"
                )
                self.known = gr.Checkbox(label="Also ask it as a question whose answer is known", elem_id="as-known")
            with gr.Row():
                self.buttons = [
                    gr.Button(f"Response {n} is best", elem_id=f"decide-{n}", visible=False)
                    for n in range(1, MOST_RESPONSES + 1)
                ]
                self.tie = gr.Button("Tie", elem_id="decide-tie", visible=False)
                self.bad = gr.Button("None is good", elem_id="decide-bad", visible=False)
            self.forget = gr.Button("Judge it like the others again", elem_id="forget-known", visible=False)
        self.shown = [self.sheet, self.about, *self.buttons, self.tie, self.bad, self.forget]

    def listed(self, desk: Desk, user_id: int, round_id: int, kind: str, task_id: int | None = None) -> tuple[Any, ...]:
        """The list of a kind, and the chosen task of it, or else its first."""
        found = desk.listed(user_id, round_id, kind)  # type: ignore[arg-type]  # an unknown kind lists all
        seen = desk.look(user_id, round_id)
        splits = {d.task_id: d for d in seen.report.disagreements}
        right = {task.id: right_of(task, seen.rows.get(task.id, ())) for task in found if task.gold}
        ids = [task.id for task in found]
        chosen = task_id if task_id in ids else ids[0] if ids else None
        choices = [(record_views.task_label(task, splits.get(task.id), right.get(task.id)), task.id) for task in found]
        none = (
            "Nothing to decide: no undecided task on which people disagree."
            if kind == "disagree"
            else "There is no such task."
        )
        return gr.update(choices=choices, value=chosen), *self.view(desk, user_id, round_id, chosen, none)

    def view(self, desk: Desk, user_id: int, round_id: int, task_id: int | None, none: str) -> tuple[Any, ...]:
        """A task and what decides it, or a sentence where there is ``none``."""
        if task_id is None:
            empty = Markup('<div class="sheet"><p class="empty">{}</p></div>').format(none)
            return block(empty), *(gr.update(visible=False) for _ in self.shown[1:])
        task, rows = desk.task(user_id, round_id, _chosen(task_id))
        count = len(task.responses)
        return (
            record_views.task_sheet(task, rows),
            gr.update(visible=True),
            *(gr.update(visible=n < count) for n in range(MOST_RESPONSES)),
            gr.update(visible=True),
            gr.update(visible=True),
            gr.update(visible=task.gold is not None),
        )

    def wire(self, desk: Desk, round_: Any, said: Any) -> None:
        """What happens on which event."""

        def choose_kind(user_id: int, round_id: int, kind: str) -> tuple[Any, ...]:
            return "", *self.listed(desk, user_id, _chosen(round_id), kind)

        def choose_task(user_id: int, round_id: int, task_id: int) -> tuple[Any, ...]:
            return "", *self.view(desk, user_id, _chosen(round_id), task_id, "Choose a task.")

        def decide(choice: Choice, place: int | None) -> Callable[..., tuple[Any, ...]]:
            def act(user_id: int, round_id: int, kind: str, task_id: int, reason: str, known: bool) -> tuple[Any, ...]:
                desk.decide(user_id, _chosen(round_id), _chosen(task_id), choice, place, reason or "")
                if known:
                    desk.set_known_answer(user_id, _chosen(round_id), _chosen(task_id), choice, place, reason or "")
                text = f"Task {task_id} is decided{' and asked as a known question' if known else ''}."
                keep = None if kind == "disagree" else _chosen(task_id)
                return text, "", False, *self.listed(desk, user_id, round_id, kind, keep)

            return act

        def forget(user_id: int, round_id: int, kind: str, task_id: int) -> tuple[Any, ...]:
            desk.set_known_answer(user_id, _chosen(round_id), _chosen(task_id), None)
            return f"Task {task_id} is judged like the others again.", *self.listed(
                desk, user_id, round_id, kind, _chosen(task_id)
            )

        given, changed = [round_, self.kind, self.pick], [self.pick, *self.shown]
        _on(self.kind.input, choose_kind, [round_, self.kind], said, changed)
        _on(self.pick.input, choose_task, [round_, self.pick], said, self.shown)
        choices: list[tuple[gr.Button, Choice, int | None]] = [(self.tie, "tie", None), (self.bad, "all_bad", None)]
        choices += [(button, "response", place) for place, button in enumerate(self.buttons)]
        for button, choice, place in choices:
            outputs = [self.reason, self.known, *changed]
            _on(button.click, decide(choice, place), [*given, self.reason, self.known], said, outputs)
        _on(self.forget.click, forget, given, said, changed)


class _People:
    """Everybody; invitations; roles, blocking and sessions."""

    def __init__(self) -> None:
        self.sheet = _html("people")
        with gr.Row():
            self.role = gr.Dropdown(list(ROLES), value="annotator", label="Invite a person as", elem_id="invite-role",
                                    filterable=False)  # fmt: skip
            self.days = gr.Number(7, label="Good for days", precision=0, minimum=1, maximum=90, elem_id="invite-days")
            self.invite = gr.Button("Make an invitation", elem_id="invite", variant="primary")
        self.link = _html("invitation")
        with gr.Row():
            self.pick = _choice([], value=None, label="Person", elem_id="person")
            self.change = _choice(list(CHANGES), value=None, label="Change", elem_id="person-change", filterable=False)
            self.apply = gr.Button("Apply", elem_id="person-apply")
            self.sign_out = gr.Button("Sign out everywhere", elem_id="person-sign-out")
            self.link_for = gr.Button("Link for a new password", elem_id="person-link")

    def wire(self, desk: Desk, tab: Any, said: Any) -> None:
        """What happens on which event."""

        def everybody(user_id: int) -> tuple[Any, ...]:
            people = desk.people(user_id)
            choices = [(p.name, p.id) for p in people if p.role in ROLES]
            return record_views.people(people), gr.update(choices=choices)

        def invite(user_id: int, site: str, role: str, days: float | None) -> tuple[Any, ...]:
            path = desk.invite(user_id, role, int(days or 0))
            return "", record_views.invitation(f"{site}{path}", int(days or 0)), *everybody(user_id)

        def link_for(user_id: int, site: str, person_id: int | None, days: float | None) -> tuple[Any, ...]:
            path = desk.invite_known(user_id, _chosen(person_id), int(days or 0))
            return "", record_views.invitation(f"{site}{path}", int(days or 0)), *everybody(user_id)

        def act(user_id: int, person_id: int | None, change: str | None) -> tuple[Any, ...]:
            if person_id is None or not change:
                return "Choose a person and what is to change.", *everybody(user_id)
            return desk.change(user_id, _chosen(person_id), change), *everybody(user_id)

        shown_ = [self.sheet, self.pick]
        _on(tab.select, lambda user_id: ("", "", *everybody(user_id)), [], said, [self.link, *shown_])
        _on(self.invite.click, invite, [self.role, self.days], said, [self.link, *shown_], with_site=True)
        _on(self.link_for.click, link_for, [self.pick, self.days], said, [self.link, *shown_], with_site=True)
        _on(self.apply.click, act, [self.pick, self.change], said, shown_)
        _on(self.sign_out.click, lambda user_id, who: act(user_id, who, "sign out"), [self.pick], said, shown_)


class _Trail:
    """The audit trail, a hundred rows at a time."""

    def __init__(self) -> None:
        self.sheet = _html("trail")
        self.oldest = gr.Number(visible=False)
        self.older = gr.Button("Older", elem_id="trail-older")

    def wire(self, desk: Desk, tab: Any, said: Any) -> None:
        """What happens on which event."""

        def look(user_id: int, before: float | None = None) -> tuple[Any, ...]:
            events = desk.events(user_id, int(before) if before else None)
            if not events:
                return "There is nothing older.", gr.skip(), gr.skip()
            return "", record_views.audit(events), events[-1].id

        _on(tab.select, lambda user_id: look(user_id), [], said, [self.sheet, self.oldest])
        _on(self.older.click, look, [self.oldest], said, [self.sheet, self.oldest])
