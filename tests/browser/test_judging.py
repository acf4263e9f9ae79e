"""People judge in a real browser; what they press is in the store, once, and in the stage's preferences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_pipeline.records import Message, Preference, Prompt, read_jsonl
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Form, NewResponse, NewTask
from stages import collect
from stages.collect import Config
from tests.browser.conftest import Site
from tests.browser.rounds import READY, TOO_SOON_MS, good, make_round, press, sent, task_of, texts_of
from tests.stages.test_collect import job, response_set, run_folder

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_two_people_judge_by_keyboard_and_the_stage_exports_it(serve: Callable[..., Site], tmp_path: Path) -> None:
    sets = [response_set(i, f"good {i}", f"bad {i}") for i in range(24)]
    folder = run_folder(tmp_path, sets)
    round_id = collect.open_for_people(job(folder, Config()).settings, folder)
    site = serve(JudgementStore.open(folder / "judgements.db"), round_id)
    ann, bob = site.page("Ann"), site.page("Bob")
    for page in (ann, bob):
        page.wait_for_selector(READY)
    for number in range(11):
        for page in (ann, bob):
            if number == 2:
                press(page, "t")
            elif number == 4:
                press(page, "s")
            elif number == 6:  # a slip, taken back and judged again
                at, slip = task_of(page), "2" if good(page) == "1" else "1"
                press(page, slip)
                press(page, "u")
                assert task_of(page) == at
                press(page, good(page))
            else:
                press(page, good(page) if number % 2 else {"1": "a", "2": "b"}[good(page)])
    for page in (ann, bob):
        sent(page)
    rows = site.store.judgements(round_id)
    counts = Counter((row.user, row.choice) for row in rows)
    assert counts == {(n, c): k for n in ("Ann", "Bob") for c, k in (("response", 9), ("tie", 1), ("skip", 1))}
    judged = [row for row in rows if row.choice != "skip"]
    assert len({row.task_id for row in judged}) == len(judged)  # what one skipped, the other may have judged
    texts = {r.id: r.text for t in site.store.tasks(round_id) for r in t.responses}
    assert all(texts[row.response_id].startswith("good") for row in rows if row.response_id)
    assert [row.revision for row in rows if row.revision > 1] == [3, 3]
    assert all(row.active_ms is not None for row in rows)
    for page in (ann, bob):
        while task_of(page):
            press(page, "3")
            sent(page)
    for page in (ann, bob):
        sent(page)
    metrics = collect.run(job(folder, Config()))
    assert (metrics["judgements"], metrics["annotators"], metrics["ties"]) == (24, 2, 6)
    exported = [Preference.from_json(row) for row in read_jsonl(folder / "collect.partial" / "preferences.jsonl")]
    decided = [p for p in exported if not p.tie]
    assert (len(decided), len(exported)) == (18, 24)
    assert all(p.chosen.startswith("good") and p.rejected.startswith("bad") for p in decided)


def test_buttons_do_what_the_keys_do(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 5))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    for button in ("#pick-a", "#pick-b", "#pick-tie", "#skip", "#undo"):
        before = task_of(page)
        page.wait_for_timeout(TOO_SOON_MS)
        page.click(button)
        page.wait_for_function("before => document.body.dataset.task !== before", arg=before)
    sent(page)
    rows = site.store.judgements(site.round_id)
    assert [row.choice for row in rows] == ["response", "response", "tie"]
    page.wait_for_selector("text=3 of 5 done · 3 by you")
    assert rows[0].response_id == rows[0].left_id
    assert rows[1].response_id != rows[1].left_id
    assert "secret" not in page.content()


SECOND_PRESS = """() => {
  window.presses = 0;
  window.addEventListener("keydown", () => (window.presses += 1));
  const second = new KeyboardEvent("keydown", { key: "1", code: "Digit1", bubbles: true });
  window.addEventListener("keyup", () => document.body.dispatchEvent(second), { once: true });
}"""
"""Presses 1 again as soon as it is let go of: a second call from here comes late where the machine is busy."""


def test_a_double_press_and_a_held_key_are_one_judgement(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 5))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    page.wait_for_timeout(TOO_SOON_MS)
    page.evaluate(SECOND_PRESS)
    page.keyboard.press("1")
    page.wait_for_timeout(TOO_SOON_MS)
    assert page.evaluate("window.presses") == 2
    page.keyboard.down("2")
    for _ in range(5):
        page.keyboard.down("2")  # what a held key sends
    page.keyboard.up("2")
    sent(page)
    assert len(site.store.judgements(site.round_id)) == 2


def test_what_the_server_did_not_confirm_survives_a_reload(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 6))
    page = site.page("Ann")
    page.on("dialog", lambda dialog: dialog.accept())
    page.wait_for_selector(READY)
    page.route("**/api/v1/judgements", lambda route: route.abort())
    judged = []
    for _ in range(2):
        judged.append(task_of(page))
        press(page, good(page))
    page.wait_for_selector("text=2 waiting to be sent (offline)")
    assert site.store.judgements(site.round_id) == []
    page.reload()
    page.wait_for_selector("body[data-waiting='2']")
    page.unroute("**/api/v1/judgements")
    sent(page)
    page.wait_for_selector(READY)
    assert task_of(page) not in judged
    assert sorted(str(row.assignment_id) for row in site.store.judgements(site.round_id)) == sorted(judged)


def test_judging_goes_on_without_network(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 6))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    page.context.set_offline(True)
    for key in ("1", "u", "2", "3", "s"):
        press(page, key)
    page.wait_for_selector("text=5 waiting to be sent")
    page.context.set_offline(False)
    sent(page)
    assert [row.choice for row in site.store.judgements(site.round_id)] == ["response", "tie", "skip"]


def test_a_lost_confirmation_is_no_second_judgement(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 4))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    lost = []

    def lose_the_first(route: Any) -> None:
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch().status)
            route.abort()

    page.route("**/api/v1/judgements", lose_the_first)
    press(page, "1")
    page.wait_for_selector("text=1 waiting to be sent")
    sent(page)
    assert lost == [200]
    assert [row.revision for row in site.store.judgements(site.round_id)] == [1]


def test_what_the_server_refuses_is_said_and_does_not_stop_the_rest(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 4))
    page = site.page("Ann")
    page.wait_for_selector(READY)

    def spoil_the_first(route: Any) -> None:
        body = route.request.post_data_json
        spoilt = json.dumps(body | {"choice": "neither"}) if body["choice"] == "response" else None
        route.continue_(post_data=spoilt)

    page.route("**/api/v1/judgements", spoil_the_first)
    press(page, "1")
    press(page, "3")
    sent(page)
    page.wait_for_selector("text=A is better was refused")
    assert [row.choice for row in site.store.judgements(site.round_id)] == ["tie"]


def test_two_tabs_of_one_person_judge_a_pair_once(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 4))
    first = site.page("Ann")
    first.wait_for_selector(READY)
    second = site.page("Ann", context=first.context)
    second.wait_for_selector(READY)
    at = task_of(first)
    assert task_of(second) == at
    press(first, "1")
    second.wait_for_function("at => document.body.dataset.task !== at", arg=at)
    press(second, "2")
    sent(first)
    sent(second)
    assert [row.revision for row in site.store.judgements(site.round_id)] == [1, 1]


def test_undo_after_a_reload_brings_the_last_pair_back(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 4))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    at = task_of(page)
    press(page, "1")
    sent(page)
    page.reload()
    page.wait_for_selector(READY)
    press(page, "Backspace")
    assert task_of(page) == at
    sent(page)
    assert site.store.judgements(site.round_id) == []


def test_the_page_works_without_the_script(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 4))
    page = site.page("Ann", before=lambda page: page.route("**/app/judge.js", lambda route: route.abort()))
    status = page.locator("#plain-status textarea")

    def says(text: str) -> None:
        page.wait_for_function(
            "text => document.querySelector('#plain-status textarea')?.value.includes(text)", arg=text
        )

    says("by you")
    page.wait_for_function("document.querySelector('#plain-guidelines textarea')?.value === 'Choose **well**.'")
    shown = page.locator("#plain-a textarea").input_value()
    for number, button in enumerate(("#pick-a", "#pick-tie", "#skip"), 1):
        page.click(button)
        says(f"{number} by you")
    page.click("#undo")
    says("Taken back")
    page.click("#pick-b")
    says("3 by you")
    page.click("#pick-a")
    says("everything is judged")
    rows = site.store.judgements(site.round_id)
    texts = {r.id: r.text for t in site.store.tasks(site.round_id) for r in t.responses}
    assert Counter(row.choice for row in rows) == {"response": 3, "tie": 1}
    assert texts[rows[0].response_id or 0] == shown
    assert "Thank you" in status.input_value()


def test_a_right_to_left_text_reads_from_the_right_and_a_phone_shows_all(
    serve: Callable[..., Site], tmp_path: Path
) -> None:
    site = serve(*make_round(tmp_path, [("سلام دنیا. " * 30, "Hello world. " * 30)]))
    page = site.page("علی", context=site.context(viewport={"width": 390, "height": 844}))
    page.wait_for_selector(READY)
    directions = page.evaluate(
        "[...document.querySelectorAll('#responses .text p')].map(e => [e.innerText[0], getComputedStyle(e).direction])"
    )
    assert sorted(directions) == [["H", "ltr"], ["س", "rtl"]]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    box = page.locator("#pick-a").bounding_box()
    assert box["y"] + box["height"] <= 844


@pytest.mark.parametrize("form", [Form(all_bad=True), Form(all_bad=True, strength=True, rules=("r",))])
def test_both_sides_are_as_wide_in_every_language_and_all_labels_fit(
    serve: Callable[..., Site], tmp_path: Path, form: Form
) -> None:
    """A button that is easier to hit is chosen more often."""
    site = serve(*make_round(tmp_path, 1, form=form))
    page = site.page("Ann", context=site.context(viewport={"width": 390, "height": 844}))
    page.wait_for_selector(READY)
    for code in ("en", "es", "fa", "ru"):
        page.click("#menu summary")
        page.select_option("#language", code)
        page.wait_for_selector(f"html[lang={code}] #menu:not([open])")
        for width, drawer in ((390, False), (800, False), (1100, True), (1280, False)):
            page.set_viewport_size({"width": width, "height": 844})
            if drawer:
                page.keyboard.press("g")
            found = page.evaluate(
                "[...document.querySelectorAll('#choices > button:not([hidden], .unused)')].filter(e => e.offsetWidth)"
                ".map(e => [e.id, e.getBoundingClientRect().width, e.scrollWidth > e.clientWidth])"
            )
            if drawer:
                page.keyboard.press("g")
            sides = [size for id_, size, _ in found if id_.startswith(("pick-a", "pick-b")) and id_ != "pick-bad"]
            assert len(sides) == (6 if form.strength else 2)
            assert max(sides) - min(sides) < 1, (code, width, found)
            assert not [id_ for id_, _, spilt in found if spilt], (code, width, found)


def test_tasks_that_could_not_be_loaded_are_asked_for_again(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 2))
    asked: list[str] = []

    def fail(route: Any) -> None:
        asked.append(route.request.url)
        route.fulfill(status=200, body="<html>") if len(asked) == 1 else route.abort()

    page = site.page("Ann", before=lambda page: page.route("**/api/v1/tasks/next", fail))
    for why in ("the server has a problem", "offline"):  # a proxy's page instead of ours, no answer at all
        page.wait_for_selector(f"#status:has-text('{why}')")
        assert "could not be loaded" in page.inner_text("#done")
        assert page.locator("#choices > button:visible").evaluate_all("all => all.map(e => e.id)") == ["undo"]
        assert page.inner_text("h1") == "Compare responses"
        assert page.inner_text("#bar .count") == ""
    page.unroute("**/api/v1/tasks/next")
    page.wait_for_selector(READY)
    assert page.inner_text("#bar .count").startswith("0 of 2 done")
    assert page.is_visible("#pick-a")


def test_signing_in_as_another_person_on_one_computer_mixes_nothing_up(
    serve: Callable[..., Site], tmp_path: Path
) -> None:
    site = serve(*make_round(tmp_path, 10))
    page = site.page("Ann")
    page.on("dialog", lambda dialog: dialog.accept())
    page.wait_for_selector(READY)
    page.route("**/api/v1/judgements", lambda route: route.abort())
    press(page, "1")
    page.click("#menu summary")
    page.click("#sign-out")
    page.fill("#name", "Bob")
    page.unroute("**/api/v1/judgements")
    page.click("button")
    page.wait_for_selector(READY)
    press(page, "2")
    sent(page)
    assert [row.user for row in site.store.judgements(site.round_id)] == ["Bob"]
    boxes = page.evaluate("Object.entries(localStorage).filter(([k]) => k.startsWith('rlhf-outbox-'))")
    assert sorted(len(json.loads(value)) for _, value in boxes) == [0, 1]


def test_a_response_that_was_cut_off_says_so_where_it_ends(serve: Callable[..., Site], tmp_path: Path) -> None:
    store = JudgementStore.open(tmp_path / "judgements.db")
    round_id = store.open_round("cut", overlap=1, seed=0, source_digest="cut", lease_seconds=60)
    responses = (NewResponse("It ends.", "eos"), NewResponse("It stops in", "length"))
    store.add_tasks(round_id, [NewTask(Prompt((Message("user", "How?"),)), responses)])
    page = serve(store, round_id).page("Ann")
    page.wait_for_selector(READY)
    texts = sorted(texts_of(page))
    assert texts[0] == "It ends."
    assert texts[1].split("\n")[0] == "It stops in"
    assert "cut off here" in texts[1]
    page.keyboard.press("x")
    assert "cut off here" in sorted(texts_of(page))[1]
