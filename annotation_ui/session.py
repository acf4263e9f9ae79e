"""What a person does while judging, without Gradio: the next tasks, an answer, taking it back, looking back, progress.

The script in the browser and the plain buttons both end up here. Nothing that tells which model wrote what, or why a
task was given, leaves this module: a task is its conversation and its responses in the order chosen for this person.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from annotation_ui.protocol import DraftIn, JudgementIn, UndoIn
from annotation_ui.render import to_html, visible
from rlhf_pipeline.errors import AnswerRefused
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import (
    Answer,
    Assignment,
    Feedback,
    Form,
    JudgementRow,
    PastJudgement,
    Progress,
    StoredResponse,
    text_digest,
)

HOLD = 4
"""Tasks that a person holds: one on the screen and three ahead, so that judging goes on while the network is away."""

OWN_SECONDS = 300.0
"""How old the shown number of a person's own judgements may be, where they judge by way of another process too."""

KEPT_ASSIGNMENTS = 5_000
"""Tasks given out whose words stay in memory: an answer names places on the screen, and they say which responses."""

PROGRESS_SECONDS = 5.0
"""How old the shown progress of others may be: counting a large round for every judgement would cost more than it."""

LONGEST_MS = 24 * 3600 * 1000
"""More time than this for one answer is not believed: one wrong clock would spoil every forecast."""

LARGEST_DRAFT = 60_000
"""Characters of JSON."""


