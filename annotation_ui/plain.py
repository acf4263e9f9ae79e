"""The Gradio page: the frame and the buttons that the script fills, and fields that work where no script runs.

Without the script each button is a Gradio event that calls the same functions as the API. What a form asks beside the
choice is then asked by Gradio's own components.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any

import gradio as gr

from annotation_ui import languages
from annotation_ui.protocol import JudgementIn, UndoIn
from annotation_ui.render import visible
from annotation_ui.session import Judging, parse
from rlhf_pipeline.errors import PipelineError
from rlhf_pipeline.store.records import Form

LETTERS = "ABCDEFGHI"
HEAD = '<link rel="stylesheet" href="/app/page.css"><script type="module" src="/app/judge.js"></script>'
SIDES = [*(("a", 0, s) for s in (3, 2, 1)), ("a", 0, None), ("b", 1, None), *(("b", 1, s) for s in (1, 2, 3))]

T = gr.I18n(**{code: dict(languages.words(code)) for code in languages.languages()})


def theme() -> gr.themes.Base:
    """Fonts of the computer, quiet colours."""
    system = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=system, font_mono=mono)


def judging_page(judging: Judging) -> gr.Blocks:
    """The page of one round."""
    form = judging.store.round(judging.round_id).form
    words = languages.words(languages.DEFAULT)
    page: gr.Blocks = gr.Blocks(title=words["title.page"], analytics_enabled=False)
    with page, gr.Column(elem_id="judge"):
        held = gr.Textbox(visible=False)
        with gr.Column(elem_classes="plain"):
            status = gr.Textbox(label=T("plain.status"), interactive=False, elem_id="plain-status")
            prompt = gr.Textbox(label=T("conversation"), interactive=False, lines=4, elem_id="plain-prompt")
            fields = _Fields(form)
            guidelines = gr.Textbox(label=T("drawer.guidelines"), interactive=False, elem_id="plain-guidelines")
        with gr.Row(elem_id="choices"):
            buttons = _buttons(form)
            skip = gr.Button(T("choose.skip"), elem_id="skip")
            undo = gr.Button(T("choose.undo"), elem_id="undo")
        shown = [held, status, prompt, *fields.shown]
        # Gradio says of an event whose progress is shown that it is "common.complete".
        private: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        for payload, button in [*buttons, ({"choice": "skip"}, skip)]:
            button.click(_on_choice(judging, fields, payload), [held, *fields.asked], shown, **private)
        undo.click(_on_undo(judging, fields), None, shown, **private)
        page.load(_on_load(judging, fields), None, shown, **private)
        page.load(lambda: visible(judging.store.guidelines(judging.round_id)), None, guidelines, **private)
    return page


def _buttons(form: Form) -> list[tuple[dict[str, Any], gr.Button]]:
    """Every choice that any form has, so that the script finds it; those that this form has not are not seen."""
    made: list[tuple[dict[str, Any], gr.Button]] = []

    def add(id_: str, label: Any, payload: dict[str, Any], used: bool) -> None:
        made.append((payload, gr.Button(label, elem_id=id_, elem_classes=[] if used else ["unused"])))

    words = languages.words(languages.DEFAULT)
    pair = form.kind == "pair"
    for side, place, strength in SIDES:
        key = f"choose.strength{strength}" if strength else "choose.better"
        label = words[key].replace("{letter}", LETTERS[place])
        payload = {"choice": "response", "place": place, "strength": strength}
        add(f"pick-{side}{strength or ''}", label, payload, pair and form.strength == bool(strength))
        # Tab goes through the buttons as they stand on the screen: a tie between two strengths, or after both sides.
        if (side, strength) == (("a", None) if form.strength else ("b", 3)):
            add("pick-tie", T("choose.tie"), {"choice": "tie"}, pair and form.tie)
    add("pick-bad", T("choose.both_bad" if pair else "choose.all_bad"), {"choice": "all_bad"}, form.all_bad)
    add("submit", T("choose.submit"), {"choice": "ranking"}, not pair)
    return made


class _Fields:
    """The responses, and what the form asks about them, as Gradio components.

    ``shown`` are filled with every task; ``asked`` are read with every answer and emptied afterwards.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self.places = 2 if form.kind == "pair" else len(LETTERS)
        self.texts: list[gr.Textbox] = []
        self.asked: list[Any] = []
        words = languages.words(languages.DEFAULT)
        with gr.Row():
            for letter in LETTERS[: self.places]:
                with gr.Column(min_width=320):
                    id_ = f"plain-{letter.lower()}"
                    self.texts.append(gr.Textbox(label=letter, interactive=False, lines=10, elem_id=id_))
                    self._ask_of_each(letter, words)
        if form.kind == "ranking":
            self.asked.append(gr.Textbox(label=T("plain.order"), elem_id="plain-order"))
        if form.correction:
            self.asked.append(gr.Radio(list(LETTERS[: self.places]), label=T("plain.correct"), elem_id="plain-which"))
            self.asked.append(gr.Textbox(label=T("plain.correction"), lines=4, elem_id="plain-correction"))
        if form.comment:
            self.asked.append(gr.Textbox(label=T("comment.label"), lines=2, elem_id="plain-comment"))
        if form.flags:
            self.asked.append(gr.CheckboxGroup(list(form.flags), label=T("flag.legend"), elem_id="plain-flags"))

    def _ask_of_each(self, letter: str, words: dict[str, str]) -> None:
        form, low = self.form, letter.lower()
        if form.rules:
            label = words["plain.rules"].replace("{letter}", letter)
            self.asked.append(gr.CheckboxGroup(list(form.rules), label=label, elem_id=f"plain-rules-{low}"))
        for number, attribute in enumerate(form.attributes):
            label = words["plain.rating"].replace("{letter}", letter).replace("{name}", attribute.name)
            points = list(range(1, attribute.points + 1))
            self.asked.append(gr.Radio(points, label=label, elem_id=f"plain-rating-{low}-{number}"))

    @property
    def shown(self) -> list[Any]:
        return [*self.texts, *self.asked]

    def show(self, responses: Sequence[dict[str, Any]]) -> list[Any]:
        """New values of ``shown``: the responses' exact texts, nothing answered."""
        cut = languages.words("en")["text.cut"]
        texts = [f"{r['text']}\n\n{cut}" if r["cut"] else r["text"] for r in responses]
        filled = [gr.update(value=t, visible=True) for t in texts]
        empty = [gr.update(value="", visible=False) for _ in range(self.places - len(texts))]
        return [*filled, *empty, *([] if isinstance(one, gr.CheckboxGroup) else None for one in self.asked)]

    def read(self, values: Sequence[Any], count: int) -> dict[str, Any]:
        """The part of an answer that was given in the fields, for a task of so many responses."""
        left = list(values)
        form, said = self.form, dict[str, Any]()
        rules, ratings = [], []
        for _ in range(self.places):
            if form.rules:
                rules.append(left.pop(0) or [])
            ratings.append({a.name: left.pop(0) for a in form.attributes})
        if form.rules:
            said["rules"] = rules[:count]
        if form.attributes:
            said["ratings"] = ratings[:count]
        if form.kind == "ranking":
            said["ranking"] = _order(left.pop(0) or "")
        if form.correction:
            which, text = left.pop(0), left.pop(0)
            said["correction"] = {"place": LETTERS.index(which), "text": text} if which and text else None
        if form.comment:
            said["comment"] = (left.pop(0) or "").strip() or None
        if form.flags:
            said["flags"] = left.pop(0) or []
        return said


