"""What an admin or a reader does, without Gradio: read a round's quality, decide tasks, lead people.

Every method asks who is calling and whether they may; what a person may not see is not in what it returns.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.quality import QualityReport, quality_report
from rlhf_pipeline.reliability import Proportion, proportion
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.forms import is_right
from rlhf_pipeline.store.people import ROLES, Person
from rlhf_pipeline.store.records import Answer, Choice, Event, Gold, JudgementRow, Round, TaskRow

Right = Literal["read", "lead"]
MAY: Mapping[str, tuple[Right, ...]] = {"admin": ("read", "lead"), "reader": ("read",)}
Kind = Literal["disagree", "flagged", "decided", "known", "all"]
KINDS: Mapping[Kind, str] = {
    "disagree": "People disagree, not decided",
    "flagged": "Flagged or commented",
    "decided": "Decided",
    "known": "Known answer",
    "all": "All tasks",
}
FRESH_SECONDS = 10.0
"""How old a shown report may be: making one takes a second for each ten thousand judgements."""
MOST_LISTED = 500
MOST_EVENTS = 100


@dataclass(frozen=True)
class Snapshot:
    """A round as it was a moment ago; ``rows`` are current judgements of every purpose, by task."""

    terms: Round
    tasks: Mapping[int, TaskRow]
    rows: Mapping[int, Sequence[JudgementRow]]
    report: QualityReport
    guidelines: str = ""


@dataclass
class Desk:
    """The admin pages' view of a store.

    Args:
        accounts: whether people have accounts with passwords by now; until then whoever is on this computer may do
            everything.
    """

    store: JudgementStore
    accounts: Callable[[], bool] = lambda: True
    _kept: dict[int, tuple[float, Snapshot]] = field(default_factory=dict, repr=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def caller(self, user_id: int, right: Right = "read") -> Person:
        """Who is calling.

        Raises:
            StoreError: they may not do this.
        """
        person = next((p for p in self.store.people.list() if p.id == user_id), None)
        if person is None or person.state != "active" or person.role not in ROLES:
            raise StoreError("nobody is signed in")
        if self.accounts() and right not in MAY.get(person.role, ()):
            wanted = "an admin" if right == "lead" else "an admin or a reader"
            raise StoreError(f"{person.name} is {person.role}: this takes {wanted}", advice="Ask an admin.")
        return person

    def leads(self, user_id: int) -> bool:
        """Whether somebody who reads may also decide and change."""
        return not self.accounts() or "lead" in MAY.get(self.caller(user_id).role, ())

    def rounds(self, user_id: int) -> list[Round]:
        """Every round, newest first."""
        self.caller(user_id)
        return self.store.rounds()[::-1]

    def look(self, user_id: int, round_id: int, *, fresh: bool = False) -> Snapshot:
        """A round and its report, at most ten seconds old, or made now if ``fresh``.

        Raises:
            StoreError: they may not read it, or there is no such round.
        """
        self.caller(user_id)
        with self._guard:  # one at a time: a second asker gets what the first one made
            made, known = self._kept.get(round_id, (0.0, None))
            if known is None or fresh or time.monotonic() - made > FRESH_SECONDS:
                known = self._snapshot(round_id)
                self._kept[round_id] = time.monotonic(), known
            return known

    def _snapshot(self, round_id: int) -> Snapshot:
        terms, tasks = self.store.round(round_id), self.store.tasks(round_id)
        judgements, now = self.store.judgements(round_id), round(time.time() * 1000)
        rows: dict[int, list[JudgementRow]] = defaultdict(list)
        for row in judgements:
            rows[row.task_id].append(row)
        report = quality_report(terms, tasks, judgements, self.store.progress(round_id, now), now=now)
        return Snapshot(terms, {task.id: task for task in tasks}, rows, report, self.store.guidelines(round_id))

    def listed(self, user_id: int, round_id: int, kind: Kind) -> list[TaskRow]:
        """Tasks to look at, 500 at most.

        Those people disagree on most come first, and known answers that most people miss: they may be wrong themselves.
        """
        seen = self.look(user_id, round_id)
        if kind == "disagree":
            ids = [d.task_id for d in seen.report.disagreements if not d.adjudicated]
        elif kind == "flagged":
            ids = [i for i, rows in seen.rows.items() if any(r.flags or r.comment for r in rows)]
        elif kind == "decided":
            ids = [i for i, rows in seen.rows.items() if any(r.purpose == "adjudicate" for r in rows)]
        elif kind == "known":
            known = {i: right_of(task, seen.rows.get(i, ())) for i, task in seen.tasks.items() if task.gold is not None}
            ids = sorted(known, key=lambda i: (known[i].value is None, known[i].value, i))
        else:
            ids = list(seen.tasks)
        return [seen.tasks[i] for i in ids[:MOST_LISTED] if i in seen.tasks]

    def task(self, user_id: int, round_id: int, task_id: int) -> tuple[TaskRow, Sequence[JudgementRow]]:
        """A task of a round and its current judgements.

        Raises:
            StoreError: they may not read it, or it is not a task of this round.
        """
        seen = self.look(user_id, round_id)
        if task_id not in seen.tasks:
            raise StoreError(f"round {seen.terms.number} has no task {task_id}")
        return seen.tasks[task_id], seen.rows.get(task_id, ())

    # What only admins do

    def decide(
        self, user_id: int, round_id: int, task_id: int, choice: Choice, place: int | None = None, reason: str = ""
    ) -> None:
        """Decide a task; ``place`` is that of the better response in the order shown here, from 0.

        Raises:
            StoreError: they may not, or it is no decision about this task.
        """
        self.caller(user_id, "lead")
        task, _ = self.task(user_id, round_id, task_id)
        answer = Answer("", 0, choice, _response_at(task, place), comment=reason.strip() or None)
        self.store.adjudicate(task_id, user_id, answer)
        self.look(user_id, round_id, fresh=True)

    def set_known_answer(
        self,
        user_id: int,
        round_id: int,
        task_id: int,
        choice: Choice | None,
        place: int | None = None,
        explanation: str = "",
    ) -> None:
        """Make a task a question whose answer is known, or (None) one that is judged like the others.

        Raises:
            StoreError: they may not, or it is no answer to this task.
        """
        self.caller(user_id, "lead")
        task, _ = self.task(user_id, round_id, task_id)
        gold = Gold(choice, _response_at(task, place), explanation.strip()) if choice else None
        self.store.set_gold(task_id, gold, user_id)
        self.look(user_id, round_id, fresh=True)

    def people(self, user_id: int) -> list[Person]:
        """Everybody, programs included.

        Raises:
            StoreError: they may not.
        """
        self.caller(user_id, "lead")
        return self.store.people.list()

    def invite(self, user_id: int, role: str, days: int) -> str:
        """The path of a page on which one person makes an account, once.

        Raises:
            StoreError: they may not, or there is no such role.
        """
        self.caller(user_id, "lead")
        _check_days(days)
        return f"/invite/{self.store.people.invite(role, by=self._by(user_id), days=days)}"

    def invite_known(self, user_id: int, person_id: int, days: int) -> str:
        """The path of a page on which a person who is known already sets a password, once.

        Raises:
            StoreError: they may not, or the person is blocked or a program.
        """
        self.caller(user_id, "lead")
        _check_days(days)
        return f"/invite/{self.store.people.invite_known(person_id, by=self._by(user_id), days=days)}"

    def change(self, user_id: int, person_id: int, what: str) -> str:
        """Change a person: a role, or "block", "unblock", "sign out"; returns what was done, in words.

        Raises:
            StoreError: they may not, there is no such person, or it would leave no admin.
        """
        self.caller(user_id, "lead")
        people, by = self.store.people, self._by(user_id)
        person = next((p for p in people.list() if p.id == person_id), None)
        if person is None:
            raise StoreError(f"there is no person {person_id}")
        if what in ROLES:
            people.set_role(person_id, what, by=by)
            return f"{person.name} is {what} now."
        if what == "block":
            people.block(person_id, by=by)
            return f"{person.name} is blocked."
        if what == "unblock":
            people.unblock(person_id, by=by)
            return f"{person.name} may sign in again."
        if what == "sign out":
            ended = people.revoke_sessions(person_id, by=by)
            return f"{person.name} is signed out ({ended} {'session' if ended == 1 else 'sessions'})."
        raise StoreError(f"{what!r} is no change of a person")

    def events(self, user_id: int, before: int | None = None) -> list[Event]:
        """The audit trail, newest first, a hundred rows from below ``before``.

        Raises:
            StoreError: they may not.
        """
        self.caller(user_id, "lead")
        return self.store.events(limit=MOST_EVENTS, before=before)

    def _by(self, user_id: int) -> int | None:
        """Who is asked for by the store: without accounts nobody is an admin, and this computer's owner may do all."""
        return user_id if self.accounts() else None


def _check_days(days: int) -> None:
    if not 1 <= days <= 90:
        raise StoreError("an invitation is good for 1 to 90 days")


def right_of(task: TaskRow, rows: Sequence[JudgementRow]) -> Proportion:
    """How many of those who were asked a question with a known answer gave it."""
    asked = [row for row in rows if row.purpose in ("gold", "judge", "training") and row.choice != "skip"]
    return proportion(is_right(task.gold, row) for row in asked if task.gold is not None)


def _response_at(task: TaskRow, place: int | None) -> int | None:
    if place is None:
        return None
    if not 0 <= place < len(task.responses):
        raise StoreError(f"task {task.id} has no response {place + 1}")
    return task.responses[place].id
