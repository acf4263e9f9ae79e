from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from annotation_ui.guard import (
    AT_ONCE,
    AT_WORK_SECONDS,
    COOKIE,
    LARGEST_BODY,
    PER_SECOND,
    REMEMBER_SECONDS,
    Guard,
    who_may,
)
from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.store import JudgementStore

HERE = "http://127.0.0.1:7860"
SAME = {"origin": HERE}
JSON = {**SAME, "content-type": "application/json"}


@pytest.fixture
def client(app_and_store: tuple[Guard, JudgementStore, int]) -> TestClient:
    return TestClient(app_and_store[0], base_url=HERE, follow_redirects=False)  # type: ignore[arg-type]


@pytest.fixture
def ann(client: TestClient) -> TestClient:
    assert client.post("/login", data={"name": "Ann"}, headers=SAME).status_code == 303
    return client


def test_without_a_session_there_is_only_the_sign_in_page(client: TestClient) -> None:
    assert client.get("/").headers["location"] == "/login"
    assert client.get("/login").status_code == 200
    for path in ("/config", "/theme.css", "/api/v1/me", "/api/v1/progress", "/app/judge.js", "/assets/x.js"):
        assert client.get(path).status_code == 401, path
    for path in ("/api/v1/tasks/next", "/api/v1/judgements", "/api/v1/undo", "/gradio_api/run/predict", "/password"):
        assert client.post(path, json={}, headers=SAME).status_code == 401, path


def test_the_cookie_is_ours_and_out_of_scripts_reach(client: TestClient) -> None:
    cookie = client.post("/login", data={"name": "Ann"}, headers=SAME).headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    for part in ("HttpOnly", "SameSite=lax", "Path=/"):
        assert part in cookie


def test_signing_out_ends_the_session_on_the_server(ann: TestClient) -> None:
    token = ann.cookies[COOKIE]
    assert ann.get("/api/v1/me").status_code == 200
    ann.post("/logout", headers=SAME)
    ann.cookies.set(COOKIE, token)
    assert ann.get("/api/v1/me").status_code == 401


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a\u202eb"])
def test_names_that_are_refused_are_shown_escaped(client: TestClient, name: str) -> None:
    answer = client.post("/login", data={"name": name + ('"><script>' if name == "x" * 81 else "")}, headers=SAME)
    assert answer.status_code == 400
    assert "set-cookie" not in answer.headers
    assert "<script>" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=https://evil.test",
        "/gradio_api/queue/join",
        "/gradio_api/queue/data",
        "/gradio_api/call/predict",
        "/gradio_api/info",
        "/gradio_api/startup-events",
        "/gradio_api/heartbeat/x",
        "/monitoring",
        "/gradio_api/runs",
        "/proxy=https://evil.test",
        "/assets/../../../etc/passwd",
        "/static/..%2f..%2fapp.py",
        "/docs",
        "/app/../guard.py",
        "/app/locales/..%2f..%2fguard.json",
        "/app/page.html",
        "/admin/gradio_api/upload",
        "/admin/gradio_api/file=/etc/passwd",
        "/admin/gradio_api/queue/join",
        "/invite/",
        "/invite/short",
        "/openapi.json",
        "/robots.txt",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_other_path_exists(ann: TestClient, method: str, path: str) -> None:
    assert ann.request(method, path, headers=SAME).status_code == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
def test_no_other_method_exists(ann: TestClient, method: str) -> None:
    assert ann.request(method, "/api/v1/judgements", headers=SAME).status_code == 404


@pytest.mark.parametrize("origin", ["http://evil.test", "null", "http://127.0.0.1:9999", None])
def test_posts_from_elsewhere_are_refused(ann: TestClient, origin: str | None) -> None:
    headers = {"origin": origin} if origin else {}
    assert ann.post("/api/v1/tasks/next", json={}, headers=headers).status_code == 403


@pytest.mark.parametrize("host", ["evil.test", "evil.test:7860", "127.0.0.1", "localhost:1"])
def test_other_host_names_are_refused(ann: TestClient, host: str) -> None:
    assert ann.get("/api/v1/me", headers={"host": host}).status_code == 421


