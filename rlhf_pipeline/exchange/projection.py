"""Judgements to what is trained on: pairs with a better side, and single responses that are good or bad.

Every decision is made once for all formats here, and what it leaves out is counted in the :class:`Ledger`:

- current judgements only, of purpose "judge"; where an admin has adjudicated, the admin's alone; no skips; each is the
  vote of :func:`rlhf_pipeline.aggregate.vote`, so that an export decides as training on the round itself does;
- late work and flagged tasks count where the terms say so (``collect.votes``);
- a pair goes to the response with more than half of the votes, or by a model of everybody's votes where the terms name
  one (single responses, of which such a model says nothing, go by the share all the same). A tie, and "none is good",
  is half a vote for each; a judge who said how sure they are gives that much of a vote. No two rows contradict each
  other: equal pairs of different tasks are decided together;
- a ranking is a vote on each of its pairs; tied responses are a tie. The pairs of one task weigh 1 together;
- a corrected response is better than the original, whoever decided the task; both are a pair of their own;
- a response is good (KTO) where more than half of its judges find it so: it was chosen, stands first in a ranking, or
  is tied with all others; bad where it was not chosen, stands last, or none is good.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from rlhf_pipeline.aggregate import fit_votes, vote
from rlhf_pipeline.exchange.judged import JudgedRound, JudgedTask, Verdict, current
from rlhf_pipeline.exchange.rules import Ledger, Terms
from rlhf_pipeline.records import Prompt
from rlhf_pipeline.vote_models import PairVote, VoteModel

_EVEN = 1e-9
JUDGEMENT_RULES = ("superseded", "purpose", "skip", "adjudicated")


@dataclass(frozen=True, slots=True)
class Pair:
    """A better and a worse response to one prompt.

    Args:
        probability: share of the votes for ``chosen``, above 0.5.
        margin: mean over the judges who chose ``chosen`` and said how much better it is; None where none did.
        weight: 1 / number of pairs that come from the same task.
        source: "judgement" or "correction".
    """

    prompt: Prompt
    chosen: str
    rejected: str
    probability: float
    margin: float | None
    judgements: int
    source: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Labelled:
    """A response that is good or bad by itself."""

    prompt: Prompt
    response: str
    good: bool
    judgements: int


@dataclass(slots=True)
class _Votes:
    """Votes on whether the first of two responses is the better one."""

    group: str
    source: str
    shares: list[float] = field(default_factory=list)
    margins: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    choices: Counter[str] = field(default_factory=Counter)
    adjudicated: bool = False


def counted(task: JudgedTask, ledger: Ledger, terms: Terms) -> tuple[list[Verdict], list[Verdict]]:
    """The judgements of a task that decide it, and those whose corrections count; none where the task is left out."""
    ledger.apply(*JUDGEMENT_RULES, *([] if terms.votes.late else ["late"]))
    ledger.apply(*(["flagged"] if terms.drop_flagged or not terms.votes.flagged else []))
    standing = current(task.verdicts)
    ledger.remove("superseded", len(task.verdicts) - len(standing))
    real = [v for v in standing if v.purpose in ("judge", "adjudicate")]
    ledger.remove("purpose", len(standing) - len(real))
    if _is_dropped(real, terms):
        ledger.remove("flagged", len(real))
        return [], []
    in_time = [v for v in real if _is_in_time(v, terms)]
    if not terms.votes.late:
        ledger.remove("late", len(real) - len(in_time))
    real = in_time
    corrections = [v for v in real if v.purpose == "judge" and v.correction is not None]
    decisions = [v for v in real if v.purpose == "adjudicate"]
    deciding = decisions[-1:] or real
    ledger.remove("adjudicated", len(real) - len(deciding))
    judged = [v for v in deciding if v.choice != "skip"]
    ledger.remove("skip", len(deciding) - len(judged))
    return judged, corrections


def _is_dropped(standing: Sequence[Verdict], terms: Terms) -> bool:
    """Whether a task is left out for a flag of those who judged or decided it."""
    drop = terms.drop_flagged or not terms.votes.flagged
    return drop and any(v.flags for v in standing if v.purpose in ("judge", "adjudicate"))


def _is_in_time(verdict: Verdict, terms: Terms) -> bool:
    """Whether it counts, late or not; gold questions and an admin's decisions are never late."""
    return terms.votes.late or not verdict.late or verdict.purpose != "judge"


