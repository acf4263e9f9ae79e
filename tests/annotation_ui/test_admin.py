"""The admin page's events and HTML without a browser: every event asks who is calling, and every text is text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from starlette.testclient import TestClient

from annotation_ui.admin import HEAD, admin_page
from annotation_ui.app import build, local_door
from annotation_ui.fragments import block, lasting, notice, table, when
from annotation_ui.quality_views import agreement, annotators, overview
from annotation_ui.record_views import audit, exports, invitation, people, said, task_label, task_sheet
from rlhf_pipeline.exchange.export import EXPORT_FORMATS
from rlhf_pipeline.quality import QualityReport, quality_report, round_quality
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.people import Person
from rlhf_pipeline.store.records import (
    Event,
    Form,
    Gold,
    JudgementRow,
    Progress,
    Round,
    StoredResponse,
    TaskRow,
)  # fmt: skip
from tests.annotation_ui.planted_store import PEOPLE

BAD = "<img src=x onerror=alert(1)></div>\n\n**bold** ${alert(1)} {{value}} $$x$$ \u202eevil <script>alert(1)</script>"


@dataclass
class Caller:
    """What an event learns of who is calling."""

    username: str
    headers: dict[str, str] = field(default_factory=lambda: {"origin": "https://judge.example"})


def events(page: gr.Blocks) -> dict[str, Any]:
    """Every event of the page by what sets it off."""
    found = {}
    for fn in page.fns.values():
        for block_id, trigger in fn.targets:
            component = page.blocks.get(block_id, page)
            name = getattr(component, "elem_id", None) or getattr(component, "label", None) or "page"
            found[f"{name}.{trigger}"] = fn
    return found


LEADS = re.compile(r"^(decide|forget|invite|person|trail)|^(People|Audit trail)\.")


def test_there_are_as_many_events_as_thought(planted: tuple[JudgementStore, int]) -> None:
    names = set(events(admin_page(planted[0])))
    assert len(names) == 24
    assert len([n for n in names if LEADS.match(n)]) == 19
    assert {n for n in names if not LEADS.match(n)} == {
        "page.load", "round.input", "refresh.click", "task-kind.input", "task-pick.input",
    }  # fmt: skip


FIT: dict[str, list[Any]] = {
    "task-pick.input": [1, 1],
    "invite.click": ["admin", 7.0],
    "person-apply.click": [1, "admin"],
    "person-sign-out.click": [1],
    "person-link.click": [1, 7.0],
}
"""Inputs of events that do not take a round, a kind and a task."""


@pytest.mark.parametrize("role", ["annotator", "simulated", "reader", "nobody"])
def test_every_event_refuses_those_who_may_not(planted: tuple[JudgementStore, int], role: str) -> None:
    store, round_id = planted
    who = store.people.add("somebody", role) if role != "nobody" else 10_000
    before = store.events(limit=1)
    for name, fn in events(admin_page(store)).items():
        if role == "reader" and not LEADS.match(name):
            continue
        given = FIT.get(name, [round_id, "all", 1, "because", True])
        first, *rest = fn.fn(Caller(str(who)), *given[: len(fn.inputs)])
        assert 'class="notice bad"' in first, name
        assert len(rest) == len(fn.outputs) - 1
        assert all(
            isinstance(value, dict) and value.get("__type__") == "update" and len(value) == 1 for value in rest
        ), name
    assert store.events(limit=1) == before


def test_events_are_direct_and_hidden(planted: tuple[JudgementStore, int]) -> None:
    for name, fn in events(admin_page(planted[0])).items():
        assert not fn.queue, name
        assert fn.api_visibility == "private", name


@pytest.mark.parametrize("role", ["admin", "reader"])
def test_arriving_fills_the_page(planted: tuple[JudgementStore, int], role: str) -> None:
    store, _ = planted
    who = store.people.add("Ida", role)
    fn = events(admin_page(store))["page.load"]
    values = fn.fn(Caller(str(who)))
    assert len(values) == len(fn.outputs)
    shown = dict(zip([c.elem_id or c.label for c in fn.outputs], values, strict=True))
    for name in PEOPLE:
        assert f"<bdi>{name}</bdi>" in shown["desk-annotators"]
    assert "Krippendorff" in shown["desk-agreement"]
    assert "<svg" in shown["desk-overview"]
    assert "Response 1" in shown["desk-task"]
    assert shown["People"]["visible"] is shown["Audit trail"]["visible"] is (role == "admin")
    assert shown["decisions"]["visible"] is (role == "admin")
    assert shown["round"]["visible"] is False, "one round needs no choice"


def test_deciding_moves_on_to_the_next_task(planted: tuple[JudgementStore, int]) -> None:
    store, round_id = planted
    who = Caller(str(store.people.add("Ida", "admin")))
    known = events(admin_page(store))
    fn = known["task-kind.input"]
    first = fn.fn(who, round_id, "disagree")[1]["value"]
    fn = known["decide-2.click"]
    values = fn.fn(who, round_id, "disagree", first, "clear", True)
    shown = dict(zip([c.elem_id for c in fn.outputs], values, strict=True))
    assert f"Task {first} is decided and asked as a known question." in shown["desk-said"]
    assert shown["task-pick"]["value"] not in (first, None)
    assert (shown["reason"], shown["as-known"]) == ("", False)
    [task] = [t for t in store.tasks(round_id) if t.id == first]
    assert task.gold == Gold("response", task.responses[1].id, "clear")
    [row] = [r for r in store.judgements(round_id) if r.purpose == "adjudicate"]
    assert (row.task_id, row.response_id, row.comment) == (first, task.responses[1].id, "clear")


@pytest.mark.parametrize("task", [None, "one", "", "9" * 20, 1.5, True, [1], 999])
def test_a_task_that_is_none_is_refused_in_words(planted: tuple[JudgementStore, int], task: Any) -> None:
    store, round_id = planted
    who = Caller(str(store.people.add("Ida", "admin")))
    said_, *_ = events(admin_page(store))["decide-1.click"].fn(who, round_id, "all", task, "", False)
    assert 'class="notice bad"' in said_


def test_an_invitation_is_shown_once(planted: tuple[JudgementStore, int]) -> None:
    store, _ = planted
    who = Caller(str(store.people.add("Ida", "admin")))
    known = events(admin_page(store))
    shown = known["invite.click"].fn(who, "reader", 7.0)[1]
    token = re.search(r">https://judge\.example/invite/([\w-]+)<", shown).group(1)  # type: ignore[union-attr]
    assert store.people.invited(token).role == "reader"  # type: ignore[union-attr]
    assert token not in "".join(map(str, known["People.select"].fn(who)))


def test_somebody_known_by_name_alone_is_sent_a_link(planted: tuple[JudgementStore, int]) -> None:
    store, _ = planted
    who = Caller(str(store.people.add("Ida", "admin")))
    ann = store.user("Ann")
    shown = events(admin_page(store))["person-link.click"].fn(who, ann, 2.0)[1]
    token = re.search(r">https://judge\.example/invite/([\w-]+)<", shown).group(1)  # type: ignore[union-attr]
    made = store.people.accept_invite(token, "", "a long enough password")
    assert (made.id, made.name) == (ann, "Ann")


def test_the_trail_goes_back_page_by_page(planted: tuple[JudgementStore, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("annotation_ui.desk.MOST_EVENTS", 20)
    store, _ = planted
    who = Caller(str(store.people.add("Ida", "admin")))
    older = events(admin_page(store))["trail-older.click"].fn
    _, first, oldest = events(admin_page(store))["Audit trail.select"].fn(who)
    _, second, older_still = older(who, oldest)
    assert first != second
    assert older_still < oldest
    assert "There is nothing older." in older(who, 1.0)[0]


def test_no_round_yet(tmp_path: Path) -> None:
    store = JudgementStore.open(tmp_path / "empty.db")
    who = Caller(str(store.people.add("Ida", "admin")))
    fn = events(admin_page(store))["page.load"]
    values = fn.fn(who)
    assert len(values) == len(fn.outputs)
    assert "There is no round yet" in values[1]
    store.close()


def hostile_rows() -> tuple[Round, list[TaskRow], list[JudgementRow]]:
    form = Form(rules=(BAD,), comment=True, flags=(BAD,), correction=True)
    task = TaskRow(
        1, "d", Prompt((Message("user", BAD),)), (StoredResponse(1, BAD, None, ""), StoredResponse(2, "b", None, "")),
        2, 2, "open", {}, gold=Gold("response", 1, BAD),
    )  # fmt: skip
    rows = [
        JudgementRow(
            id=n, assignment_id=n, task_id=1, user_id=n, user=f"{BAD} {n}", choice="response", response_id=n, left_id=1,
            probability=None, margin=None, revision=1, late=True, received_at=1000 * n, active_ms=1, shown_order=(1, 2),
            rules={1: (BAD,), 2: ()}, ratings={1: {BAD: 3}}, flags=(BAD,), comment=BAD, corrected_id=2, correction=BAD,
        )
        for n in (1, 2)
    ]  # fmt: skip
    return Round(1, 1, BAD, "d", 2, 60, form), [task], rows


def hostile_pages() -> dict[str, str]:
    terms, tasks, rows = hostile_rows()
    progress = Progress(1, 0, 300, 100, 2, 0, 0, {})
    report = quality_report(terms, tasks, rows, progress, now=100_000)
    person = Person(1, BAD, "annotator", "active", True, None, 0, None)
    return {
        "overview": overview(report),
        "agreement": agreement(report),
        "annotators": annotators(report),
        "task": task_sheet(tasks[0], rows),
        "people": people([person]),
        "audit": audit([Event(1, 0, 1, BAD, "add", "user", 1, {BAD: BAD})]),
        "notice": notice(BAD, good=False),
    }


@pytest.mark.parametrize("name", hostile_pages())
def test_hostile_text_stays_text(name: str) -> None:
    page = hostile_pages()[name]
    assert "<img" not in page
    assert "<script" not in page
    assert "\n" not in page, "a blank line would end the block of HTML, and what follows would be Markdown"
    assert "\u202e" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page or name in ("overview", "agreement")
    assert page.startswith("<div")
    assert page.count("<div") == page.count("</div>")


def test_the_report_in_words(planted: tuple[JudgementStore, int]) -> None:
    report: QualityReport = round_quality(planted[0], planted[1])
    text = overview(report)
    done = report.progress.wanted - report.progress.remaining
    assert f"{done} of {report.progress.wanted} judgements" in text
    alpha = next(m.estimate for m in report.measures if m.name == "Krippendorff's α")
    assert f"<strong>{alpha.value:.2f}</strong>" in text
    assert "forecast" in text
    [lou] = [a for a in report.annotators if a.user == "Lou"]
    assert lou.notes
    assert lou.notes[0] in text


def test_an_answer_in_words() -> None:
    _, [task], [row, _] = hostile_rows()
    assert said(task, replace(row, response_id=2, strength=3)) == "Response 2, much better"
    assert said(task, replace(row, choice="tie", response_id=None)) == "Tie"
    assert said(task, replace(row, choice="ranking", response_id=None, ranking=((2,), (1,)))) == "2 > 1"
    assert said(task, replace(row, choice="ranking", response_id=None, ranking=((2, 1),))) == "2 = 1"


def test_times_in_words() -> None:
    assert when(0) == "1 Jan 1970, 00:00 UTC"
    assert when(None) == "never"
    assert [lasting(ms) for ms in (5_000, 60_000, 89 * 60_000, 90 * 60_000, 35 * 3_600_000, 37 * 3_600_000)] == [
        "less than a minute", "1 minute", "89 minutes", "2 hours", "35 hours", "2 days",
    ]  # fmt: skip


def test_every_format_has_a_link() -> None:
    page = exports(7)
    for name in EXPORT_FORMATS:
        assert f'href="/api/v1/rounds/7/export?format={name}"' in page


def test_small_pieces() -> None:
    assert notice("") == ""
    assert 'role="alert"' in notice("x", good=False)
    assert 'role="status"' in notice("x")
    assert block(table(("a",), [("b\nc",)])).count("&#10;") == 1
    assert ">https://a.b/invite/tok<" in invitation("https://a.b/invite/tok", 7)
    _, [task], _ = hostile_rows()
    assert len(task_label(task, None)) < 80
    assert "@media (prefers-color-scheme: dark)" in HEAD


def test_on_this_computer_an_admin_made_on_the_command_line_comes_in_by_name(
    planted: tuple[JudgementStore, int],
) -> None:
    store, round_id = planted
    ann = store.user("Ann")
    store.people.set_role(ann, "admin", by=None)
    here = "http://127.0.0.1:7860"
    client = TestClient(build(store, round_id, local_door(7860)).guard, base_url=here, follow_redirects=False)
    assert client.post("/login", data={"name": "ann"}, headers={"origin": here}).status_code == 303
    assert client.get("/api/v1/me").json()["role"] == "admin"
    assert client.get("/admin/").status_code == 200
    store.people.accept_invite(store.people.invite("admin", by=None), "Lea", "a long enough password")
    other = TestClient(client.app, base_url=here, follow_redirects=False)
    assert other.post("/login", data={"name": "ann"}, headers={"origin": here}).status_code != 303
