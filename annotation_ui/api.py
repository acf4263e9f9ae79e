"""The JSON API under ``/api/v1``: what the page's script talks to, and programs with a token.

Its description is served as OpenAPI at ``/api/v1/openapi.json``. Who may ask for what is the guard's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Query, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from annotation_ui import languages
from annotation_ui import protocol as p
from annotation_ui.guard import READS, Door, Guard
from annotation_ui.session import Judging, to_json
from rlhf_pipeline.errors import AnswerRefused, PipelineError, StoreError
from rlhf_pipeline.store.people import User

DESCRIPTION = """Judge responses, look back, read results. Sign in on the page, or send `Authorization: Bearer TOKEN`
with a token of `rlhf users token`. Responses are named by their place on the screen, 0 for the first."""

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": p.ErrorOut, "description": "the request has not the right shape"},
    401: {"model": p.ErrorOut, "description": "nobody is signed in"},
    403: {"model": p.ErrorOut, "description": "this person may not do this"},
    409: {"model": p.ErrorOut, "description": "refused: sending it again does not help"},
    429: {"model": p.ErrorOut, "description": "too many requests: wait a little"},
    503: {"model": p.ErrorOut, "description": "the store has a problem: send it again later"},
}


AT_ONCE = 12
"""Calls of the store at the same time: those that wait for the lock are kept in one transaction. With the usual forty
threads each waits for the interpreter at every statement, and who holds the store's lock waits with them."""


def answer(value: object, status: int = 200) -> Response:
    """JSON that carries every text."""
    return Response(to_json(value), status_code=status, media_type="application/json")


def _places() -> CapacityLimiter:
    """The event loop's own limiter."""
    loop = asyncio.get_running_loop()
    if loop not in _LIMITERS:
        _LIMITERS[loop] = CapacityLimiter(AT_ONCE)
    return _LIMITERS[loop]


_LIMITERS: WeakKeyDictionary[asyncio.AbstractEventLoop, CapacityLimiter] = WeakKeyDictionary()


async def call(act: Callable[..., object], *arguments: Any, **named: Any) -> Response:
    """What ``act`` returns as JSON, run in a thread; what the store refuses as an error that says why."""
    try:
        return answer(await to_thread.run_sync(partial(act, *arguments, **named), limiter=_places()))
    except AnswerRefused as error:
        return answer({"error": error.what}, 409)
    except StoreError as error:
        return answer({"error": error.what}, 503)  # the script keeps the answer and tries again
    except PipelineError as error:
        return answer({"error": error.what}, 409)


def _done(act: Callable[..., None], *arguments: Any) -> dict[str, bool]:
    act(*arguments)
    return {"ok": True}


def add_api(app: FastAPI, judging: Judging, guard: Callable[[], Guard], door: Door) -> None:
    """Add the API of one round to the app."""

    @app.exception_handler(RequestValidationError)
    async def wrong_shape(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return answer({"error": f"{where}: {first['msg']}"}, 400)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if request.url.path.startswith("/api/"):
            return answer({"error": str(error.detail)}, error.status_code)
        return await http_exception_handler(request, error)

    _add_person(app, judging, guard, door)
    _add_judging(app, judging)
    _add_looking_back(app, judging)


def _add_person(app: FastAPI, judging: Judging, guard: Callable[[], Guard], door: Door) -> None:
    @app.get("/api/v1/me", tags=["people"], response_model=p.MeOut, responses=ERRORS)
    async def me(request: Request) -> Response:
        user: User = request.state.user
        return answer(
            {
                "id": user.id,
                "name": user.name,
                "role": user.role,
                "admin": guard().may(user, READS),
                "accounts": door.accounts,
                "languages": languages.languages(),
            }
        )

    @app.post("/api/v1/locale", tags=["people"], response_model=p.DoneOut, responses=ERRORS)
    async def locale(request: Request, given: p.LocaleIn) -> Response:
        code = languages.choose(given.locale)
        return await call(_done, judging.store.people.set_locale, request.state.user.id, code)


def set_language(response: Response, code: str) -> None:
    """Remember in the browser which language is read; the page's script may change it."""
    response.set_cookie(languages.COOKIE, code, max_age=365 * 24 * 3600, samesite="lax", path="/")


def _add_judging(app: FastAPI, judging: Judging) -> None:
    @app.post("/api/v1/tasks/next", tags=["judging"], response_model=p.TasksOut, responses=ERRORS)
    async def next_tasks(request: Request, given: p.NextIn) -> Response:
        return await call(judging.next, request.state.user.id, given.n)

    @app.post("/api/v1/judgements", tags=["judging"], response_model=p.JudgementOut, responses=ERRORS)
    async def judge(request: Request, given: p.JudgementIn) -> Response:
        return await call(judging.submit, request.state.user.id, given)

    @app.post("/api/v1/undo", tags=["judging"], response_model=p.UndoOut, responses=ERRORS)
    async def undo(request: Request, given: p.UndoIn) -> Response:
        return await call(judging.undo, request.state.user.id, given)

    @app.post("/api/v1/leases/renew", tags=["judging"], response_model=p.CountOut, responses=ERRORS)
    async def renew(request: Request, given: p.AssignmentsIn) -> Response:
        return await call(lambda: {"count": judging.renew(request.state.user.id, given.assignments)})

    @app.post("/api/v1/leases/release", tags=["judging"], response_model=p.CountOut, responses=ERRORS)
    async def release(request: Request, given: p.AssignmentsIn) -> Response:
        return await call(lambda: {"count": judging.release(request.state.user.id, given.assignments)})

    @app.post("/api/v1/drafts", tags=["judging"], response_model=p.DoneOut, responses=ERRORS)
    async def drafts(request: Request, given: p.DraftIn) -> Response:
        return await call(_done, judging.save_draft, request.state.user.id, given)


def _add_looking_back(app: FastAPI, judging: Judging) -> None:
    @app.get("/api/v1/progress", tags=["judging"], response_model=p.ProgressOut, responses=ERRORS)
    async def progress(request: Request) -> Response:
        return await call(judging.progress, request.state.user.id)

    @app.get("/api/v1/history", tags=["judging"], response_model=p.HistoryOut, responses=ERRORS)
    async def history(
        request: Request, limit: int = Query(20, ge=1, le=50), before: int | None = Query(None, ge=1, lt=2**53)
    ) -> Response:
        user: User = request.state.user
        return await call(lambda: {"items": judging.history(user.id, limit=limit, before=before)})

    @app.get("/api/v1/guidelines", tags=["judging"], response_model=p.GuidelinesOut, responses=ERRORS)
    async def guidelines() -> Response:
        return await call(judging.guidelines)
