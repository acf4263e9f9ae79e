"""The rule model beside the reward model: one adapter that learns from judges' answers which rules a response breaks.

Reads ``rules.jsonl`` of the collect stage; writes ``rules/`` with the adapter, its head and its ``metrics.jsonl``.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rlhf_pipeline.artifacts import write_atomically
from rlhf_pipeline.config import Section
from rlhf_pipeline.errors import DataError
from stages import reward_check, reward_learn
from stages.job import Job
from stages.labels import RULES as RECORDS
from stages.prompts import split_rule

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rlhf_pipeline.encoding import Text
    from rlhf_pipeline.records import RuledResponse
    from rlhf_pipeline.reward_models import RewardModel
    from rlhf_pipeline.rule_models import RulePart, WithRules
    from stages.reward_check import Judged

_PROBES = 32  # training responses whose outputs must be the same after saving and loading


class Rules(Section):
    """A model of the rules that judges were asked about (``collect.form.rules``), as a second adapter on the base."""

    learn: bool = False
    """Whether to train it, and to take what breaks rules off every score: in PPO, ``evaluate`` and ``rlhf score``."""
    weight: float = Field(1.0, ge=0)
    """What a response that surely breaks every rule loses, in standard deviations of the preference score; of n rules
    one costs an n-th of it. Raising it makes rules matter more than preferences; 0 measures them and takes nothing."""
    least: int = Field(20, ge=1)
    """A rule that fewer training responses break, or keep, is not learnt; the stage says which."""


@dataclass(frozen=True)
class Learnt:
    """A rule model on the disk, and what it was made of.

    Args:
        names: the rules that it knows.
        unlearnt: the others → why.
        offsets: what training added to each logit.
        trained: steps, loss and so on, ``probes`` (outputs of the trained model) and ``rows``.
        probed, held_out: training responses whose outputs are kept, and held-out ones, as ids.
        records: of the held-out ones.
    """

    names: tuple[str, ...]
    unlearnt: dict[str, str]
    offsets: tuple[float, ...]
    trained: dict[str, Any]
    probed: list[list[int]]
    held_out: list[list[int]]
    records: list[RuledResponse]

    def part(self, *, weight: float, spread: float) -> RulePart:
        """As the reward model's own description has it."""
        from rlhf_pipeline.rule_models import RulePart

        return RulePart(self.names, self.offsets, weight, spread)


def learn(job: Job, base: reward_learn.Base) -> Learnt | None:
    """Train the rule model and save it, or take what an interrupted try finished; None where none is wanted.

    Raises:
        DataError: no rule was asked, or none can be learnt.
    """
    import torch

    from rlhf_pipeline.rule_models import RULES, rule_labels, rule_weights

    if not job.config.rules.learn:
        return None
    sides = _read(job, base)
    records = [record for record, _ in sides[False]]
    names, unlearnt = _learnable(job, records)
    labels = torch.tensor([rule_labels([record.rules[name] for name in names]) for record in records])
    weights = rule_weights(labels)
    for rule, why in unlearnt.items():
        job.say(f"the rule {rule!r} is not learnt: {why}")
    ids = [ids for _, ids in sides[False]]
    trained = _train(job, base, job.folder / RULES, ids, labels, weights)
    return Learnt(
        names,
        unlearnt,
        tuple(weights.log().tolist()),
        trained,
        ids[:_PROBES],
        [ids for _, ids in sides[True]],
        [record for record, _ in sides[True]],
    )


def _read(job: Job, base: reward_learn.Base) -> dict[bool, list[tuple[RuledResponse, list[int]]]]:
    """Whether held out → the responses with their ids; what is too long is counted and left out."""
    from rlhf_pipeline.records import RuledResponse, read_jsonl

    path = job.inputs["collect"].folder / RECORDS
    if not path.is_file():
        raise DataError(
            "reward.rules.learn is true, but judges were asked about no rule",
            where=str(path.parent),
            advice="name rules in collect.form.rules and have the responses judged, or set reward.rules.learn: false",
        )
    split = split_rule(job)
    sides: dict[bool, list[tuple[RuledResponse, list[int]]]] = {True: [], False: []}
    read = overlong = 0
    for row in read_jsonl(path):
        record = RuledResponse.from_json(row)
        ids = base.text.encode(record.prompt.messages, record.response, ended=not record.cut)
        read, overlong = read + 1, overlong + (len(ids) > base.limit)
        if len(ids) <= base.limit:
            sides[split.is_held_out(record.prompt)].append((record, ids))
    too_long = f"; {overlong:,} longer than {base.limit:,} tokens left out" if overlong else ""
    split_up = f"{len(sides[False]):,} to train on, {len(sides[True]):,} held out by prompt"
    job.say(f"rules: {read:,} responses{too_long}; {split_up}")
    return sides


