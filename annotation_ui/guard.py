"""The gate in front of the app: which paths exist, who may ask, what a page may do.

Gradio serves many routes that judging does not need (uploads, file proxy, queue, monitoring …): only those of
:data:`ROUTES` are let through, each to the people it is for. Every page carries a Content-Security-Policy with a fresh
nonce, under which no script but ours and Gradio's runs and nothing is loaded from, or sent to, another host.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any

from annotation_ui import languages
from annotation_ui.answer import Answer, plain
from rlhf_pipeline.store.people import People, User

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "rlhf_session"
LARGEST_BODY = 64 * 1024
REMEMBER_SECONDS = 1.0
"""How long a session that was looked up is believed without looking again: a page asks for sixty files at once."""

AT_WORK_SECONDS = 60.0
"""Sessions used within this time are looked up together: with 200 people once a second, not fifty times."""

PER_SECOND, AT_ONCE = 20.0, 100.0
"""Requests of one person to the API: so many in the long run, so many in a burst."""

OPEN, SIGNED_IN, JUDGES, READS = "anybody", "signed in", "judges", "reads results"
MAY = {"admin": {SIGNED_IN, JUDGES, READS}, "annotator": {SIGNED_IN, JUDGES}, "reader": {SIGNED_IN, READS}}
"""What each role may do; programs that judge have no sessions."""
SCOPES = {"judge": {SIGNED_IN, JUDGES}, "read": {SIGNED_IN, READS}, "admin": {SIGNED_IN, JUDGES, READS}}
"""What a token may do, of what its person may do."""

ROUTES: tuple[tuple[str, str, str], ...] = (
    ("GET", r"/login|/favicon\.ico|/manifest\.json|/app/(page\.css|(doorway|outbox)\.js)|/invite/[\w-]{8,200}", OPEN),
    ("POST", r"/login|/invite/[\w-]{8,200}", OPEN),
    ("GET", r"/password|/api/v1/(me|openapi\.json)", SIGNED_IN),
    ("GET", r"/app/\w+\.(js|css)|/app/locales/\w+\.json|/theme\.css|/(assets|static)/[\w./@+-]+", SIGNED_IN),
    ("POST", r"/logout|/password|/api/v1/locale", SIGNED_IN),
    ("GET", r"/|/config|/api/v1/(progress|history|guidelines)", JUDGES),
    ("POST", r"/gradio_api/run/predict|/api/v1/(tasks/next|judgements|undo|drafts|leases/(renew|release))", JUDGES),
    ("GET", r"/api/v1/rounds(/\d+/(export|quality))?", READS),
    ("GET", r"/admin/?|/admin/(config|theme\.css|manifest\.json)|/admin/(assets|static)/[\w./@+-]+", READS),
    ("POST", r"/admin/gradio_api/run/predict", READS),
)
_ROUTES = [(method, re.compile(pattern), who) for method, pattern, who in ROUTES]


@dataclass
class Door:
    """How the app is reached.

    Args:
        hosts: the ``Host`` values under which it is reached, any other is refused (DNS rebinding); None for any, where
            passwords protect it.
        origin: the address that browsers see, where a proxy stands in front; None for that of the request.
        accounts: people have accounts with passwords; otherwise a name is enough, and whoever gave one may do all.
    """

    hosts: frozenset[str] | None
    origin: str | None = None
    accounts: bool = False


class Guard:
    """ASGI middleware around the whole app."""

    def __init__(self, app: App, people: People, door: Door) -> None:
        self._app, self._people, self.door = app, people, door
        self._known: dict[str, _Known] = {}
        self._checking: asyncio.Task[None] | None = None
        self._budgets: dict[int, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        cookies = read_cookies(headers.get("cookie", ""))
        state = scope.setdefault("state", {})
        send = answer = Answer(send, secrets.token_urlsafe(16))
        bearer = _bearer(scope["path"], headers)
        refusal = self._refuse(scope, headers, bearer is not None)
        if refusal is not None:
            await plain(send, *refusal)
            return
        user = await self._user(bearer, cookies.get(COOKIE))
        state["user"] = user
        wanted = cookies.get(languages.COOKIE), user.locale if user else None
        state["language"] = languages.choose(*wanted, accept=headers.get("accept-language", ""))
        answer.language = _language_of(scope["path"], state["language"])
        refusal = self._refuse_user(scope, user)
        if refusal is not None:
            await plain(send, *refusal)
            return
        # Pages are rewritten, so they must come uncompressed.
        scope["headers"] = [(k, v) for k, v in scope["headers"] if k.lower() != b"accept-encoding"]
        body = await _read_body(receive)
        if body is None:
            await plain(send, 413, "the request is too large")
        else:
            await self._app(scope, _Replay(body, receive), send)

    def forget(self, token: str) -> None:
        """Look this session up again at its next request."""
        self._known.pop(token, None)

    def may(self, user: User | None, who: str) -> bool:
        """Whether a person may do what needs this right."""
        if who == OPEN:
            return True
        if user is None:
            return False
        if user.scope is not None and who not in SCOPES.get(user.scope, ()):
            return False
        return who in MAY.get(user.role, ()) or (not self.door.accounts and user.role in MAY)

    def origin(self, scope: Scope, host: str) -> str:
        """The origin of the app's own pages."""
        return self.door.origin or f"{scope['scheme']}://{host}"

    def _refuse(self, scope: Scope, headers: MutableMapping[str, str], bearer: bool) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.door.hosts is not None and host not in self.door.hosts:
            return 421, "this address is not served here"
        method, path = scope["method"], scope["path"]
        if who_may(method, path) is None:
            return 404, "there is no such page"
        origin = headers.get("origin")
        if not bearer and (origin is not None or method == "POST") and origin != self.origin(scope, host):
            return 403, "requests from other pages are refused"
        if method == "POST" and path.startswith("/api/"):
            kind = headers.get("content-type", "").split(";")[0].strip().lower()
            if kind != "application/json":
                return 415, "the body is to be application/json"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > LARGEST_BODY:
            return 413, "the request is too large"
        return None

    def _refuse_user(self, scope: Scope, user: User | None) -> tuple[Any, ...] | None:
        method, path = scope["method"], scope["path"]
        who = who_may(method, path)
        assert who is not None
        if not self.may(user, who):
            if user is None:
                if method == "GET" and path in ("/", "/admin", "/admin/", "/password"):
                    return 303, "", {"location": "/login"}
                return 401, "sign in first"
            if path == "/" and self.may(user, READS):
                return 303, "", {"location": "/admin/"}
            return 403, "you may not do this"
        if user is not None and path.startswith("/api/") and not self._afford(user.id):
            return 429, "too many requests"
        return None

    def _afford(self, user_id: int) -> bool:
        now = time.monotonic()
        at, left = self._budgets.get(user_id, (now, AT_ONCE))
        left = min(AT_ONCE, left + (now - at) * PER_SECOND)
        self._budgets[user_id] = now, max(0.0, left - 1)
        return left >= 1

    async def _user(self, bearer: str | None, cookie: str | None) -> User | None:
        token = bearer or cookie
        if token is None:
            return None
        known = self._known.get(token)
        if known is not None and time.monotonic() - known.looked_up >= REMEMBER_SECONDS:
            if bearer:
                self.forget(token)
            else:
                await self._look_again()
            known = self._known.get(token)
        if known is None:
            looked_up = time.monotonic()
            user = await asyncio.to_thread(self._look_up, token, bearer is not None)
            if user is None:
                return None
            if len(self._known) > 10_000:
                self._known.clear()
            known = self._known[token] = _Known(user, bearer is not None, looked_up)
        known.used = time.monotonic()
        return known.user

    async def _look_again(self) -> None:
        """Look up every session at work, once for all who wait for it."""
        if self._checking is None:
            self._checking = asyncio.create_task(self._check_sessions())
            self._checking.add_done_callback(self._checked)
        await asyncio.shield(self._checking)

    def _checked(self, _: object) -> None:
        self._checking = None

    async def _check_sessions(self) -> None:
        now = time.monotonic()
        at_work = {t: k for t, k in self._known.items() if not k.bearer and now - k.used < AT_WORK_SECONDS}
        found = await asyncio.to_thread(self._people.of_sessions, at_work, with_password=self.door.accounts)
        for token, known in list(self._known.items()):
            if token in found and token in at_work:
                known.user, known.looked_up = found[token], now
            elif not known.bearer and known.looked_up < now:
                self.forget(token)

    def _look_up(self, token: str, bearer: bool) -> User | None:
        """Whom a token names; a session from before there were accounts names nobody who has no password."""
        if bearer:
            return self._people.of_api_token(token)
        return self._people.of_sessions([token], with_password=self.door.accounts).get(token)


