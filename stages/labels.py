"""What becomes of the judgements: votes are counted into preferences, looked through, and reported on; and what nobody
judges but functions or a reward model can label."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from rlhf_pipeline.config import Section
from rlhf_pipeline.errors import ConfigError
from stages.job import Job
from stages.prompts import split_rule

if TYPE_CHECKING:
    from rlhf_pipeline.aggregate import Counting, Summary
    from rlhf_pipeline.label_model import Quality
    from rlhf_pipeline.records import Preference, Prompt, SampledResponse
    from rlhf_pipeline.reliability import Proportion
    from rlhf_pipeline.store.records import Form, JudgementRow, TaskRow

REPORT = "preference_report.json"
RULES = "rules.jsonl"
_TELLING = 10
"""Votes that are all for one place by chance once in five hundred times, as the order of a pair says nothing."""


class VotesSection(Section):
    """How the votes on a pair become one preference."""

    rule: Literal["majority", "dawid_skene", "noisy_bradley_terry"] = "majority"
    """``majority``: the share of the votes. ``dawid_skene`` weighs people by how often they are right and by their
    liking for a side, measured on each other, on gold questions and on an admin's decisions; it wants ``overlap`` of 2
    or more. ``noisy_bradley_terry``: by how often they look at all. The share, or the model's, is the preference's
    probability. Answers about rules are counted likewise, by ``noisy_bradley_terry`` as by ``majority``."""
    late: Literal["keep", "drop"] = "keep"
    """Judgements that came after their place was given to somebody else."""
    flagged: Literal["keep", "drop"] = "keep"
    """Tasks that somebody flagged."""


class FunctionSection(Section):
    """A labelling function."""

    source: str = Field(min_length=1)
    """A Python file, e.g. ``labels/wishes.py``; it runs as part of this program."""
    function: str = Field("vote", min_length=1)
    """``function(prompt, response_a, response_b)`` gives 1 where the first is better, -1 where the second is, 0 where
    it cannot say; the prompt is a list of messages, responses are texts."""


class WeakSection(Section):
    """Pairs that nobody judges, labelled by functions or by a reward model and marked as such."""

    functions: list[FunctionSection] = Field(default_factory=list)
    """Labelling functions, three or more. How good each is, is found from where they agree, and their votes become
    probabilities. They should err independently of one another: what judges said tells where they do not."""
    reward: str | None = None
    """The ``reward`` folder of a finished run: pairs of which its model is sure are added (self-training)."""
    threshold: float = Field(0.9, gt=0.5, lt=1)
    """How sure the reward model must be that its choice is the better response; raising it adds fewer pairs."""
    weight: float = Field(0.5, gt=0)
    """What such a pair weighs beside a judged one, which weighs 1."""
    max_pairs: int | None = Field(None, ge=1)
    """At most so many pairs of sampled responses are looked at, drawn by lot; null takes all that nobody judges."""

    @field_validator("functions")
    @classmethod
    def _each_once(cls, functions: list[FunctionSection]) -> list[FunctionSection]:
        if len({(one.source, one.function) for one in functions}) < len(functions):
            raise ValueError("one function is named twice; it would only agree with itself")
        return functions


def count(
    job: Job, url: str, tasks: Sequence[TaskRow], judgements: Sequence[JudgementRow]
) -> tuple[list[Preference], Summary]:
    """The votes as preferences, by the rules of ``collect.votes``; people stand in them under pseudonyms."""
    from rlhf_pipeline.aggregate import aggregate

    config, counted = job.config, counting(job.config.votes)
    preferences, summary = aggregate(tasks, judgements, source=config.judges, counting=counted, who=_who(job, url))
    for number, what in ((summary.late, "that came late"), (summary.flagged, "of flagged tasks")):
        if number:
            job.say(f"{number:,} judgements {what} are left out")
    agreement = "" if summary.agreement is None else f", agreement {summary.agreement:.0%}"
    job.say(
        f"{summary.judgements:,} judgements by {summary.annotators} of {summary.pairs:,} pairs → "
        f"{summary.preferences:,} preferences, {summary.ties:,} ties{agreement}"
    )
    return preferences, summary


def _who(job: Job, url: str) -> Callable[[str], str]:
    """The name of a judge in the records: that of a person is nobody's business, a made-up one is kept."""
    if job.config.judges != "people":
        return str
    from rlhf_pipeline.exchange.pseudonyms import Pseudonyms, read_salt, salt_beside

    return Pseudonyms(read_salt(salt_beside(url, job.run_folder))).of


