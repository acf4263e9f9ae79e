"""What a round's judgements say about each of those who made them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_pipeline.comparisons import OPPOSITE, Label, Pair, best, decided, shown_ends
from rlhf_pipeline.metrics import wilson_interval
from rlhf_pipeline.reliability import (
    DawidSkene,
    Proportion,
    count_words,
    dawid_skene,
    length_bias,
    median_seconds,
    position_bias,
    proportion,
    self_agreement,
    too_fast,
)
from rlhf_pipeline.store.forms import is_right
from rlhf_pipeline.store.records import JudgementRow, TaskRow

_RARE = 3.290527  # what chance exceeds once in a thousand: notes name people, so they must not come by chance
GOLD_BAR = 0.75
"""A note is made where somebody's share of right answers is below this beyond doubt."""
GUESSING_BAR = 0.2
"""A note is made where Dawid–Skene's share of right judgements is beyond doubt less than this above chance."""
FAST_BAR = 0.3
"""A note is made where more than this share of somebody's judgements came before the text could be read."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """Dawid–Skene's expected share of right comparisons, its interval if the truth were known, and that of guessing.

    ``n`` is what the interval rests on: comparisons that others made too, of one ranking counted as one.
    """

    right: float
    low: float
    high: float
    chance: float
    n: int


@dataclass(frozen=True, slots=True)
class AnnotatorQuality:
    """One person in one round.

    Args:
        judgements: that count for the round, without skips.
        gold: right answers to questions whose answer is known, asked silently.
        training: the same of the training round.
        repeats: the same answer again to a task that came twice.
        first_shown: the response shown first won against the one shown last; 0.5 is no bias.
        longer: the longest response won against the shortest.
        ties: judgements that named no winner.
        too_fast: judgements made before the text could be read.
        median_seconds: active time of a judgement.
        reliability: None where nobody else judged the same tasks.
        last_at: the last judgement, UTC epoch milliseconds.
        notes: what to look at, in words; most people have none.
    """

    user_id: int
    user: str
    judgements: int
    skips: int
    gold: Proportion
    training: Proportion
    repeats: Proportion
    first_shown: Proportion
    longer: Proportion
    ties: Proportion
    too_fast: Proportion
    median_seconds: float | None
    reliability: Reliability | None
    last_at: int
    notes: tuple[str, ...]


def dawid_skene_of(given: Mapping[Pair, Mapping[int, Label]]) -> DawidSkene:
    """Dawid and Skene's model of the comparisons that two people or more made.

    Which of two responses is called the first is arbitrary, so mistaking the first for the second must be as likely as
    the reverse: each comparison enters in both orders. One label's worth of smoothing in each cell.
    """
    labels: list[tuple[tuple[Pair, bool], int, Label]] = []
    for pair, said in given.items():
        if len(said) >= 2:
            for user, label in said.items():
                labels += [((pair, False), user, label), ((pair, True), user, OPPOSITE[label])]
    return dawid_skene(labels, smoothing=1.0, tolerance=1e-5)


def annotator_quality(
    tasks: Mapping[int, TaskRow], rows: Sequence[JudgementRow], model: DawidSkene
) -> list[AnnotatorQuality]:
    """Everybody who judged, most judgements first.

    Args:
        tasks: by id; every row's is there.
        rows: current judgements of every purpose.
        model: of the same judgements, see :func:`dawid_skene_of`.
    """
    words = {task.id: _words(task) for task in tasks.values()}
    people: dict[int, list[JudgementRow]] = defaultdict(list)
    for row in rows:
        if row.purpose != "adjudicate":
            people[row.user_id].append(row)
    working = [row for row in rows if row.purpose in ("judge", "gold", "repeat") and row.choice != "skip"]
    everyone = _longer(tasks, working)
    found = [_one(tasks, own, words, model, everyone) for own in people.values()]
    return sorted(found, key=lambda person: (-person.judgements, person.user))


def _one(
    tasks: Mapping[int, TaskRow],
    rows: Sequence[JudgementRow],
    words: Mapping[int, float],
    model: DawidSkene,
    everyone: Proportion,
) -> AnnotatorQuality:
    working = [row for row in rows if row.purpose != "training" and row.choice != "skip"]
    gold, training = _gold(tasks, rows, ("judge", "gold")), _gold(tasks, rows, ("training",))
    repeats, first_shown = _repeats(working), _first_shown(tasks, working)
    longer = _longer(tasks, working)
    fast = too_fast((row.active_ms, words[row.task_id]) for row in working)
    judged = len({row.task_id for row in working if row.purpose in ("judge", "gold")})
    reliability = _reliability(model, rows[0].user_id, judged)
    return AnnotatorQuality(
        user_id=rows[0].user_id,
        user=rows[0].user,
        judgements=sum(row.purpose == "judge" and row.choice != "skip" for row in rows),
        skips=sum(row.purpose == "judge" and row.choice == "skip" for row in rows),
        gold=gold,
        training=training,
        repeats=repeats,
        first_shown=first_shown,
        longer=longer,
        ties=proportion(len(best(row)[1]) != 1 for row in working),
        too_fast=fast,
        median_seconds=median_seconds(row.active_ms for row in working),
        reliability=reliability,
        last_at=max(row.received_at for row in rows),
        notes=tuple(_notes(gold, first_shown, longer, everyone, fast, reliability)),
    )


def _gold(tasks: Mapping[int, TaskRow], rows: Sequence[JudgementRow], purposes: Sequence[str]) -> Proportion:
    right = []
    for row in rows:
        task = tasks[row.task_id]
        if task.gold is not None and row.purpose in purposes and row.choice != "skip":
            right.append(is_right(task.gold, row))
    return proportion(right)


def _repeats(rows: Sequence[JudgementRow]) -> Proportion:
    before = {row.task_id: best(row) for row in rows if row.purpose != "repeat"}
    again = [(before[row.task_id], best(row)) for row in rows if row.purpose == "repeat" and row.task_id in before]
    return self_agreement(again)


def _first_shown(tasks: Mapping[int, TaskRow], rows: Sequence[JudgementRow]) -> Proportion:
    places = []
    for row in rows:
        first, last = shown_ends(row, tasks[row.task_id])
        found = decided(row, tasks[row.task_id], first, last)
        if found is not None:
            places.append((0, 1) if found[0] == first else (1, 0))
    return position_bias(places)


def _longer(tasks: Mapping[int, TaskRow], rows: Sequence[JudgementRow]) -> Proportion:
    lengths = []
    for row in rows:
        size = {response.id: len(response.text) for response in tasks[row.task_id].responses}
        ordered = sorted(size, key=lambda id_: (size[id_], id_))
        found = decided(row, tasks[row.task_id], ordered[-1], ordered[0])
        if found is not None:
            lengths.append((size[found[0]], size[found[1]]))
    return length_bias(lengths)


def _words(task: TaskRow) -> float:
    return sum(count_words(message.content) for message in task.prompt.messages) + sum(
        count_words(response.text) for response in task.responses
    )


def _reliability(model: DawidSkene, user_id: int, judged: int) -> Reliability | None:
    skill = model.skills.get(user_id)
    if skill is None:
        return None
    n = min(skill.n // 2, judged)  # each comparison entered in both orders; those of one ranking hang together
    return Reliability(skill.right, *wilson_interval(skill.right * n, n), skill.chance, n)


def _notes(
    gold: Proportion,
    first_shown: Proportion,
    longer: Proportion,
    everyone: Proportion,
    fast: Proportion,
    reliability: Reliability | None,
) -> list[str]:
    notes = []
    if _surely(gold)[1] < GOLD_BAR:
        notes.append(f"Right on {gold.hits} of {gold.n} questions with a known answer.")
    right = (reliability.right * reliability.n, reliability.n) if reliability is not None else (0.0, 0)
    if reliability is not None and wilson_interval(*right, z=_RARE)[1] < reliability.chance + GUESSING_BAR:
        notes.append("Agrees with the likely truth little more than by chance.")
    if not _surely(first_shown)[0] <= 0.5 <= _surely(first_shown)[1]:
        side = "first" if first_shown.hits > first_shown.n / 2 else "last"
        share = first_shown.hits if side == "first" else first_shown.n - first_shown.hits
        notes.append(f"Chose what was shown {side} {share} of {first_shown.n} times.")
    if everyone.value is not None and _surely(longer)[0] > everyone.high:
        notes.append(f"Chose the longer response {longer.hits} of {longer.n} times, more than the others.")
    if _surely(fast)[0] > FAST_BAR:
        notes.append(f"Decided {fast.hits} of {fast.n} times before the text could be read.")
    return notes


def _surely(share: Proportion) -> tuple[float, float]:
    return wilson_interval(share.hits, share.n, z=_RARE)
