"""Reward modelling: preferences → a model that scores responses (TRL's RewardTrainer).

Starts from the SFT policy with a zero score head, or from another model (``reward.model``, an encoder too); writes
``adapter/`` (PEFT, with its head), ``model/`` without LoRA, or ``members/`` of an ensemble, and ``rules/`` where rules
are learnt; ``reward_model.json`` says on what they work, ``evaluation.json`` everything that was measured. A pair
counts as decided, chosen over rejected, when its probability reaches ``min_probability``; the others are left out.

    rlhf run CONFIG reward
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from rlhf_pipeline.config import ModelConfig, Section, TrainingSection
from rlhf_pipeline.data.sources import SourceConfig
from rlhf_pipeline.metrics import Gate
from stages import reward_check, reward_learn, reward_rules
from stages.job import Job
from stages.pairs import load_pairs
from stages.reward_rules import Rules

if TYPE_CHECKING:
    from pathlib import Path

    from rlhf_pipeline.encoding import EncodedPair
    from rlhf_pipeline.reward_models import Ensemble as Members
    from rlhf_pipeline.reward_models import RewardModel, Spec

_OFFSET_PAIRS = 256


class Loss(Section):
    """What is learnt from the judgements of a pair."""

    kind: Literal["bradley_terry", "rao_kupper", "davidson", "plackett_luce"] = "bradley_terry"
    """How people are taken to compare: with a winner only, with ties (Rao–Kupper: differences below a threshold are not
    seen; Davidson: ties are likeliest between equals), or whole rankings at once (Plackett–Luce)."""
    labels: Literal["hard", "soft"] = "hard"
    """``hard``: who won, of pairs decided by ``min_probability``; ``soft``: the share of the judges, of all pairs."""
    margins: bool = False
    """The chosen response shall lead by the judges' margin, where they gave one."""
    tie: Annotated[float, Field(gt=0)] | Literal["learnt"] | None = None
    """Threshold η or prevalence ν of ties; raising it expects more of them. null: that at which responses of equal
    scores tie as often as the training pairs do; ``learnt``: it starts there and is learnt with the scores."""

    @property
    def learns_undecided(self) -> bool:
        """Whether ties and divided pairs say something."""
        return self.kind != "bradley_terry" or self.labels == "soft"

    @model_validator(mode="after")
    def _all_is_read(self) -> Loss:
        if self.kind == "bradley_terry" and self.tie is not None:
            raise ValueError("tie is of losses that know ties; kind: bradley_terry has none (rao_kupper, davidson do)")
        if self.kind == "plackett_luce" and (self.labels == "soft" or self.margins):
            raise ValueError("kind: plackett_luce reads the order of a ranking, neither labels: soft nor margins")
        return self


class Ensemble(Section):
    """Several adapters on one base, which differ by their seed: head, order of the pairs, and which pairs they see."""

    members: int = Field(1, ge=1, le=16)
    """How many; each takes the time of one. 1 is no ensemble."""
    score: Literal["mean", "min", "mean_minus_std", "weight_average"] = "mean"
    """Their score: the mean, the minimum, the mean less ``k`` standard deviations; or one adapter whose weights are the
    mean of theirs, and whose rank is the sum of theirs (WARM): as fast as one model."""
    k: float = Field(1.0, ge=0)
    """Of ``mean_minus_std``: how many standard deviations; raising it trusts less where the members disagree."""
    bootstrap: bool = False
    """Each member learns from as many prompts, drawn with replacement: they differ more, and each sees less."""

    @model_validator(mode="after")
    def _all_is_read(self) -> Ensemble:
        if self.members == 1 and (self.score != "mean" or self.bootstrap):
            raise ValueError("score and bootstrap are of several members, but members is 1")
        if self.k != 1 and self.score != "mean_minus_std":
            raise ValueError(f"k is of score: mean_minus_std, but score is {self.score}")
        return self