@dataclass
class Judging:
    """One round that people judge."""

    store: JudgementStore
    round_id: int
    _state: tuple[float, Progress, str] | None = field(default=None, repr=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _mine: dict[int, tuple[float, int, int]] = field(default_factory=dict, repr=False)
    _given: dict[int, Assignment] = field(default_factory=dict, repr=False)

    def next(self, user_id: int, n: int = HOLD) -> dict[str, Any]:
        """The tasks that a person holds, filled up to n, as the page shows them."""
        held = self.store.lease(self.round_id, user_id, min(max(n, 1), HOLD))
        return {"tasks": self._give(held), "progress": self.progress(user_id)}

    def submit(self, user_id: int, given: JudgementIn) -> dict[str, Any]:
        """Keep an answer; the tasks that the person holds now come back with it.

        Raises:
            AnswerRefused: the answer does not fit its task, or the task is not this person's.
        """
        assignment = self._assignment(user_id, given.assignment)
        done = self.store.submit(user_id, _answer(assignment, given), hold=HOLD)
        if not done.known:
            self._count(user_id, assignment, first=done.revision == 1)
        return {
            "judgement": done.judgement_id,
            "known": done.known,
            "late": done.late,
            "tasks": self._give(done.next),
            "progress": self.progress(user_id),
            "feedback": _feedback_view(assignment, done.feedback) if done.feedback else None,
        }

    def undo(self, user_id: int, given: UndoIn) -> dict[str, Any]:
        """Take back the last judgement, or the one whose token is ``of``; its task comes back, or None."""
        undone = self.store.undo(self.round_id, user_id, given.client_token, of_token=given.of)
        self._state = None  # what was taken back is to be done again, perhaps by others
        self._mine.pop(user_id, None)
        return {"task": task_view(undone) if undone else None, "progress": self.progress(user_id)}

    def renew(self, user_id: int, assignments: Sequence[int]) -> int:
        """Hold these tasks for longer; returns how many are still this person's to judge."""
        return self.store.renew(self.round_id, user_id, assignments)

    def release(self, user_id: int, assignments: Sequence[int]) -> int:
        """Give tasks back that nobody looks at any more."""
        return self.store.release(self.round_id, user_id, assignments)

    def save_draft(self, user_id: int, given: DraftIn) -> None:
        """Keep what a person has entered and not submitted.

        Raises:
            AnswerRefused: the task is not this person's, or the draft is too large.
        """
        self._assignment(user_id, given.assignment)
        if given.draft is not None and len(json.dumps(given.draft)) > LARGEST_DRAFT:
            raise AnswerRefused("the draft is too large")
        self.store.save_draft(user_id, given.assignment, given.draft)

    def history(self, user_id: int, *, limit: int = 20, before: int | None = None) -> list[dict[str, Any]]:
        """A person's own judgements, newest first, older than the judgement ``before``."""
        past = self.store.history(self.round_id, user_id, limit=limit, before=before)
        return [_past_view(one) for one in past]

    def guidelines(self) -> dict[str, str]:
        """What the people of the round are told now."""
        markdown = self.store.guidelines(self.round_id)
        return {"version": text_digest(markdown), "html": to_html(markdown) if markdown.strip() else ""}

    def progress(self, user_id: int) -> dict[str, Any]:
        """How many this person judged, how far the round is, and which guidelines hold."""
        with self._guard:
            state = self._state
            if state is not None and time.monotonic() - state[0] > PROGRESS_SECONDS:
                self._state = time.monotonic(), *state[1:]  # others go on with this one while it is read anew
                state = None
        if state is None:
            version = text_digest(self.store.guidelines(self.round_id))
            state = time.monotonic(), self.store.progress(self.round_id), version
        with self._guard:
            if self._state is None or state[0] > self._state[0]:
                self._state = state
            _, progress, version = self._state
            at, mine, judged = self._mine.get(user_id, (-math.inf, 0, 0))
        if time.monotonic() - at > OWN_SECONDS:
            mine, judged = self.store.count_of(self.round_id, user_id)
            with self._guard:
                self._mine[user_id] = time.monotonic(), mine, judged
        # Known answers and repeats are none of those that are wanted: a number that stood still would give them away.
        unseen = mine - judged
        return {
            "mine": mine,
            "done": min(progress.wanted, progress.wanted - progress.remaining + unseen),
            "wanted": progress.wanted,
            "guidelines": version,
        }

    def _count(self, user_id: int, assignment: Assignment, *, first: bool) -> None:
        """A judgement counts at once, also in numbers that are a moment old; a revision makes them be read anew."""
        with self._guard:
            at, mine, judged = self._mine.pop(user_id, (-math.inf, 0, 0))
            wanted = assignment.purpose == "judge"
            if first:
                self._mine[user_id] = at, mine + 1, judged + wanted
            else:
                self._state = None  # it may have been taken back before: then the round is one further
            if first and wanted and self._state is not None:
                at, known, version = self._state
                self._state = at, replace(known, remaining=max(0, known.remaining - 1)), version

    def _give(self, assignments: Sequence[Assignment]) -> list[dict[str, Any]]:
        if len(self._given) > KEPT_ASSIGNMENTS:
            self._given.clear()
        self._given.update((a.id, a) for a in assignments)
        return [task_view(a) for a in assignments]

    def _assignment(self, user_id: int, assignment_id: int) -> Assignment:
        """Whose a task is, what it is for and its responses in their order: none of it ever changes."""
        assignment = self._given.get(assignment_id) or self.store.assignment(assignment_id)
        if assignment is None or assignment.user_id != user_id:
            raise AnswerRefused(f"task {assignment_id} is not yours")
        return assignment


def task_view(assignment: Assignment) -> dict[str, Any]:
    """A task as the page shows it: inert HTML, the text as it was written, what is asked; nothing else.

    Characters that cannot be seen, or that reorder others, are written by name in both.
    """
    form = assignment.form
    return {
        "assignment": assignment.id,
        "prompt": [{"role": m.role, **_shown(m.content)} for m in assignment.prompt],
        "responses": [_response_view(r, form) for r in assignment.responses],
        "form": form.to_json(),
        "practice": assignment.purpose == "training",
        "draft": dict(assignment.draft) if assignment.draft else None,
    }


def _response_view(response: StoredResponse, form: Form) -> dict[str, Any]:
    """With a word on its end: what was cut off at a limit is judged as that."""
    original = {"original": response.text} if form.correction else {}
    return {**_shown(response.text), "cut": response.finish == "length", **original}


def _shown(text: str) -> dict[str, str]:
    return {"html": to_html(text), "text": visible(text)}


def _past_view(past: PastJudgement) -> dict[str, Any]:
    return {
        "judgement": past.judgement.id,
        "at": past.judgement.received_at,
        "editable": past.editable,
        "answer": _answer_view(past.assignment, past.judgement),
        "task": task_view(past.assignment),
    }


def _answer_view(assignment: Assignment, row: JudgementRow) -> dict[str, Any]:
    """A stored answer as the page gave it: responses by place."""
    ids = [r.id for r in assignment.responses]
    return {
        "choice": row.choice,
        "place": None if row.response_id is None else ids.index(row.response_id),
        "strength": row.strength,
        "ranking": None if row.ranking is None else [[ids.index(id_) for id_ in group] for group in row.ranking],
        "rules": [list(row.rules.get(id_, ())) for id_ in ids] if row.rules else None,
        "ratings": [dict(row.ratings.get(id_, {})) for id_ in ids] if row.ratings else None,
        "flags": list(row.flags),
        "comment": row.comment,
        "correction": None
        if row.corrected_id is None
        else {"place": ids.index(row.corrected_id), "text": row.correction},
    }


def _feedback_view(assignment: Assignment, feedback: Feedback) -> dict[str, Any]:
    ids = [r.id for r in assignment.responses]
    expected = feedback.expected
    place = None if expected.response_id is None else ids.index(expected.response_id)
    return {
        "assignment": assignment.id,
        "right": feedback.right,
        "expected": {"choice": expected.choice, "place": place},
        "html": to_html(feedback.explanation),
        "form": assignment.form.to_json(),
    }


def to_json(value: object) -> bytes:
    """JSON in ASCII: escapes carry every text, lone surrogates included."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _answer(assignment: Assignment, given: JudgementIn) -> Answer:
    ids = [r.id for r in assignment.responses]

    def at(place: int) -> int:
        if place >= len(ids):
            raise AnswerRefused(f"there is no response at place {place}")
        return ids[place]

    def each(values: Sequence[Any] | None, name: str) -> list[tuple[int, Any]]:
        if values is not None and len(values) != len(ids):
            raise AnswerRefused(f"{name} are of {len(values)} responses, the task has {len(ids)}")
        return list(zip(ids, values or (), strict=False))

    if (given.choice == "response") != (given.place is not None):
        raise AnswerRefused("a choice of a response names its place, another choice names none")
    times = {name: getattr(given, name) for name in ("shown_at", "decided_at")}
    spent = {name: getattr(given, name) for name in ("active_ms", "wall_ms")}
    times |= {name: None if value is None else min(value, LONGEST_MS) for name, value in spent.items()}
    correction = given.correction
    return Answer(
        client_token=given.client_token,
        assignment_id=assignment.id,
        choice=given.choice,
        response_id=None if given.place is None else at(given.place),
        strength=given.strength,
        ranking=None if given.ranking is None else tuple(tuple(at(p) for p in group) for group in given.ranking),
        rules={id_: tuple(broken) for id_, broken in each(given.rules, "rules")},
        ratings={id_: dict(points) for id_, points in each(given.ratings, "ratings")},
        flags=tuple(given.flags),
        comment=given.comment,
        corrected_id=at(correction.place) if correction else None,
        correction=correction.text if correction else None,
        keys_used=given.keys_used,
        **{name: None if value is None else int(value) for name, value in times.items()},
    )


def parse(model: type[Any], payload: Mapping[str, Any]) -> Any:
    """A payload as its model.

    Raises:
        AnswerRefused: it does not have the model's shape; says where.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AnswerRefused(f"{where}: {first['msg']}") from error
