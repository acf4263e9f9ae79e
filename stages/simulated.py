"""The simulated annotators at work: they lease tasks, judge by the pocket model's gold judge, and submit."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from rlhf_pipeline.errors import ConfigError
from rlhf_pipeline.pocket.annotators import PANEL, SimulatedAnnotator
from stages.job import Job

if TYPE_CHECKING:
    from rlhf_pipeline.store import JudgementStore
    from rlhf_pipeline.store.records import Answer, Assignment
    from stages.collect import Config

_BATCH = 64  # judgements of a simulated annotator in one transaction


def judge(job: Job, store: JudgementStore, round_id: int) -> None:
    """The panel judges what is open, in turn and by batches; an interrupted batch is done again by the same judge.

    Raises:
        ConfigError: they can read none of the responses.
    """
    config: Config = job.config
    panel = [PANEL[name] for name in config.panel]
    users = [store.user(annotator.name, "simulated") for annotator in panel]
    progress = store.progress(round_id)
    scores: dict[tuple[str, str], float | None] = {}
    if progress.judgements > 0 and progress.remaining:
        job.say(f"{progress.judgements:,} of {progress.wanted:,} judgements are there already")
    with job.track("judging", progress.wanted) as advance:
        advance(progress.judgements)
        turn, idle = _turn(progress.judgements, progress.tasks, config.overlap), 0
        while idle < len(panel):
            annotator, user_id = panel[turn % len(panel)], users[turn % len(panel)]
            held = store.lease(round_id, user_id, _BATCH)
            answers = [_simulated_answer(job, annotator, given, scores) for given in held]
            if answers and all(score is None for score in scores.values()):
                raise ConfigError(
                    "the simulated annotators can read none of these responses: they know only what pocket speaks of",
                    where="collect.judges",
                    advice="collect.judges: people, or data.prompts: pocket",
                )
            if answers:
                store.submit_many(user_id, answers)
            advance(len(answers))
            idle = 0 if held else idle + 1
            turn += 1


def _turn(judgements: int, tasks: int, overlap: int) -> int:
    """How many batches were finished when so many judgements were made: each batch of tasks takes ``overlap`` turns."""
    whole = judgements // (_BATCH * overlap)
    size = min(_BATCH, tasks - whole * _BATCH)
    return whole * overlap + ((judgements - whole * _BATCH * overlap) // size if size > 0 else 0)


def _simulated_answer(
    job: Job, annotator: SimulatedAnnotator, given: Assignment, scores: dict[tuple[str, str], float | None]
) -> Answer:
    from rlhf_pipeline.pocket.judge import gold
    from rlhf_pipeline.records import messages_digest
    from rlhf_pipeline.store.records import Answer, text_digest

    left, right = given.responses
    prompt = messages_digest(given.prompt)
    for response in (left, right):
        if (prompt, response.text) not in scores:
            scores[prompt, response.text] = gold(given.prompt, response.text, response.finish == "eos")
    pair = ":".join([prompt, *sorted(text_digest(r.text) for r in (left, right))])
    choice = annotator.judge(
        random.Random(f"{job.seed}:{annotator.name}:{pair}"),
        scores[prompt, left.text],
        scores[prompt, right.text],
        len(left.text.split()),
        len(right.text.split()),
    )
    token, rules = f"simulated-{given.id}", _broken(job, annotator, given) if given.form.rules else {}
    if choice in ("tie", "both_bad"):
        return Answer(token, given.id, "tie" if choice == "tie" else "all_bad", rules=rules)
    return Answer(token, given.id, "response", (left if choice == "a" else right).id, rules=rules)


def _broken(job: Job, annotator: SimulatedAnnotator, given: Assignment) -> dict[int, tuple[str, ...]]:
    """Response id → the rules that this person finds it breaks: the same whenever they see it. What cannot be read
    breaks none."""
    from rlhf_pipeline.pocket.judge import broken_rules
    from rlhf_pipeline.records import messages_digest
    from rlhf_pipeline.store.records import text_digest

    found = {}
    for response in given.responses:
        truth = broken_rules(given.prompt, response.text, response.finish == "eos") or frozenset()
        lot = f"{job.seed}:{annotator.name}:{messages_digest(given.prompt)}:{text_digest(response.text)}"
        found[response.id] = tuple(
            rule for rule in given.form.rules if annotator.says_broken(random.Random(f"{lot}:{rule}"), rule in truth)
        )
    return found
