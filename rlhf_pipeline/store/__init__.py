"""The judgement store: tasks go out to people under a lease, judgements come in and are never changed.

Reads and writes one database (SQLite file or PostgreSQL URL); the tables are in :mod:`rlhf_pipeline.store.tables`.

- A task goes to ``needed`` distinct people, never twice to one. A lease that runs out returns to the pool when somebody
  asks for work; an answer that comes after that is kept all the same and marked late.
- An answer is one transaction: the judgement, the closed assignment, the recount and the next lease. When
  :meth:`JudgementStore.submit` has returned, the judgement is on the disk. The same ``client_token`` is recognised.
- A second answer to the same assignment is a revision, taking an answer back is a row of its own: each names the row it
  supersedes. Choices are kept against response ids; what was shown on which side is kept beside them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from rlhf_pipeline.store.answers import APP_VERSION, held_assignments, insert_answers, known_tokens, standing_judgement
from rlhf_pipeline.store.engine import Database, now_ms
from rlhf_pipeline.store.people import People
from rlhf_pipeline.store.records import Answer, Assignment, JudgementRow, NewTask, Progress, Round, Submitted, TaskRow
from rlhf_pipeline.store.reports import assignments_by_id, judgements_of, progress_of, tasks_of
from rlhf_pipeline.store.tables import assignment, event, guideline, judgement, round_, task
from rlhf_pipeline.store.tasks import add_tasks, chunks, lease, recount


class JudgementStore:
    """One open store; safe to use from several threads, and from several processes on one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
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

    def open_round(self, name: str, *, overlap: int, seed: int, source_digest: str, lease_seconds: int) -> int:
        """The id of the round of this name over this source, made if new.

        Another ``source_digest`` makes another round and leaves the earlier ones and their judgements as they are.
        A new ``overlap`` of a known round changes how many people its tasks need from now on.
        """
        now = now_ms()
        with self.database.write() as connection:
            known = connection.execute(
                select(round_).where(round_.c.name == name, round_.c.source_digest == source_digest)
            ).one_or_none()
            terms: dict[str, Any] = {"overlap": overlap, "lease_s": lease_seconds}
            if known is None:
                number = connection.execute(select(func.coalesce(func.max(round_.c.number), 0) + 1)).scalar_one()
                added = insert(round_).values(
                    name=name,
                    number=number,
                    source_digest=source_digest,
                    shuffle_seed=seed,
                    created_at=now,
                    **terms,
                )
                round_id = int(connection.execute(added.returning(round_.c.id)).scalar_one())
                _log(connection, now, None, "open", "round", round_id, {"name": name, **terms})
                return round_id
            if (known.overlap, known.lease_s) != (overlap, lease_seconds):
                connection.execute(update(round_).where(round_.c.id == known.id).values(**terms))
                of_round = (task.c.round_id == known.id) & (task.c.needed == known.overlap)
                connection.execute(update(task).where(of_round).values(needed=overlap))
                ids = connection.execute(select(task.c.id).where(task.c.round_id == known.id)).scalars().all()
                recount(connection, ids)
                _log(connection, now, None, "change", "round", known.id, terms)
            return int(known.id)

    def rounds(self) -> list[Round]:
        """Every round, oldest first."""
        query = select(
            round_.c.id, round_.c.number, round_.c.name, round_.c.source_digest, round_.c.overlap, round_.c.lease_s
        ).order_by(round_.c.number)
        with self.database.read() as connection:
            return [Round(*row) for row in connection.execute(query)]

    def set_guidelines(self, round_id: int, markdown: str) -> int:
        """What the people of a round are told; returns the version, a new one only where the text is new."""
        with self.database.write() as connection:
            last = _guidelines(connection, round_id)
            if last is not None and last.markdown == markdown:
                return int(last.version)
            version = int(last.version) + 1 if last is not None else 1
            connection.execute(
                insert(guideline).values(round_id=round_id, version=version, markdown=markdown, created_at=now_ms())
            )
            return version

    def guidelines(self, round_id: int) -> str:
        """The newest guidelines of a round as Markdown; empty where it has none."""
        with self.database.read() as connection:
            last = _guidelines(connection, round_id)
            return str(last.markdown) if last is not None else ""

    def add_tasks(self, round_id: int, tasks: Sequence[NewTask]) -> int:
        """Add the tasks that the round does not have yet (by digest); returns how many were added."""
        with self.database.write() as connection:
            overlap = connection.execute(select(round_.c.overlap).where(round_.c.id == round_id)).scalar_one()
            added = add_tasks(connection, round_id, overlap, tasks)
            if added:
                _log(connection, now_ms(), None, "add", "task", round_id, {"tasks": added})
            return added

    def retire_tasks(self, round_id: int, keep: Collection[str]) -> int:
        """Give the tasks whose digest is not in ``keep`` to nobody any more; what was judged of them stays."""
        with self.database.write() as connection:
            rows = connection.execute(
                select(task.c.id, task.c.digest).where(task.c.round_id == round_id, task.c.state == "open")
            ).all()
            kept = set(keep)
            gone = [int(row.id) for row in rows if row.digest not in kept]
            for ids in chunks(gone):
                connection.execute(update(task).where(task.c.id.in_(ids)).values(state="retired"))
            recount(connection, gone)
            if gone:
                _log(connection, now_ms(), None, "retire", "task", round_id, {"tasks": len(gone)})
            return len(gone)

    # Judging

    def user(self, name: str, role: str = "annotator") -> int:
        """The id of the person of this name, who is added if new."""
        return self.people.add(name, role)

    def lease(self, round_id: int, user_id: int, n: int, now: int | None = None) -> list[Assignment]:
        """What a person holds: the tasks held before, with their leases renewed, and new ones up to n in all."""
        now = now_ms() if now is None else now
        with self.database.write() as connection:
            ids = lease(connection, round_id, user_id, n, now)
            return assignments_by_id(connection, ids)

    def submit(self, user_id: int, answer: Answer, *, now: int | None = None, hold: int = 0) -> Submitted:
        """Keep one answer and lease the next tasks, so that the person holds ``hold`` of them.

        Raises:
            AnswerRefused: the assignment is not this person's, or the response is not one of its task.
        """
        return self.submit_many(user_id, [answer], now=now, hold=hold)[0]

    def submit_many(
        self, user_id: int, answers: Sequence[Answer], *, now: int | None = None, hold: int = 0
    ) -> list[Submitted]:
        """Keep a person's answers in one transaction, all or none; at most one for each assignment.

        Raises:
            AnswerRefused: an assignment is not this person's, or a response is not one of its task.
        """
        now = now_ms() if now is None else now
        assert len({a.assignment_id for a in answers}) == len(answers), "one answer for each assignment"
        with self.database.write() as connection:
            known = known_tokens(connection, user_id, [a.client_token for a in answers])
            held = held_assignments(connection, user_id, answers)
            fresh = [a for a in answers if a.client_token not in known]
            stored = insert_answers(connection, user_id, fresh, held, now)
            following: tuple[Assignment, ...] = ()
            if hold and answers:
                round_id = held[answers[0].assignment_id].round_id
                following = tuple(assignments_by_id(connection, lease(connection, round_id, user_id, hold, now)))
        return [
            Submitted(
                judgement_id=int(row.id),
                assignment_id=int(row.assignment_id),
                revision=row.revision,
                late=row.late,
                known=a.client_token in known,
                next=following,
            )
            for a in answers
            for row in [known.get(a.client_token) or stored[a.client_token]]
        ]

    def undo(
        self, round_id: int, user_id: int, client_token: str, *, of_token: str | None = None, now: int | None = None
    ) -> Assignment | None:
        """Take back a person's last judgement (or the one with ``of_token``) and lease its task to them again.

        The same ``client_token`` again changes nothing. Returns the assignment, or None where there is nothing to undo.
        """
        now = now_ms() if now is None else now
        with self.database.write() as connection:
            known = known_tokens(connection, user_id, [client_token]).get(client_token)
            if known is not None:
                return assignments_by_id(connection, [int(known.assignment_id)])[0]
            target = standing_judgement(connection, round_id, user_id, of_token)
            if target is None:
                return None
            lease_s = connection.execute(select(round_.c.lease_s).where(round_.c.id == round_id)).scalar_one()
            connection.execute(
                insert(judgement).values(
                    assignment_id=target.assignment_id,
                    task_id=target.task_id,
                    user_id=user_id,
                    revision=target.revision + 1,
                    supersedes_id=target.id,
                    client_token=client_token,
                    choice="withdrawn",
                    received_at=now,
                    late=False,
                    app_version=APP_VERSION,
                )
            )
            connection.execute(
                update(assignment)
                .where(assignment.c.id == target.assignment_id)
                .values(state="leased", leased_at=now, lease_until=now + lease_s * 1000)
            )
            recount(connection, [target.task_id])
            _log(connection, now, user_id, "undo", "judgement", target.id, {})
            return assignments_by_id(connection, [int(target.assignment_id)])[0]

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

    def judgements(self, round_id: int) -> list[JudgementRow]:
        """The current judgements and skips of a round, oldest first."""
        with self.database.read() as connection:
            return judgements_of(connection, round_id)

    def mine(self, round_id: int, user_id: int) -> list[JudgementRow]:
        """One person's current judgements and skips of a round, newest first."""
        with self.database.read() as connection:
            return judgements_of(connection, round_id, user_id)[::-1]

    def count_of(self, round_id: int, user_id: int) -> int:
        """How many tasks of a round one person has judged or skipped."""
        query = (
            select(func.count())
            .select_from(assignment)
            .join(task, task.c.id == assignment.c.task_id)
            .where(assignment.c.user_id == user_id, assignment.c.state.in_(("done", "skipped")))
            .where(task.c.round_id == round_id)
        )
        with self.database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def progress(self, round_id: int, now: int | None = None) -> Progress:
        """How far a round is; leases that have run out do not count as held."""
        with self.database.read() as connection:
            return progress_of(connection, round_id, now_ms() if now is None else now)


def _log(
    connection: Connection, at: int, user_id: int | None, verb: str, thing: str, id_: int, detail: Mapping[str, Any]
) -> None:
    connection.execute(
        insert(event).values(at=at, user_id=user_id, verb=verb, object=thing, object_id=id_, detail=dict(detail))
    )


def _guidelines(connection: Connection, round_id: int) -> Row[Any] | None:
    query = select(guideline).where(guideline.c.round_id == round_id).order_by(guideline.c.version.desc()).limit(1)
    return connection.execute(query).one_or_none()
