from __future__ import annotations

import json
from typing import Any

import pytest

from annotation_ui.session import HOLD, Judging, to_json
from rlhf_pipeline.errors import AnswerRefused
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import NewResponse, NewTask


@pytest.fixture
def judging(store: JudgementStore, round_id: int) -> Judging:
    return Judging(store, round_id)


def answer(task: dict[str, Any], choice: str = "left", token: str = "token-0001", **more: Any) -> dict[str, Any]:
    return {"assignment": task["assignment"], "choice": choice, "client_token": token, **more}


def test_tasks_say_nothing_about_where_responses_come_from(judging: Judging, store: JudgementStore) -> None:
    given = judging.next(store.user("ann"))
    assert len(given["tasks"]) == HOLD
    assert set(given["tasks"][0]) == {"assignment", "prompt", "responses"}
    assert set(given["tasks"][0]["responses"][0]) == {"html", "text"}
    assert b"secret" not in to_json(given)


@pytest.mark.parametrize(("choice", "side"), [("left", 0), ("right", 1)])
def test_a_side_is_kept_as_the_response_that_stood_there(
    judging: Judging, store: JudgementStore, round_id: int, choice: str, side: int
) -> None:
    ann = store.user("ann")
    task = judging.next(ann)["tasks"][0]
    done = judging.submit(ann, answer(task, choice, shown_at=1000, decided_at=3000, active_ms=1500, wall_ms=2000.4))
    [row] = store.judgements(round_id)
    texts = {r.id: r.text for t in store.tasks(round_id) for r in t.responses}
    assert row.response_id is not None
    assert texts[row.response_id] == task["responses"][side]["text"]
    assert row.active_ms == 1500
    assert (done["known"], done["late"], len(done["tasks"])) == (False, False, HOLD)
    assert task["assignment"] not in {t["assignment"] for t in done["tasks"]}


def test_progress_counts_all_and_mine(judging: Judging, store: JudgementStore) -> None:
    ann, bob = store.user("ann"), store.user("bob")
    judging.submit(ann, answer(judging.next(ann)["tasks"][0]))
    judging._progress = None
    judging.submit(bob, answer(judging.next(bob)["tasks"][0], "skip", "token-0002"))
    judging._progress = None
    assert judging.progress(ann) == {"mine": 1, "done": 2, "wanted": 10}


def test_undo_gives_the_task_back(judging: Judging, store: JudgementStore, round_id: int) -> None:
    ann = store.user("ann")
    task = judging.next(ann)["tasks"][0]
    judging.submit(ann, answer(task))
    undone = judging.undo(ann, {"client_token": "undo-0001", "of": "token-0001"})
    assert undone["task"] == task
    assert store.judgements(round_id) == []
    assert judging.undo(ann, {"client_token": "undo-0002", "of": None})["task"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"choice": "both"},
        {"choice": None},
        {"choice": ["left"]},
        {"client_token": "short"},
        {"client_token": "x" * 101},
        {"client_token": 12345678},
        {"client_token": "nul\x00nul\x00"},
        {"assignment": "1"},
        {"assignment": True},
        {"assignment": 10**30},
        {"assignment": -1},
        {"assignment": float("nan")},
        {"shown_at": "now"},
        {"active_ms": -5},
        {"wall_ms": float("inf")},
    ],
)
def test_payloads_that_are_no_answer(
    judging: Judging, store: JudgementStore, round_id: int, change: dict[str, Any]
) -> None:
    ann = store.user("ann")
    task = judging.next(ann)["tasks"][0]
    with pytest.raises(AnswerRefused):
        judging.submit(ann, {**answer(task), **change})
    assert store.judgements(round_id) == []


def test_another_persons_task_is_refused(judging: Judging, store: JudgementStore) -> None:
    task = judging.next(store.user("ann"))["tasks"][0]
    with pytest.raises(AnswerRefused, match="not yours"):
        judging.submit(store.user("bob"), answer(task))


def test_any_text_can_be_sent(judging: Judging, store: JudgementStore, round_id: int) -> None:
    prompt = Prompt((Message("user", "\ud800 \x00 سلام"),))
    store.add_tasks(round_id, [NewTask(prompt, (NewResponse("\udfff"), NewResponse("")), priority=1.0)])
    sent = json.loads(to_json(judging.next(store.user("ann"))))
    assert sent["tasks"][0]["prompt"][0]["text"] == "⟦U+D800⟧ ⟦U+0000⟧ سلام"
