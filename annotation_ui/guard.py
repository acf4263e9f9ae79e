"""The gate in front of the app: which paths exist, who may ask, what a page may do.

Gradio serves many routes that judging does not need (uploads, file proxy, queue, monitoring …): only those named here
are let through. Every page carries a Content-Security-Policy with a fresh nonce, under which no script but ours and
Gradio's runs and nothing is loaded from, or sent to, another host.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from annotation_ui.session import to_json
from rlhf_pipeline.store.people import People, User

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "rlhf_session"
LARGEST_BODY = 64 * 1024
REMEMBER_SECONDS = 30.0
"""How long a session that was looked up is believed without looking again."""

OPEN_PATHS = {"GET": {"/login", "/app/page.css", "/favicon.ico"}, "POST": {"/login"}}
PATHS = {
    "GET": {"/", "/config", "/theme.css", "/manifest.json", "/api/v1/me", "/api/v1/progress"},
    "POST": {
        "/logout",
        "/gradio_api/run/predict",
        "/api/v1/tasks/next",
        "/api/v1/judgements",
        "/api/v1/undo",
    },
}
PREFIXES = ("/assets/", "/static/", "/app/")

_POLICY = (
    "default-src 'self'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'self'; "
    "object-src 'none'"
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_META = re.compile(rb'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*')  # Gradio's link previews name other hosts


class Guard:
    """ASGI middleware around the whole app.

    Args:
        app: what is guarded.
        people: whose sessions are good.
        hosts: the ``Host`` values under which the app is reached; any other is refused (DNS rebinding).
    """

    def __init__(self, app: App, people: People, hosts: frozenset[str]) -> None:
        self._app, self._people, self._hosts = app, people, hosts
        self._known: dict[str, tuple[float, User]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        nonce = secrets.token_urlsafe(16)
        send = _Answer(send, nonce, page=scope["path"] in ("/", "/login"))
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._refuse(scope, headers)
        if refusal is not None:
            await _plain(send, *refusal)
            return
        user = await self._user(headers)
        scope.setdefault("state", {})["user"] = user
        method, path = scope["method"], scope["path"]
        is_open = path in OPEN_PATHS.get(method.replace("HEAD", "GET"), ())
        if user is None and not is_open:
            if path == "/" and method == "GET":
                await _plain(send, 303, "", {"location": "/login"})
            else:
                await _plain(send, 401, "sign in first")
            return
        # Pages are rewritten, so they must come uncompressed.
        scope["headers"] = [(k, v) for k, v in scope["headers"] if k.lower() != b"accept-encoding"]
        body = await _read_body(receive)
        if body is None:
            await _plain(send, 413, "the request is too large")
        else:
            await self._app(scope, _Replay(body, receive), send)

    def forget(self, token: str) -> None:
        """Look this session up again at its next request."""
        self._known.pop(token, None)

    def _refuse(self, scope: Scope, headers: MutableMapping[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if host not in self._hosts:
            return 421, "this address is not served here"
        method, path = scope["method"], scope["path"]
        method = method.replace("HEAD", "GET")
        listed = path in PATHS.get(method, ()) or path in OPEN_PATHS.get(method, ())
        if not listed and not (method == "GET" and path.startswith(PREFIXES) and ".." not in path):
            return 404, "there is no such page"
        origin = headers.get("origin")
        if (origin is not None or method == "POST") and origin != f"{scope['scheme']}://{host}":
            return 403, "requests from other pages are refused"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > LARGEST_BODY:
            return 413, "the request is too large"
        return None

    async def _user(self, headers: MutableMapping[str, str]) -> User | None:
        token = read_cookie(headers.get("cookie", ""))
        if token is None:
            return None
        found = self._known.get(token)
        if found is not None and time.monotonic() - found[0] < REMEMBER_SECONDS:
            return found[1]
        user = await asyncio.to_thread(self._people.of_session, token)
        if user is None:
            self.forget(token)
        else:
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[token] = time.monotonic(), user
        return user


def read_cookie(header: str) -> str | None:
    """The session's token in a Cookie header."""
    try:
        cookie = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return cookie.value if cookie is not None and cookie.value else None


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


class _Answer:
    """``send`` that adds the security headers, and to pages the nonce."""

    def __init__(self, send: Send, nonce: str, *, page: bool) -> None:
        self._send, self._nonce, self._page = send, nonce, page
        self._start: MutableMapping[str, Any] = {}
        self._body = b""

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [(k, v) for k, v in message["headers"] if not k.lower().startswith(b"access-control-")]
            added = {**_HEADERS, "content-security-policy": _POLICY.format(nonce=self._nonce)}
            names = {k.lower() for k, _ in kept}
            if b"cache-control" not in names:
                added["cache-control"] = "no-store"
            message["headers"] = kept + [(k.encode(), v.encode()) for k, v in added.items()]
            if not self._page:
                await self._send(message)
            self._start = message
            return
        if not self._page or message["type"] != "http.response.body":
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            await self._send_page()

    async def _send_page(self) -> None:
        body = self._body
        if any(k.lower() == b"content-type" and v.startswith(b"text/html") for k, v in self._start["headers"]):
            body = body.replace(b"<script", b'<script nonce="' + self._nonce.encode() + b'"')
            body = _META.sub(b"", body)
        headers = [(k, v) for k, v in self._start["headers"] if k.lower() != b"content-length"]
        self._start["headers"] = [*headers, (b"content-length", str(len(body)).encode())]
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})


async def _plain(send: Send, status: int, text: str, headers: MutableMapping[str, str] | None = None) -> None:
    pairs = {"content-type": "application/json", **(headers or {})}
    encoded = [(k.encode(), v.encode()) for k, v in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": to_json({"error": text}) if text else b""})
