"""A store whose round was judged by people with known habits: what the admin pages have to show."""

from __future__ import annotations

import random
import time
from pathlib import Path

from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Answer, Assignment, Attribute, Form, Gold, NewResponse, NewTask

SKILLS = {"Ann": 0.95, "Bob": 0.85, "Cem": 0.75, "Dana": 0.65}
"""How often each sees which response is better; "Lou" always takes the one on the left, "Max" the longer one."""
PEOPLE = (*SKILLS, "Lou", "Max")
QUESTIONS = (
    "What is the capital of France?", "How do I boil an egg?", "Write a line about the sea.", "Is a whale a fish?",
    "چرا آسمان آبی است؟", "Explain what a **loop** is.", "Give me a reason to read.", "How far away is the moon?",
)  # fmt: skip
FORM = Form(
    strength=True, all_bad=True, comment=True, rules=("No insults",), attributes=(Attribute("Helpful"),),
    flags=("Private data",),
)  # fmt: skip
HOUR = 3_600_000


def plant(where: Path, *, tasks: int = 120, judgements: int = 250, seed: int = 0) -> tuple[JudgementStore, int]:
    """A round of pairs, judged over the last twenty hours by six people, not yet done."""
    rng = random.Random(seed)
    store = JudgementStore.open(where)
    round_id = store.open_round(
        "people", overlap=3, seed=seed, source_digest="d", lease_seconds=600, form=FORM, gold_rate=0.1, repeat_rate=0.1
    )
    store.add_tasks(round_id, [_task(rng, n) for n in range(tasks)])
    better = {}
    for index, row in enumerate(store.tasks(round_id)):
        [right] = [r.id for r in row.responses if "better" in r.text]
        better[row.id] = right
        if index % 6 == 0:
            store.set_gold(row.id, Gold("response", right, "It answers the question."))
    people = {name: store.user(name) for name in PEOPLE}
    lengths = {r.id: len(r.text) for row in store.tasks(round_id) for r in row.responses}
    now = round(time.time() * 1000)
    for n in range(judgements):
        at = now - 20 * HOUR + n * 20 * HOUR // judgements
        name = rng.choice(PEOPLE)
        held = store.lease(round_id, people[name], 1, now=at)
        if held:
            store.submit(people[name], _answer(rng, name, held[0], better, lengths, n), now=at)
    return store, round_id


def _task(rng: random.Random, n: int) -> NewTask:
    good = f"A better answer, number {n}, that gets the point." + " It says why, in a few words." * rng.choice((0, 4))
    bad = f"An answer, number {n}, that misses the point." + " It goes on and on." * rng.choice((0, 6))
    return NewTask(
        Prompt((Message("user", f"{QUESTIONS[n % len(QUESTIONS)]} ({n})"),)), (NewResponse(good), NewResponse(bad))
    )


def _answer(
    rng: random.Random, name: str, held: Assignment, better: dict[int, int], lengths: dict[int, int], n: int
) -> Answer:
    shown = [r.id for r in held.responses]
    right = better[held.task_id]
    wrong = next(id_ for id_ in shown if id_ != right)
    if name == "Lou":
        chosen = shown[0]
    elif name == "Max":
        chosen = max(shown, key=lambda id_: lengths[id_])
    else:
        chosen = right if rng.random() < SKILLS[name] else wrong
    common = {
        "client_token": f"token-{n:06}",
        "assignment_id": held.id,
        "rules": {id_: ("No insults",) if rng.random() < 0.05 else () for id_ in shown},
        "ratings": {id_: {"Helpful": min(5, max(1, round(rng.gauss(4 if id_ == right else 2, 1))))} for id_ in shown},
        "active_ms": 900 if name == "Lou" else rng.randint(7_000, 45_000),
        "comment": "Both say <b>little</b> & miss the point." if rng.random() < 0.05 else None,
        "flags": ("Private data",) if rng.random() < 0.02 else (),
    }
    if name in SKILLS and rng.random() < 0.05:
        return Answer(choice="tie", **common)  # type: ignore[arg-type]
    return Answer(choice="response", response_id=chosen, strength=rng.randint(1, 3), **common)  # type: ignore[arg-type]
