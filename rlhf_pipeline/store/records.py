"""What goes into the judgement store and what comes out of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_pipeline.records import Messages, Prompt

Choice = Literal["response", "tie", "all_bad", "skip"]
"""A response is better; all are as good; none is good; not judged."""


def text_digest(text: str) -> str:
    """The identity of a response: 16 hex digits of the sha256 of its text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class NewResponse:
    """A response to be judged; ``finish`` is "eos", "length" or None, ``sampler_digest`` the artifact that wrote it."""

    text: str
    finish: str | None = None
    sampler_digest: str = ""


@dataclass(frozen=True, slots=True)
class NewTask:
    """Distinct responses to one prompt that are to be compared.

    Args:
        needed: how many people judge it; None for the round's overlap.
        priority: the highest is given out first, then the order in which tasks were added.
        meta: kept with the task, shown to nobody.
    """

    prompt: Prompt
    responses: tuple[NewResponse, ...]
    priority: float = 0.0
    needed: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert len({r.text for r in self.responses}) == len(self.responses) >= 2, "a task compares distinct responses"

    @property
    def digest(self) -> str:
        """The identity of the task: the same prompt and the same responses in any order."""
        parts = [self.prompt.id, *sorted(text_digest(r.text) for r in self.responses)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def canonical(self) -> tuple[NewResponse, ...]:
        """The responses in an order that says nothing about where they came from."""
        return tuple(sorted(self.responses, key=lambda r: text_digest(r.text)))


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response of a task in the store."""

    id: int
    text: str
    finish: str | None
    sampler_digest: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task given to one person: ``responses`` are in the order in which this person sees them, left to right."""

    id: int
    task_id: int
    user_id: int
    state: str
    lease_until: int
    prompt: Messages
    responses: tuple[StoredResponse, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One person's judgement of an assignment.

    Args:
        client_token: made once when the task is first shown; the same token is the same judgement however often sent.
        response_id: the better response, where ``choice`` is "response".
        probability: how sure the judge is of the choice, 0.5 to 1; None where not asked.
        shown_at, decided_at: the browser's clock, UTC epoch milliseconds.
        active_ms, wall_ms: milliseconds spent, without and with the time away from the page.
        keys_used: decided by keyboard.
    """

    client_token: str
    assignment_id: int
    choice: Choice
    response_id: int | None = None
    probability: float | None = None
    margin: float | None = None
    shown_at: int | None = None
    decided_at: int | None = None
    active_ms: int | None = None
    wall_ms: int | None = None
    keys_used: bool | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of an answer: ``known`` where its token was stored before, ``next`` what the person holds now."""

    judgement_id: int
    assignment_id: int
    revision: int
    late: bool
    known: bool
    next: tuple[Assignment, ...] = ()


@dataclass(frozen=True, slots=True)
class JudgementRow:
    """A current judgement: not revised since, not withdrawn."""

    id: int
    assignment_id: int
    task_id: int
    user_id: int
    user: str
    choice: Choice
    response_id: int | None
    left_id: int
    """The response that was shown first."""
    probability: float | None
    margin: float | None
    revision: int
    late: bool
    received_at: int
    active_ms: int | None


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task of a round; ``responses`` are in canonical order."""

    id: int
    digest: str
    prompt: Prompt
    responses: tuple[StoredResponse, ...]
    needed: int
    done: int
    state: str
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Round:
    """A set of tasks that are judged under the same terms."""

    id: int
    number: int
    name: str
    source_digest: str
    overlap: int
    lease_s: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a round is; retired tasks do not count.

    Args:
        tasks: how many there are.
        settled: tasks for which as many people as needed judged or skipped.
        wanted: judgements needed in all.
        remaining: judgements still to come; a skip counts as one that came.
        judgements: current ones, ties included, skips not.
        skips: current ones.
        leased: tasks on somebody's screen or waiting in their browser.
        annotators: name → current judgements and skips.
    """

    tasks: int
    settled: int
    wanted: int
    remaining: int
    judgements: int
    skips: int
    leased: int
    annotators: Mapping[str, int]