def pairs_of(judged: JudgedRound, ledger: Ledger, terms: Terms) -> list[Pair]:
    """The decided pairs of a round, in the order of its tasks."""
    ledger.apply("tie", "all_bad", "even", "unchanged", *([] if terms.corrections else ["corrections"]))
    ledger.apply(*(["no_margin", "min_margin"] if terms.min_margin is not None else []))
    ledger.apply(*(["min_probability"] if terms.min_probability > 0.5 else []))
    votes: dict[tuple[Prompt, str, str], _Votes] = {}
    for number, task in enumerate(judged.tasks):
        verdicts, corrections = counted(task, ledger, terms)
        for first, second in combinations(range(len(task.responses)), 2):
            _vote(votes, task, first, second, verdicts, group=str(number))
        for verdict in corrections:
            _vote_for_correction(votes, task, verdict, ledger, terms, group=f"{number} corrected")
    model = _model(judged, terms)
    decided = [
        (pair, ballot.group)
        for (prompt, first, second), ballot in votes.items()
        if (pair := _decide(prompt, first, second, ballot, ledger, model)) and _is_wanted(pair, ledger, terms)
    ]
    sizes = Counter(group for _, group in decided)
    return [
        Pair(p.prompt, p.chosen, p.rejected, p.probability, p.margin, p.judgements, p.source, 1 / sizes[group])
        for p, group in decided
    ]


def _model(judged: JudgedRound, terms: Terms) -> VoteModel | None:
    """What everybody's votes say together, as :mod:`rlhf_pipeline.aggregate` has it for training: gold questions and an
    admin's decisions tell how good people are. Responses are named by prompt and text, in the order of the texts."""
    votes: list[PairVote] = []
    known: dict[tuple[object, object], float] = {}
    for task in judged.tasks if terms.votes.rule != "majority" else ():
        own = current(task.verdicts)
        if _is_dropped(own, terms):
            continue
        said = [v for v in own if v.purpose in ("judge", "gold") and v.choice != "skip" and _is_in_time(v, terms)]
        decision = next((v for v in reversed(own) if v.purpose == "adjudicate"), None)
        for first, second in combinations(sorted(range(len(task.responses)), key=lambda i: task.responses[i].text), 2):
            pair = (task.prompt, task.responses[first].text), (task.prompt, task.responses[second].text)
            for verdict in said:
                # where it is not known what stood left, the order of the texts is as good as a lot
                left = not verdict.shown or verdict.shown.index(first) < verdict.shown.index(second)
                if (share := vote(verdict, first, second)) is not None:
                    votes.append(PairVote(*pair, verdict.by, share, left))
            truth = vote(decision, first, second) if decision is not None and decision.choice != "skip" else None
            if truth is None and task.gold is not None and task.gold.choice in ("response", "tie"):
                truth = {first: 1.0, second: 0.0, None: 0.5}.get(task.gold.response_id)
            known |= {} if truth is None else {pair: truth}
    return fit_votes(terms.votes.rule, votes, known)


def _vote(
    votes: dict[tuple[Prompt, str, str], _Votes],
    task: JudgedTask,
    first: int,
    second: int,
    verdicts: Sequence[Verdict],
    *,
    group: str,
) -> None:
    a, b = sorted((task.responses[first].text, task.responses[second].text))
    swapped = task.responses[first].text != a
    for verdict in verdicts:
        share = vote(verdict, first, second)
        if share is None:
            continue
        ballot = votes.setdefault((task.prompt, a, b), _Votes(group, "judgement"))
        ballot.shares.append(1 - share if swapped else share)
        ballot.adjudicated = ballot.adjudicated or verdict.purpose == "adjudicate"
        ballot.choices["tie" if verdict.ranking is not None and share == 0.5 else verdict.choice] += 1
        if verdict.margin is not None and verdict.choice == "response":
            ballot.margins[(verdict.response == first) != swapped].append(verdict.margin)


