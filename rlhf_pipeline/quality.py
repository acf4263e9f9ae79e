"""A round's quality report: how far it is, how well people agree, who can be relied on, what needs a decision.

Made from the rows of the judgement store: training and adjudication count for nobody's agreement, questions with known
answers and repeats only for the person who answered them.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from rlhf_pipeline.agreement import (
    Estimate,
    cohen_kappas,
    fleiss_kappa,
    krippendorff_alpha,
    raw_agreement,
)
from rlhf_pipeline.annotators import AnnotatorQuality, annotator_quality, dawid_skene_of
from rlhf_pipeline.comparisons import Label, Pair, best, compared, signed
from rlhf_pipeline.pace import Forecast, forecast, timeline
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Form, JudgementRow, Progress, Round, TaskRow

MOST_KAPPAS = 100
SHARED_FOR_KAPPA = 10
"""Cohen's kappa of two people is shown where they judged so many tasks in common."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of agreement on one question of the form."""

    question: str
    name: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Kappa:
    """Cohen's kappa of two people."""

    users: tuple[int, int]
    names: tuple[str, str]
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A task that people judged differently.

    Args:
        agreement: share of the pairs of judgements of it that say the same, over every two of its responses.
        answers: how many said what: ("response", response id), ("tie", None) …; most frequent first.
        adjudicated: somebody has decided it.
    """

    task_id: int
    judgements: int
    agreement: float
    answers: tuple[tuple[str, int | None, int], ...]
    adjudicated: bool


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Everything :func:`quality_report` knows; ``at`` is when it was made, UTC epoch milliseconds."""

    round_id: int
    at: int
    progress: Progress
    forecast: Forecast
    timeline: tuple[tuple[int, int], ...]
    measures: tuple[Measure, ...]
    kappas: tuple[Kappa, ...]
    annotators: tuple[AnnotatorQuality, ...]
    disagreements: tuple[Disagreement, ...]
    late: int

    def to_json(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return asdict(self)


def round_quality(store: JudgementStore, round_id: int, *, now: int | None = None) -> QualityReport:
    """The quality report of a round of an open store.

    Raises:
        StoreError: there is no such round.
    """
    now = round(time.time() * 1000) if now is None else now
    return quality_report(
        store.round(round_id), store.tasks(round_id), store.judgements(round_id), store.progress(round_id, now), now=now
    )


def quality_report(
    terms: Round, tasks: Sequence[TaskRow], judgements: Sequence[JudgementRow], progress: Progress, *, now: int
) -> QualityReport:
    """The quality report of a round.

    Args:
        terms: the round.
        tasks: of the round, retired ones included.
        judgements: current ones of every purpose.
        progress: what is done and what is still needed.
        now: UTC epoch milliseconds.
    """
    by_id = {task.id: task for task in tasks}
    rows = [row for row in judgements if row.task_id in by_id]
    judged = [row for row in rows if row.purpose == "judge"]
    given = comparisons_of(by_id, judged)
    # The comparisons of one ranking hang together.
    groups = {pair: pair[0] for pair in given} if any(len(task.responses) > 2 for task in tasks) else None
    model = dawid_skene_of(comparisons_of(by_id, [row for row in rows if row.purpose in ("judge", "gold")]))
    names = {row.user_id: row.user for row in rows}
    received = [row.received_at for row in judged]
    return QualityReport(
        round_id=terms.id,
        at=now,
        progress=progress,
        forecast=forecast(received, progress.remaining, now=now, active_ms=[row.active_ms for row in judged]),
        timeline=tuple(timeline(received, now)),
        measures=tuple(_measures(terms.form, judged, given, groups)),
        kappas=tuple(_kappas(given, names, groups)),
        annotators=tuple(annotator_quality(by_id, rows, model)),
        disagreements=tuple(_disagreements(rows, given)),
        late=sum(row.late for row in judged),
    )


def comparisons_of(tasks: Mapping[int, TaskRow], rows: Sequence[JudgementRow]) -> dict[Pair, dict[int, Label]]:
    """Every two responses that were compared → user id → what they said."""
    given: dict[Pair, dict[int, Label]] = defaultdict(dict)
    for row in rows:
        for pair, label in compared(tasks[row.task_id], row).items():
            given[pair][row.user_id] = label
    return dict(given)


def _measures(
    form: Form,
    rows: Sequence[JudgementRow],
    given: Mapping[Pair, Mapping[int, Label]],
    groups: Mapping[Pair, int] | None,
) -> list[Measure]:
    """Agreement on which response is better, then on each attribute and each rule of the form."""
    question = "Which is better"
    found = [
        Measure(question, "share that agrees", raw_agreement(given, groups=groups)),
        Measure(question, "Krippendorff's α", krippendorff_alpha(given, groups=groups)),
        Measure(question, "Fleiss' κ", fleiss_kappa(given, groups=groups)),
    ]
    if form.strength:
        strength = {(row.task_id, row.user_id): row.strength for row in rows}
        numbers = {
            pair: {user: signed(label, strength.get((pair[0], user))) for user, label in said.items()}
            for pair, said in given.items()
        }
        found.append(
            Measure(
                "How much better", "Krippendorff's α, ordinal", krippendorff_alpha(numbers, "ordinal", groups=groups)
            )
        )
    for attribute in form.attributes:
        rated = _of_responses(
            rows, {row.id: {r: a.get(attribute.name) for r, a in row.ratings.items()} for row in rows}
        )
        of_task = {item: item[0] for item in rated}
        found.append(
            Measure(attribute.name, "Krippendorff's α, ordinal", krippendorff_alpha(rated, "ordinal", groups=of_task))
        )
    for rule in form.rules:
        broken = _of_responses(rows, {row.id: {r: rule in names for r, names in row.rules.items()} for row in rows})
        of_task = {item: item[0] for item in broken}
        found.append(Measure(rule, "Krippendorff's α", krippendorff_alpha(broken, groups=of_task)))
    return found


def _of_responses(
    rows: Sequence[JudgementRow], answers: Mapping[int, Mapping[int, Any]]
) -> dict[tuple[int, int], dict[int, Any]]:
    """(task id, response id) → user id → answer, from judgement id → response id → answer."""
    found: dict[tuple[int, int], dict[int, Any]] = defaultdict(dict)
    for row in rows:
        for response_id, answer in answers[row.id].items():
            if answer is not None:
                found[row.task_id, response_id][row.user_id] = answer
    return dict(found)


def _kappas(
    given: Mapping[Pair, Mapping[int, Label]], names: Mapping[int, str], groups: Mapping[Pair, int] | None
) -> list[Kappa]:
    shared = cohen_kappas(given, at_least=SHARED_FOR_KAPPA, most=MOST_KAPPAS, groups=groups)
    return [Kappa((a, b), (names[a], names[b]), estimate) for (a, b), estimate in shared.items()]


def _disagreements(rows: Sequence[JudgementRow], given: Mapping[Pair, Mapping[int, Label]]) -> list[Disagreement]:
    """The tasks that people judged differently: first those nobody has decided, least agreement, most judgements."""
    same: dict[int, list[bool]] = defaultdict(list)
    for pair, said in given.items():
        same[pair[0]] += [a == b for a, b in combinations(said.values(), 2)]
    answers: dict[int, Counter[tuple[str, int | None]]] = defaultdict(Counter)
    for row in rows:
        if row.purpose == "judge" and row.choice != "skip":
            kind, top = best(row)
            answers[row.task_id][kind if len(top) < 2 else "tie", next(iter(top)) if len(top) == 1 else None] += 1
    decided = {row.task_id for row in rows if row.purpose == "adjudicate"}
    found = [
        Disagreement(
            task_id=task_id,
            judgements=answers[task_id].total(),
            agreement=sum(flags) / len(flags),
            answers=tuple((kind, id_, n) for (kind, id_), n in answers[task_id].most_common()),
            adjudicated=task_id in decided,
        )
        for task_id, flags in same.items()
        if flags and not all(flags)
    ]
    return sorted(found, key=lambda d: (d.adjudicated, d.agreement, -d.judgements, d.task_id))