def rules(
    job: Job, tasks: Sequence[TaskRow], judgements: Sequence[JudgementRow], forms: Mapping[str, Form]
) -> dict[str, Any]:
    """Write ``rules.jsonl`` where rules were asked, and say what came of each; the result is for the manifest."""
    from rlhf_pipeline.records import write_jsonl
    from rlhf_pipeline.rule_judgements import rule_records

    path = job.folder / RULES
    path.unlink(missing_ok=True)  # of a try that was interrupted
    records, found = rule_records(tasks, judgements, forms, counting=counting(job.config.votes))
    if not records:
        return {}
    write_jsonl(path, (record.to_json() for record in records))
    for one in found:
        job.say(one.sentence())
    return {"rules": [one.to_json() for one in found]}


def counting(votes: VotesSection) -> Counting:
    """How votes are counted, as the library has it."""
    from rlhf_pipeline.aggregate import Counting

    return Counting(votes.rule, late=votes.late == "keep", flagged=votes.flagged == "keep")


def report(job: Job, preferences: Sequence[Preference]) -> None:
    """Say what there is to know of the preferences, and write it beside them."""
    from rlhf_pipeline.artifacts import write_atomically
    from rlhf_pipeline.preference_report import preference_report

    found = preference_report(preferences, is_held_out=split_rule(job).is_held_out)
    for sentence in found.sentences():
        job.say(sentence)
    whole = found.to_json() | {"sentences": found.sentences()}
    write_atomically(job.folder / REPORT, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class _OpenPair:
    """Two responses to one prompt that nobody was asked about, in an order that says nothing."""

    prompt: Prompt
    first: SampledResponse
    second: SampledResponse

    def labelled(self, probability: float, source: str, weight: float, meta: dict[str, Any]) -> Preference:
        """As a preference by the probability of the first being better."""
        from rlhf_pipeline.records import Preference

        chosen, rejected = (self.first, self.second) if probability > 0.5 else (self.second, self.first)
        return Preference(
            self.prompt,
            chosen.text,
            rejected.text,
            probability=max(probability, 1 - probability),
            source=source,
            judgements=0,
            meta=meta,
            chosen_cut=not chosen.ended,
            rejected_cut=not rejected.ended,
            weight=weight,
            weak=True,
        )


def weak(job: Job, tasks: Sequence[TaskRow], judged: Sequence[Preference]) -> list[Preference]:
    """What ``collect.weak`` makes of pairs of training prompts that nobody was asked about; functions come first.

    Raises:
        ConfigError: there are no sampled responses, or no such function or reward model.
        DataError: a function fails.
    """
    section: WeakSection = job.config.weak
    if not section.functions and section.reward is None:
        return []
    if "sample" not in job.inputs:
        raise ConfigError(
            "collect.weak labels sampled responses, but this run samples none",
            where="run.stages",
            advice="add sample to run.stages, or take collect.weak away",
        )
    pairs = _open_pairs(job, tasks, section.max_pairs)
    if not pairs:
        job.say("no pair of a training prompt is left that nobody judges, so collect.weak labels none")
        return []
    found = _by_functions(job, pairs, judged) if section.functions else {}
    if section.reward is not None:
        rest = [number for number in range(len(pairs)) if number not in found]
        found |= _by_reward_model(job, [pairs[number] for number in rest], rest)
    return [found[number] for number in sorted(found)]


def _open_pairs(job: Job, tasks: Sequence[TaskRow], most: int | None) -> list[_OpenPair]:
    """Pairs of different responses to a training prompt that are not, and are in no task, to be judged."""
    from rlhf_pipeline.records import ResponseSet, read_jsonl
    from rlhf_pipeline.store.records import text_digest

    asked = {
        (task.prompt.id, frozenset((a.text, b.text))) for task in tasks for a, b in combinations(task.responses, 2)
    }
    split = split_rule(job)
    pairs = []
    for row in read_jsonl(job.inputs["sample"].folder / "responses.jsonl"):
        item = ResponseSet.from_json(row)
        different = {response.text: response for response in item.responses}.values()
        if not split.is_held_out(item.prompt):
            ordered = sorted(different, key=lambda response: text_digest(response.text))
            pairs += [
                _OpenPair(item.prompt, a, b)
                for a, b in combinations(ordered, 2)
                if (item.prompt.id, frozenset((a.text, b.text))) not in asked
            ]
    if most is not None and len(pairs) > most:
        chosen = sorted(random.Random(f"{job.seed}:weak").sample(range(len(pairs)), most))
        pairs = [pairs[place] for place in chosen]
    return pairs


def _by_functions(job: Job, pairs: Sequence[_OpenPair], judged: Sequence[Preference]) -> dict[int, Preference]:
    """Place of a pair → its label; pairs on which every function abstains, or which come out even, have none."""
    import numpy as np

    from rlhf_pipeline.label_model import fit_label_model, vote_on
    from rlhf_pipeline.reliability import proportion
    from rlhf_pipeline.rewards import load_function

    # In an order drawn by lot: a function that looks at the place of a response must not look right.
    lot = random.Random(f"{job.seed}:weak:judged")
    drawn = [
        ((p.prompt, p.chosen, p.rejected), 1) if lot.random() < 0.5 else ((p.prompt, p.rejected, p.chosen), -1)
        for p in judged
        if not p.tie
    ]
    names, columns, checked = [], [], []
    for one in job.config.weak.functions:
        path, name = Path(one.source), f"{Path(one.source).stem}.{one.function}"
        function: Any = load_function(path, one.function, where="collect.weak.functions")
        asked = [(p.prompt, p.first.text, p.second.text) for p in pairs]
        columns.append(vote_on(function, path, name, asked))
        known = vote_on(function, path, name, [pair for pair, _ in drawn])
        checked.append(proportion(vote == better for vote, (_, better) in zip(known, drawn, strict=True) if vote))
        names.append(name)
    votes = np.array(columns, dtype=np.float64).reshape(len(names), len(pairs)).T
    model = fit_label_model(votes, names)
    for name, column, right in zip(names, columns, checked, strict=True):
        job.say(_of_function(name, model.functions[name], right, [vote for vote in column if vote]))
    return {
        place: pair.labelled(
            float(probability),
            "weak",
            job.config.weak.weight,
            {"functions": {name: int(vote) for name, vote in zip(names, votes[place], strict=True) if vote}},
        )
        for place, (pair, probability) in enumerate(zip(pairs, model.probability, strict=True))
        if abs(probability - 0.5) > 1e-9
    }


def _of_function(name: str, quality: Quality, judges: Proportion, said: Sequence[int]) -> str:
    """What is known of a labelling function from what it ``said`` (1 or -1), and whether the judges bear it out."""
    if not said:
        return f"{name} abstains on every pair that nobody judges, and so labels none"
    text = f"{name} votes on {quality.coverage:.0%} of the pairs that nobody judges, by the others right on "
    text += f"{quality.accuracy:.0%} of them"
    if len(said) >= _TELLING and len(set(said)) == 1:
        text += f", and prefers the {'first' if said[0] == 1 else 'second'} response whatever the two are"
    if judges.value is None:
        return text
    text += (
        f"; judges agree with it on {judges.value:.0%} (95 %: {judges.low:.0%} to {judges.high:.0%}) of {judges.n:,}"
    )
    if quality.accuracy > judges.high:
        text += ": the functions err together, and their labels are less sure than they say"
    elif quality.accuracy < judges.low:
        text += ": the other functions err together, and their labels are less sure than they say"
    return text


def _by_reward_model(job: Job, pairs: Sequence[_OpenPair], places: Sequence[int]) -> dict[int, Preference]:
    """Place of a pair → its label, where the reward model is sure enough."""
    from rlhf_pipeline.store.records import StoredResponse, TaskRow
    from stages.rounds import scores_of

    section: WeakSection = job.config.weak
    folder = Path(section.reward or "")
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is no folder",
            where="collect.weak.reward",
            advice="name the reward folder of a finished run, e.g. runs/first/reward",
        )
    if not pairs:
        return {}
    rows = [
        TaskRow(number, "", pair.prompt, tuple(
            StoredResponse(2 * number + place, side.text, "eos" if side.ended else "length", "")
            for place, side in enumerate((pair.first, pair.second))
        ), 0, 0, "open", {})
        for number, pair in enumerate(pairs)
    ]  # fmt: skip
    config = job.config.model_copy(update={"uncertainty_from": section.reward})
    scores = scores_of(job.settings.model_copy(update={"collect": config}), rows)
    found = {}
    for number, pair in enumerate(pairs):
        lead = scores[2 * number] - scores[2 * number + 1]
        probability = 1 / (1 + math.exp(-lead)) if lead >= 0 else math.exp(lead) / (1 + math.exp(lead))
        if max(probability, 1 - probability) >= section.threshold:
            meta = {"reward_model": str(folder), "lead": abs(lead)}
            found[places[number]] = pair.labelled(probability, "self_training", section.weight, meta)
    job.say(
        f"the reward model of {folder} is sure enough of {len(found):,} of {len(pairs):,} pairs that nobody judges "
        f"(at least {section.threshold:.0%})"
    )
    return found
