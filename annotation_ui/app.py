"""The annotation app: one FastAPI process with the pages before judging, a JSON API and the Gradio pages mounted in it.

The page is Gradio's; the scripts in ``static`` fill it from the API, answer keys, show the next task at once and keep
what has not been sent. Without them the same buttons are Gradio events that call the same functions.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import urllib.parse
from pathlib import Path
from typing import Any

# Gradio and the hub's client call home at import and at start unless told not to. The analytics cache would compute a
# table over all past events after each one.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse

from annotation_ui import admin, api, plain, results
from annotation_ui.doorway import Doorway, has_accounts
from annotation_ui.guard import Door, Guard
from annotation_ui.languages import FOLDER
from annotation_ui.session import Judging
from rlhf_pipeline import __version__
from rlhf_pipeline.errors import UsageError
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.people import User, site_origin

STATIC = Path(__file__).parent / "static"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # what --host is compared with
MOUNTED: dict[str, Any] = {
    "auth_dependency": None,
    "show_error": False,
    "run_history": False,
    "footer_links": [],
    "enable_monitoring": False,
    "max_file_size": "1kb",
    "ssr_mode": False,
}


class Page(FastAPI):
    """The unguarded app; ``guard`` is what a server runs."""

    guard: Guard


def serve(
    store_url: str,
    round_id: int,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    public_url: str | None = None,
    folder: Path = Path(),
) -> None:
    """Serve the app until it is interrupted.

    Args:
        folder: where the salt of the exports' pseudonyms is kept if the store is no file.
        public_url: the address that browsers see, where a proxy with TLS stands in front.

    Raises:
        UsageError: other computers could come in and nobody has an account, or the port is taken.
        StoreError: the store cannot be used.
    """
    origin = None if public_url is None else site_origin(public_url, where="--public-url")
    listening = _listen(host, port)
    try:
        port = listening.getsockname()[1]
        store = JudgementStore.open(store_url)
        try:
            door = _door(store, host, port, origin)
            app = build(store, round_id, door, folder)
            progress = store.progress(round_id)
            print(f"judge at  {origin or _address(host, port)}", flush=True)
            if host not in LOOPBACK and not (origin or "").startswith("https://"):
                print(
                    "note: passwords travel unencrypted; put a proxy with TLS in front (--public-url)", file=sys.stderr
                )
            print(f"{progress.remaining:,} of {progress.wanted:,} judgements to go; Ctrl+C stops", flush=True)
            # Who waits for the database gives the interpreter away and gets it back after this long at the latest.
            sys.setswitchinterval(0.002)
            config = uvicorn.Config(app.guard, log_level="warning", timeout_graceful_shutdown=3, timeout_keep_alive=60)
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            store.close()
    finally:
        listening.close()


def local_door(port: int, *, accounts: bool = False) -> Door:
    """The app as this computer reaches it."""
    return Door(frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")), accounts=accounts)


def _door(store: JudgementStore, host: str, port: int, origin: str | None) -> Door:
    """How the app may be reached: wider than this computer only where people have passwords."""
    accounts = has_accounts(store)
    if host in LOOPBACK and origin is None:
        return local_door(port, accounts=accounts)
    if not accounts:
        raise UsageError(
            f"{origin or host} can be reached from other computers, and nobody has an account with a password yet",
            where="--public-url" if origin else "--host",
            advice="make the first admin: `rlhf users invite RUN --role admin`, then open its link on this computer "
            "under `rlhf annotate RUN`",
        )
    hosts = {urllib.parse.urlsplit(origin).netloc} if origin else set()
    if host not in EVERYWHERE:
        hosts |= {f"{name}:{port}" for name in (host, f"[{host}]")}
    return Door(frozenset(hosts) if hosts else None, origin=origin, accounts=True)


def _address(host: str, port: int) -> str:
    host = socket.gethostname() if host in EVERYWHERE else host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def build(store: JudgementStore, round_id: int, door: Door, folder: Path = Path()) -> Page:
    """The app in which one round is judged and every round of the store is looked at; ``folder`` as in serve()."""
    judging = Judging(store, round_id)
    app = Page(
        title="rlhf-pipeline: judgements",
        description=api.DESCRIPTION,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    app.guard = Guard(app, store.people, door)
    Doorway(store, lambda: app.guard, door).add_to(app)
    api.add_api(app, judging, lambda: app.guard, door)
    results.add_results(app, store, folder)
    _add_files(app)
    mounted = {**MOUNTED, "auth_dependency": _user_id, "theme": plain.theme()}
    # Before the page at "/", which takes every path that is left.
    desk = admin.admin_page(store, accounts=lambda: door.accounts)
    page = plain.judging_page(judging)
    gr.mount_gradio_app(app, desk, path="/admin", head=admin.HEAD, **mounted)
    gr.mount_gradio_app(app, page, path="/", head=plain.HEAD, i18n=plain.T, **mounted)
    for blocks in (desk, page):
        # No event of ours is queued, and Gradio would look for one a thousand times a second.
        blocks._queue.sleep_when_free = blocks._queue.progress_update_sleep_when_free = 1.0
    return app


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(
                f"{host} is no address of this computer: {error.strerror}",
                where="--host",
                advice="127.0.0.1 is this computer alone, 0.0.0.0 every network that it is in",
            ) from error
        raise UsageError(
            f"port {port} cannot be used: {error.strerror}",
            where="--port",
            advice=f"another program has it; take another: --port {port + 1 if port < 65535 else 7861}",
        ) from error
    return listening


async def _user_id(request: Request) -> str | None:
    user: User | None = getattr(request.state, "user", None)
    return str(user.id) if user else None


def _add_files(app: Page) -> None:
    """The files of the page: their names are in the guard's table."""

    def serve_file(path: Path) -> Any:
        async def file() -> FileResponse:
            return FileResponse(path, headers={"cache-control": "no-cache"})

        return file

    for folder, under, pattern in (
        (STATIC, "/app", "*.js"),
        (STATIC, "/app", "*.css"),
        (FOLDER, "/app/locales", "*.json"),
    ):
        for path in sorted(folder.glob(pattern)):
            app.add_api_route(f"{under}/{path.name}", serve_file(path), include_in_schema=False)

    @app.get("/manifest.json", include_in_schema=False)
    async def manifest() -> dict[str, str]:
        return {"name": "Compare responses", "start_url": "/", "display": "standalone"}

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return Response(status_code=204)
