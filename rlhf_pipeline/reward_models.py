"""Reward models at work: what scores a response, from its ids or from its text, loaded from a finished folder.

The folder holds ``reward_model.json`` (what it is, and on which base), beside ``adapter/`` or ``model/``.

    scorer = Scorer.open(Path("runs/demo/reward"))
    scorer.score([(Message("user", "How do I water a fern?"),)], ["Slowly, in the morning."])
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_pipeline.artifacts import open_artifact, require_same_identity
from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.encoder_text import EncoderText, load_encoder_text
from rlhf_pipeline.encoding import Text
from rlhf_pipeline.ensembles import Combination
from rlhf_pipeline.errors import ArtifactError, DataError, IncompatibleArtifact
from rlhf_pipeline.model_source import base_identity, is_encoder, load_config
from rlhf_pipeline.models import (
    full_model,
    load_classifier,
    quiet,
    read_score_head,
    score_layer,
    with_adapter,
)
from rlhf_pipeline.records import Message
from rlhf_pipeline.rule_models import RULES, RuleModel, RulePart, WithRules, add_rule_adapter
from rlhf_pipeline.tokenization import load_tokenizer

SPEC = "reward_model.json"


@dataclass(frozen=True)
class Spec:
    """What a reward model is made of.

    Args:
        model: whose weights the scores are computed on.
        base: a fully fine-tuned model that the adapter was trained on, as a path from the reward model's folder.
        own_model: it is another model than the run's, with a tokenizer of its own: it scores text, not the run's ids.
        digest: of the weights of that other model.
        limit: the longest row that an encoder was trained on, in tokens.
        members: folders of the adapters of an ensemble.
        combination: how the members' scores become one.
        rules: the rule model in the folder ``rules``, where there is one.
    """

    model: ModelConfig
    base: str | None = None
    own_model: bool = False
    digest: str | None = None
    limit: int | None = None
    members: tuple[str, ...] = ()
    combination: Combination | None = None
    rules: RulePart | None = None

    def write(self, folder: Path) -> None:
        """As ``reward_model.json``."""
        values = {**vars(self), "model": self.model.model_dump(mode="json")}
        values["combination"] = vars(self.combination) if self.combination else None
        values["rules"] = vars(self.rules) if self.rules else None
        (folder / SPEC).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> Spec | None:
        """None for a folder of a version that wrote none."""
        path = folder / SPEC
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            model, combination = ModelConfig(**values.pop("model")), values.pop("combination")
            if combination is not None:
                combination = Combination(**{**combination, "offsets": tuple(combination["offsets"])})
            if (rules := values.pop("rules", None)) is not None:
                rules = RulePart(**{**rules, **{name: tuple(rules[name]) for name in ("names", "offsets")}})
            values["members"] = tuple(values["members"])
            return Spec(**values, model=model, combination=combination, rules=rules)
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"it cannot be read: {error}", where=str(path)) from None


class RewardModel:
    """Scores whole sequences of ids; a decoder's score is read at the last token, found by length and not by the pad
    token; an encoder's where its own head reads it."""

    def __init__(
        self, classifier: PreTrainedModel | PeftModel, adapter: str | None = None, head: nn.Module | None = None
    ) -> None:
        """``adapter``: which one of several on the classifier; they share its base. ``head``: in place of a decoder's
        own."""
        self.classifier, self._adapter = classifier, adapter
        inner: Any = classifier.get_base_model() if isinstance(classifier, PeftModel) else classifier
        self._reads_whole = is_encoder(inner.config)
        self._backbone: nn.Module = getattr(inner, inner.base_model_prefix)
        self._head: nn.Module | None = None if self._reads_whole else head or inner.score
        self._pad_id = int(inner.config.pad_token_id or 0) if self._reads_whole else 0

    @property
    def head_weight(self) -> Tensor:
        """Of the layer that gives the outputs: ``(labels, features)``."""
        if isinstance(self._head, nn.Linear):
            return self._head.weight
        own = f".modules_to_save.{self._adapter or 'default'}"  # of several adapters each has a head
        saved = [part for name, part in self.classifier.named_modules() if own in f"{name}."]
        return score_layer(self.classifier, saved or None).weight

    @property
    def dtype(self) -> torch.dtype:
        """In which the base's weights are."""
        return next(self.classifier.parameters()).dtype

    def score(self, sequences: Sequence[Sequence[int]], batch_size: int = 32) -> list[float]:
        """One score per sequence of prompt and response ids."""
        scores: list[float] = self.outputs(sequences, batch_size).squeeze(-1).tolist()
        return scores

    @torch.no_grad()
    def outputs(self, sequences: Sequence[Sequence[int]], batch_size: int = 32) -> Tensor:
        """What the head says of each sequence, ``(sequences, labels)`` in float32 on the CPU; the order is kept, the
        batches are of like length."""
        device = next(self.classifier.parameters()).device
        was_training = self.classifier.training
        if self._adapter is not None:
            cast(PeftModel, self.classifier).set_adapter(self._adapter)
        self.classifier.eval()
        order = self.order(sequences)
        found = [torch.empty(0)] * len(sequences)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            lengths = torch.tensor([len(sequences[i]) for i in rows], device=device)
            ids = torch.full((len(rows), int(lengths.max())), self._pad_id, device=device)
            for place, i in enumerate(rows):
                ids[place, : len(sequences[i])] = torch.tensor(list(sequences[i]), device=device)
            for i, values in zip(rows, self._values(ids, lengths).float().cpu(), strict=True):
                found[i] = values
        self.classifier.train(was_training)
        return torch.stack(found) if found else torch.empty(0, 1)

    @staticmethod
    def order(sequences: Sequence[Sequence[int]]) -> list[int]:
        """In which order sequences go through the model."""
        return sorted(range(len(sequences)), key=lambda i: len(sequences[i]))

    def _values(self, ids: Tensor, lengths: Tensor) -> Tensor:
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        if self._head is None:
            whole: Tensor = self.classifier(input_ids=ids, attention_mask=mask).logits
            return whole
        hidden = self._backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        values: Tensor = self._head(hidden[torch.arange(len(ids), device=ids.device), lengths - 1])
        return values