class Evaluation(Section):
    """What is measured beside the held-out preferences, and what is not good enough."""

    test_sets: list[SourceConfig] = Field(default_factory=list)
    """Other files of pairs, in any format that preferences may have; of RewardBench's the parts are told apart."""
    learning_curve: list[float] = Field(default_factory=list)
    """Shares of the training prompts on which more models are trained, e.g. ``[0.25, 0.5]``, to forecast what more
    judgements would buy; takes the time of that much more training."""
    stop_on: list[Gate] = Field(default_factory=list)
    """Which warnings end the chain: ``chance`` (no better than guessing), ``length`` (no better than length alone),
    ``calibration`` (its confidence is not its accuracy), ``template`` (spaces or newlines change its mind), ``rules``
    (a rule was not learnt, or is not recognised)."""

    @model_validator(mode="after")
    def _are_shares(self) -> Evaluation:
        if not all(0 < share <= 1 for share in self.learning_curve):
            raise ValueError("learning_curve holds shares of the data, above 0 and up to 1")
        return self


class Config(TrainingSection):
    """Reward modelling."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW; adapters bear about ten times that of full fine-tuning."""
    init: Literal["sft", "base"] = "sft"
    """Start from a copy of the SFT adapter (whose shape is then taken over), or from the base with a new adapter."""
    model: ModelConfig | None = None
    """Another model than the run's, with a tokenizer of its own: a decoder, or an encoder such as BERT or MiniLM. PPO
    holds it in memory beside the base. null: the run's base, so that PPO shares it."""
    head_first: int = Field(0, ge=0)
    """Steps of L-BFGS in which only the head learns, on features that are computed once, before all is trained; 50
    usually reach its optimum. 0 starts with a head of zeros, and an encoder with one drawn at random."""
    centering: float = Field(0.01, ge=0)
    """Weight of the squared sum of both scores in the loss, which keeps scores around zero; 0 leaves them free."""
    min_probability: float = Field(0.6, gt=0.5, le=1)
    """Learn only from pairs whose chosen side is the better one with at least this probability."""
    weak: bool = False
    """Whether to learn also from pairs that no judge labelled (``collect.weak``); none of them is held out."""
    loss: Loss = Field(default_factory=Loss)
    """What is learnt from the judgements of a pair; pairs weigh what their records say."""
    ensemble: Ensemble = Field(default_factory=Ensemble)
    """Several models that score together."""
    rules: Rules = Field(default_factory=Rules)
    """A second adapter that knows which rules a response breaks."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """What is measured, and what is not good enough."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Config:
        if self.ensemble.members > 1 and self.lora is None:
            raise ValueError("ensemble has several adapters on one base, so it needs lora")
        if self.rules.learn and self.lora is None:
            raise ValueError("rules is a second adapter on the base, so it needs lora")
        if "rules" in self.evaluation.stop_on and not self.rules.learn:
            raise ValueError("evaluation.stop_on has rules, which only rules.learn: true learns and measures")
        return self


def run(job: Job) -> dict[str, Any]:
    """Encode, train, save, prove that what was saved gives the same scores, measure on held-out pairs."""
    from rlhf_pipeline import training
    from rlhf_pipeline.reward_models import Ensemble as Members
    from rlhf_pipeline.reward_models import RewardModel, load_reward_model
    from rlhf_pipeline.rule_models import WithRules

    config: Config = job.config
    base = reward_learn.base_of(job)
    undecided = config.loss.learns_undecided
    pairs = load_pairs(
        job,
        base.text,
        limit=base.limit,
        min_probability=config.min_probability,
        learn_undecided=undecided,
        weak=config.weak,
    )
    reward_check.require_held_out(job, pairs.held_out)
    judged = reward_check.Judged(pairs.train, pairs.train_records)
    rules = reward_rules.learn(job, base)
    if config.ensemble.members > 1:
        trained = reward_learn.learn_members(job, base, judged)[0]
        reward_model: RewardModel | Members = _combine(job, base, pairs.train)
    else:
        classifier, trained = reward_learn.learn(job, base, judged, job.folder, job.seed)
        reward_model = RewardModel(classifier)
        training.save(classifier, job.folder, base.model)
        _write(job, _spec(job, base))
    if rules is not None:
        _add_rules(job, rules, reward_model, pairs.train)
    loaded = load_reward_model(job.settings.model, job.folder, device=job.device, base=_below(job, base))
    preference = loaded.preference if isinstance(loaded, WithRules) else loaded
    assert isinstance(preference, RewardModel | Members)
    drift = reward_check.prove_saved(job, reward_model, preference, pairs.held_out or pairs.train)
    held_out = reward_check.Judged(pairs.held_out, pairs.held_out_records)
    found = reward_check.measure(job, reward_model, base.text, held_out, batch_size=2 * config.batch_size)
    if rules is not None:
        assert isinstance(loaded, WithRules)
        drift = max(drift, reward_rules.prove_saved(job, rules, loaded.rules.model))
        found |= reward_rules.measure(job, rules, loaded, base.text, held_out, found.get("warnings", []))
    if config.evaluation.learning_curve and pairs.held_out:
        final = found["accuracy"]["value"]
        found["learning_curve"] = reward_learn.learning_curve(job, base, judged, held_out, final)
    measured = reward_check.report(job, found)
    return {**trained, "rows": pairs.account, **measured, "score_drift_after_loading": drift}


