"""A round's judgements without a store's ids: what every format is written from and read into.

Responses are named by their place (from 0) in the canonical order of their task, people by pseudonym, judgements by an
identity that every store computes alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sqlalchemy import select

from rlhf_pipeline.data.formats import RowProblem
from rlhf_pipeline.exchange.pseudonyms import Pseudonyms
from rlhf_pipeline.records import Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import (
    Choice,
    Form,
    Gold,
    JudgementRow,
    NewResponse,
    NewTask,
    Purpose,
    Round,
    TaskRow,
    text_digest,
)
from rlhf_pipeline.store.tables import user

MOST_RESPONSES = 20
"""In one task."""

IMPORTED = "import:"
"""A client token that begins so is the identity of a judgement that another store or tool made."""

ORDER_BY_LOT = "import"
"""The app version of a judgement of which it is not known in which order responses were shown: in the store, by lot."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One person's judgement of a task; see :class:`rlhf_pipeline.store.records.Answer` for what its fields mean.

    Args:
        by: the judge's pseudonym.
        response, ranking, rules, ratings, corrected: by place in the task's canonical order.
        shown: places from left to right; empty where it is not known.
        identity: 32 hex digits, the same in every export of the same judgement; empty where a format has none.
        supersedes: the identity of the judgement that this one revises or withdraws.
    """

    by: str
    choice: Choice | Literal["withdrawn"]
    response: int | None = None
    ranking: tuple[tuple[int, ...], ...] | None = None
    strength: int | None = None
    probability: float | None = None
    margin: float | None = None
    rules: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    ratings: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    comment: str | None = None
    corrected: int | None = None
    correction: str | None = None
    purpose: Purpose = "judge"
    shown: tuple[int, ...] = ()
    late: bool = False
    shown_at: int | None = None
    decided_at: int | None = None
    received_at: int | None = None
    active_ms: int | None = None
    wall_ms: int | None = None
    keys_used: bool | None = None
    revision: int = 1
    form_digest: str = ""
    guideline_version: int | None = None
    app_version: str = ""
    identity: str = ""
    supersedes: str | None = None

    @property
    def response_id(self) -> int | None:
        """The place of the better response, under the name that every kind of judgement has for it."""
        return self.response


@dataclass(frozen=True, slots=True)
class JudgedTask:
    """A task and its judgements, oldest first; ``gold`` names the right response by its place."""

    prompt: Prompt
    responses: tuple[NewResponse, ...]
    verdicts: tuple[Verdict, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    gold: Gold | None = None
    priority: float = 0.0
    retired: bool = False

    @property
    def new(self) -> NewTask:
        """The task as a store takes it."""
        needed = len({verdict.by for verdict in self.verdicts if verdict.purpose == "judge"})
        return NewTask(self.prompt, self.responses, self.priority, max(1, needed), self.meta)


@dataclass(frozen=True, slots=True)
class JudgedRound:
    """Tasks that were judged under one form."""

    name: str
    source_digest: str
    form: Form
    tasks: tuple[JudgedTask, ...]
    overlap: int = 1


def comparable(prompt: Prompt, responses: Sequence[NewResponse]) -> NewTask:
    """A task of these responses.

    Raises:
        RowProblem: there are fewer than two, too many, or two with the same text.
    """
    if not 2 <= len(responses) <= MOST_RESPONSES:
        raise RowProblem("nothing to compare", f"a task has {len(responses)} responses, wanted 2 to {MOST_RESPONSES}")
    if len({response.text for response in responses}) < len(responses):
        raise RowProblem("nothing to compare", "two responses of a task have the same text")
    return NewTask(prompt, tuple(responses))


def canonical(task: NewTask, places: Sequence[str]) -> list[int]:
    """For each response of a file, by its text, its place in the canonical order."""
    order = {response.text: place for place, response in enumerate(task.canonical())}
    return [order[text] for text in places]


def current(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts that no other supersedes and that were not withdrawn."""
    old = {verdict.supersedes for verdict in verdicts if verdict.supersedes}
    return [v for v in verdicts if v.choice != "withdrawn" and not (v.identity and v.identity in old)]


