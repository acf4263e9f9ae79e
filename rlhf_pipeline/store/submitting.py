"""Answers that wait for the store at the same moment are kept in one transaction.

With one writer at a time, a transaction for each answer has everybody wait for everybody else's statements: on
PostgreSQL two hundred people gave more answers than that could keep. What many statements did for one answer each, one
does for all that wait. Where one answer of several is refused, each is tried by itself.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from rlhf_pipeline.store.answers import feedback_on, held_assignments, insert_answers, known_tokens
from rlhf_pipeline.store.draw import lease_each
from rlhf_pipeline.store.engine import FairLock
from rlhf_pipeline.store.records import Answer, Assignment, StoredResponse, Submitted
from rlhf_pipeline.store.tasks import recount

AT_ONCE = 16
"""Submissions in one transaction at most: whoever comes next waits for all of them."""


@dataclass(slots=True, eq=False)
class Submission:
    """A person's answers, kept all or none, or a request for tasks without any.

    Attributes:
        hold: how many tasks the person holds afterwards; None for those that they hold, unchanged.
        round_id: whose tasks are to be held; None for the round of the answers.
        now: when it came, UTC epoch milliseconds.
        outcome: what became of it, once that is on the disk.
    """

    user_id: int
    answers: Sequence[Answer]
    hold: int | None
    now: int
    round_id: int | None = None
    outcome: Kept | Exception | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of each answer, and what the person holds now."""

    submitted: list[Submitted]
    holds: tuple[Assignment, ...]


class Submissions:
    """Takes submissions from many threads; whoever's turn it is keeps those of all who wait."""

    def __init__(self, keep: Callable[[Sequence[Submission]], Sequence[Kept]]) -> None:
        """Start with nobody waiting.

        Args:
            keep: keeps submissions in one transaction, all or none, and says of each what became of it.
        """
        self._keep = keep
        self._turn, self._guard = FairLock(), threading.Lock()
        self._waiting: list[Submission] = []

    def submit(self, one: Submission) -> Kept:
        """Wait until a submission is on the disk.

        Raises:
            AnswerRefused, StoreError: what came of keeping it.
        """
        with self._guard:
            self._waiting.append(one)
        with self._turn:
            try:
                while one.outcome is None:
                    with self._guard:
                        together = [other for other in self._waiting if other.outcome is None][:AT_ONCE]
                    self._keep_all(together)
            finally:
                with self._guard:
                    self._waiting = [other for other in self._waiting if other.outcome is None and other is not one]
        if isinstance(one.outcome, Exception):
            raise one.outcome
        return one.outcome

    def _keep_all(self, together: Sequence[Submission]) -> None:
        try:
            for one, outcome in zip(together, self._keep(together), strict=True):
                one.outcome = outcome
        except Exception as error:
            if len(together) == 1:
                together[0].outcome = error
                return
            for one in together:
                self._keep_all([one])


def keep_submissions(
    connection: Connection,
    submissions: Sequence[Submission],
    responses: Mapping[int, Sequence[StoredResponse]],
    expire: Callable[[Connection, int], None],
    read: Callable[[Connection, Sequence[int]], list[Assignment]],
) -> list[Kept]:
    """Keep answers and lease the next tasks to who gave them, in one writing transaction.

    Args:
        responses: the responses of some tasks.
        expire: returns the leases to the pool that have run out by a time.
        read: assignments by their ids, in that order.

    Raises:
        AnswerRefused: one of the answers is; the caller takes all of them back.
    """
    whose = {a.assignment_id: one.user_id for one in submissions for a in one.answers}
    senders = {a.client_token: one.user_id for one in submissions for a in one.answers}
    held = held_assignments(connection, whose, list(senders))
    known = known_tokens(connection, senders) if any(row.token_known for row in held.values()) else {}
    fresh = [(a, one.now) for one in submissions for a in one.answers if a.client_token not in known]
    stored = insert_answers(connection, fresh, held, responses)
    changed = {int(row.task_id) for row in stored.values()}
    if any(row.late for row in stored.values()):  # its task had been free for others
        recount(connection, changed)
        changed = set()
    holding: dict[tuple[int, int], list[int]] = defaultdict(list)
    for one in submissions:
        if one.hold is not None:
            round_id = int(held[one.answers[0].assignment_id].round_id) if one.round_id is None else one.round_id
            holding[round_id, one.hold].append(one.user_id)
    now = max(one.now for one in submissions)
    if holding:
        expire(connection, now)
    holds: dict[int, list[int]] = {}
    for (round_id, n), people in holding.items():
        holds |= lease_each(connection, round_id, people, n, now, changed)
        changed = set()
    recount(connection, changed)
    assignments = {a.id: a for a in read(connection, [id_ for ids in holds.values() for id_ in ids])}
    following = {user_id: tuple(assignments[id_] for id_ in ids) for user_id, ids in holds.items()}

    def submitted(one: Submission, a: Answer) -> Submitted:
        row = known.get(a.client_token) or stored[a.client_token]
        return Submitted(
            judgement_id=int(row.id),
            assignment_id=int(row.assignment_id),
            revision=row.revision,
            late=row.late,
            known=a.client_token in known,
            next=following.get(one.user_id, ()),
            feedback=feedback_on(held[a.assignment_id], row),
        )

    return [Kept([submitted(one, a) for a in one.answers], following.get(one.user_id, ())) for one in submissions]