class Ensemble:
    """Several adapters on one base as one reward model."""

    def __init__(self, members: Sequence[RewardModel], combination: Combination) -> None:
        self.members, self.combination = members, combination

    def score(self, sequences: Sequence[Sequence[int]], batch_size: int = 32) -> list[float]:
        """As :meth:`RewardModel.score`, combined."""
        combined: list[float] = self.combination(torch.tensor(self.member_scores(sequences, batch_size))).tolist()
        return combined

    def member_scores(self, sequences: Sequence[Sequence[int]], batch_size: int = 32) -> list[list[float]]:
        """Each member's own scores: ``(members, sequences)``."""
        return [member.score(sequences, batch_size) for member in self.members]


Scores = RewardModel | Ensemble | RuleModel | WithRules


def load_reward_model(model: ModelConfig, folder: Path, *, device: str, base: Path | None = None) -> Scores:
    """A reward model from its folder.

    Args:
        model: the run's base; a reward model on a model of its own knows that one itself.
        folder: with ``adapter/`` or ``model/``.
        device: ``cpu`` or ``cuda``.
        base: a fully fine-tuned model that the adapter was trained on, where that is not the run's base.
    """
    spec = Spec.read(folder)
    if spec is not None and spec.own_model:
        model, base = spec.model, None
        if base_identity(model)["digest"] != spec.digest:
            raise IncompatibleArtifact(
                f"the weights of {model.name} are not those that it was made with",
                where=str(folder),
                advice="put them back, or make it again: rlhf run RUN reward --again",
            )
    if (full := full_model(folder)) is not None:
        return RewardModel(load_classifier(model, device=device, folder=full))
    adapters = [folder / name / "adapter" for name in (spec.members if spec else ())] or [folder / "adapter"]
    if spec is None or not spec.own_model:
        for adapter in adapters:
            read_score_head(adapter)
    classifier = with_adapter(load_classifier(model, device=device, folder=base), adapters[0], trainable=False)
    if spec is None or (spec.combination is None and spec.rules is None):
        return RewardModel(classifier)
    preference = (
        RewardModel(classifier, "default")
        if spec.combination is None
        else load_members(classifier, adapters, spec.combination)
    )
    if spec.rules is None:
        return preference
    if is_encoder(load_config(model, encoders=True)):  # of which more than the last layer is its head: it stands apart
        apart = load_classifier(model, device=device, folder=base, labels=len(spec.rules.names))
        rules = RewardModel(with_adapter(apart, folder / RULES / "adapter", trainable=False))
    else:
        rules = RewardModel(classifier, RULES, head=add_rule_adapter(classifier, folder / RULES / "adapter"))
    return WithRules(preference, RuleModel(rules, spec.rules))


def load_members(classifier: PeftModel, adapters: Sequence[Path], combination: Combination) -> Ensemble:
    """An ensemble of adapters, of which the classifier has the first one already."""
    names = ["default"] + [f"member_{number}" for number in range(1, len(adapters))]
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        with quiet():
            classifier.load_adapter(str(adapter), name, torch_device=str(next(classifier.parameters()).device))
    return Ensemble([RewardModel(classifier, name) for name in names], combination)


