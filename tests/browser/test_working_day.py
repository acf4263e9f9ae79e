"""What a day of judging brings: thirty tasks by keyboard, drafts, looking back, leases, two people, other languages."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store.records import Form, NewResponse, NewTask
from tests.browser.conftest import Site
from tests.browser.rounds import PAIR, READY, TOO_SOON_MS, make_round, press, sent, task_of, texts_by_id, texts_of

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_thirty_tasks_by_keyboard_only(serve: Callable[..., Site], tmp_path: Path) -> None:
    """From the sign-in page to the last task without the mouse; where something has the focus, one sees it."""
    site = serve(*make_round(tmp_path, 30))
    page = site.blank()
    page.goto(site.url)
    page.keyboard.type("Ann")  # the field has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector(READY)
    expected = []
    for number in range(30):
        at, shown = task_of(page), texts_of(page)
        if number % 10 == 3:
            for key in ("g", "Escape", "h", "Escape", "x", "x", "?", "Escape"):
                page.keyboard.press(key)
            assert task_of(page) == at
        if number % 10 == 6:  # by Tab to a button, then Enter
            for _ in range(60):
                page.keyboard.press("Tab")
                focused = page.evaluate(
                    """() => { const e = document.activeElement;
                    const ring = (one) => one && !["none", ""].includes(getComputedStyle(one).outlineStyle);
                    return {id: e.id, seen: e === document.body || ring(e) || ring(e.closest("label"))} }"""
                )
                assert focused["seen"], focused
                if focused["id"] == "pick-b":
                    break
            press(page, "Enter")
            expected.append(shown[1])
        else:
            place = number % 2
            press(page, "12"[place] if number % 3 else "ab"[place])
            expected.append(shown[place])
    sent(page)
    page.wait_for_selector("text=30 of 30 done · 30 by you")
    assert "Nothing is left for you" in page.inner_text("#done")
    rows = site.store.judgements(site.round_id)
    texts = texts_by_id(site.store, site.round_id)
    assert [texts[row.response_id or 0] for row in rows] == expected
    assert all(row.keys_used for row in rows)


def test_keys_work_on_other_keyboards(serve: Callable[..., Site], tmp_path: Path) -> None:
    """On a Persian or Russian layout the key that is A in Latin is A, and ۱ is 1."""
    site = serve(*make_round(tmp_path, 4))
    page = site.page("Ann")
    page.wait_for_selector(READY)

    def type_key(key: str, code: str) -> None:
        before = task_of(page)
        page.wait_for_timeout(TOO_SOON_MS)
        page.evaluate(
            "([key, code]) => window.dispatchEvent(new KeyboardEvent('keydown', {key, code, bubbles: true}))",
            [key, code],
        )
        page.wait_for_function("before => document.body.dataset.task !== before", arg=before)

    shown = texts_of(page)
    type_key("ش", "KeyA")
    type_key("۲", "Digit2")
    type_key("е", "KeyT")
    sent(page)
    rows = site.store.judgements(site.round_id)
    assert [row.choice for row in rows] == ["response", "response", "tie"]
    assert texts_by_id(site.store, site.round_id)[rows[0].response_id or 0] == shown[0]
    assert rows[1].response_id != rows[1].left_id


def test_a_draft_survives_a_reload_and_another_browser(serve: Callable[..., Site], tmp_path: Path) -> None:
    form = Form(kind="ranking", comment=True, flags=("private",))
    site = serve(*make_round(tmp_path, [[f"{letter} {i}" for letter in "abcd"] for i in range(6)], form=form))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    at = task_of(page)
    page.keyboard.press("2")
    page.keyboard.press("=")
    page.keyboard.press("4")
    with page.expect_response("**/api/v1/drafts"):
        page.fill("#comment", "half a thought")
    page.reload()
    page.wait_for_selector(READY)
    other = site.page("Ann")  # a browser of its own: only the server can tell it
    other.wait_for_selector(READY)
    for one in (page, other):
        assert task_of(one) == at
        assert one.locator("#line .chip").all_inner_texts() == ["B", "D"]
        assert one.locator("#line .even").count() == 1
        assert one.input_value("#comment") == "half a thought"
    press(page, "1", "3", "Enter")
    sent(page)
    page.reload()
    page.wait_for_selector(READY)
    assert task_of(page) != at
    assert page.input_value("#comment") == ""
    [row] = site.store.judgements(site.round_id)
    assert row.comment == "half a thought"


def test_undo_brings_what_was_entered_back(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 3, form=Form(comment=True)))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    at = task_of(page)
    page.keyboard.press("c")
    page.keyboard.type("long")
    page.keyboard.press("Control+Enter")  # nothing is chosen yet
    page.wait_for_selector("text=Still missing: your choice")
    page.fill("#comment", "long and careful")
    page.keyboard.press("Escape")
    assert page.is_hidden("#submit")
    press(page, "2")
    press(page, "u")
    assert task_of(page) == at
    assert page.input_value("#comment") == "long and careful"
    assert page.get_attribute("#pick-b", "aria-pressed") == "true"
    press(page, "Enter")  # as it was
    press(page, "u")
    press(page, "1")
    sent(page)
    [row] = site.store.judgements(site.round_id)
    assert (row.response_id, row.comment) == (row.left_id, "long and careful")


def test_judging_goes_on_where_the_browser_keeps_nothing(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 5, form=Form(comment=True)))
    page = site.blank()
    page.add_init_script("Storage.prototype.setItem = () => { throw new Error('full') }")
    page.add_init_script("localStorage.__proto__.getItem = () => '{spoilt'")
    page.goto(site.url)
    page.fill("#name", "Ann")
    page.click("button")
    page.wait_for_selector(READY)
    page.context.set_offline(True)
    press(page, "1")
    page.fill("#comment", "kept")
    page.keyboard.press("Escape")
    press(page, "2")
    page.wait_for_selector("text=2 waiting to be sent")
    page.context.set_offline(False)
    sent(page)
    assert [row.comment for row in site.store.judgements(site.round_id)] == [None, "kept"]


def test_looking_back_and_changing_an_answer(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 6))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    first = task_of(page)
    shown = texts_of(page)
    for key in ("1", "3", "s"):
        press(page, key)
    sent(page)
    now = task_of(page)
    page.keyboard.press("h")
    page.wait_for_selector(".past >> nth=2")
    assert page.locator(".past .said").all_inner_texts() == ["Skipped", "Tie", "A is better"]
    judged = page.locator(".past >> nth=2")
    assert judged.locator("li").all_inner_texts() == [f"A\n{shown[0]}", f"B\n{shown[1]}"]  # recognised by its words
    assert judged.locator("li.best").all_inner_texts() == [f"A\n{shown[0]}"]
    page.click(f"#revise-{first}")
    assert task_of(page) == first
    assert page.get_attribute("#pick-a", "aria-pressed") == "true"
    page.keyboard.press("Escape")  # closes the drawer …
    page.keyboard.press("Escape")  # … and leaves the answer as it was
    assert task_of(page) == now
    page.keyboard.press("h")
    page.click(f"#revise-{first}")
    page.wait_for_timeout(TOO_SOON_MS)
    page.keyboard.press("2")
    page.wait_for_selector(".past .said:has-text('B is better')")
    assert task_of(page) == now
    rows = site.store.judgements(site.round_id)
    texts = texts_by_id(site.store, site.round_id)
    changed = next(row for row in rows if str(row.assignment_id) == first)
    assert (changed.revision, texts[changed.response_id or 0]) == (2, shown[1])
    page.wait_for_selector("text=3 of 6 done · 3 by you")


def test_an_answer_that_can_no_longer_be_changed_offers_no_change(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 3, edit_minutes=0))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    press(page, "1")
    sent(page)
    page.keyboard.press("h")
    page.wait_for_selector("text=can no longer be changed")
    assert page.locator("[id^=revise-]").count() == 0
    at = task_of(page)
    page.keyboard.press("u")  # what the server refuses is said, and judging goes on where it was
    page.wait_for_selector("text=Undo was refused")
    assert task_of(page) == at
    [row] = site.store.judgements(site.round_id)
    assert row.choice == "response"


def test_guidelines_beside_the_task_are_the_newest(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 5))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    page.keyboard.press("g")
    page.wait_for_selector("#drawer strong:has-text('well')")
    press(page, "1")  # judging goes on beside them
    page.keyboard.press("g")
    site.store.set_guidelines(site.round_id, "Choose **briefly**.")
    page.wait_for_timeout(1000)  # the server asks the store for others' doings once a second
    press(page, "1")
    page.wait_for_selector("#open-guidelines.new")
    page.keyboard.press("g")
    page.wait_for_selector("#drawer strong:has-text('briefly')")
    page.wait_for_selector("#open-guidelines:not(.new)")
    box = page.locator("#drawer").bounding_box()
    for beside in ("#responses", "#choices"):
        at = page.locator(beside).bounding_box()
        assert at["x"] + at["width"] <= box["x"]
    assert page.locator("#bar").bounding_box()["height"] <= 60  # and the bar is one line as before


def test_leaving_gives_the_tasks_back_but_for_the_one_that_was_begun(
    serve: Callable[..., Site], tmp_path: Path
) -> None:
    site = serve(*make_round(tmp_path, 4, form=Form(comment=True)))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    assert site.store.progress(site.round_id).leased == 4
    tab = site.page("Ann", context=page.context)
    tab.wait_for_selector(READY)
    tab.close()
    assert site.store.progress(site.round_id).leased == 4  # the other tab still shows them
    page.fill("#comment", "begun")
    with page.expect_response("**/api/v1/drafts"):
        pass
    page.goto("about:blank")
    for _ in range(50):
        if site.store.progress(site.round_id).leased == 1:
            break
        page.wait_for_timeout(100)
    assert site.store.progress(site.round_id).leased == 1
    bob = site.page("Bob")
    bob.wait_for_selector(READY)
    assert site.store.progress(site.round_id).leased == 4


def test_leases_are_renewed_each_minute(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 4))
    page = site.blank(before=lambda page: page.clock.install())
    page.goto(site.url)
    page.fill("#name", "Ann")
    page.click("button")
    page.clock.run_for(1000)
    page.wait_for_selector(READY)
    until = site.store.assignment(int(task_of(page))).lease_until  # type: ignore[union-attr]
    with page.expect_response("**/api/v1/leases/renew"):
        page.clock.fast_forward(61_000)
    assert site.store.assignment(int(task_of(page))).lease_until > until  # type: ignore[union-attr]


def test_work_on_a_task_that_meanwhile_went_to_others_is_kept(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 4))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    later = round(time.time() * 1000) + 700_000
    taken = site.store.lease(site.round_id, site.store.user("Bob"), 4, now=later)  # Ann's leases have run out by then
    assert len(taken) == 4
    press(page, "1")
    sent(page)
    page.wait_for_selector("#status:has-text('saved')")
    [row] = site.store.judgements(site.round_id)
    assert (row.user, row.choice) == ("Ann", "response")
    assert site.store.progress(site.round_id).leased >= 3  # Bob keeps his


def test_a_long_conversation_begins_at_its_last_turn(serve: Callable[..., Site], tmp_path: Path) -> None:
    store, round_id = make_round(tmp_path, 0)
    turns = [Message("system", "Be brief.")]
    turns += [Message(("user", "assistant")[n % 2], f"turn {n}\n\n$x_{n}$") for n in range(31)]
    store.add_tasks(round_id, [NewTask(Prompt(tuple(turns)), (NewResponse("one"), NewResponse("two")))])
    page = serve(store, round_id).page("Ann")
    page.wait_for_selector(READY)
    assert page.locator(".turn").count() == 32
    assert page.locator(".turn .who").all_inner_texts()[:3] == ["System", "User", "Assistant"]
    assert page.locator(".turn math").count() == 31
    box, last = page.locator("#prompt").bounding_box(), page.locator(".turn").last.bounding_box()
    assert box["y"] <= last["y"]
    assert last["y"] + last["height"] <= box["y"] + box["height"] + 1
    assert page.locator("#pick-a").bounding_box()["y"] < 860  # and the buttons are on the screen


def test_two_people_at_once_never_get_one_task(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 10))
    pages = [site.page(name) for name in ("Ann", "Bob")]
    for page in pages:
        page.wait_for_selector(READY)
    for _ in range(12):
        for page in pages:
            if task_of(page):
                press(page, "1")
    for page in pages:
        sent(page)
        page.wait_for_selector("text=10 of 10 done", timeout=25_000)
    rows = site.store.judgements(site.round_id)
    assert sorted(row.task_id for row in rows) == sorted(task.id for task in site.store.tasks(site.round_id))
    assert {row.user for row in rows} == {"Ann", "Bob"}


def test_the_page_speaks_four_languages_and_changes_without_losing_anything(
    serve: Callable[..., Site], tmp_path: Path
) -> None:
    site = serve(*make_round(tmp_path, 4, form=Form(comment=True, strength=True)))
    page = site.page("مینا", context=site.context(locale="fa-IR"))
    page.wait_for_selector(READY)
    assert page.get_attribute("html", "dir") == "rtl"
    page.wait_for_selector("h1:has-text('کدام پاسخ بهتر است؟')")
    first, second = (page.locator(f"#responses article >> nth={n}").bounding_box()["x"] for n in (0, 1))
    assert first > second  # the first response stands on the right
    page.fill("#comment", "نیمه‌کاره")
    for code, title, direction in (
        ("ru", "Какой ответ лучше?", "ltr"),
        ("es", "¿Qué respuesta es mejor?", "ltr"),
        ("fa", "کدام پاسخ بهتر است؟", "rtl"),
        ("en", "Which response is better?", "ltr"),
    ):
        page.click("#menu summary")
        page.select_option("#language", code)
        page.wait_for_selector(f"h1:has-text('{title}')")
        assert page.evaluate("[document.documentElement.lang, document.documentElement.dir]") == [code, direction]
        assert page.input_value("#comment") == "نیمه‌کاره"
    assert page.get_attribute("#menu", "open") is None
    page.click("#menu summary")
    page.focus("#language")
    for code in ("es", "en"):  # by the arrow keys of a closed list the way to another language leads through this one
        page.keyboard.press("ArrowDown" if code == "es" else "ArrowUp")
        page.wait_for_selector(f"html[lang={code}] #menu[open]")
        assert page.evaluate("document.activeElement.id") == "language"
    page.keyboard.press("Escape")
    page.click("#menu summary")
    page.select_option("#language", "ru")
    page.wait_for_selector("h1:has-text('Какой ответ лучше?')")
    page.keyboard.press("x")  # the keys are the page's again
    page.wait_for_selector("#raw[aria-pressed=true]")
    page.click("#menu summary")
    page.select_option("#language", "en")
    page.wait_for_selector("h1:has-text('Which response is better?')")
    page.reload()
    page.wait_for_selector("h1:has-text('Which response is better?')")


def test_colours_follow_the_system_until_they_are_chosen(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 2))
    page = site.page("Ann", context=site.context(color_scheme="dark"))
    page.wait_for_selector(READY)

    def light() -> bool:
        background: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(background.removeprefix("rgb(").split(",")[0]) > 128

    assert not light()
    page.click("#menu summary")
    page.select_option("#colours", "light")
    assert light()
    page.reload()
    page.wait_for_selector(READY)
    assert light()
    page.goto(f"{site.url}login")
    page.wait_for_selector("#name")
    assert light()


def test_a_picture_of_motion_is_still_where_that_is_wished(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 2, form=PAIR))
    page: Any = site.page("Ann", context=site.context(reduced_motion="reduce"))
    page.wait_for_selector(READY)
    assert page.evaluate("getComputedStyle(document.getElementById('raw')).transitionDuration") in ("0s", "")
