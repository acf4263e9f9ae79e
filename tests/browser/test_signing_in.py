"""Accounts in a real browser: invited, signed in, refused; and programs with a token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_pipeline.store import passwords
from tests.browser.conftest import Site
from tests.browser.rounds import READY, make_round, press, sent

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WORDS = "four words in a row"


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    from argon2 import PasswordHasher

    monkeypatch.setattr(passwords, "hasher", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


def test_invited_then_judging_then_signing_in_again(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 4), accounts=True)
    token = site.store.people.invite("annotator", by=None)
    page = site.blank(context=site.context(locale="es-ES"))
    page.goto(f"{site.url}invite/{token}")
    page.fill("#name", "Ana")
    page.fill("#password", "corta")
    page.click("button")
    page.wait_for_selector("text=La contraseña debe tener de 10 a 200 caracteres.")
    assert page.input_value("#name") == "Ana"
    page.fill("#password", WORDS)
    page.click("button")
    page.wait_for_selector(READY)
    press(page, "1")
    sent(page)
    page.click("#menu summary")
    page.click("text=Cambiar contraseña")
    page.fill("#old", WORDS)
    page.fill("#new", f"{WORDS} and one more")
    page.click("button")
    page.click("text=Volver a valorar")  # still signed in
    page.wait_for_selector(READY)
    page.click("#menu summary")
    page.click("#sign-out")
    page.wait_for_url("**/login")
    page.fill("#name", "ana")
    page.fill("#password", WORDS)
    page.click("button")
    page.wait_for_selector("text=El nombre y la contraseña no coinciden.")
    page.fill("#password", f"{WORDS} and one more")
    page.click("button")
    page.wait_for_selector(READY)
    assert [row.user for row in site.store.judgements(site.round_id)] == ["Ana"]
    again = site.blank()
    again.goto(f"{site.url}invite/{token}")
    again.wait_for_selector("text=This invitation has been used")
    assert again.locator("input").count() == 0


def test_each_role_sees_its_own(serve: Callable[..., Site], tmp_path: Path) -> None:
    store, round_id = make_round(tmp_path, 4)
    for name, role in (("Ann", "annotator"), ("Rea", "reader"), ("Ada", "admin")):
        store.people.set_password(store.user(name, role), WORDS)
    site = serve(store, round_id, accounts=True)
    ann = site.page("Ann", password=WORDS)
    ann.wait_for_selector(READY)
    ann.click("#menu summary")
    assert ann.locator("#menu a[href='/admin/']").count() == 0
    assert ann.goto(f"{site.url}admin/").status == 403
    rea = site.page("Rea", password=WORDS)
    assert rea.url == f"{site.url}admin/"  # there is nothing for a reader to judge
    assert rea.evaluate("fetch('/api/v1/history').then((answer) => answer.status)") == 403
    ada = site.page("Ada", password=WORDS)
    ada.wait_for_selector(READY)
    ada.click("#menu summary")
    ada.click("#menu a[href='/admin/']")
    ada.wait_for_url("**/admin/")
    assert ada.evaluate("fetch('/api/v1/rounds').then((answer) => answer.status)") == 200


def test_a_blocked_person_keeps_what_was_judged_in_the_browser(serve: Callable[..., Site], tmp_path: Path) -> None:
    store, round_id = make_round(tmp_path, 6)
    ann = store.user("Ann")
    store.people.set_password(ann, WORDS)
    site = serve(store, round_id, accounts=True)
    page = site.page("Ann", password=WORDS)
    page.on("dialog", lambda dialog: dialog.accept())
    page.wait_for_selector(READY)
    press(page, "1")
    sent(page)
    store.people.block(ann)
    page.wait_for_timeout(1100)  # a session is looked up once a second
    press(page, "2")
    page.wait_for_selector("text=1 waiting to be sent (signed out)")
    store.people.unblock(ann)
    page.click("text=Sign in again")
    page.fill("#name", "Ann")
    page.fill("#password", WORDS)
    page.click("button")
    page.wait_for_selector(READY)
    sent(page)
    assert [row.revision for row in store.judgements(round_id)] == [1, 1]


def test_a_program_judges_with_a_token(serve: Callable[..., Site], tmp_path: Path) -> None:
    import httpx

    store, round_id = make_round(tmp_path, 4)
    ann = store.user("Ann")
    site = serve(store, round_id, accounts=True)
    headers = {"authorization": f"Bearer {store.people.make_api_token(ann, 'judge')}"}
    with httpx.Client(base_url=site.url, headers=headers) as program:
        [task, *_] = program.post("/api/v1/tasks/next", json={"n": 1}).json()["tasks"]
        said = {"client_token": "a-program-1", "assignment": task["assignment"], "choice": "tie"}
        assert program.post("/api/v1/judgements", json=said).json()["progress"]["mine"] == 1
        assert program.get("/api/v1/rounds").status_code == 403
        assert program.get("/").status_code == 303  # a token opens the API, no page
    assert httpx.get(f"{site.url}api/v1/me", headers={"authorization": "Bearer rlhf_guess"}).status_code == 401
    assert [row.choice for row in store.judgements(round_id)] == ["tie"]
