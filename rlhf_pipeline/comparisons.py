"""What a judgement says about two responses: one form for choices and rankings, on which agreement is computed."""

from __future__ import annotations

from itertools import combinations
from typing import Literal

from rlhf_pipeline.store.records import JudgementRow, TaskRow

Pair = tuple[int, int, int]
"""Task id and two of its response ids, in canonical order."""
Label = Literal["first", "second", "tie", "all_bad"]
OPPOSITE: dict[Label, Label] = {"first": "second", "second": "first", "tie": "tie", "all_bad": "all_bad"}


def compared(task: TaskRow, row: JudgementRow) -> dict[Pair, Label]:
    """What a judgement says of every two responses of its task, where it says something.

    A choice of one of several responses sets that one above each of the others and leaves the others open; a tie and
    "none is good" hold for every two; a skip says nothing.
    """
    ids = [response.id for response in task.responses]
    place = {id_: rank for rank, group in enumerate(row.ranking or ()) for id_ in group}
    if row.choice == "response" and row.response_id is not None:
        place = {id_: 0 if id_ == row.response_id else 1 for id_ in ids}
    found: dict[Pair, Label] = {}
    for a, b in combinations(ids, 2):
        if row.choice in ("tie", "all_bad"):
            found[task.id, a, b] = "tie" if row.choice == "tie" else "all_bad"
        elif row.choice == "ranking" and a in place and b in place:
            found[task.id, a, b] = "tie" if place[a] == place[b] else "first" if place[a] < place[b] else "second"
        elif row.choice == "response" and row.response_id in (a, b):
            found[task.id, a, b] = "first" if place[a] < place[b] else "second"
    return found


def signed(label: Label, strength: int | None) -> int:
    """A comparison as a number: 1 to 3 for the first by how much better, below zero for the second, 0 for neither."""
    return {"first": 1, "second": -1}.get(label, 0) * (strength or 1)


def best(row: JudgementRow) -> tuple[str, frozenset[int]]:
    """What a judgement comes down to: what kind of answer, and the response (of a ranking: the responses) on top."""
    if row.choice == "ranking" and row.ranking:
        return "response", frozenset(row.ranking[0])
    return row.choice, frozenset() if row.response_id is None else frozenset((row.response_id,))


def decided(row: JudgementRow, task: TaskRow, first: int, last: int) -> tuple[int, int] | None:
    """(winner, loser) among two responses of the task, by id; None where the judgement does not decide between them."""
    found = compared(task, row)
    label = found.get((task.id, first, last)) or OPPOSITE.get(found.get((task.id, last, first), "tie"))
    if label == "first":
        return first, last
    return (last, first) if label == "second" else None


def shown_ends(row: JudgementRow, task: TaskRow) -> tuple[int, int]:
    """The response that was shown first and the one shown last."""
    if row.shown_order:
        return row.shown_order[0], row.shown_order[-1]
    others = [response.id for response in task.responses if response.id != row.left_id]
    return row.left_id, others[-1]
