"""A round as rows, without a store: tasks of pairs or rankings, and people whose habits are known."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store.records import Form, Gold, JudgementRow, Progress, Round, StoredResponse, TaskRow

DAY = 86_400_000
NOW = 1_800_000_000_000
SKILLS = {"ann": 0.95, "bob": 0.85, "cem": 0.75, "dan": 0.65, "eve": 0.5}
"""How often each sees which response is better; "left" always takes the one on the left, "long" the longer one."""
PEOPLE = [*SKILLS, "left", "long"]


def task(id_: int, *texts: str, gold: int | None = None) -> TaskRow:
    """A task whose responses have the ids 10 · id + 1, 2 …; ``gold`` is the place of the right one, from 1."""
    responses = tuple(StoredResponse(10 * id_ + n, text, None, "") for n, text in enumerate(texts, 1))
    known = Gold("response", 10 * id_ + gold) if gold else None
    return TaskRow(id_, f"d{id_}", Prompt((Message("user", f"q{id_}"),)), responses, 3, 0, "open", {}, gold=known)


def said(id_: int, task_id: int, user: str, answer: int | str, **more: Any) -> JudgementRow:
    """A judgement: the place of the chosen response from 1, or a choice without one."""
    row = JudgementRow(
        id=id_,
        assignment_id=id_,
        task_id=task_id,
        user_id=int.from_bytes(user.encode()),
        user=user,
        choice="response" if isinstance(answer, int) else answer,
        response_id=10 * task_id + answer if isinstance(answer, int) else None,
        left_id=10 * task_id + 1,
        probability=None,
        margin=None,
        revision=1,
        late=False,
        received_at=NOW,
        active_ms=10_000,
        shown_order=(10 * task_id + 1, 10 * task_id + 2),
    )
    return replace(row, **more)


def terms(**more: Any) -> Round:
    return replace(Round(1, 1, "people", "d", 3, 600, Form()), **more)


def progress(tasks: int = 0, remaining: int = 0) -> Progress:
    return Progress(tasks, 0, 3 * tasks, remaining, 0, 0, 0, {})


def planted(seed: int, *, tasks: int = 400, each: int = 4) -> tuple[list[TaskRow], list[JudgementRow]]:
    """Pairs judged by the people above, one in eight of them a known answer, and one in ten judged once more."""
    rng = random.Random(seed)
    rows: list[JudgementRow] = []
    made = []
    for number in range(1, tasks + 1):
        better, longer, is_gold = rng.choice((1, 2)), rng.choice((1, 2)), number % 8 == 0
        texts = ["word " * (30 if place == longer else 20) + str(place) for place in (1, 2)]
        made.append(task(number, *texts, gold=better if is_gold else None))
        for name in PEOPLE if is_gold else rng.sample(PEOPLE, each):
            for purpose in ("gold" if is_gold else "judge", *(["repeat"] if rng.random() < 0.1 else [])):
                order = rng.sample((1, 2), 2)
                if name == "left":
                    answer = order[0]
                elif name == "long":
                    answer = longer
                else:
                    answer = better if rng.random() < SKILLS[name] else 3 - better
                shown = tuple(10 * number + place for place in order)
                rows.append(
                    said(
                        len(rows) + 1,
                        number,
                        name,
                        answer,
                        purpose=purpose,
                        shown_order=shown,
                        left_id=shown[0],
                        active_ms=900 if name == "left" else rng.randint(8_000, 40_000),
                        received_at=NOW - 3 * DAY + len(rows) * 60_000,
                    )
                )
    return made, rows