def test_large_bodies_are_refused(ann: TestClient) -> None:
    big = b" " * (LARGEST_BODY + 1)
    assert ann.post("/api/v1/tasks/next", content=big, headers=JSON).status_code == 413

    def parts() -> Any:
        for _ in range(LARGEST_BODY // 1024 + 2):
            yield b" " * 1024

    assert ann.post("/api/v1/tasks/next", content=parts(), headers=JSON).status_code == 413


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff\xfe", b"1"])
def test_bodies_that_are_no_object(ann: TestClient, body: bytes) -> None:
    assert ann.post("/api/v1/judgements", content=body, headers=JSON).status_code == 400


def test_every_answer_carries_the_headers(ann: TestClient) -> None:
    for path in ("/", "/login", "/api/v1/me", "/app/judge.js", "/nowhere"):
        headers = ann.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        policy = headers["content-security-policy"]
        assert "unsafe-eval" not in policy
        assert "script-src 'self' 'nonce-" in policy
        assert not [name for name in headers if name.startswith("access-control")]


def test_every_inline_script_of_the_page_has_the_nonce_of_its_answer(ann: TestClient) -> None:
    first, second = ann.get("/"), ann.get("/")
    nonce = first.headers["content-security-policy"].split("'nonce-")[1].split("'")[0]
    assert first.text.count("<script") == first.text.count(f'<script nonce="{nonce}"') > 0
    assert nonce not in second.text
    assert "og:image" not in first.text


def test_judging_through_the_api(ann: TestClient, app_and_store: tuple[Guard, JudgementStore, int]) -> None:
    _, store, round_id = app_and_store
    tasks = ann.post("/api/v1/tasks/next", json={}, headers=SAME).json()["tasks"]
    body = {"assignment": tasks[0]["assignment"], "choice": "tie", "client_token": "token-0001"}
    first = ann.post("/api/v1/judgements", json=body, headers=SAME)
    again = ann.post("/api/v1/judgements", json=body, headers=SAME)
    assert (first.status_code, first.json()["known"], again.json()["known"]) == (200, False, True)
    assert [row.choice for row in store.judgements(round_id)] == ["tie"]
    other = {**body, "assignment": 999, "client_token": "token-0002"}
    refused = ann.post("/api/v1/judgements", json=other, headers=SAME)
    assert refused.status_code == 409
    assert "not yours" in refused.json()["error"]


def test_a_store_that_fails_answers_so_that_the_page_tries_again(
    ann: TestClient, app_and_store: tuple[Guard, JudgementStore, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(app_and_store[1], "lease", full)
    answer = ann.post("/api/v1/tasks/next", json={}, headers=SAME)
    assert (answer.status_code, answer.json()) == (503, {"error": "the disk is full"})


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_the_api_takes_json_only(ann: TestClient, kind: str) -> None:
    answer = ann.post("/api/v1/tasks/next", content=b"{}", headers={**SAME, "content-type": kind})
    assert answer.status_code == 415


@pytest.mark.parametrize("body", [b"\xff\xfe{", b"[" * 5_000, b'{"n": ' + b"9" * 5_000 + b"}"])
def test_a_body_that_cannot_be_read_is_refused_like_others(ann: TestClient, body: bytes) -> None:
    answer = ann.post("/api/v1/tasks/next", content=body, headers={**SAME, "content-type": "application/json"})
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


def test_who_asks_too_often_has_to_wait(
    ann: TestClient, app_and_store: tuple[Guard, JudgementStore, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = app_and_store[0]
    guard._budgets.clear()
    monkeypatch.setattr("annotation_ui.guard.time.monotonic", lambda: 1000.0)
    answers = [ann.get("/api/v1/me").status_code for _ in range(int(AT_ONCE) + 3)]
    assert answers == [200] * int(AT_ONCE) + [429] * 3
    monkeypatch.setattr("annotation_ui.guard.time.monotonic", lambda: 1000.5)
    answers = [ann.get("/api/v1/me").status_code for _ in range(int(PER_SECOND))]
    assert answers == [200] * int(PER_SECOND / 2) + [429] * int(PER_SECOND / 2)
    guard._budgets.clear()


def test_the_page_speaks_the_readers_language(
    ann: TestClient, app_and_store: tuple[Guard, JudgementStore, int]
) -> None:
    page = ann.get("/", headers={"accept-language": "fa-IR"}).text
    assert '<html lang="fa" dir="rtl"' in page
    assert re.search(r"<body[^>]*><noscript><p [^>]*>[^<]*جاوااسکریپت", page), (
        "and so does what stands without a script"
    )
    assert ann.post("/api/v1/locale", json={"locale": "ru"}, headers=SAME).status_code == 200
    app_and_store[0]._known.clear()
    assert '<html lang="ru" dir="ltr"' in ann.get("/", headers={"accept-language": "fa"}).text
    assert "Tu nombre" in ann.get("/login?language=es").text
    assert '<html lang="es" dir="ltr"' in ann.get("/", headers={"accept-language": "fa"}).text


def test_the_api_describes_itself(ann: TestClient) -> None:
    described = ann.get("/api/v1/openapi.json").json()
    assert len(described["paths"]) >= 12
    for path, methods in described["paths"].items():
        assert path.startswith("/api/v1/"), path
        for method, about in methods.items():
            assert who_may(method.upper(), path.replace("{round_id}", "1")) is not None, path
            assert "200" in about["responses"]
    fields = described["components"]["schemas"]["JudgementIn"]["properties"]
    assert {"client_token", "assignment", "choice", "place", "ranking", "ratings"} <= fields.keys()


def test_sessions_at_work_are_looked_up_together(
    app_and_store: tuple[Guard, JudgementStore, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for all who ask at the same moment; who was revoked since, or is idle, is not among them."""
    guard, store, _ = app_and_store
    guard._known.clear()
    tokens = [store.people.start_session(store.user(f"Person {n}")) for n in range(4)]
    asked: list[list[str]] = []
    of_sessions = store.people.of_sessions

    def counted(wanted: Collection[str], **given: Any) -> Any:
        asked.append(sorted(wanted))
        return of_sessions(wanted, **given)

    monkeypatch.setattr(store.people, "of_sessions", counted)

    async def look_up(of: list[str]) -> list[str | None]:
        found = await asyncio.gather(*(guard._user(None, token) for token in of))
        return [user.name if user else None for user in found]

    def ask(of: list[str]) -> list[str | None]:
        with ThreadPoolExecutor(1) as elsewhere:  # in this thread a browser's event loop may be running
            return elsewhere.submit(asyncio.run, look_up(of)).result()

    def some_time_later() -> None:
        for known in guard._known.values():
            known.looked_up -= REMEMBER_SECONDS

    names = [f"Person {n}" for n in range(4)]
    assert ask(tokens) == names
    assert sorted(asked) == sorted([token] for token in tokens), "each once when it is new"
    asked.clear()
    assert ask(tokens) == names
    assert asked == [], "and believed for a moment"
    some_time_later()
    guard._known[tokens[3]].used -= AT_WORK_SECONDS
    store.people.end_session(tokens[0])
    assert ask(tokens[:3]) == [None, *names[1:3]]
    assert asked[0] == sorted(tokens[:3]), "one look for all"
    assert asked[1:] == [[tokens[0]]], "and one for who is not known any more"