def load_text(model: ModelConfig, limit: int | None = None) -> Text:
    """What renders conversations for a model: its chat template, or for an encoder that of :mod:`encoder_text`.

    ``limit``: of an encoder's rows, in tokens; None is the model's context.
    """
    if not is_encoder(load_config(model, encoders=True)):
        return load_tokenizer(model)
    text = load_encoder_text(model)
    return text if limit is None else replace(text, limit=min(limit, text.limit))


@dataclass(frozen=True, slots=True)
class Explained:
    """A response's score and what it is made of.

    Args:
        score: what everything is decided by.
        preference: what it would be if the response broke no rule; the same where the reward model knows no rules.
        broken: rule → the probability that the response breaks it.
    """

    score: float
    preference: float
    broken: Mapping[str, float]


class Scorer:
    """Scores responses as text, by the rendering that the reward model learnt on."""

    def __init__(self, text: Text, model: Scores, *, context: int | None = None) -> None:
        """``context``: tokens of a prompt with its response that the model can read; longer ones are refused."""
        self.text, self.model, self.context = text, model, context

    @staticmethod
    def on_own_model(folder: Path, *, device: str) -> Scorer:
        """From the folder, known to be whole, of a reward model on a model of its own."""
        spec = Spec.read(folder)
        assert spec is not None
        assert spec.own_model
        return Scorer(load_text(spec.model, spec.limit), load_reward_model(spec.model, folder, device=device))

    @staticmethod
    def open(folder: Path | str, *, device: str = "cpu") -> Scorer:
        """From a finished reward model's folder, whose files and base are proven to be those it was made with.

        Raises:
            ArtifactError: no finished reward model, or it was made with other weights than those that are there now.
        """
        folder = Path(folder)
        artifact, spec = open_artifact(folder), Spec.read(folder)
        if spec is None:
            raise ArtifactError(
                f"it has no {SPEC}, so it is no reward model, or one of an older version",
                where=str(folder),
                advice="name the reward folder of a run; to make an old one again: rlhf run RUN reward --again",
            )
        if spec.own_model:
            return Scorer.on_own_model(folder, device=device)
        text = load_tokenizer(spec.model)
        require_same_identity(artifact, base_identity(spec.model), text.identity())
        base = None if spec.base is None else folder / spec.base
        if base is not None and open_artifact(base.parent).digest not in artifact.manifest.inputs.values():
            raise ArtifactError(
                "the fully fine-tuned model below it was made anew since, so its scores would be others",
                where=str(base.parent),
                advice="make the reward model again, or put that model back from replaced/",
            )
        context = getattr(load_config(spec.model), "max_position_embeddings", None)
        return Scorer(text, load_reward_model(spec.model, folder, device=device, base=base), context=context)

    def score(
        self,
        prompts: Sequence[Sequence[Message]],
        responses: Sequence[str],
        *,
        ended: Sequence[bool] | None = None,
        batch_size: int = 32,
    ) -> list[float]:
        """The score of each response to the prompt in the same place.

        Args:
            ended: False for a response that was cut off at a limit; None where none was.
        """
        return self.model.score(self._encode(prompts, responses, ended), batch_size)

    def explain(
        self,
        prompts: Sequence[Sequence[Message]],
        responses: Sequence[str],
        *,
        ended: Sequence[bool] | None = None,
        batch_size: int = 32,
    ) -> list[Explained]:
        """As :meth:`score`, with what the score is made of."""
        rows = self._encode(prompts, responses, ended)
        if not isinstance(self.model, WithRules):
            return [Explained(score, score, {}) for score in self.model.score(rows, batch_size)]
        names = self.model.rules.part.names
        parts = zip(*(part.tolist() for part in self.model.parts(rows, batch_size)), strict=True)
        return [Explained(score, alone, dict(zip(names, broken, strict=True))) for score, alone, broken in parts]

    def _encode(
        self, prompts: Sequence[Sequence[Message]], responses: Sequence[str], ended: Sequence[bool] | None
    ) -> list[list[int]]:
        whole = [True] * len(responses) if ended is None else ended
        rows = [
            self.text.encode(prompt, response, ended=end)
            for prompt, response, end in zip(prompts, responses, whole, strict=True)
        ]
        if isinstance(self.text, EncoderText):
            rows = [row[: self.text.limit] for row in rows]
        long = [place for place, row in enumerate(rows) if self.context is not None and len(row) > self.context]
        if long:
            named = [f"response {place + 1} of {len(rows):,}: {len(rows[place]):,} tokens" for place in long[:10]]
            raise DataError(
                f"{len(long):,} of {len(rows):,} responses are, with their prompts, longer than the {self.context:,} "
                "tokens that the model can read",
                details=named if len(long) <= len(named) else [*named, f"… and {len(long) - len(named):,} more"],
                advice="shorten them or leave them out",
            )
        return rows
