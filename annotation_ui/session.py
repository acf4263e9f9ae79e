"""What a person does while judging, without Gradio: the next tasks, an answer, taking it back, progress.

The script in the browser and the plain buttons both end up here. Nothing that tells which model wrote what leaves this
module: a task is its conversation and its responses in the order chosen for this person.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from annotation_ui.render import to_html, visible
from rlhf_pipeline.errors import AnswerRefused
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Answer, Assignment, Progress

HOLD = 4
"""Tasks that a person holds: one on the screen and three ahead, so that judging goes on while the network is away."""

PROGRESS_SECONDS = 1.0
"""How old the shown progress may be: counting a large round for every judgement would cost more than the judgement."""

SIDES = ("left", "right", "tie", "skip")
_TIMES = ("shown_at", "decided_at", "active_ms", "wall_ms")
_LARGEST = 2**53


@dataclass
class Judging:
    """One round that people judge."""

    store: JudgementStore
    round_id: int
    _progress: tuple[float, Progress] | None = field(default=None, repr=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def next(self, user_id: int, n: int = HOLD) -> dict[str, Any]:
        """The tasks that a person holds, filled up to n, as the page shows them."""
        held = self.store.lease(self.round_id, user_id, min(max(n, 1), HOLD))
        return {"tasks": [task_view(a) for a in held], "progress": self.progress(user_id)}

    def submit(self, user_id: int, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Keep an answer; the tasks that the person holds now come back with it.

        Raises:
            AnswerRefused: the payload is no answer, or the task is not this person's.
        """
        assignment = self._assignment(user_id, _number(payload, "assignment"))
        done = self.store.submit(user_id, _answer(assignment, payload), hold=HOLD)
        return {
            "judgement": done.judgement_id,
            "known": done.known,
            "late": done.late,
            "tasks": [task_view(a) for a in done.next],
            "progress": self.progress(user_id),
        }

    def undo(self, user_id: int, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Take back the last judgement, or the one whose token is ``of``; its task comes back, or None.

        Raises:
            AnswerRefused: the payload names no token.
        """
        of_token = payload.get("of")
        undone = self.store.undo(
            self.round_id,
            user_id,
            _token(payload),
            of_token=None if of_token is None else _token({"client_token": of_token}),
        )
        return {"task": task_view(undone) if undone else None, "progress": self.progress(user_id)}

    def progress(self, user_id: int) -> dict[str, int]:
        """How many this person judged, and how far the round is."""
        with self._guard:
            if self._progress is None or time.monotonic() - self._progress[0] > PROGRESS_SECONDS:
                self._progress = time.monotonic(), self.store.progress(self.round_id)
            progress = self._progress[1]
        mine = self.store.count_of(self.round_id, user_id)
        return {"mine": mine, "done": progress.wanted - progress.remaining, "wanted": progress.wanted}

    def _assignment(self, user_id: int, assignment_id: int) -> Assignment:
        assignment = self.store.assignment(assignment_id)
        if assignment is None or assignment.user_id != user_id:
            raise AnswerRefused(f"task {assignment_id} is not yours")
        return assignment


def task_view(assignment: Assignment) -> dict[str, Any]:
    """A task as the page shows it: inert HTML, and the text as it was written; nothing else.

    Characters that cannot be seen, or that reorder others, are written by name in both.
    """
    return {
        "assignment": assignment.id,
        "prompt": [{"role": m.role, **_shown(m.content)} for m in assignment.prompt],
        "responses": [_shown(r.text) for r in assignment.responses],
    }


def _shown(text: str) -> dict[str, str]:
    return {"html": to_html(text), "text": visible(text)}


def to_json(value: object) -> bytes:
    """JSON in ASCII: escapes carry every text, lone surrogates included."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _answer(assignment: Assignment, payload: Mapping[str, Any]) -> Answer:
    side = payload.get("choice")
    if side not in SIDES:
        raise AnswerRefused(f"choice is none of {', '.join(SIDES)}")
    times = {name: _number(payload, name) for name in _TIMES if payload.get(name) is not None}
    common: dict[str, Any] = {"client_token": _token(payload), "assignment_id": assignment.id, **times}
    common["keys_used"] = payload.get("keys_used") is True
    if side in ("left", "right"):
        return Answer(choice="response", response_id=assignment.responses[side == "right"].id, **common)
    return Answer(choice=side, **common)


def _token(payload: Mapping[str, Any]) -> str:
    token = payload.get("client_token")
    if not isinstance(token, str) or not 8 <= len(token) <= 100 or not token.isascii() or not token.isprintable():
        raise AnswerRefused("client_token is not 8 to 100 printable ASCII characters")
    return token


def _number(payload: Mapping[str, Any], name: str) -> int:
    value = payload.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LARGEST:
        raise AnswerRefused(f"{name} is not a whole number from 0")
    return int(value)