def _below(job: Job, base: reward_learn.Base) -> Path | None:
    """The fully fine-tuned SFT model, where the reward model's adapter is trained on it."""
    from rlhf_pipeline import models

    return None if base.own or job.config.lora is None else models.full_model(job.inputs["sft"].folder)


def _spec(job: Job, base: reward_learn.Base, **ensemble: Any) -> Spec:
    from rlhf_pipeline.encoder_text import EncoderText
    from rlhf_pipeline.model_source import base_identity
    from rlhf_pipeline.reward_models import Spec

    below = _below(job, base)
    relative = None if below is None else os.path.relpath(below, job.folder)
    limit = base.limit if isinstance(base.text, EncoderText) else None
    digest = base_identity(base.model)["digest"] if base.own else None
    return Spec(base.model, base=relative, own_model=base.own, digest=digest, limit=limit, **ensemble)


def _write(job: Job, spec: Spec) -> None:
    """Into the folder, by the first of several processes, before any of them reads it."""
    from rlhf_pipeline import processes

    with processes.first_alone():
        if job.first:
            spec.write(job.folder)


def _add_rules(
    job: Job, rules: reward_rules.Learnt, preference: RewardModel | Members, pairs: Sequence[EncodedPair]
) -> None:
    """Into the description of the reward model, with what a standard deviation of the preference score is."""
    import statistics

    from rlhf_pipeline.reward_models import Spec

    spec = Spec.read(job.folder)
    assert spec is not None
    rows = [ids for side in reward_check.columns(pairs[:_OFFSET_PAIRS]).values() for ids in side]
    spread = statistics.pstdev(preference.score(rows, 2 * job.config.batch_size))
    _write(job, replace(spec, rules=rules.part(weight=job.config.rules.weight, spread=spread)))


def _combine(job: Job, base: reward_learn.Base, pairs: Sequence[EncodedPair]) -> RewardModel | Members:
    """The trained members as one: their scores on one level, or one adapter that is the mean of theirs."""
    from rlhf_pipeline import processes
    from rlhf_pipeline.ensembles import Combination, average_adapters
    from rlhf_pipeline.reward_models import Ensemble as Members
    from rlhf_pipeline.reward_models import RewardModel, load_reward_model

    config: Config = job.config
    wanted = config.ensemble
    folders = [reward_learn.member_folder(job, number) for number in range(wanted.members)]
    if wanted.score == "weight_average":
        with processes.first_alone():
            if job.first:
                average_adapters([folder / "adapter" for folder in folders], job.folder / "adapter")
                shutil.rmtree(job.folder / "members")
        _write(job, _spec(job, base))
        job.say(f"one adapter, the mean of {wanted.members}")
        averaged = load_reward_model(job.settings.model, job.folder, device=job.device, base=_below(job, base))
        assert isinstance(averaged, RewardModel)
        return averaged
    names = tuple(str(folder.relative_to(job.folder)) for folder in folders)
    level = Combination(wanted.score, (0.0,) * len(names), wanted.k)
    _write(job, _spec(job, base, members=names, combination=level))
    members = load_reward_model(job.settings.model, job.folder, device=job.device, base=_below(job, base))
    assert isinstance(members, Members)
    rows = [ids for side in reward_check.columns(pairs[:_OFFSET_PAIRS]).values() for ids in side]
    scores = members.member_scores(rows, 2 * config.batch_size)
    offsets = tuple(sum(one) / len(one) for one in scores)
    combination = Combination(wanted.score, offsets, wanted.k)
    _write(job, _spec(job, base, members=names, combination=combination))
    job.say(f"an ensemble of {wanted.members}, scored by {wanted.score}")
    return Members(members.members, combination)