def _vote_for_correction(
    votes: dict[tuple[Prompt, str, str], _Votes],
    task: JudgedTask,
    verdict: Verdict,
    ledger: Ledger,
    terms: Terms,
    *,
    group: str,
) -> None:
    written = _correction(task, verdict, ledger, terms)
    if written is not None:
        a, b = sorted(written)
        ballot = votes.setdefault((task.prompt, a, b), _Votes(group, "correction"))
        ballot.shares.append(float(a == written[0]))
        ballot.choices["correction"] += 1


def _correction(task: JudgedTask, verdict: Verdict, ledger: Ledger, terms: Terms) -> tuple[str, str] | None:
    """A correction and what it corrects; None where it does not count."""
    if verdict.corrected is None or verdict.correction is None:
        return None
    original = task.responses[verdict.corrected].text
    if not terms.corrections:
        ledger.remove("corrections")
    elif original == verdict.correction:
        ledger.remove("unchanged")
    else:
        return verdict.correction, original
    return None


def _decide(
    prompt: Prompt, first: str, second: str, ballot: _Votes, ledger: Ledger, model: VoteModel | None
) -> Pair | None:
    share = sum(ballot.shares) / len(ballot.shares)
    by_model = model is not None and ballot.source == "judgement" and not ballot.adjudicated
    if model is not None and by_model and any(one != 0.5 for one in ballot.shares):
        share = model.probability[(prompt, first), (prompt, second)]
    if abs(share - 0.5) < _EVEN:
        kinds = set(ballot.choices)
        ledger.remove("tie" if kinds == {"tie"} else "all_bad" if kinds == {"all_bad"} else "even")
        return None
    first_is_better = share > 0.5
    margins = ballot.margins[first_is_better]
    return Pair(
        prompt=prompt,
        chosen=first if first_is_better else second,
        rejected=second if first_is_better else first,
        probability=max(share, 1 - share),
        margin=sum(margins) / len(margins) if margins else None,
        judgements=len(ballot.shares),
        source=ballot.source,
    )


def _is_wanted(pair: Pair, ledger: Ledger, terms: Terms) -> bool:
    if terms.min_margin is not None:
        if pair.margin is None:
            ledger.remove("no_margin")
            return False
        if pair.margin < terms.min_margin:
            ledger.remove("min_margin")
            return False
    if pair.probability < terms.min_probability:
        ledger.remove("min_probability")
        return False
    return True


def labelled_of(judged: JudgedRound, ledger: Ledger, terms: Terms) -> list[Labelled]:
    """Every response on which the judges agree that it is good, or bad, once each."""
    ledger.apply("middle", "divided", "unchanged", *([] if terms.corrections else ["corrections"]))
    found: dict[tuple[Prompt, str], list[float]] = defaultdict(list)
    for task in judged.tasks:
        verdicts, corrections = counted(task, ledger, terms)
        for verdict in verdicts:
            for place, response in enumerate(task.responses):
                good = _goodness(verdict, place)
                if good is None:
                    ledger.remove("middle")
                else:
                    found[task.prompt, response.text].append(good)
        for verdict in corrections:
            if (written := _correction(task, verdict, ledger, terms)) is not None:
                found[task.prompt, written[0]].append(1.0)
    rows = []
    for (prompt, text), votes in found.items():
        share = sum(votes) / len(votes)
        if abs(share - 0.5) < _EVEN:
            ledger.remove("divided")
        else:
            rows.append(Labelled(prompt, text, share > 0.5, len(votes)))
    return rows


def _goodness(verdict: Verdict, place: int) -> float | None:
    """How good a judgement finds a response (0 to 1); None where it does not say."""
    if verdict.choice in ("tie", "all_bad"):
        return float(verdict.choice == "tie")
    if verdict.ranking is not None:
        if place in verdict.ranking[0]:
            return 1.0
        return 0.0 if place in verdict.ranking[-1] else None
    sure = 1.0 if verdict.probability is None else verdict.probability
    return sure if place == verdict.response else 1 - sure
