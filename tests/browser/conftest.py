"""A real server and a real Chromium for the annotation page; every request that a page makes is watched."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from annotation_ui.app import build, local_door
from rlhf_pipeline.store import JudgementStore

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
WITHOUT = "RLHF_TEST_WITHOUT_BROWSER"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window; it is closed after each file, or one would idle in every worker."""
    if not Path(CHROMIUM).exists():
        if os.environ.get(WITHOUT) == "1":
            pytest.skip(f"{WITHOUT}=1")
        pytest.fail(f"Chromium is needed: apt-get install -y chromium (or set {WITHOUT}=1 to go without)")
    from playwright.sync_api import sync_playwright

    options = ["--disable-dev-shm-usage", "--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=options)
        yield opened
        opened.close()


@dataclass
class Site:
    """A served round and the pages that look at it."""

    url: str
    store: JudgementStore
    round_id: int
    browser: Any
    guard: Any = None
    contexts: list[Any] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def context(self, **options: Any) -> Any:
        """A browser of its own."""
        made = self.browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        self.contexts.append(made)
        return made

    def blank(self, *, context: Any = None, before: Callable[[Any], None] = lambda page: None) -> Any:
        """A page that shows nothing yet; what it asks for and what goes wrong on it is watched."""
        page = (context or self.context()).new_page()
        page.on("request", self._watch)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        before(page)
        return page

    def page(
        self, name: str, *, password: str = "", context: Any = None, before: Callable[[Any], None] = lambda page: None
    ) -> Any:
        """A page on which ``name`` is signed in."""
        page = self.blank(context=context, before=before)
        page.goto(self.url)
        if page.url.endswith("/login"):
            page.fill("#name", name)
            if password:
                page.fill("#password", password)
            page.click("button")
        return page

    def _watch(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.foreign.append(request.url)


@pytest.fixture
def serve(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Serve a round of a store on a free port until the test ends; then no page may have strayed or failed."""
    stops: list[Callable[[], None]] = []
    sites: list[Site] = []

    def start(store: JudgementStore, round_id: int, *, accounts: bool = False) -> Site:
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        app: Any = build(store, round_id, local_door(port, accounts=accounts)).guard
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)

        def stop() -> None:
            server.should_exit = True
            thread.join(10)
            listening.close()
            store.close()

        stops.append(stop)
        sites.append(Site(f"http://127.0.0.1:{port}/", store, round_id, browser, app))
        return sites[-1]

    yield start
    for site in sites:
        for context in site.contexts:
            context.close()
    for stop in stops:
        stop()
    for site in sites:
        assert site.foreign == [], "a page asked another host"
        assert site.errors == [], "a script failed"
