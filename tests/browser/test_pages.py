"""Every page and state: no serious fault by axe-core in light and dark, and hostile texts do nothing anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from annotation_ui.render import visible
from rlhf_pipeline.store.records import Form
from tests.annotation_ui.hostile import HOSTILE
from tests.browser.conftest import Site
from tests.browser.rounds import READY, make_round, press, sent
from tests.browser.test_answering import QUESTIONS

pytestmark = [pytest.mark.browser, pytest.mark.slow]

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text(encoding="utf-8")


def faults_in_both(page: Any) -> list[str]:
    """What axe-core finds, in light and in dark."""
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found += [f"{scheme}: {fault}" for fault in faults(page)]
    return found


def faults(page: Any) -> list[str]:
    """What axe-core finds, but for remarks on best practice."""
    page.wait_for_timeout(200)  # colours begin to fade in
    while page.evaluate("document.getAnimations().some(one => one.playState === 'running')"):
        page.wait_for_timeout(50)
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(AXE)
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = page.evaluate("tags => axe.run(document, {runOnly: tags})", tags)
    return [f"{v['id']} ({v['impact']}): {v['nodes'][0]['html'][:200]}" for v in found["violations"]]


def test_axe_finds_nothing_on_the_judging_page(serve: Callable[..., Site], tmp_path: Path) -> None:
    text = "# Title\n\n- one\n- `two`\n\n```py\nx = 1\n```\n\n| a | b |\n|---|---|\n| $x^2$ | 2 |\n\n> quoted"
    site = serve(*make_round(tmp_path, [(f"{text} {i}", f"other {i}") for i in range(3)], form=QUESTIONS))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    assert faults_in_both(page) == []
    for key in ("1", "1", "2", "e", "Escape", "Enter"):  # chosen, partly answered, correcting, something missing
        page.keyboard.press(key)
    assert faults_in_both(page) == []
    page.keyboard.press("Escape")
    for opened in ("g", "h", "?"):
        page.keyboard.press(opened)
        page.wait_for_timeout(200)
        assert faults_in_both(page) == []
        page.keyboard.press("Escape")
    page.click("#menu summary")
    assert faults_in_both(page) == []
    page.keyboard.press("Escape")
    for _ in range(3):
        press(page, "s")
    page.wait_for_selector("#screen.empty")
    assert faults_in_both(page) == []


def test_axe_finds_nothing_on_the_other_pages(serve: Callable[..., Site], tmp_path: Path) -> None:
    form = Form(kind="ranking", all_bad=True, flags=("private",))
    site = serve(*make_round(tmp_path, [("one", "two", "three", "سلام")], form=form), accounts=False)
    page = site.blank(context=site.context(locale="fa"))
    page.goto(f"{site.url}login")
    assert faults_in_both(page) == []
    page.fill("#name", "x" * 3 + "\u202e")
    page.click("button")
    page.wait_for_selector(".error:not(:empty)")
    assert faults_in_both(page) == []
    token = site.store.people.invite("annotator", by=None)
    page.goto(f"{site.url}invite/{token}")
    assert faults_in_both(page) == []
    page.goto(site.url)
    page.fill("#name", "مینا")
    page.click("button")
    page.wait_for_selector(READY)
    for key in ("2", "=", "1"):
        page.keyboard.press(key)
    assert faults_in_both(page) == []
    page.goto(f"{site.url}password")
    assert faults_in_both(page) == []


@pytest.mark.parametrize("scripted", [True, False])
def test_hostile_texts_are_shown_and_do_nothing(serve: Callable[..., Site], tmp_path: Path, scripted: bool) -> None:
    """In the conversation, in responses, as Markdown and as exact text, in the list of past answers."""
    per_task = 8
    texts = list(dict.fromkeys(HOSTILE))
    tasks = [texts[at : at + per_task] for at in range(0, len(texts), per_task)]
    tasks[-1] = [*tasks[-1], "harmless"]
    form = Form(kind="ranking", comment=True)
    store, round_id = make_round(tmp_path, tasks, form=form, prompts=[group[0] for group in tasks])
    store.set_guidelines(round_id, "\n\n".join(text for text in texts if "\ud800" not in text))
    site = serve(store, round_id)

    def watch(page: Any) -> None:
        page.on("dialog", lambda dialog: site.errors.append(dialog.message))
        if not scripted:
            page.route("**/app/judge.js", lambda route: route.abort())

    page = site.page("Ann", before=watch)
    for number, group in enumerate(tasks, 1):
        wanted = sorted(visible(text) for text in group)
        if scripted:
            page.wait_for_selector(READY)
            page.keyboard.press("x")
            shown = page.locator("#responses section > .text.raw").evaluate_all("all => all.map(e => e.textContent)")
            assert sorted(shown) == wanted
            assert page.locator("#prompt .text.raw").evaluate("e => e.textContent") == visible(group[0])
            page.keyboard.press("x")
            assert page.locator("#judge :is(img, iframe, script, form[action^=http], style, link)").count() == 0
            press(page, "s")
        else:
            page.wait_for_function(
                "n => [...document.querySelectorAll('[id^=plain-] textarea')].filter(e => e.value).length > n", arg=2
            )
            shown = page.locator(
                "[id^=plain-]:not(#plain-status, #plain-prompt, #plain-guidelines) textarea"
            ).evaluate_all("all => all.map(e => e.value).filter(Boolean)")
            assert sorted(shown) == wanted
            page.click("#skip")
            page.wait_for_function(
                "n => document.querySelector('#plain-status textarea').value.match(`${n} by you|everything`)",
                arg=number,
            )
        assert page.evaluate("window.pwned") is None
    if scripted:
        sent(page)
        page.keyboard.press("h")
        page.wait_for_selector(".past")
        page.keyboard.press("g")
        page.wait_for_selector("#drawer .text")
        assert page.locator("#drawer :is(img, iframe, script, form, style, link)").count() == 0
    assert page.evaluate("window.pwned") is None
    assert page.url == site.url