def _order(text: str) -> list[list[int]]:
    """``B > A = C`` as groups of places."""
    groups = [re.findall(r"[A-I]", part) for part in text.upper().split(">")]
    return [[LETTERS.index(letter) for letter in group] for group in groups]


def _caller(request: gr.Request) -> int:
    """Who is signed in: the guard has seen to it that somebody is."""
    return int(request.username or 0)


def _on_load(judging: Judging, fields: _Fields) -> Any:
    def load(request: gr.Request) -> list[Any]:
        return _view(fields, judging.next(_caller(request), 1))

    return load


def _on_choice(judging: Judging, fields: _Fields, payload: dict[str, Any]) -> Any:
    def choose(request: gr.Request, held: str, *values: Any) -> list[Any]:  # Gradio fills in the request by its place
        user_id = _caller(request)
        words = languages.words(languages.DEFAULT)
        assignment, _, rest = (held or "").partition(":")
        count, _, token = rest.partition(":")
        if not assignment.isdigit():
            return _view(fields, judging.next(user_id, 1))
        said = fields.read(values, int(count))
        if payload["choice"] == "skip":
            said = {name: said[name] for name in ("comment", "flags") if name in said}
        elif payload["choice"] != "ranking":
            said.pop("ranking", None)
        answer = {"assignment": int(assignment), "client_token": token, **said, **payload}
        try:
            return _view(fields, judging.submit(user_id, parse(JudgementIn, answer)), words["plain.kept"])
        except PipelineError as error:
            refused = words["plain.refused"].replace("{why}", error.what)
            return [gr.skip(), refused, *(gr.skip() for _ in range(1 + len(fields.shown)))]

    return choose


def _on_undo(judging: Judging, fields: _Fields) -> Any:
    def take_back(request: gr.Request) -> list[Any]:
        user_id = _caller(request)
        words = languages.words(languages.DEFAULT)
        undone = judging.undo(user_id, UndoIn(client_token=f"plain-{secrets.token_hex(8)}"))
        if undone["task"] is None:
            return _view(fields, judging.next(user_id, 1), words["plain.nothing"])
        return _view(fields, {"tasks": [undone["task"]], "progress": undone["progress"]}, words["plain.taken_back"])

    return take_back


def _view(fields: _Fields, answer: dict[str, Any], said: str = "") -> list[Any]:
    """What the page without the script shows of the first task: exact text in fields that do nothing."""
    words = languages.words(languages.DEFAULT)
    if not answer["tasks"]:
        return ["", f"{said} {words['done.all']}".strip(), "", *fields.show([])]
    counts = words["plain.counts"]
    for name in ("done", "wanted", "mine"):
        counts = counts.replace(f"{{{name}}}", str(answer["progress"][name]))
    task = answer["tasks"][0]
    talk = "\n\n".join(f"{m['role']}: {m['text']}" for m in task["prompt"])
    token = f"{task['assignment']}:{len(task['responses'])}:plain-{secrets.token_hex(8)}"
    return [token, f"{said} {counts}".strip(), talk, *fields.show(task["responses"])]
