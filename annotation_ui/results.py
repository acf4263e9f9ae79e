"""Results for programs and for the admin page's links: rounds, their exports, their quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Query, Response
from fastapi import Path as InPath
from starlette.concurrency import run_in_threadpool

from annotation_ui.api import ERRORS, answer, call
from rlhf_pipeline.errors import PipelineError
from rlhf_pipeline.exchange import EXPORT_FORMATS, Export, Pseudonyms, export, read_round, read_salt, salt_beside
from rlhf_pipeline.quality import round_quality
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Round

RoundId = InPath(ge=1, lt=2**53)


def add_results(app: FastAPI, store: JudgementStore, folder: Path) -> None:
    """Add what is known of the rounds to the app.

    Args:
        folder: where the salt of the pseudonyms is kept if the store is no file.
    """

    @app.get("/api/v1/rounds", tags=["results"], responses=ERRORS)
    async def rounds() -> Response:
        """Every round with its form and how far it is."""
        return await call(lambda: {"rounds": [_round_view(store, one) for one in store.rounds()]})

    @app.get("/api/v1/rounds/{round_id}/quality", tags=["results"], responses=ERRORS)
    async def quality(round_id: int = RoundId) -> Response:
        """Progress and forecast, agreement, each annotator, disagreements."""
        if not await run_in_threadpool(_exists, store, round_id):
            return answer({"error": f"there is no round {round_id}"}, 404)
        return await call(lambda: round_quality(store, round_id).to_json())

    @app.get(
        "/api/v1/rounds/{round_id}/export",
        tags=["results"],
        responses={**ERRORS, 200: {"description": "the file", "content": {"application/jsonl": {}}}},
        response_class=Response,
    )
    async def exported(
        round_id: int = RoundId, format: str = Query("full", description=", ".join(EXPORT_FORMATS))
    ) -> Response:
        """The judgements of a round as a file, with pseudonyms for names."""
        if not await run_in_threadpool(_exists, store, round_id):
            return answer({"error": f"there is no round {round_id}"}, 404)
        try:
            made = await run_in_threadpool(_export, store, folder, round_id, format)
        except PipelineError as error:
            return answer({"error": error.what}, 409)
        as_list = EXPORT_FORMATS[format].as_list
        name = f"round-{round_id}-{format}.{'json' if as_list else 'jsonl'}"
        return Response(
            made.content,
            media_type="application/json" if as_list else "application/jsonl",
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )


def _exists(store: JudgementStore, round_id: int) -> bool:
    return any(one.id == round_id for one in store.rounds())


def _export(store: JudgementStore, folder: Path, round_id: int, format: str) -> Export:
    url = store.database.url.render_as_string(hide_password=False)
    names = Pseudonyms(read_salt(salt_beside(url, folder)))
    return export(read_round(store, round_id, names), format, salt_digest=names.salt_digest)


def _round_view(store: JudgementStore, found: Round) -> dict[str, Any]:
    progress = store.progress(found.id)
    return {
        "id": found.id,
        "number": found.number,
        "name": found.name,
        "overlap": found.overlap,
        "form": found.form.to_json(),
        "tasks": progress.tasks,
        "wanted": progress.wanted,
        "remaining": progress.remaining,
        "judgements": progress.judgements,
        "skips": progress.skips,
    }