def read_round(store: JudgementStore, round_id: int, pseudonyms: Pseudonyms) -> JudgedRound:
    """Everything that was judged in a round, superseded and withdrawn judgements included."""
    terms = store.round(round_id)
    of_task: dict[int, list[JudgementRow]] = {}
    for row in store.judgements(round_id, all_revisions=True):
        of_task.setdefault(row.task_id, []).append(row)
    identities = identities_of(store, terms)
    names = _pseudonyms(store, pseudonyms)
    return JudgedRound(
        name=terms.name,
        source_digest=terms.source_digest,
        form=terms.form,
        tasks=tuple(judged_task(task, of_task.get(task.id, []), identities, names) for task in store.tasks(round_id)),
        overlap=terms.overlap,
    )


def identities_of(store: JudgementStore, terms: Round) -> dict[int, str]:
    """Judgement id → its identity, for every judgement of a round."""
    rows = store.judgements(terms.id, all_revisions=True)
    digests = {task.id: task.digest for task in store.tasks(terms.id)}
    return {row.id: identity_of(row, terms, digests[row.task_id]) for row in rows}


def identity_of(row: JudgementRow, terms: Round, task_digest: str) -> str:
    """What a judgement is known by wherever it is imported: of its token, its task, its round and its time."""
    if row.client_token.startswith(IMPORTED):
        return row.client_token.removeprefix(IMPORTED)
    parts = [row.client_token, task_digest, terms.name, terms.source_digest, row.received_at]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _pseudonyms(store: JudgementStore, pseudonyms: Pseudonyms) -> dict[int, str]:
    with store.database.read() as connection:
        people = connection.execute(select(user.c.id, user.c.display_name, user.c.role)).all()
    return {int(id_): pseudonyms.of(name, role) for id_, name, role in people}


def judged_task(
    task: TaskRow, rows: Sequence[JudgementRow], identities: Mapping[int, str], names: Mapping[int, str] | None
) -> JudgedTask:
    """A task of a store with these of its judgements; ``names`` are pseudonyms by user id, None for the names."""
    place = {response.id: index for index, response in enumerate(task.responses)}
    gold = task.gold
    if gold is not None and gold.response_id is not None:
        gold = replace(gold, response_id=place[gold.response_id])
    return JudgedTask(
        prompt=task.prompt,
        responses=tuple(NewResponse(r.text, r.finish, r.sampler_digest) for r in task.responses),
        verdicts=tuple(_verdict(row, place, identities, names) for row in rows),
        meta=task.meta,
        gold=gold,
        priority=task.priority,
        retired=task.state != "open",
    )


def _verdict(
    row: JudgementRow, place: Mapping[int, int], identities: Mapping[int, str], names: Mapping[int, str] | None
) -> Verdict:
    return Verdict(
        by=row.user if names is None else names[row.user_id],
        choice=row.choice,
        response=None if row.response_id is None else place[row.response_id],
        ranking=row.ranking and tuple(tuple(sorted(place[id_] for id_ in group)) for group in row.ranking),
        strength=row.strength,
        probability=row.probability,
        margin=row.margin,
        rules={place[id_]: tuple(broken) for id_, broken in sorted(row.rules.items())},
        ratings={place[id_]: dict(given) for id_, given in row.ratings.items()},
        flags=tuple(row.flags),
        comment=row.comment,
        corrected=None if row.corrected_id is None else place[row.corrected_id],
        correction=row.correction,
        purpose=row.purpose,
        shown=() if row.app_version == ORDER_BY_LOT else tuple(place[id_] for id_ in row.shown_order),
        late=row.late,
        shown_at=row.shown_at,
        decided_at=row.decided_at,
        received_at=row.received_at,
        active_ms=row.active_ms,
        wall_ms=row.wall_ms,
        keys_used=row.keys_used,
        revision=row.revision,
        form_digest=row.form_digest,
        guideline_version=row.guideline_version,
        app_version="" if row.app_version == ORDER_BY_LOT else row.app_version,
        identity=identities.get(row.id, ""),
        supersedes=None if row.supersedes_id is None else identities.get(row.supersedes_id),
    )


def response_digests(task: JudgedTask) -> list[str]:
    """The identity of each response of a task."""
    return [text_digest(response.text) for response in task.responses]
