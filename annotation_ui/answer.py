"""What leaves the server: security headers on every answer, in pages the nonce and the reader's language."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from annotation_ui import languages
from annotation_ui.session import to_json

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

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
_HTML = re.compile(rb'<html\s+lang="[^"]*"')
_BODY = re.compile(rb"<body[^>]*>")
_NEEDS_SCRIPT = '<noscript><p style="max-width: 36em; margin: 20vh auto; padding: 0 24px">{}</p></noscript>'


class Answer:
    """``send`` that adds the security headers and the time taken, and to pages the nonce and the language."""

    def __init__(self, send: Send, nonce: str) -> None:
        self._send, self._nonce = send, nonce
        self._began = time.perf_counter()
        self.language: str | None = None
        self._start: MutableMapping[str, Any] | None = None
        self._body = b""

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [(k, v) for k, v in message["headers"] if not k.lower().startswith(b"access-control-")]
            added = {**_HEADERS, "content-security-policy": _POLICY.format(nonce=self._nonce)}
            added["server-timing"] = f"app;dur={1000 * (time.perf_counter() - self._began):.1f}"
            names = {k.lower() for k, _ in kept}
            if b"cache-control" not in names:
                added["cache-control"] = "no-store"
            message["headers"] = kept + [(k.encode(), v.encode()) for k, v in added.items()]
            if any(k.lower() == b"content-type" and v.startswith(b"text/html") for k, v in kept):
                self._start = message  # a page: held back until it is whole
                return
        if self._start is None or message["type"] != "http.response.body":
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            await self._send_page(self._start)

    async def _send_page(self, start: MutableMapping[str, Any]) -> None:
        body = self._body.replace(b"<script", b'<script nonce="' + self._nonce.encode() + b'"')
        body = _META.sub(b"", body)
        if self.language:
            words = languages.words(self.language)
            # Gradio changes lang by itself: our scripts read data-language.
            html = f'<html lang="{self.language}" dir="{words["direction"]}" data-language="{self.language}"'
            body = _HTML.sub(html.encode(), body, count=1)
            needs = _NEEDS_SCRIPT.format(words["page.needs_script"]).encode()
            body = _BODY.sub(lambda found: found.group() + needs, body, count=1)
        headers = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
        start["headers"] = [*headers, (b"content-length", str(len(body)).encode())]
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


async def plain(send: Send, status: int, text: str, headers: MutableMapping[str, str] | None = None) -> None:
    """Send a short answer: an error as JSON, or only headers."""
    pairs = {"content-type": "application/json", **(headers or {})}
    encoded = [(k.encode(), v.encode()) for k, v in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": to_json({"error": text}) if text else b""})
