"""The judgement store: tasks go out to people under a lease, judgements come in and are never changed.

Reads and writes one database (SQLite file or PostgreSQL URL); the tables are in :mod:`rlhf_pipeline.store.tables`.

- A task goes to ``needed`` distinct people, never twice to one. A lease that runs out returns to the pool when somebody
  asks for work; an answer that comes after that is kept all the same and marked late.
- An answer is one transaction: the judgement, the closed assignment, the recount and the next lease. When
  :meth:`JudgementStore.submit` has returned, the judgement is on the disk. The same ``client_token`` is recognised.
- A second answer to the same assignment is a revision, taking an answer back is a row of its own: each names the row it
  supersedes. Choices are kept against response ids; what was shown on which side is kept beside them.
- A round has a form (what is asked) and terms (in which order tasks go out, how many come back or have a known answer).
  Answers are held against the form under which the task was given.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select, update

from rlhf_pipeline.errors import AnswerRefused, StoreError
from rlhf_pipeline.store import rounds
from rlhf_pipeline.store.adjudication import adjudicate
from rlhf_pipeline.store.answers import (
    check_editable,
    held_assignments,
    is_editable,
    keep_draft,
    known_tokens,
    standing_judgement,
    take_back,
)
from rlhf_pipeline.store.audit import differences, events_of, log_event
from rlhf_pipeline.store.engine import Database, now_ms
from rlhf_pipeline.store.people import People
from rlhf_pipeline.store.records import (
    Answer,
    Assignment,
    Event,
    Form,
    Gold,
    JudgementRow,
    NewTask,
    Order,
    PastJudgement,
    Progress,
    Round,
    StoredResponse,
    Submitted,
    TaskRow,
)
from rlhf_pipeline.store.reports import (
    assignments_by_id,
    counts_of_person,
    judgements_of,
    progress_of,
    rounds_of,
    tasks_of,
)
from rlhf_pipeline.store.submitting import Kept, Submission, Submissions, keep_submissions
from rlhf_pipeline.store.tables import assignment, round_
from rlhf_pipeline.store.tasks import add_tasks, expire, held_by, return_to_pool

KEPT_TASKS = 10_000  # whose responses stay in memory: they are needed when a task is given and when its answer comes

LARGEST_DRAFT = 200_000
"""Characters of JSON."""


class JudgementStore:
    """One open store; safe to use from several threads, and from several processes on one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._expired_at = 0  # UTC epoch milliseconds
        self._responses: dict[int, tuple[StoredResponse, ...]] = {}  # by task: they never change
        self._submissions = Submissions(self._keep)
        self.people = People(database)

    @staticmethod
    def open(location: str | Path) -> JudgementStore:
        """Open a store by file path or database URL; an empty or new database gets its tables.

        Raises:
            StoreError: not a database, a newer store, no permission, a full disk, no server …: what and what to do.
        """
        return JudgementStore(Database(location))

    def close(self) -> None:
        """Close every connection of this process."""
        self.database.close()

    # Rounds and tasks

    def open_round(
        self,
        name: str,
        *,
        overlap: int,
        seed: int,
        source_digest: str,
        lease_seconds: int,
        form: Form | None = None,
        order: Order = "sequence",
        gold_rate: float = 0.0,
        gold_feedback: bool = False,
        repeat_rate: float = 0.0,
        training_tasks: int = 0,
        edit_minutes: int | None = None,
    ) -> int:
        """The id of the round of this name over this source, made if new.

        Another ``source_digest`` makes another round and leaves the earlier ones and their judgements as they are.
        Other terms of a known round hold from now on: a new ``overlap`` changes how many people its tasks need, a new
        ``form`` (None: choose the better response) is what tasks are given with.
        """
        terms = {
            "overlap": overlap,
            "lease_s": lease_seconds,
            "order_by": order,
            "gold_rate": gold_rate,
            "gold_feedback": gold_feedback,
            "repeat_rate": repeat_rate,
            "training_tasks": training_tasks,
            "edit_minutes": edit_minutes,
        }
        with self.database.write() as connection:
            return rounds.open_round(connection, name, source_digest, seed, form or Form(), terms, now_ms())

    def rounds(self) -> list[Round]:
        """Every round, oldest first."""
        with self.database.read() as connection:
            return rounds_of(connection)

    def round(self, round_id: int) -> Round:
        """One round with its terms and its form.

        Raises:
            StoreError: there is no such round.
        """
        with self.database.read() as connection:
            found = rounds_of(connection, round_id)
        if not found:
            raise StoreError(f"there is no round {round_id}", where=self.database.where)
        return found[0]

    def set_guidelines(self, round_id: int, markdown: str) -> int:
        """What the people of a round are told; returns the version, a new one only where the text is new."""
        with self.database.write() as connection:
            return rounds.set_guidelines(connection, round_id, markdown, now_ms())

    def guidelines(self, round_id: int) -> str:
        """The newest guidelines of a round as Markdown; empty where it has none."""
        with self.database.read() as connection:
            last = rounds.newest_guidelines(connection, round_id)
            return str(last.markdown) if last is not None else ""

    def add_tasks(self, round_id: int, tasks: Sequence[NewTask]) -> int:
        """Add the tasks that the round does not have yet (by digest); returns how many were added."""
        with self.database.write() as connection:
            added = add_tasks(connection, round_id, tasks)
            if added:
                log_event(connection, now_ms(), None, "add", "task", round_id, {"tasks": added})
            return added

    def retire_tasks(self, round_id: int, keep: Collection[str]) -> int:
        """Give the tasks whose digest is not in ``keep`` to nobody any more; what was judged of them stays."""
        with self.database.write() as connection:
            return rounds.retire_tasks(connection, round_id, keep, now_ms())

    def set_priorities(self, round_id: int, priorities: Mapping[int, float]) -> None:
        """Priority by task id: the highest goes out first, except where the round's order is random."""
        with self.database.write() as connection:
            rounds.set_priorities(connection, round_id, priorities, now_ms())

    def set_gold(self, task_id: int, gold: Gold | None, by: int | None = None) -> None:
        """Make a task one whose answer is known, or (None) one that is judged like the others.

        It is given as gold or for training only, and needs nobody's judgement.

        Raises:
            StoreError: there is no such task, or the answer is not one to it.
        """
        with self.database.write() as connection:
            rounds.set_gold(connection, task_id, gold, by, now_ms())

    # Judging

    def user(self, name: str, role: str = "annotator") -> int:
        """The id of the person of this name, who is added if new."""
        return self.people.add(name, role)

    def lease(self, round_id: int, user_id: int, n: int, now: int | None = None) -> list[Assignment]:
        """What a person holds: the tasks held before, with their leases renewed, and new ones up to n in all."""
        one = Submission(user_id, (), n, now_ms() if now is None else now, round_id)
        return list(self._submissions.submit(one).holds)

    def renew(self, round_id: int, user_id: int, ids: Sequence[int], *, now: int | None = None) -> int:
        """Begin the leases of a person's assignments anew; returns how many they still hold."""
        now = now_ms() if now is None else now
        with self.database.write() as connection:
            lease_s = connection.execute(select(round_.c.lease_s).where(round_.c.id == round_id)).scalar_one()
            held = held_by(round_id, user_id, ids)
            until = now + lease_s * 1000
            return connection.execute(update(assignment).where(held).values(lease_until=until)).rowcount

    def release(self, round_id: int, user_id: int, ids: Sequence[int], *, now: int | None = None) -> int:
        """Return a person's leases to the pool before they run out; returns how many."""
        now = now_ms() if now is None else now
        with self.database.write() as connection:
            rows = connection.execute(select(assignment).where(held_by(round_id, user_id, ids))).all()
            return_to_pool(connection, rows, "release", now)
            return len(rows)

    def save_draft(self, user_id: int, assignment_id: int, answer: Mapping[str, Any] | None) -> None:
        """Keep what a person has not finished (None: forget it); it comes back with the assignment.

        Raises:
            AnswerRefused: the assignment is not this person's, or the draft is too large.
        """
        if len(json.dumps(answer)) > LARGEST_DRAFT:
            raise AnswerRefused(f"the draft is larger than {LARGEST_DRAFT:,} characters")
        with self.database.write() as connection:
            keep_draft(connection, user_id, assignment_id, answer, now_ms())

    def submit(self, user_id: int, answer: Answer, *, now: int | None = None, hold: int = 0) -> Submitted:
        """Keep one answer and lease the next tasks, so that the person holds ``hold`` of them.

        An answer to an assignment that was answered before revises it, within the round's ``edit_minutes``.

        Raises:
            AnswerRefused: the assignment is not this person's, the answer is not what its form asks for, or it is too
                late to change it.
        """
        return self.submit_many(user_id, [answer], now=now, hold=hold)[0]

    def submit_many(
        self, user_id: int, answers: Sequence[Answer], *, now: int | None = None, hold: int = 0
    ) -> list[Submitted]:
        """Keep a person's answers in one transaction, all or none; at most one for each assignment.

        Raises:
            AnswerRefused: as :meth:`submit`.
        """
        assert len({a.assignment_id for a in answers}) == len(answers), "one answer for each assignment"
        if not answers:
            return []
        one = Submission(user_id, answers, hold or None, now_ms() if now is None else now)
        return self._submissions.submit(one).submitted

    def _keep(self, submissions: Sequence[Submission]) -> Sequence[Kept]:
        with self.database.write() as connection:
            return keep_submissions(connection, submissions, self._responses, self._expire, self._assignments)

    def _expire(self, connection: Connection, now: int) -> None:
        """Return what ran out to the pool, at most once a second: nobody waits long for it, everybody for the lock."""
        if abs(now - self._expired_at) >= 1_000:
            expire(connection, now)
            self._expired_at = now

    def _assignments(self, connection: Connection, ids: Sequence[int]) -> list[Assignment]:
        """In the transaction that leased them: a second one would cost more than others wait for this."""
        if len(self._responses) > KEPT_TASKS:
            self._responses = {}  # another one: threads that are at work keep theirs
        return assignments_by_id(connection, ids, self._responses)

    def undo(
        self, round_id: int, user_id: int, client_token: str, *, of_token: str | None = None, now: int | None = None
    ) -> Assignment | None:
        """Take back a person's last judgement (or the one with ``of_token``) and lease its task to them again.

        The same ``client_token`` again changes nothing. Returns the assignment, or None where there is nothing to undo.

        Raises:
            AnswerRefused: it is too late to change it.
        """
        now = now_ms() if now is None else now
        with self.database.write() as connection:
            known = known_tokens(connection, {client_token: user_id}).get(client_token)
            if known is not None:
                return assignments_by_id(connection, [int(known.assignment_id)])[0]
            target = standing_judgement(connection, round_id, user_id, of_token)
            if target is None:
                return None
            given = held_assignments(connection, {int(target.assignment_id): user_id})[int(target.assignment_id)]
            check_editable(connection, given, now)
            lease_s = connection.execute(select(round_.c.lease_s).where(round_.c.id == round_id)).scalar_one()
            take_back(connection, target, client_token, now + lease_s * 1000, now)
            return assignments_by_id(connection, [int(target.assignment_id)])[0]

    def adjudicate(self, task_id: int, user_id: int, answer: Answer, *, now: int | None = None) -> int:
        """Keep an admin's answer to a task, which decides it; returns the judgement's id.

        Of the answer only choice, response, ranking and comment (the reason) are read, and the ``client_token`` if it
        has one. What others judged stays; a later decision, by this admin or another, takes the place of this one.

        Raises:
            StoreError: the person is no admin, or there is no such task.
            AnswerRefused: the answer is not one to the task.
        """
        now = now_ms() if now is None else now
        with self.database.write() as connection:
            known = known_tokens(connection, {answer.client_token: user_id}).get(answer.client_token)
            if known is not None:
                return int(known.id)
            token = answer.client_token or f"adjudicate-{secrets.token_hex(16)}"
            return adjudicate(connection, task_id, user_id, replace(answer, client_token=token), now)

    # Reading

    def assignment(self, assignment_id: int) -> Assignment | None:
        """One assignment as its person sees it."""
        with self.database.read() as connection:
            found = assignments_by_id(connection, [assignment_id])
            return found[0] if found else None

    def tasks(self, round_id: int) -> list[TaskRow]:
        """Every task of a round, retired ones included, in the order in which they were added."""
        with self.database.read() as connection:
            return tasks_of(connection, round_id)

    def judgements(self, round_id: int, *, all_revisions: bool = False) -> list[JudgementRow]:
        """The current judgements and skips of a round, oldest first, whatever their purpose.

        With ``all_revisions`` also those that were revised or withdrawn since.
        """
        with self.database.read() as connection:
            return judgements_of(connection, round_id, all_revisions=all_revisions)

    def history(
        self, round_id: int, user_id: int, *, limit: int = 50, before: int | None = None, now: int | None = None
    ) -> list[PastJudgement]:
        """A person's own current judgements of a round, newest first; ``before`` is a judgement's id."""
        now = now_ms() if now is None else now
        with self.database.read() as connection:
            rows = judgements_of(connection, round_id, user_id, newest=limit, before=before)[::-1]
            rows = [row for row in rows if row.purpose != "adjudicate"]
            ids = [row.assignment_id for row in rows]
            held = held_assignments(connection, dict.fromkeys(ids, user_id))
            assignments = {a.id: a for a in assignments_by_id(connection, ids)}
            return [
                PastJudgement(
                    assignments[row.assignment_id], row, is_editable(connection, held[row.assignment_id], now)
                )
                for row in rows
            ]

    def mine(self, round_id: int, user_id: int) -> list[JudgementRow]:
        """One person's current judgements and skips of a round, newest first."""
        with self.database.read() as connection:
            return judgements_of(connection, round_id, user_id)[::-1]

    def count_of(self, round_id: int, user_id: int) -> tuple[int, int]:
        """How many tasks of a round a person has judged or skipped, and how many of them were to be judged."""
        with self.database.read() as connection:
            return counts_of_person(connection, round_id, user_id)

    def progress(self, round_id: int, now: int | None = None) -> Progress:
        """How far a round is; leases that have run out do not count as held."""
        with self.database.read() as connection:
            return progress_of(connection, round_id, now_ms() if now is None else now)

    def events(self, *, limit: int = 100, before: int | None = None, user_id: int | None = None) -> list[Event]:
        """The audit trail, newest first (of one person); ``before`` is a row's id."""
        with self.database.read() as connection:
            return events_of(connection, limit, before, user_id)

    def check(self) -> list[str]:
        """What does not agree in the store (counts, states, references), one line each; empty where all is well."""
        with self.database.read() as connection:
            return differences(connection)
