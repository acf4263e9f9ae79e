"""Judgements of pairs → one preference for each pair, and what the judgements say about those who made them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from rlhf_pipeline.records import Preference
from rlhf_pipeline.store.records import JudgementRow, TaskRow


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts and shares over the judgements of a round; a share is None where nothing was there to count.

    Args:
        judgements: without skips.
        pairs: with at least one judgement.
        preferences: pairs that came out in favour of one response.
        ties: pairs that came out even; they are not among the preferences.
        skipped: pairs that were skipped and never judged.
        agreement: share of the pairs of judgements of one task, by two people, that say the same (a tie is an answer).
        agreement_pairs: how many such pairs of judgements there are.
        annotators: people with at least one judgement.
        left_share: share of the decided judgements that chose the response shown on the left.
        longer_share: share of the decided judgements that chose the longer response (of different lengths).
    """

    judgements: int
    pairs: int
    preferences: int
    ties: int
    skipped: int
    agreement: float | None
    agreement_pairs: int
    annotators: int
    left_share: float | None
    longer_share: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def aggregate(
    tasks: Sequence[TaskRow], judgements: Sequence[JudgementRow], *, source: str
) -> tuple[list[Preference], Summary]:
    """One preference for each judged pair, by majority.

    The probability of ``chosen`` is its share of the votes. A tie is half a vote for each response, and so is "none is
    good"; a judge who said how sure they are gives that much of a vote to the choice and the rest to the other. A pair
    at exactly one half is a tie: it is counted and left out. Skips are no votes.
    """
    of_task: dict[int, list[JudgementRow]] = defaultdict(list)
    for row in judgements:
        of_task[row.task_id].append(row)
    preferences, ties, skipped = [], 0, 0
    for task in tasks:
        rows = of_task.get(task.id, [])
        votes = [row for row in rows if row.choice != "skip"]
        if votes:
            preference = _decide(task, votes, skips=len(rows) - len(votes), source=source)
            preferences += [preference] if preference else []
            ties += preference is None
        else:
            skipped += bool(rows)
    counted = [row for row in judgements if row.choice != "skip"]
    agreement, agreement_pairs = raw_agreement(counted)
    lengths = {response.id: len(response.text) for task in tasks for response in task.responses}
    summary = Summary(
        judgements=len(counted),
        pairs=len(preferences) + ties,
        preferences=len(preferences),
        ties=ties,
        skipped=skipped,
        agreement=agreement,
        agreement_pairs=agreement_pairs,
        annotators=len({row.user_id for row in counted}),
        left_share=_share([row.response_id == row.left_id for row in counted if row.response_id is not None]),
        longer_share=_share(_longer_chosen(tasks, counted, lengths)),
    )
    return preferences, summary


def raw_agreement(judgements: Sequence[JudgementRow]) -> tuple[float | None, int]:
    """Share of the pairs of judgements of one task that say the same, and how many such pairs there are."""
    answers: dict[int, list[tuple[str, int | None]]] = defaultdict(list)
    for row in judgements:
        answers[row.task_id].append((row.choice, row.response_id))
    same = [a == b for given in answers.values() for a, b in combinations(given, 2)]
    return _share(same), len(same)


def _decide(task: TaskRow, votes: Sequence[JudgementRow], *, skips: int, source: str) -> Preference | None:
    first, second = task.responses
    share = sum(_vote_for(first.id, row) for row in votes) / len(votes)
    if abs(share - 0.5) < 1e-9:
        return None
    chosen, rejected = (first, second) if share > 0.5 else (second, first)
    margins = [row.margin for row in votes if row.response_id == chosen.id and row.margin is not None]
    counts = {
        "chosen": sum(row.response_id == chosen.id for row in votes),
        "rejected": sum(row.response_id == rejected.id for row in votes),
        "tie": sum(row.choice == "tie" for row in votes),
        "all_bad": sum(row.choice == "all_bad" for row in votes),
        "skip": skips,
    }
    return Preference(
        prompt=task.prompt,
        chosen=chosen.text,
        rejected=rejected.text,
        probability=max(share, 1 - share),
        margin=sum(margins) / len(margins) if margins else None,
        source=str(task.meta.get("source") or source),
        judgements=len(votes),
        meta={**task.meta, "votes": counts},
    )


def _vote_for(response_id: int, row: JudgementRow) -> float:
    if row.response_id is None:
        return 0.5
    sure = 1.0 if row.probability is None else row.probability
    return sure if row.response_id == response_id else 1 - sure


def _longer_chosen(tasks: Sequence[TaskRow], votes: Sequence[JudgementRow], lengths: dict[int, int]) -> list[bool]:
    pairs = {task.id: [response.id for response in task.responses] for task in tasks}
    longer = []
    for row in votes:
        if row.response_id is None or row.task_id not in pairs:
            continue
        [other] = [id_ for id_ in pairs[row.task_id] if id_ != row.response_id]
        if lengths[other] != lengths[row.response_id]:
            longer.append(lengths[row.response_id] > lengths[other])
    return longer


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
