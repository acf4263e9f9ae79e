"""Which rules does a response break? A multi-label model beside the preference model, and the reward of both together.

One adapter on the same base has a head with an output for each rule, and a sigmoid on each; it learns from what judges
said of every rule by itself (:mod:`rlhf_pipeline.rule_judgements`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from torch import Tensor, nn
from torch.nn import functional

from rlhf_pipeline.errors import ArtifactError
from rlhf_pipeline.models import SCORE_KEY, quiet, read_score_head
from rlhf_pipeline.records import RuleVotes

if TYPE_CHECKING:
    from rlhf_pipeline.reward_models import Ensemble, RewardModel

RULES = "rules"
"""The folder of the rule model within that of the reward model, and the name of its adapter."""

UNANSWERED = -1.0
"""Stands for the label of a rule that nobody answered; the loss leaves it out."""

_HEAVIEST = 10.0  # at most so much does a response that breaks a rule weigh in the loss, however rare it is


def rule_loss(logits: Tensor, broken: Tensor, weights: Tensor, *, answers: float) -> Tensor:
    """Binary cross-entropy of each rule that was answered, broken ones weighing more where they are rare.

    With z a logit, y the share of the judges who find the rule broken and w its weight::

        - Σ_answered [w y log σ(z) + (1 - y) log σ(-z)] / (batch · answers)

    Its optimum is ``z = log(p / (1 - p)) + log w``, with p the probability that the rule is broken (King and Zeng 2001,
    Logistic Regression in Rare Events Data, https://doi.org/10.1093/oxfordjournals.pan.a004868, section 4.1, where
    taking log w from the intercept undoes the choice of the sample): :class:`RulePart` takes it away again.

    Args:
        logits: ``(batch, rules)``.
        broken: ``(batch, rules)``, 0 to 1, or :data:`UNANSWERED`.
        weights: ``(rules,)``, see :func:`rule_weights`.
        answers: rules that a training row has answers for, on average: so a round in which few rules were asked of each
            response has the learning rate of one in which all were.
    """
    answered = broken != UNANSWERED
    losses = functional.binary_cross_entropy_with_logits(
        logits, broken.clamp(min=0.0), pos_weight=weights, reduction="none"
    )
    return (losses * answered).sum() / (len(logits) * answers)


def rule_weights(broken: Tensor) -> Tensor:
    """What a response that breaks a rule weighs: as much as makes broken and kept weigh alike, from 1 to 10.

    Args:
        broken: ``(rows, rules)`` of the whole training set, as for :func:`rule_loss`.

    Returns:
        ``(rules,)``.
    """
    answered = broken != UNANSWERED
    breaking = (broken.clamp(min=0.0) * answered).sum(0)
    return ((answered.sum(0) - breaking) / breaking.clamp(min=1e-6)).clamp(1.0, _HEAVIEST)


def rule_labels(votes: Sequence[RuleVotes | None]) -> list[float]:
    """Labels of one response: the share of the judges who find each rule broken, or :data:`UNANSWERED`."""
    return [UNANSWERED if one is None else one.broken for one in votes]


@dataclass(frozen=True)
class RulePart:
    """What turns the outputs of a rule model into probabilities, and these into a part of the reward.

    Args:
        names: the rules, in the order of the outputs.
        offsets: what training added to each logit: the logarithm of :func:`rule_weights`.
        weight: of the rules in the combined reward, in standard deviations of the preference score.
        spread: that standard deviation, over training responses.
    """

    names: tuple[str, ...]
    offsets: tuple[float, ...]
    weight: float
    spread: float

    def log_odds(self, logits: Tensor) -> Tensor:
        """Log-odds of each rule being broken: ``(batch, rules)`` → ``(batch, rules)``."""
        return logits.float() - torch.tensor(self.offsets, device=logits.device)

    def broken(self, logits: Tensor) -> Tensor:
        """The probability of each rule being broken: ``(batch, rules)`` → ``(batch, rules)``."""
        return torch.sigmoid(self.log_odds(logits))

    def combine(self, preference: Tensor, broken: Tensor) -> Tensor:
        """The combined reward, ``(batch,)``, of preference scores, ``(batch,)``, and probabilities, ``(batch, rules)``.

        Sparrow's policy is rewarded with the sum of what a preference model and a rule model say (Glaese et al. 2022,
        arXiv:2209.14375): here the normalised preference score and the mean over n rules of the probability that a rule
        is kept, ``R = (s - μ) / σ + w/n Σ_i (1 - p_i)``. Less the constant w, and in the units of the preference score,
        that is::

            σ R + μ - σ w = s - w σ/n Σ_i p_i

        so that a response that breaks no rule keeps its score. Two parts of Sparrow are left out: the terms for a valid
        form and for brevity (PPO has ``missing_eos_penalty``, and ``ppo.rewards`` takes functions), and the choice of
        rules by dialogue, which counts those that it was meant to test and those that are broken most.
        """
        return preference - self.weight * self.spread * broken.mean(-1)


class RuleModel:
    """Says which rules a response breaks; its score is minus the mean of the probabilities."""

    def __init__(self, model: RewardModel, part: RulePart) -> None:
        self.model, self.part = model, part

    def broken(self, sequences: Sequence[Sequence[int]], batch_size: int = 32) -> Tensor:
        """The probability of each rule being broken, ``(sequences, rules)``."""
        return self.part.broken(self.model.outputs(sequences, batch_size))

    def score(self, sequences: Sequence[Sequence[int]], batch_size: int = 32) -> list[float]:
        """From -1, every rule is broken, to 0."""
        scores: list[float] = (-self.broken(sequences, batch_size).mean(-1)).tolist()
        return scores


class WithRules:
    """A reward model that is liked less for what breaks rules: see :meth:`RulePart.combine`."""

    def __init__(self, preference: RewardModel | Ensemble, rules: RuleModel) -> None:
        self.preference, self.rules = preference, rules

    def parts(self, sequences: Sequence[Sequence[int]], batch_size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
        """The combined score and that of the preference, ``(sequences,)``, and the probability of each rule being
        broken, ``(sequences, rules)``."""
        preference = torch.tensor(self.preference.score(sequences, batch_size))
        broken = self.rules.broken(sequences, batch_size)
        return self.rules.part.combine(preference, broken), preference, broken

    def score(self, sequences: Sequence[Sequence[int]], batch_size: int = 32) -> list[float]:
        """As :meth:`RewardModel.score`, combined."""
        scores: list[float] = self.parts(sequences, batch_size)[0].tolist()
        return scores


def add_rule_adapter(classifier: PeftModel, adapter: Path) -> nn.Linear:
    """Put the adapter of a rule model beside the others on a decoder, as ``rules``; the head is its own.

    Raises:
        ArtifactError: the adapter does not fit.
    """
    weight = read_score_head(adapter)
    weights = load_peft_weights(str(adapter), device="cpu")
    weights[SCORE_KEY] = torch.zeros(1, weight.shape[1])  # PEFT wants every module it saves, in the classifier's shape
    with quiet():
        classifier.add_adapter(RULES, LoraConfig.from_pretrained(str(adapter)))
        report: Any = set_peft_model_state_dict(classifier, weights, adapter_name=RULES)
    absent = [key for key in report.missing_keys if "lora_" in key and f".{RULES}." in key]
    if absent or report.unexpected_keys:
        raise ArtifactError("the adapter does not fit", where=str(adapter), details=[*absent, *report.unexpected_keys])
    head = nn.Linear(weight.shape[1], len(weight), bias=False)
    head.weight.data = weight
    return head.to(next(classifier.parameters()).device)
