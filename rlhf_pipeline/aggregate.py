"""Judgements → one preference for each pair of responses, and what the judgements say about those who made them.

What people judged counts, work that came late included; gold, repeated and training tasks do not. An admin's decision
takes the place of the votes. A ranking is a judgement of each of its pairs (Ouyang et al., 2203.02155, section 3.5):
they follow one another, and each has its weight, 1 / number of pairs, in ``meta``. A corrected response is better than
the one that it corrects, and a demonstration.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Protocol

from rlhf_pipeline.records import Demonstration, Preference
from rlhf_pipeline.store.records import JudgementRow, StoredResponse, TaskRow


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts and shares over the judgements of a round; a share is None where nothing was there to count.

    Args:
        judgements: without skips.
        pairs: with at least one judgement.
        preferences: pairs that came out in favour of one response.
        ties: pairs that came out even; they are not among the preferences.
        skipped: tasks that were skipped and never judged.
        corrections: preferences for a corrected response over the original; they are not among the pairs.
        adjudicated: tasks that an admin decided.
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
    corrections: int = 0
    adjudicated: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def aggregate(
    tasks: Sequence[TaskRow], judgements: Sequence[JudgementRow], *, source: str
) -> tuple[list[Preference], Summary]:
    """One preference for each judged pair of responses, by majority, and one for each correction.

    The probability of ``chosen`` is its share of the votes. A tie is half a vote for each response, and so is "none is
    good"; a judge who said how sure they are gives that much of a vote to the choice and the rest to the other. A pair
    at exactly one half is a tie: it is counted and left out. Skips are no votes; a task that an admin skipped is out.
    """
    of_task: dict[int, list[JudgementRow]] = defaultdict(list)
    decisions: dict[int, JudgementRow] = {}
    for row in judgements:
        if row.purpose == "judge":
            of_task[row.task_id].append(row)
        elif row.purpose == "adjudicate":
            decisions[row.task_id] = row  # the last one counts
    preferences: list[Preference] = []
    pairs, decided, corrected, skipped = 0, 0, 0, 0
    for task in tasks:
        rows, decision = of_task.get(task.id, []), decisions.get(task.id)
        judged, found = _decide(task, rows, decision, source=source)
        corrections = _corrections(task, rows, source=source)
        preferences += found + corrections
        pairs, decided, corrected = pairs + judged, decided + len(found), corrected + len(corrections)
        skipped += bool(rows or decision) and not judged
    counted = [row for row in judgements if row.purpose == "judge" and row.choice != "skip"]
    agreement, agreement_pairs = raw_agreement(counted)
    two = {task.id: task.responses for task in tasks if len(task.responses) == 2}
    chosen = [row for row in counted if row.response_id is not None and row.task_id in two]
    summary = Summary(
        judgements=len(counted),
        pairs=pairs,
        preferences=decided,
        ties=pairs - decided,
        skipped=skipped,
        agreement=agreement,
        agreement_pairs=agreement_pairs,
        annotators=len({row.user_id for row in counted}),
        left_share=_share([row.response_id == row.left_id for row in chosen]),
        longer_share=_share([longer for row in chosen for longer in _longer_chosen(two[row.task_id], row)]),
        corrections=corrected,
        adjudicated=len(decisions.keys() & {task.id for task in tasks}),
    )
    return preferences, summary


def demonstrations(tasks: Sequence[TaskRow], judgements: Sequence[JudgementRow]) -> list[Demonstration]:
    """What people wrote in place of a response, each text once for its prompt."""
    prompts = {task.id: task.prompt for task in tasks}
    written = {
        (prompts[row.task_id].id, row.correction): Demonstration(prompts[row.task_id], row.correction)
        for row in judgements
        if row.purpose == "judge" and row.correction is not None and row.task_id in prompts
    }
    return list(written.values())


def raw_agreement(judgements: Sequence[JudgementRow]) -> tuple[float | None, int]:
    """Share of the pairs of judgements of one task that say the same, and how many such pairs there are.

    Of rankings each pair of responses is compared for itself.
    """
    answers: dict[tuple[int, ...], list[object]] = defaultdict(list)
    for row in judgements:
        if row.ranking is None:
            answers[(row.task_id,)].append((row.choice, row.response_id))
            continue
        for first, second in combinations(sorted(id_ for group in row.ranking for id_ in group), 2):
            answers[row.task_id, first, second].append(vote(row, first, second))
    same = [a == b for given in answers.values() for a, b in combinations(given, 2)]
    return _share(same), len(same)


def _decide(
    task: TaskRow, rows: Sequence[JudgementRow], decision: JudgementRow | None, *, source: str
) -> tuple[int, list[Preference]]:
    """How many pairs of a task were judged, and those that came out in favour of one response."""
    votes = [row for row in rows if row.choice != "skip"]
    deciding = votes if decision is None else [decision] if decision.choice != "skip" else []
    judged, found = 0, []
    for first, second in combinations(task.responses, 2):
        shares = [share for row in deciding if (share := vote(row, first.id, second.id)) is not None]
        if not shares:
            continue
        judged += 1
        share = sum(shares) / len(shares)
        if abs(share - 0.5) < 1e-9:
            continue
        chosen, rejected = (first, second) if share > 0.5 else (second, first)
        counts = _counts(votes, chosen.id, rejected.id) | {"skip": len(rows) - len(votes)}
        margins = [row.margin for row in deciding if row.response_id == chosen.id and row.margin is not None]
        found.append(
            Preference(
                prompt=task.prompt,
                chosen=chosen.text,
                rejected=rejected.text,
                probability=max(share, 1 - share),
                margin=sum(margins) / len(margins) if margins else None,
                source=str(task.meta.get("source") or source),
                judgements=max(len(votes), 1),
                chosen_cut=chosen.finish == "length",
                rejected_cut=rejected.finish == "length",
                meta={**task.meta, "votes": counts, **({"adjudicated": True} if decision else {})},
            )
        )
    if len(task.responses) > 2:
        of_task = {"task": task.digest, "weight": 1 / len(found)} if found else {}
        found = [replace(one, meta={**one.meta, **of_task}) for one in found]
    return judged, found


class Vote(Protocol):
    """What a judgement says of responses, whatever the numbers are by which it names them."""

    @property
    def response_id(self) -> int | None: ...
    @property
    def ranking(self) -> tuple[tuple[int, ...], ...] | None: ...
    @property
    def probability(self) -> float | None: ...


def vote(row: Vote, first: int, second: int) -> float | None:
    """How much of a vote a judgement gives the first of two responses; None where it says nothing of them."""
    if row.ranking is not None:
        place = {id_: number for number, group in enumerate(row.ranking) for id_ in group}
        return 0.5 if place[first] == place[second] else float(place[first] < place[second])
    if row.response_id is None:
        return 0.5
    sure = 1.0 if row.probability is None else row.probability
    return {first: sure, second: 1 - sure}.get(row.response_id)


def _counts(votes: Sequence[JudgementRow], chosen: int, rejected: int) -> dict[str, int]:
    counts = dict.fromkeys(("chosen", "rejected", "tie", "all_bad"), 0)
    for row in votes:
        if row.choice == "response":
            found = {chosen: "chosen", rejected: "rejected"}.get(row.response_id or 0)
        elif row.choice == "ranking":
            found = {1.0: "chosen", 0.0: "rejected"}.get(vote(row, chosen, rejected) or 0.0, "tie")
        else:
            found = row.choice
        if found is not None:
            counts[found] += 1
    return counts


def _corrections(task: TaskRow, rows: Sequence[JudgementRow], *, source: str) -> list[Preference]:
    responses = {response.id: response for response in task.responses}
    written: dict[tuple[str, StoredResponse], int] = defaultdict(int)
    for row in rows:
        if row.correction is not None and row.corrected_id in responses:
            written[row.correction, responses[row.corrected_id]] += 1
    return [
        Preference(
            prompt=task.prompt,
            chosen=correction,
            rejected=original.text,
            source=str(task.meta.get("source") or source),
            judgements=count,
            rejected_cut=original.finish == "length",
            meta={**task.meta, "correction": True},
        )
        for (correction, original), count in written.items()
    ]


def _longer_chosen(responses: Sequence[StoredResponse], row: JudgementRow) -> list[bool]:
    """Whether the longer of two responses was chosen; nothing where they are of one length."""
    [chosen] = [len(r.text) for r in responses if r.id == row.response_id]
    [other] = [len(r.text) for r in responses if r.id != row.response_id]
    return [chosen > other] if chosen != other else []


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
