"""Every route and role: who may ask for what is one table, and everything else is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from annotation_ui.app import build, local_door
from annotation_ui.guard import COOKIE, JUDGES, OPEN, READS, ROUTES, SIGNED_IN, Door, who_may
from rlhf_pipeline.store import JudgementStore, passwords
from tests.annotation_ui.conftest import fill

HERE = "http://127.0.0.1:7860"
SAME = {"origin": HERE}
WORDS = "four words in a row"
ROLES = ("admin", "annotator", "reader")
WHO = {OPEN: {None, *ROLES}, SIGNED_IN: set(ROLES), JUDGES: {"admin", "annotator"}, READS: {"admin", "reader"}}

TABLE = [
    ("GET", "/login", OPEN),
    ("POST", "/login", OPEN),
    ("GET", "/app/page.css", OPEN),
    ("GET", "/app/doorway.js", OPEN),
    ("GET", "/app/outbox.js", OPEN),
    ("GET", "/favicon.ico", OPEN),
    ("GET", "/invite/abcdefghijkl", OPEN),
    ("POST", "/invite/abcdefghijkl", OPEN),
    ("GET", "/password", SIGNED_IN),
    ("POST", "/password", SIGNED_IN),
    ("GET", "/manifest.json", OPEN),
    ("GET", "/app/judge.js", SIGNED_IN),
    ("GET", "/app/locales/fa.json", SIGNED_IN),
    ("GET", "/theme.css", SIGNED_IN),
    ("GET", "/api/v1/me", SIGNED_IN),
    ("GET", "/api/v1/openapi.json", SIGNED_IN),
    ("POST", "/api/v1/locale", SIGNED_IN),
    ("GET", "/", JUDGES),
    ("GET", "/config", JUDGES),
    ("GET", "/api/v1/progress", JUDGES),
    ("GET", "/api/v1/history", JUDGES),
    ("GET", "/api/v1/guidelines", JUDGES),
    ("POST", "/api/v1/tasks/next", JUDGES),
    ("POST", "/api/v1/judgements", JUDGES),
    ("POST", "/api/v1/undo", JUDGES),
    ("POST", "/api/v1/drafts", JUDGES),
    ("POST", "/api/v1/leases/renew", JUDGES),
    ("POST", "/api/v1/leases/release", JUDGES),
    ("POST", "/gradio_api/run/predict", JUDGES),
    ("GET", "/api/v1/rounds", READS),
    ("GET", "/api/v1/rounds/1/export", READS),
    ("GET", "/api/v1/rounds/1/quality", READS),
    ("GET", "/admin/", READS),
    ("GET", "/admin/config", READS),
    ("POST", "/admin/gradio_api/run/predict", READS),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgementStore]:
    opened = JudgementStore.open(tmp_path_factory.mktemp("rights") / "judgements.db")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def visit(store: JudgementStore) -> Iterator[Callable[..., TestClient]]:
    """A browser in which a person of a role (or nobody) is signed in."""
    from argon2 import PasswordHasher

    patch = pytest.MonkeyPatch()
    patch.setattr(passwords, "hasher", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    guard: Any = build(store, fill(store), local_door(7860, accounts=True)).guard
    for role in ROLES:
        store.people.set_password(store.user(role.title(), role), WORDS)

    def start(role: str | None, base_url: str = HERE) -> TestClient:
        guard._budgets.clear()
        client = TestClient(guard, base_url=base_url, follow_redirects=False)
        if role:
            signed_in = client.post("/login", data={"name": role, "password": WORDS}, headers=SAME)
            assert signed_in.status_code == 303
        return client

    yield start
    patch.undo()


def test_the_table_has_every_route() -> None:
    for method, pattern, who in ROUTES:
        assert any((m, w) == (method, who) and re.fullmatch(pattern, path) for m, path, w in TABLE), pattern
    for method, path, who in TABLE:
        assert who_may(method, path) == who, path


@pytest.mark.parametrize("role", [None, *ROLES])
def test_every_route_lets_in_those_it_is_for(visit: Callable[..., TestClient], role: str | None) -> None:
    client = visit(role)
    for method, path, who in TABLE:
        more: dict[str, Any] = {"headers": SAME, **({"json": {}} if method == "POST" else {})}
        status = client.request(method, path, **more).status_code
        if role in WHO[who]:
            # What a handler says of an empty body or an unknown token is its own business.
            assert status in {200, 204, 400, 404, 409, 422} | ({403} if path == "/login" else set()), (path, status)
        elif role is None:
            assert status == (303 if path in ("/", "/admin/", "/password") and method == "GET" else 401), (path, status)
        else:
            assert status == (303 if path == "/" else 403), (path, status)


def test_another_persons_task_is_refused(visit: Callable[..., TestClient]) -> None:
    ann, ada = visit("annotator"), visit("admin")
    task = ann.post("/api/v1/tasks/next", json={}, headers=SAME).json()["tasks"][0]["assignment"]
    said = {"assignment": task, "choice": "tie", "client_token": "not-mine-1"}
    assert ada.post("/api/v1/judgements", json=said, headers=SAME).status_code == 409
    assert ada.post("/api/v1/drafts", json={"assignment": task, "draft": {}}, headers=SAME).status_code == 409
    for path in ("renew", "release"):
        answer = ada.post(f"/api/v1/leases/{path}", json={"assignments": [task]}, headers=SAME)
        assert answer.json() == {"count": 0}


def test_a_password_is_guessed_a_few_times_only(visit: Callable[..., TestClient], store: JudgementStore) -> None:
    store.people.set_password(store.user("Victim"), WORDS)
    client = visit(None)
    answers = [
        client.post("/login", data={"name": "Victim", "password": f"guess {n}"}, headers=SAME) for n in range(12)
    ]
    assert [a.status_code for a in answers][:3] == [403, 403, 403]
    assert answers[-1].status_code == 429
    assert "Too many tries" in answers[-1].text
    locked = client.post("/login", data={"name": "Victim", "password": WORDS}, headers=SAME)
    assert locked.status_code == 429
    assert "set-cookie" not in locked.headers
    wrong = client.post("/login", data={"name": "Nobody Known", "password": "guess"}, headers=SAME)
    assert wrong.status_code in (403, 429)  # nothing tells whether there is such a name


def test_a_session_is_not_taken_over_from_before_signing_in(visit: Callable[..., TestClient]) -> None:
    client = visit(None)
    headers = {**SAME, "cookie": f"{COOKIE}=chosen-by-somebody-else"}
    answer = client.post("/login", data={"name": "annotator", "password": WORDS}, headers=headers)
    assert answer.headers["set-cookie"].startswith(f"{COOKIE}=")
    assert "chosen-by-somebody-else" not in answer.headers["set-cookie"]


def test_revoked_and_expired_sessions_open_nothing(visit: Callable[..., TestClient], store: JudgementStore) -> None:
    client = visit("reader")
    guard: Any = client.app
    assert client.get("/api/v1/me").status_code == 200
    store.people.revoke_sessions(client.get("/api/v1/me").json()["id"])
    guard._known.clear()
    assert client.get("/api/v1/me").status_code == 401
    assert client.get("/admin/").status_code == 303
    old = store.people.start_session(store.user("Reader", "reader"), now=0)
    client.cookies.set(COOKIE, old)
    assert client.get("/api/v1/me").status_code == 401


def test_the_first_account_ends_what_a_name_alone_opened(tmp_path: Path) -> None:
    """On this computer a name was enough; whoever gave one is nobody as soon as there are passwords."""
    store = JudgementStore.open(tmp_path / "s.db")
    guard: Any = build(store, fill(store), local_door(7860)).guard
    bob, ada = (TestClient(guard, base_url=HERE, follow_redirects=False) for _ in range(2))
    bob.post("/login", data={"name": "Bob"}, headers=SAME)
    assert bob.get("/api/v1/rounds").status_code == 200
    token = store.people.invite("admin", by=None)
    assert ada.post(f"/invite/{token}", data={"name": "Ada", "password": WORDS}, headers=SAME).status_code == 303
    assert ada.get("/api/v1/me").json()["accounts"]
    guard._known.clear()
    assert bob.get("/api/v1/me").status_code == 401
    assert bob.post("/login", data={"name": "Bob"}, headers=SAME).status_code == 403
    assert ada.get("/api/v1/rounds").status_code == 200
    assert ada.post(f"/invite/{token}", data={"name": "Eve", "password": WORDS}, headers=SAME).status_code == 404
    path = f"/invite/{store.people.invite_known(store.user('Bob'))}"  # Bob's name becomes an account
    page = bob.get(path).text
    assert "This link is for Bob." in page
    assert 'name="name"' not in page
    assert bob.post(path, data={"password": "short"}, headers=SAME).status_code == 400
    assert bob.post(path, data={"password": WORDS}, headers=SAME).status_code == 303
    assert bob.get("/api/v1/me").json()["name"] == "Bob"
    assert bob.get(path).status_code == 404
    store.close()


@pytest.mark.parametrize(
    ("scope", "role", "allowed"),
    [
        ("judge", "annotator", {"/api/v1/progress", "/api/v1/me"}),
        ("read", "admin", {"/api/v1/rounds", "/api/v1/me"}),
        ("admin", "admin", {"/api/v1/rounds", "/api/v1/me", "/api/v1/progress"}),
    ],
)
def test_a_token_opens_its_part_of_the_api_and_no_page(
    visit: Callable[..., TestClient], store: JudgementStore, scope: str, role: str, allowed: set[str]
) -> None:
    token = store.people.make_api_token(store.user(role.title(), role), scope)
    client = visit(None)
    headers = {"authorization": f"Bearer {token}"}  # no cookie, so no Origin is asked for
    for path in ("/api/v1/me", "/api/v1/progress", "/api/v1/rounds"):
        assert client.get(path, headers=headers).status_code == (200 if path in allowed else 403), path
    assert client.get("/admin/", headers=headers).status_code == 303
    assert client.get("/", headers=headers).status_code == 303


def test_behind_a_proxy_the_browsers_origin_counts_and_the_cookie_is_secure(store: JudgementStore) -> None:
    [round_] = store.rounds()
    door = Door(frozenset({"judge.example.org"}), origin="https://judge.example.org", accounts=True)
    client = TestClient(
        build(store, round_.id, door).guard,  # type: ignore[arg-type]
        base_url="http://judge.example.org",
        follow_redirects=False,
    )
    said = {"name": "annotator", "password": WORDS}
    assert client.post("/login", data=said, headers={"origin": "http://judge.example.org"}).status_code == 403
    answer = client.post("/login", data=said, headers={"origin": "https://judge.example.org"})
    assert answer.status_code == 303
    assert "Secure" in answer.headers["set-cookie"]
    assert client.get("/login", headers={"host": "evil.test"}).status_code == 421
