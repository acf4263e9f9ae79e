"""Judgements → one preference for each pair of responses, and what the judgements say about those who made them.

What people judged counts, work that came late included unless :class:`Counting` says otherwise; gold, repeated and
training tasks do not. An admin's decision takes the place of the votes. A ranking is a judgement of each of its pairs
(Ouyang et al., 2203.02155, section 3.5): they follow one another, and each weighs 1 / number of pairs. A pair that came
out even is a tie, and marked as one. A corrected response is better than the one that it corrects, and a demonstration.
The votes themselves stay with the preference, in ``meta["judgements"]``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any, Literal, Protocol

from rlhf_pipeline.records import Demonstration, Preference
from rlhf_pipeline.store.records import JudgementRow, StoredResponse, TaskRow
from rlhf_pipeline.vote_models import PairVote, Rater, VoteModel, dawid_skene_pairs, noisy_bradley_terry

Rule = Literal["majority", "dawid_skene", "noisy_bradley_terry"]


@dataclass(frozen=True, slots=True)
class Counting:
    """How the votes on a pair become one probability, and which of them count.

    Args:
        rule: the share of the votes, or what a model of :mod:`rlhf_pipeline.vote_models` makes of everybody's votes.
        late: whether judgements count that came after their place was given to somebody else.
        flagged: whether tasks count that somebody flagged.
    """

    rule: Rule = "majority"
    late: bool = True
    flagged: bool = True


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts and shares over the judgements of a round; a share is None where nothing was there to count.

    Args:
        judgements: without skips.
        pairs: with at least one judgement.
        preferences: pairs that came out in favour of one response.
        ties: pairs that came out even.
        skipped: tasks that were skipped and never judged.
        corrections: preferences for a corrected response over the original; they are not among the pairs.
        adjudicated: tasks that an admin decided.
        late: judgements that came late and do not count.
        flagged: judgements of flagged tasks, which do not count.
        raters: what the model of the votes thinks of everybody; empty where the majority decides.
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
    late: int = 0
    flagged: int = 0
    raters: Mapping[str, Rater] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def aggregate(
    tasks: Sequence[TaskRow],
    judgements: Sequence[JudgementRow],
    *,
    source: str,
    counting: Counting = Counting(),
    who: Callable[[str], str] = str,
) -> tuple[list[Preference], Summary]:
    """One preference for each judged pair of responses, ties included, and one for each correction.

    A tie is half a vote for each response, and so is "none is good"; a judge who said how sure they are gives that much
    of a vote to the choice and the rest to the other. By majority the probability of ``chosen`` is its share of the
    votes; a pair at exactly one half, or about which everybody said so, is a tie. Skips are no votes; a task that an
    admin skipped is out.

    Args:
        source: of preferences whose task does not name one.
        counting: which votes count, and how.
        who: the name under which a person stands in the records.
    """
    kept, late, flagged = counted(judgements, counting)
    of_task: dict[int, list[JudgementRow]] = defaultdict(list)
    decisions: dict[int, JudgementRow] = {}
    for row in kept:
        if row.purpose == "judge":
            of_task[row.task_id].append(row)
        elif row.purpose == "adjudicate":
            decisions[row.task_id] = row  # the last one counts
    model = _model(tasks, kept, decisions, counting.rule)
    preferences: list[Preference] = []
    pairs, ties, corrected, skipped = 0, 0, 0, 0
    for task in tasks:
        rows, decision = of_task.get(task.id, []), decisions.get(task.id)
        found = _decide(task, rows, decision, model, source=source, who=who)
        corrections = _corrections(task, rows, source=source)
        preferences += found + corrections
        pairs, ties, corrected = pairs + len(found), ties + sum(p.tie for p in found), corrected + len(corrections)
        skipped += bool(rows or decision) and not found
    votes = [row for rows in of_task.values() for row in rows if row.choice != "skip"]
    agreement, agreement_pairs = raw_agreement(votes)
    two = {task.id: task.responses for task in tasks if len(task.responses) == 2}
    chosen = [row for row in votes if row.response_id is not None and row.task_id in two]
    summary = Summary(
        judgements=len(votes),
        pairs=pairs,
        preferences=pairs - ties,
        ties=ties,
        skipped=skipped,
        agreement=agreement,
        agreement_pairs=agreement_pairs,
        annotators=len({row.user_id for row in votes}),
        left_share=_share([row.response_id == row.left_id for row in chosen]),
        longer_share=_share([longer for row in chosen for longer in _longer_chosen(two[row.task_id], row)]),
        corrections=corrected,
        adjudicated=len(decisions.keys() & {task.id for task in tasks}),
        late=late,
        flagged=flagged,
        raters={who(str(name)): rater for name, rater in model.raters.items()} if model else {},
    )
    return preferences, summary


def counted(judgements: Sequence[JudgementRow], counting: Counting) -> tuple[list[JudgementRow], int, int]:
    """The judgements that count, and how many are left out for being late and for a flag on their task."""
    real = [row for row in judgements if row.purpose in ("judge", "adjudicate")]
    bad = set() if counting.flagged else {row.task_id for row in real if row.flags}
    kept = [row for row in judgements if row.task_id not in bad]
    flagged = sum(row.purpose == "judge" for row in judgements) - sum(row.purpose == "judge" for row in kept)
    if counting.late:
        return kept, 0, flagged
    in_time = [row for row in kept if not (row.late and row.purpose == "judge")]
    return in_time, len(kept) - len(in_time), flagged


def _model(
    tasks: Sequence[TaskRow], judgements: Sequence[JudgementRow], decisions: Mapping[int, JudgementRow], rule: Rule
) -> VoteModel | None:
    """What the votes say by the rule; None where the majority decides.

    Known answers and an admin's decisions are the truth by which Dawid–Skene measures people.
    """
    if rule == "majority":
        return None
    by_id = {task.id: task for task in tasks}
    votes = [
        PairVote(first.id, second.id, row.user, share, _is_before(row, first.id, second.id))
        for row in judgements
        if row.purpose in ("judge", "gold") and row.choice != "skip" and row.task_id in by_id
        for first, second in combinations(by_id[row.task_id].responses, 2)
        if (share := vote(row, first.id, second.id)) is not None
    ]
    known: dict[tuple[Any, Any], float] = {}
    for task in tasks:
        for first, second in combinations(task.responses, 2):
            decision = decisions.get(task.id)
            share = vote(decision, first.id, second.id) if decision and decision.choice != "skip" else None
            if share is None and task.gold is not None and task.gold.choice in ("response", "tie"):
                share = {first.id: 1.0, second.id: 0.0, None: 0.5}.get(task.gold.response_id)
            if share is not None:
                known[first.id, second.id] = share
    return fit_votes(rule, votes, known)


def fit_votes(rule: Rule, votes: Sequence[PairVote], known: Mapping[tuple[Any, Any], float]) -> VoteModel | None:
    """A model of everybody's votes on pairs by the rule; None where the majority decides.

    Args:
        known: pairs whose truth is known, by which Dawid–Skene measures people.
    """
    if rule == "majority":
        return None
    return noisy_bradley_terry(votes) if rule == "noisy_bradley_terry" else dawid_skene_pairs(votes, known=known)


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
    task: TaskRow,
    rows: Sequence[JudgementRow],
    decision: JudgementRow | None,
    model: VoteModel | None,
    *,
    source: str,
    who: Callable[[str], str],
) -> list[Preference]:
    """The pairs of a task that were judged."""
    votes = [row for row in rows if row.choice != "skip"]
    deciding = votes if decision is None else [decision] if decision.choice != "skip" else []
    found = []
    for first, second in combinations(task.responses, 2):
        shares = [share for row in deciding if (share := vote(row, first.id, second.id)) is not None]
        if not shares:
            continue
        share = sum(shares) / len(shares)
        if model is not None and decision is None and any(one != 0.5 for one in shares):
            share = model.probability[first.id, second.id]
        tie = abs(share - 0.5) < 1e-9
        chosen, rejected = (first, second) if tie or share > 0.5 else (second, first)
        said = [row for row in votes if vote(row, first.id, second.id) is not None]
        margins = [row.margin for row in deciding if row.response_id == chosen.id and row.margin is not None]
        found.append(
            Preference(
                prompt=task.prompt,
                chosen=chosen.text,
                rejected=rejected.text,
                probability=0.5 if tie else max(share, 1 - share),
                margin=sum(margins) / len(margins) if margins and not tie else None,
                source=str(task.meta.get("source") or source),
                judgements=max(len(votes), 1),
                chosen_cut=chosen.finish == "length",
                rejected_cut=rejected.finish == "length",
                tie=tie,
                meta={
                    **task.meta,
                    **({"task": task.digest} if len(task.responses) > 2 else {}),
                    "votes": _counts(votes, chosen.id, rejected.id) | {"skip": len(rows) - len(votes)},
                    "judgements": [_record(row, chosen.id, rejected.id, who) for row in said],
                    **({"adjudicated": True} if decision else {}),
                },
            )
        )
    return [replace(one, weight=1 / len(found)) for one in found]


def _record(row: JudgementRow, chosen: int, rejected: int, who: Callable[[str], str]) -> dict[str, Any]:
    """One person's vote on a pair as the preference keeps it; what was not asked or is not so is left out."""
    share = vote(row, chosen, rejected)
    says = "all_bad" if row.choice == "all_bad" else {1.0: "chosen", 0.0: "rejected", 0.5: "tie"}.get(share or 0.0)
    if says is None:  # somebody who said how sure they are
        says = "chosen" if row.response_id == chosen else "rejected"
    more = {
        "sure": row.probability,
        "strength": row.strength,
        "late": row.late or None,
        "flags": list(row.flags) or None,
    }
    kept = {name: value for name, value in more.items() if value is not None}
    first = "chosen" if _is_before(row, chosen, rejected) else "rejected"
    return {"who": who(row.user), "says": says, "shown_first": first, **kept}


def _is_before(row: JudgementRow, first: int, second: int) -> bool:
    """Whether a person was shown the first of two responses left of (above) the second."""
    if first in row.shown_order and second in row.shown_order:
        return row.shown_order.index(first) < row.shown_order.index(second)
    return row.left_id == first


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