@dataclass
class _Known:
    """Whom a token names, when that was looked up and when they last asked for something."""

    user: User
    bearer: bool
    looked_up: float
    used: float = 0.0


def who_may(method: str, path: str) -> str | None:
    """What a person must be allowed to do to ask for this path; None where there is none such."""
    method = "GET" if method == "HEAD" else method
    if ".." in path:
        return None
    return next((who for verb, pattern, who in _ROUTES if verb == method and pattern.fullmatch(path)), None)


def read_cookies(header: str) -> dict[str, str]:
    """The cookies of a Cookie header by name; none where it cannot be read."""
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header).items() if morsel.value}
    except CookieError:
        return {}


def _language_of(path: str, reads: str) -> str | None:
    """In which language a Gradio page is: that of the reader, but for the results, which are in one only."""
    if path in ("/admin", "/admin/"):
        return languages.DEFAULT
    return reads if path == "/" else None


def _bearer(path: str, headers: MutableMapping[str, str]) -> str | None:
    """The token of a program; only the API takes one."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if path.startswith("/api/v1/") and kind.lower() == "bearer" and token.strip() else None


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body, or None where it is larger than :data:`LARGEST_BODY`."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > LARGEST_BODY:
            return None
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return body


class _Replay:
    """``receive`` that gives the body that was read, then what comes after it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> MutableMapping[str, Any]:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}
