"""What the page (or a program) and the server say to each other under ``/api/v1``, as Pydantic models.

An answer names responses by their place on the person's screen, 0 for the first, never by id. The models of answers
check shapes and sizes; whether an answer fits its task is for the store to say.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

LONGEST_COMMENT = 5_000
LONGEST_CORRECTION = 20_000

Whole = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
Milliseconds = Annotated[float, Field(strict=True, ge=0, lt=2**53, allow_inf_nan=False)]
Place = Annotated[int, Field(strict=True, ge=0, le=8)]
Token = Annotated[str, StringConstraints(strict=True, min_length=8, max_length=100, pattern=r"^[!-~]+$")]
Label = Annotated[str, StringConstraints(max_length=500)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Correction(_Asked):
    """How a response ought to have been."""

    place: Place
    text: Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_CORRECTION)]


class JudgementIn(_Asked):
    """A person's answer to a task, or a new answer in place of an earlier one."""

    client_token: Token = Field(description="made once for an answer; sent again, it is the same judgement")
    assignment: Whole
    choice: Literal["response", "tie", "all_bad", "ranking", "skip"]
    place: Place | None = Field(None, description="the better response, where the choice is one")
    strength: Annotated[int, Field(strict=True, ge=1, le=3)] | None = None
    ranking: list[list[Place]] | None = Field(None, max_length=9, description="best first; those in one list are tied")
    rules: list[list[Label]] | None = Field(None, max_length=9, description="for each response, the rules it breaks")
    ratings: list[dict[Label, Whole]] | None = Field(None, max_length=9, description="for each response, its ratings")
    flags: list[Label] = Field(default=[], max_length=50)
    comment: Annotated[str, StringConstraints(max_length=LONGEST_COMMENT)] | None = None
    correction: Correction | None = None
    shown_at: Milliseconds | None = Field(None, description="the browser's clock, UTC epoch milliseconds")
    decided_at: Milliseconds | None = None
    active_ms: Milliseconds | None = Field(None, description="time spent, without the time away from the page")
    wall_ms: Milliseconds | None = None
    keys_used: bool = False


class UndoIn(_Asked):
    """Take a judgement back: the one with the token ``of``, or the last one."""

    client_token: Token
    of: Token | None = None


class NextIn(_Asked):
    """Ask for tasks."""

    n: Annotated[int, Field(ge=1, le=4)] = 4


class AssignmentsIn(_Asked):
    """Tasks that are held."""

    assignments: list[Whole] = Field(max_length=20)


class DraftIn(_Asked):
    """An answer that is not finished; None forgets it."""

    assignment: Whole
    draft: dict[str, Any] | None = None

    @field_validator("draft")
    @classmethod
    def _finite(cls, draft: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            json.dumps(draft, allow_nan=False)  # NaN is no JSON: what came back with the task could not be read
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        return draft


class LocaleIn(_Asked):
    """The language that a person reads."""

    locale: Annotated[str, StringConstraints(max_length=20)]


class TextOut(_Said):
    """A text twice: as inert HTML, and as it was written with what cannot be seen named."""

    html: str
    text: str
    role: str | None = None
    original: str | None = Field(None, description="of a response that may be corrected")
    cut: bool = Field(False, description="a response that was cut off at a limit before it ended")


class TaskOut(_Said):
    """A task as its person sees it, with the form that asks about it."""

    assignment: int
    prompt: list[TextOut]
    responses: list[TextOut]
    form: dict[str, Any]
    practice: bool = Field(description="of the training that comes first")
    draft: dict[str, Any] | None = None


class ProgressOut(_Said):
    """How far a person and the round are, and which version of the guidelines holds."""

    mine: int
    done: int
    wanted: int
    guidelines: str


class TasksOut(_Said):
    """The tasks that a person holds."""

    tasks: list[TaskOut]
    progress: ProgressOut


class FeedbackOut(_Said):
    """What the right answer was."""

    assignment: int
    right: bool
    expected: dict[str, Any]
    html: str
    form: dict[str, Any]


class JudgementOut(TasksOut):
    """The judgement is on the disk; ``tasks`` are those that the person holds now."""

    judgement: int
    known: bool
    late: bool
    feedback: FeedbackOut | None = None


class UndoOut(_Said):
    """The task whose judgement was taken back, or None."""

    task: TaskOut | None
    progress: ProgressOut


class PastOut(_Said):
    """One of a person's own judgements."""

    judgement: int
    at: int
    editable: bool
    answer: dict[str, Any]
    task: TaskOut


class HistoryOut(_Said):
    """A person's own judgements, newest first."""

    items: list[PastOut]


class GuidelinesOut(_Said):
    """What the people of the round are told."""

    version: str
    html: str


class MeOut(_Said):
    """Who is signed in and what they may do."""

    id: int
    name: str
    role: str
    admin: bool
    accounts: bool
    languages: dict[str, str]


class CountOut(_Said):
    """How many of the named tasks were renewed or released."""

    count: int


class DoneOut(_Said):
    """It is done."""

    ok: bool = True


class ErrorOut(_Said):
    """Why it was not done."""

    error: str
