"""The admin page in a real browser: what it shows, deciding, inviting, whom it lets in; axe-core and hostile texts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from annotation_ui.render import visible
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore, passwords
from rlhf_pipeline.store.records import Answer, Form, Gold, NewResponse, NewTask
from tests.annotation_ui.hostile import HOSTILE
from tests.annotation_ui.planted_store import PEOPLE
from tests.browser.conftest import Site
from tests.browser.rounds import make_round
from tests.browser.test_pages import faults

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WORDS = "four words in a row"
TABS = ("Overview", "Agreement", "Annotators", "Tasks", "Export", "People", "Audit trail")


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    from argon2 import PasswordHasher

    monkeypatch.setattr(passwords, "hasher", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


def account(store: JudgementStore, name: str, role: str) -> None:
    store.people.accept_invite(store.people.invite(role, by=None), name, WORDS)


def enter(site: Site, name: str, **options: Any) -> Any:
    """The admin page, signed in as somebody with an account."""
    page = site.page(name, password=WORDS, context=site.context(**options))
    page.wait_for_url(lambda url: not url.endswith("/login"))
    page.goto(f"{site.url}admin/")
    page.wait_for_selector("#desk-overview .tile")
    return page


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    page.wait_for_timeout(300)


@pytest.fixture
def site(serve: Callable[..., Site], planted_folder: tuple[Path, int], tmp_path: Path) -> Site:
    """A round half judged by people with known habits, and an account of each role."""
    folder, round_id = planted_folder
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    store = JudgementStore.open(tmp_path / "judgements.db")
    for name, role in (("Ida", "admin"), ("Rea", "reader"), ("Ann Account", "annotator")):
        account(store, name, role)
    return serve(store, round_id, accounts=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_on_any_tab(site: Site, scheme: str, width: int) -> None:
    page = enter(site, "Ida", color_scheme=scheme, viewport={"width": width, "height": 860})
    for name in TABS if width == 1280 else TABS[:2]:
        tab(page, name)
        assert faults(page) == [], name


def test_an_admin_reads_decides_and_moves_on(site: Site) -> None:
    page = enter(site, "Ida")
    assert "Krippendorff" in page.inner_text("#desk-overview")
    assert page.locator("#desk-overview svg polyline").count() >= 1
    tab(page, "Annotators")
    for name in PEOPLE:
        assert page.locator(f"#desk-annotators tbody th:has-text('{name}')").count() >= 1
    assert page.locator("#desk-annotators svg circle").count() >= len(PEOPLE)
    tab(page, "Tasks")
    first = page.input_value("#task-pick input")
    page.fill("#reason textarea", "It is <b>plain</b>.")
    page.click("#decide-1")
    page.wait_for_selector("#desk-said .notice.good")
    number = first.split(" ")[0]
    assert f"Task {number} is decided." in page.inner_text("#desk-said")
    assert page.input_value("#task-pick input") != first
    [row] = [r for r in site.store.judgements(site.round_id) if r.purpose == "adjudicate"]
    assert (row.task_id, row.user, row.comment) == (int(number), "Ida", "It is <b>plain</b>.")
    page.reload()
    page.wait_for_selector("#desk-overview .tile")
    tab(page, "Tasks")
    page.click("#task-kind input")
    page.get_by_role("option", name="Decided", exact=True).click()
    page.wait_for_selector("#desk-task .votes:has-text('decided')")
    assert "It is <b>plain</b>." in page.inner_text("#desk-task")
    known = next(t for t in site.store.tasks(site.round_id) if t.gold)
    page.fill("#task-pick input", str(known.id))
    page.keyboard.press("Tab")
    page.wait_for_selector("#desk-task :text('The answer is known')")
    page.click("#forget-known")
    page.wait_for_selector("#desk-said :text('judged like the others again')")
    [now] = [t for t in site.store.tasks(site.round_id) if t.id == known.id]
    assert now.gold is None


def test_where_nobody_disagrees_there_is_nothing_to_decide(serve: Callable[..., Site], tmp_path: Path) -> None:
    store, round_id = make_round(tmp_path, 2)
    account(store, "Ida", "admin")
    page = enter(serve(store, round_id, accounts=True), "Ida")
    tab(page, "Tasks")
    assert "Nothing to decide" in page.inner_text("#desk-task")
    controls = ("#reason", "#as-known", "#decide-1", "#decide-tie")
    assert not any(page.is_visible(control) for control in controls)
    page.click("#task-kind input")
    page.get_by_role("option", name="All tasks").click()
    page.wait_for_selector("#desk-task article")
    page.wait_for_selector("#reason")
    assert all(page.is_visible(control) for control in controls)


def test_an_invitation_lets_a_reader_in_who_changes_nothing(site: Site) -> None:
    page = enter(site, "Ida")
    tab(page, "People")
    page.click("#invite-role input")
    page.get_by_role("option", name="reader").click()
    page.click("#invite")
    link = page.inner_text("#desk-invitation code")
    guest = site.blank()
    guest.goto(link)
    guest.fill("#name", "Guest")
    guest.fill("#password", WORDS)
    guest.click("button")
    guest.wait_for_url("**/admin/")
    guest.wait_for_selector("#desk-overview .tile")
    assert guest.get_by_role("tab").all_inner_texts() == list(TABS[:5])
    tab(guest, "Tasks")
    guest.wait_for_selector("#desk-task article")
    assert not guest.is_visible("#decide-1")
    tab(page, "Overview")
    tab(page, "People")
    assert "Guest" in page.inner_text("#desk-people")


def test_a_person_is_blocked_and_out_at_once(site: Site) -> None:
    ann = site.page("Ann Account", password=WORDS)
    ann.wait_for_selector("#judge")
    page = enter(site, "Ida")
    tab(page, "People")
    page.click("#person input")
    page.get_by_role("option", name="Ann Account").click()
    page.click("#person-change input")
    page.get_by_role("option", name="block", exact=True).click()
    page.click("#person-apply")
    page.wait_for_selector("#desk-said :text('Ann Account is blocked.')")
    page.wait_for_timeout(1200)  # the gate believes a session for a second
    ann.reload()
    assert ann.url.endswith("/login")
    tab(page, "Audit trail")
    assert "block" in page.inner_text("#desk-trail")


def test_annotators_are_not_let_in(site: Site) -> None:
    page = site.page("Ann Account", password=WORDS)
    page.wait_for_selector("#judge")
    answer = page.goto(f"{site.url}admin/")
    assert page.locator("#desk").count() == 0
    assert answer.status in (403, 404)


def test_an_export_comes_as_a_file(site: Site) -> None:
    page = enter(site, "Rea")
    tab(page, "Export")
    with page.expect_download() as download:
        page.get_by_role("link", name="full", exact=True).click()
    assert Path(download.value.path()).read_text(encoding="utf-8").count("\n") >= 50


def test_hostile_texts_do_nothing_and_are_seen(serve: Callable[..., Site], tmp_path: Path) -> None:
    store = JudgementStore.open(tmp_path / "judgements.db")
    texts = [text for text in dict.fromkeys(HOSTILE) if len(text) < 5_000 and "\ud800" not in text and text.strip()]
    form = Form(comment=True, correction=True)
    round_id = store.open_round("<b>r</b>", overlap=2, seed=1, source_digest="d", lease_seconds=600, form=form)
    store.add_tasks(
        round_id,
        [NewTask(Prompt((Message("user", text),)), (NewResponse(text + " "), NewResponse("b"))) for text in texts],
    )
    people = [store.user(name) for name in ("<img src=x onerror=alert(1)>", "{{7*7}} ${alert(1)} $$x$$")]
    for n, person in enumerate(people):
        for _ in texts:
            [held] = store.lease(round_id, person, 1)
            chosen = held.responses[n].id
            text = held.prompt[-1].content
            store.submit(
                person,
                Answer(f"t{n}-{held.id}-token", held.id, "response", chosen, comment=text, corrected_id=chosen,
                       correction=text + "!"),
            )  # fmt: skip
    store.set_gold(1, Gold("tie", None, texts[0]))
    account(store, "Ida", "admin")
    site = serve(store, round_id, accounts=True)
    page = enter(site, "Ida")
    page.on("dialog", lambda dialog: site.errors.append(f"dialog: {dialog.message}"))
    for name in TABS:
        tab(page, name)
    tab(page, "Annotators")
    assert "<img src=x onerror=alert(1)>" in page.inner_text("#desk-annotators")
    assert "{{7*7}} ${alert(1)} $$x$$" in page.inner_text("#desk-annotators")
    tab(page, "Tasks")
    page.click("#task-kind input")
    page.get_by_role("option", name="All tasks").click()
    page.wait_for_timeout(500)
    for n in range(0, len(texts), 4):
        page.click("#task-pick input")
        page.locator("#task-pick [role=option]").nth(n).click()
        expected = squeezed(visible(texts[n]))[:40]
        for _ in range(100):
            remarks = squeezed(page.locator("#desk-task tbody tr").first.inner_text())
            if expected in remarks:
                break
            page.wait_for_timeout(50)
        assert page.locator("#desk-task form, #desk-task iframe, #desk-task img, #desk-task script").count() == 0
        assert expected in remarks
    assert page.evaluate("document.title") == "Judgements: results"


def squeezed(text: str) -> str:
    return "".join(text.split())
