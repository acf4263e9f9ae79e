"""What goes into the judgement store and what comes out of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rlhf_pipeline.records import Messages, Prompt

Choice = Literal["response", "tie", "all_bad", "ranking", "skip"]
"""A response is better; all are as good; none is good; all are put in order; not judged."""

Purpose = Literal["judge", "gold", "repeat", "training", "adjudicate"]
"""Why a task went to a person: to be judged; its answer is known; they judged it before; to learn; to decide."""

Order = Literal["sequence", "random", "uncertainty"]
"""In which order tasks go out: as they were added; by lot; the highest priority first, a random tenth by lot."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """A property of which each response is given 1 to ``points``; ``low`` and ``high`` are the words at the ends."""

    name: str
    low: str = ""
    high: str = ""
    points: int = 5


@dataclass(frozen=True, slots=True)
class Form:
    """What a round asks about each task.

    Args:
        kind: choose one of the responses, or put all of them in order.
        strength: of a pair, also how much better: 1 slightly, 2 better, 3 much better.
        tie: whether responses may be called equally good.
        all_bad: whether "none is good" is an answer.
        rules: asked one by one of each response: is it broken?
        attributes: rated one by one for each response.
        correction: one response may be rewritten as it ought to be.
        comment: a remark may be left.
        flags: reasons to choose from when something is wrong with a task.
    """

    kind: Literal["pair", "ranking"] = "pair"
    strength: bool = False
    tie: bool = True
    all_bad: bool = False
    rules: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    correction: bool = False
    comment: bool = False
    flags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The form as it is kept."""
        row = asdict(self)
        return row | {name: list(row[name]) for name in ("rules", "attributes", "flags")}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Form:
        """Read what :meth:`to_json` wrote."""
        lists = {name: tuple(row[name]) for name in ("rules", "flags")}
        return Form(**{**row, **lists, "attributes": tuple(Attribute(**a) for a in row["attributes"])})

    @property
    def digest(self) -> str:
        """The form's version: 16 hex digits that change with anything that is asked."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Gold:
    """The right answer to a task, and why; ``response_id`` where the choice is "response"."""

    choice: Choice
    response_id: int | None = None
    explanation: str = ""


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a person learns after a task whose answer is known."""

    right: bool
    expected: Gold
    explanation: str


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
    """A task given to one person: ``responses`` are in the order in which this person sees them, left to right.

    ``form`` and ``guideline_version`` are those under which it was given, ``draft`` what the person left unfinished.
    """

    id: int
    task_id: int
    user_id: int
    state: str
    lease_until: int
    prompt: Messages
    responses: tuple[StoredResponse, ...]
    purpose: Purpose = "judge"
    form: Form = Form()
    round_id: int = 0
    guideline_version: int | None = None
    draft: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What is said of a task beside the choice, in an answer as in the judgement that is kept of it.

    Args:
        probability: how sure the judge is of the choice, 0.5 to 1; None where not asked.
        shown_at, decided_at: the browser's clock, UTC epoch milliseconds.
        active_ms, wall_ms: milliseconds spent, without and with the time away from the page.
        keys_used: decided by keyboard.
        strength: how much better the chosen response of a pair is: 1 slightly, 2 better, 3 much better.
        ranking: groups of response ids, best first; a group of several is a tie; every response of the task once.
        rules: response id → the rules that it breaks; every response is there where rules were asked.
        ratings: response id → attribute → 1 to its number of points.
        flags: what is wrong with the task, of the form's reasons.
        corrected_id, correction: a response, and how it ought to have been.
    """

    probability: float | None = None
    margin: float | None = None
    shown_at: int | None = None
    decided_at: int | None = None
    active_ms: int | None = None
    wall_ms: int | None = None
    keys_used: bool | None = None
    strength: int | None = None
    ranking: tuple[tuple[int, ...], ...] | None = None
    rules: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    ratings: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    comment: str | None = None
    corrected_id: int | None = None
    correction: str | None = None


@dataclass(frozen=True, slots=True)
class Answer(Said):
    """One person's judgement of an assignment.

    Args:
        client_token: made once when the task is first shown; the same token is the same judgement however often sent.
        response_id: the better response, where ``choice`` is "response".
    """

    client_token: str
    assignment_id: int
    choice: Choice
    response_id: int | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of an answer: ``known`` where its token was stored before, ``next`` what the person holds now.

    ``feedback`` is there where the answer was known and the person may learn it.
    """

    judgement_id: int
    assignment_id: int
    revision: int
    late: bool
    known: bool
    next: tuple[Assignment, ...] = ()
    feedback: Feedback | None = None


@dataclass(frozen=True, slots=True)
class JudgementRow(Said):
    """A judgement as it is kept: what was said, by whom and when; ``purpose`` says what it counts for.

    It is the current one of its assignment (not revised since, not withdrawn) unless all revisions were asked for.
    """

    id: int
    assignment_id: int
    task_id: int
    user_id: int
    user: str
    choice: Choice | Literal["withdrawn"]
    """ "withdrawn" stands only where all revisions were asked for."""
    response_id: int | None
    left_id: int
    """The response that was shown first."""
    revision: int
    late: bool
    received_at: int
    purpose: Purpose = "judge"
    shown_order: tuple[int, ...] = ()
    """Response ids from left to right."""
    client_token: str = ""
    form_digest: str = ""
    guideline_version: int | None = None
    app_version: str = ""
    supersedes_id: int | None = None


@dataclass(frozen=True, slots=True)
class PastJudgement:
    """One of a person's own judgements, and whether it may still be changed."""

    assignment: Assignment
    judgement: JudgementRow
    editable: bool


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
    priority: float = 0.0
    gold: Gold | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """A set of tasks that are judged under the same terms.

    Args:
        order: in which order tasks go out.
        gold_rate: share of a person's tasks whose answer is known, given silently.
        gold_feedback: whether the person is told afterwards.
        repeat_rate: share of a person's tasks that they judged before, given with sides swapped.
        training_tasks: tasks with known answers that everybody judges first, with feedback.
        edit_minutes: for how long a judgement may be changed; None for ever.
    """

    id: int
    number: int
    name: str
    source_digest: str
    overlap: int
    lease_s: int
    form: Form = Form()
    order: Order = "sequence"
    gold_rate: float = 0.0
    gold_feedback: bool = False
    repeat_rate: float = 0.0
    training_tasks: int = 0
    edit_minutes: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the audit trail: who did what to what, when (UTC epoch milliseconds)."""

    id: int
    at: int
    user_id: int | None
    user: str | None
    verb: str
    object: str
    object_id: int | None
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a round is; retired tasks do not count, nor do those whose answer is known.

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
