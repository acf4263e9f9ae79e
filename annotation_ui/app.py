"""The annotation app: one FastAPI process with a sign-in page, a small JSON API and the Gradio page mounted in it.

The page is Gradio's; ``static/judge.js`` fills it from the API, answers keys, shows the next pair at once and keeps
what has not been sent. Without the script the same buttons are Gradio events that call the same functions.
"""

from __future__ import annotations

import html
import os
import secrets
import socket
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
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from annotation_ui.guard import COOKIE, Guard, read_cookie
from annotation_ui.session import Judging, to_json
from rlhf_pipeline.errors import AnswerRefused, StoreError, UsageError
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.people import SESSION_SECONDS, User

STATIC = Path(__file__).parent / "static"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CHOICES = (("left", "A is better", "pick-a"), ("right", "B is better", "pick-b"), ("tie", "Tie", "pick-tie"))
HEAD = '<link rel="stylesheet" href="/app/page.css"><script src="/app/judge.js"></script>'
DONE = "All pairs are judged, or with other people. Thank you!"


class Page(FastAPI):
    """The unguarded app; ``guard`` is what a server runs."""

    guard: Guard


def serve(store_url: str, round_id: int, *, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the app until it is interrupted.

    Raises:
        UsageError: the host is not this computer, or the port is taken.
        StoreError: the store cannot be used.
    """
    if host not in LOOPBACK:
        raise UsageError(
            f"{host} can be reached from other computers, and this version has no accounts with passwords",
            where="--host",
            advice="leave --host out, and let others in through `ssh -L 7860:127.0.0.1:7860 THIS-COMPUTER`",
        )
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    store = JudgementStore.open(store_url)
    try:
        app = build(store, round_id, port=port)
        progress = store.progress(round_id)
        print(f"judge at  http://{'[::1]' if host == '::1' else host}:{port}", flush=True)
        print(f"{progress.remaining:,} of {progress.wanted:,} judgements to go; Ctrl+C stops", flush=True)
        config = uvicorn.Config(app.guard, log_level="warning", timeout_graceful_shutdown=3)
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        store.close()
        listening.close()


def build(store: JudgementStore, round_id: int, *, port: int) -> Page:
    """The app for one round; ``port`` is where the browser will find it."""
    judging = Judging(store, round_id)
    hosts = frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))
    app = Page(docs_url=None, redoc_url=None, openapi_url=None)
    _add_sign_in(app, store)
    _add_api(app, judging)
    _add_files(app)
    gr.mount_gradio_app(
        app,
        _page(judging),
        path="/",
        auth_dependency=_user_id,
        show_error=False,
        run_history=False,
        footer_links=[],
        enable_monitoring=False,
        max_file_size="1kb",
        ssr_mode=False,
        theme=_theme(),
        head=HEAD,
    )
    app.guard = Guard(app, store.people, hosts)
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
        raise UsageError(
            f"port {port} cannot be used: {error.strerror}",
            where="--port",
            advice=f"another program has it; take another: --port {port + 1 if port < 65535 else 7861}",
        ) from error
    return listening


async def _user_id(request: Request) -> str | None:
    user: User | None = getattr(request.state, "user", None)
    return str(user.id) if user else None


# Sign-in: on this computer a name is enough


def _add_sign_in(app: Page, store: JudgementStore) -> None:
    template = (STATIC / "login.html").read_text(encoding="utf-8")

    def show(error: str = "", name: str = "", status: int = 200) -> HTMLResponse:
        page = template.replace("{error}", html.escape(error)).replace("{name}", html.escape(name, quote=True))
        return HTMLResponse(page, status_code=status)

    @app.get("/login")
    async def login_page() -> HTMLResponse:
        return show()

    @app.post("/login")
    async def login(request: Request) -> Response:
        form = urllib.parse.parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
        name = form.get("name", [""])[0]
        try:
            token = await run_in_threadpool(lambda: store.people.start_session(store.user(name)))
        except StoreError as error:
            return show(error.what, name[:100], 400)
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(COOKIE, token, max_age=SESSION_SECONDS, httponly=True, samesite="lax", path="/")
        return answer

    @app.post("/logout")
    async def logout(request: Request) -> Response:
        token = read_cookie(request.headers.get("cookie", ""))
        if token:
            await run_in_threadpool(store.people.end_session, token)
            app.guard.forget(token)
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(COOKIE, path="/")
        return answer


# The API that the script talks to


def _add_api(app: Page, judging: Judging) -> None:
    def answer(value: object, status: int = 200) -> Response:
        return Response(to_json(value), status_code=status, media_type="application/json")

    async def call(request: Request, act: Any) -> Response:
        user: User = request.state.user
        try:
            payload = await request.json()
        except ValueError:
            return answer({"error": "the body is not JSON"}, 400)
        if not isinstance(payload, dict):
            return answer({"error": "the body is not an object"}, 400)
        try:
            return answer(await run_in_threadpool(act, user.id, payload))
        except AnswerRefused as error:
            return answer({"error": error.what}, 409)
        except StoreError as error:
            return answer({"error": error.what}, 503)  # the script keeps the answer and tries again

    @app.get("/api/v1/me")
    async def me(request: Request) -> Response:
        user: User = request.state.user
        return answer({"id": user.id, "name": user.name})

    @app.get("/api/v1/progress")
    async def progress(request: Request) -> Response:
        return answer(await run_in_threadpool(judging.progress, request.state.user.id))

    @app.post("/api/v1/tasks/next")
    async def next_tasks(request: Request) -> Response:
        return await call(request, lambda user_id, _: judging.next(user_id))

    @app.post("/api/v1/judgements")
    async def judge(request: Request) -> Response:
        return await call(request, judging.submit)

    @app.post("/api/v1/undo")
    async def undo(request: Request) -> Response:
        return await call(request, judging.undo)


def _add_files(app: Page) -> None:
    for name in ("judge.js", "page.css"):

        @app.get(f"/app/{name}")
        async def file(path: Path = STATIC / name) -> FileResponse:
            return FileResponse(path, headers={"cache-control": "no-cache"})

    @app.get("/manifest.json")
    async def manifest() -> dict[str, str]:
        return {"name": "Compare responses", "start_url": "/", "display": "standalone"}

    @app.get("/favicon.ico")
    async def favicon() -> Response:
        return Response(status_code=204)


# The Gradio page


def _theme() -> gr.themes.Base:
    system = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=system, font_mono=mono)


def _page(judging: Judging) -> gr.Blocks:
    guidelines = judging.store.guidelines(judging.round_id)
    page: gr.Blocks = gr.Blocks(title="Compare responses", analytics_enabled=False)
    with page, gr.Column(elem_id="judge"):
        held = gr.Textbox(visible=False)
        with gr.Column(elem_classes="plain"):
            status = gr.Textbox(label="Status", interactive=False, elem_id="plain-status")
            prompt = gr.Textbox(label="Conversation", interactive=False, lines=4, elem_id="plain-prompt")
            with gr.Row():
                left = gr.Textbox(label="A", interactive=False, lines=10, elem_id="plain-a")
                right = gr.Textbox(label="B", interactive=False, lines=10, elem_id="plain-b")
        with gr.Row(elem_id="choices"):
            buttons = {side: gr.Button(label, elem_id=id_) for side, label, id_ in CHOICES}
            buttons["skip"] = gr.Button("Skip", elem_id="pick-skip")
            undo = gr.Button("Undo", elem_id="undo")
        if guidelines:
            with gr.Accordion("Guidelines", open=False, elem_id="guidelines"):
                gr.Markdown(guidelines, sanitize_html=True)
        shown = [held, status, prompt, left, right]
        for side, button in buttons.items():
            button.click(_on_choice(judging, side), [held], shown, queue=False, api_visibility="private")
        undo.click(_on_undo(judging), None, shown, queue=False, api_visibility="private")
        page.load(_on_load(judging), None, shown, queue=False, api_visibility="private")
    return page


def _caller(request: gr.Request) -> int:
    """Who is signed in: the guard has seen to it that somebody is."""
    return int(request.username or 0)


def _on_load(judging: Judging) -> Any:
    def load(request: gr.Request) -> tuple[str, ...]:
        return _plain_view(judging.next(_caller(request), 1))

    return load


def _on_choice(judging: Judging, side: str) -> Any:
    def choose(held: str, request: gr.Request) -> tuple[str, ...]:
        user_id = _caller(request)
        assignment, _, token = (held or "").partition(":")
        if not assignment.isdigit():
            return _plain_view(judging.next(user_id, 1))
        answer = {"assignment": int(assignment), "client_token": token, "choice": side}
        try:
            return _plain_view(judging.submit(user_id, answer), "Kept.")
        except StoreError as error:
            return _plain_view(judging.next(user_id, 1), f"Not kept: {error.what}")

    return choose


def _on_undo(judging: Judging) -> Any:
    def take_back(request: gr.Request) -> tuple[str, ...]:
        user_id = _caller(request)
        undone = judging.undo(user_id, {"client_token": f"plain-{secrets.token_hex(8)}"})
        if undone["task"] is None:
            return _plain_view(judging.next(user_id, 1), "There is nothing to undo.")
        return _plain_view({"tasks": [undone["task"]], "progress": undone["progress"]}, "Taken back.")

    return take_back


def _plain_view(answer: dict[str, Any], said: str = "") -> tuple[str, ...]:
    """What the page without the script shows of the first task: exact text in fields that do nothing."""
    progress = answer["progress"]
    status = f"{said} {progress['done']} of {progress['wanted']} judged, {progress['mine']} by you."
    if not answer["tasks"]:
        return "", f"{said} {DONE}", "", "", ""
    task = answer["tasks"][0]
    talk = "\n\n".join(f"{m['role']}: {m['text']}" for m in task["prompt"])
    left, right = (r["text"] for r in task["responses"])
    return f"{task['assignment']}:plain-{secrets.token_hex(8)}", status.strip(), talk, left, right
