"""Rounds for the browser tests, and what a person does on the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Form, NewResponse, NewTask

READY = "body[data-task]:not([data-task=''])"
TOO_SOON_MS = 260  # the page takes two presses within a quarter of a second for one
PAIR = Form()


def make_round(
    tmp_path: Path,
    tasks: int | Sequence[Sequence[str]],
    *,
    form: Form = PAIR,
    overlap: int = 1,
    prompts: Sequence[str] = (),
    **terms: Any,
) -> tuple[JudgementStore, int]:
    """A round of so many pairs "good 0" and "bad 0", or of these responses to each prompt."""
    store = JudgementStore.open(tmp_path / "judgements.db")
    lists = [(f"good {i}", f"bad {i}") for i in range(tasks)] if isinstance(tasks, int) else tasks
    round_id = store.open_round(
        "people", overlap=overlap, seed=1, source_digest="d", lease_seconds=600, form=form, **terms
    )
    store.add_tasks(
        round_id,
        [
            NewTask(
                Prompt((Message("user", prompts[i] if prompts else f"question {i}"),)),
                tuple(NewResponse(text, "eos", "secret") for text in texts),
            )
            for i, texts in enumerate(lists)
        ],
    )
    store.set_guidelines(round_id, "Choose **well**.")
    return store, round_id


def task_of(page: Any) -> str:
    """The assignment on the screen."""
    found: str = page.get_attribute("body", "data-task")
    return found


def texts_of(page: Any) -> list[str]:
    """The responses on the screen, in their order."""
    found: list[str] = page.locator("#responses section").all_inner_texts()
    return found


def press(page: Any, *keys: str) -> None:
    """Press keys, the last as soon as the page takes it, and wait until another task (or none) is on the screen."""
    before = task_of(page)
    page.wait_for_timeout(TOO_SOON_MS)
    for key in keys:
        page.keyboard.press(key)
    page.wait_for_function("before => document.body.dataset.task !== before", arg=before)


def sent(page: Any) -> None:
    """Wait until the server has confirmed everything."""
    page.wait_for_selector("body[data-waiting='0']")


def good(page: Any) -> str:
    """The key of the response that starts with "good"."""
    return "1" if texts_of(page)[0].startswith("good") else "2"


def texts_by_id(store: JudgementStore, round_id: int) -> dict[int, str]:
    """The text of every response of a round."""
    return {r.id: r.text for task in store.tasks(round_id) for r in task.responses}