def _learnable(job: Job, records: Sequence[RuledResponse]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The rules of which there is enough of both kinds, and why the others are left out."""
    least = job.config.rules.least
    names = list(dict.fromkeys(name for record in records for name in record.rules))
    unlearnt = {}
    for name in names:
        verdicts = [votes.verdict for record in records if (votes := record.rules[name])]
        broken, kept = verdicts.count("broken"), verdicts.count("kept")
        if min(broken, kept) < least:
            unlearnt[name] = (
                f"of {len(verdicts):,} training responses judges find it broken in {broken:,} and kept in {kept:,}; "
                f"reward.rules.least asks for {least} of each"
            )
    learnt = tuple(name for name in names if name not in unlearnt)
    if not learnt:
        raise DataError(
            "none of the rules can be learnt",
            where=str(job.inputs["collect"].folder / RECORDS),
            details=[f"{name}: {why}" for name, why in unlearnt.items()],
            advice="have more responses judged, lower reward.rules.least, or set reward.rules.learn: false",
        )
    return learnt, unlearnt


def _train(
    job: Job, base: reward_learn.Base, folder: Path, ids: Sequence[Sequence[int]], labels: Any, weights: Any
) -> dict[str, Any]:
    """Into ``folder/adapter``; what is finished there is kept."""
    import torch

    from rlhf_pipeline import processes, training
    from rlhf_pipeline.reward_models import RewardModel
    from rlhf_pipeline.rule_models import UNANSWERED
    from rlhf_pipeline.rule_trainer import RuleTrainer

    done = folder / "trained.json"
    if not done.is_file():
        config = job.config
        steps = training.plan(config, [len(row) for row in ids], seed=job.seed)
        torch.manual_seed(job.seed)
        classifier = reward_learn.start(job, base, labels=len(weights))
        folder.mkdir(parents=True, exist_ok=True)
        arguments = reward_learn.trainer_arguments(job, base, steps, folder, job.seed)
        answers = float((labels != UNANSWERED).sum()) / len(labels)
        columns = {"ids": [list(row) for row in ids], "broken": labels.tolist()}
        with training.quiet():
            trainer = RuleTrainer(
                model=classifier,
                args=arguments,
                weights=weights,
                answers=answers,
                processing_class=training.processing_class(base.text),
                train_dataset=training.dataset(columns, steps.order),
            )
        job.say(training.describe(classifier, steps))
        with job.track("rule model", steps.steps) as advance:
            trained = training.train(trainer, folder=folder, say=job.say, advance=advance)
        training.save(classifier, folder, base.model)
        probes = RewardModel(classifier).outputs(ids[:_PROBES], batch_size=2 * config.batch_size).tolist()
        with processes.first_alone():
            if job.first:
                write_atomically(done, json.dumps({**trained, "rows": len(ids), "probes": probes}) + "\n")
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return found


def prove_saved(job: Job, learnt: Learnt, loaded: RewardModel) -> float:
    """The largest difference of what was loaded from what was trained; raises as :func:`reward_check.prove_same`."""
    after = loaded.outputs(learnt.probed, batch_size=16).flatten().tolist()
    before = [value for row in learnt.trained["probes"] for value in row]
    return reward_check.prove_same(job, before, after, loaded)


def measure(
    job: Job, learnt: Learnt, loaded: WithRules, text: Text, held_out: Judged, warnings: list[dict[str, str]]
) -> dict[str, Any]:
    """What held-out responses say of each rule, how the combined reward orders held-out pairs, and all warnings."""
    from rlhf_pipeline.reward_evaluation import accuracy
    from rlhf_pipeline.rule_evaluation import measure_rule, rule_sentence, rule_warnings

    rules, batch_size = loaded.rules, 2 * job.config.batch_size
    rows: list[dict[str, Any]] = []
    if learnt.held_out:
        log_odds = rules.part.log_odds(rules.model.outputs(learnt.held_out, batch_size))
        for place, name in enumerate(learnt.names):
            votes = [record.rules[name] for record in learnt.records]
            rows.append(measure_rule(name, log_odds[:, place].tolist(), votes))
    for row in rows:
        job.say(rule_sentence(row))
    found: dict[str, Any] = {"rules": rows, "warnings": [*warnings, *rule_warnings(rows, learnt.unlearnt)]}
    if held_out.pairs:
        right = accuracy(reward_check.score_pairs(loaded, text, held_out, batch_size=batch_size))
        interval = f"95 %: {right.low:.1%} to {right.high:.1%}"
        job.say(f"held-out accuracy of the combined reward {right.value:.1%} ({interval})")
        found["combined_accuracy"] = right.to_json()
    return found
