"""Reward modelling: preferences → a model that scores responses (TRL's RewardTrainer).

Starts from the SFT policy with a zero score head; writes ``adapter/`` (PEFT, with its head), or ``model/`` without
LoRA. A pair counts as decided, chosen over rejected, when its probability reaches ``min_probability``; the others are
left out.

    rlhf run CONFIG reward
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rlhf_pipeline.config import TrainingSection
from rlhf_pipeline.errors import TrainingError
from rlhf_pipeline.metrics import require_finite, wilson_interval
from stages.job import Job
from stages.pairs import load_pairs

if TYPE_CHECKING:
    from rlhf_pipeline.encoding import EncodedPair
    from rlhf_pipeline.models import RewardModel

_PARITY_PAIRS = 32


class Config(TrainingSection):
    """Reward modelling."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW; adapters bear about ten times that of full fine-tuning."""
    init: Literal["sft", "base"] = "sft"
    """Start from a copy of the SFT adapter (whose shape is then taken over), or from the base with a new adapter."""
    centering: float = Field(0.01, ge=0)
    """Weight of the squared sum of both scores in the loss, which keeps scores around zero; 0 leaves them free."""
    min_probability: float = Field(0.6, gt=0.5, le=1)
    """Learn only from pairs whose chosen side is the better one with at least this probability."""


def run(job: Job) -> dict[str, Any]:
    """Encode, train, measure on held-out pairs, save, and prove that what was saved gives the same scores."""
    import torch
    from trl.trainer.reward_config import RewardConfig

    from rlhf_pipeline import models, training
    from rlhf_pipeline.model_source import load_config
    from rlhf_pipeline.tokenization import load_tokenizer

    config: Config = job.config
    model = job.settings.model
    chat = load_tokenizer(model)
    limit = training.context_limit(config, load_config(model), job.say)
    pairs = load_pairs(job, chat, limit=limit, min_probability=config.min_probability)
    steps = training.plan(config, [len(pair) for pair in pairs.train], seed=job.seed)
    torch.manual_seed(job.seed)
    classifier: Any = _start(job)
    with training.quiet():
        trainer = training.RewardModelTrainer(
            model=classifier,
            args=training.arguments(
                RewardConfig,
                config,
                steps,
                model=model,
                folder=job.folder / "checkpoints",
                seed=job.seed,
                device=job.device,
                tracking=job.settings.run.tracking,
                max_length=None,
                center_rewards_coefficient=config.centering or None,
            ),
            train_dataset=training.dataset(_columns(pairs.train), steps.order),
            processing_class=training.processing_class(chat),
        )
    job.say(training.describe(classifier, steps))
    with job.track("reward model", steps.steps) as advance:
        trained = training.train(trainer, folder=job.folder, say=job.say, advance=advance)
    training.finish(classifier, model, job.device)
    reward_model = models.RewardModel(classifier)
    measured = accuracy(reward_model, pairs.held_out, batch_size=2 * steps.micro_batch)
    if measured["pairs"]:
        require_finite(measured["score_mean"], "the mean score of held-out responses")
    job.say(_sentence(measured))
    training.save(classifier, job.folder, model)
    drift = _prove_saved(job, reward_model, pairs.held_out or pairs.train)
    return {**trained, "rows": pairs.account, **measured, "score_drift_after_loading": drift}


def _start(job: Job) -> Any:
    """The classifier to train: on the SFT policy's weights, or on the base's."""
    from rlhf_pipeline import models, training

    config: Config = job.config
    model = job.settings.model
    sft = job.inputs["sft"].folder
    full = models.full_model(sft)
    dtype = training.weight_dtype(model, job.device, full=config.lora is None)
    classifier = models.load_classifier(model, device=job.device, folder=full, dtype=dtype)
    if full is None and config.init == "sft":
        adapted = models.classifier_from_policy(classifier, sft / "adapter")
        if config.lora is None:
            job.say("starts from the SFT adapter, merged; all weights are trained")
            return adapted.merge_and_unload().requires_grad_(True)
        job.say(f"starts from a copy of the SFT adapter (rank {models.adapter_rank(adapted)}, as there)")
        return adapted
    job.say("starts from the fully fine-tuned SFT model" if full else "starts from the base, without what SFT learnt")
    return classifier if config.lora is None else models.add_adapter(classifier, config.lora, task="SEQ_CLS")


def _columns(pairs: Sequence[EncodedPair]) -> dict[str, list[list[int]]]:
    return {
        "chosen_ids": [pair.prompt + pair.chosen for pair in pairs],
        "rejected_ids": [pair.prompt + pair.rejected for pair in pairs],
    }


def accuracy(reward_model: RewardModel, pairs: Sequence[EncodedPair], *, batch_size: int) -> dict[str, Any]:
    """How often the chosen response scores higher, beside what length alone would give; ties count half.

    ``length_baseline`` is the better of "longer wins" and "shorter wins" on these very pairs: the most that length
    could explain.
    """
    if not pairs:
        return {"accuracy": None, "pairs": 0}
    scores = reward_model.score([ids for rows in _columns(pairs).values() for ids in rows], batch_size)
    margins = [chosen - rejected for chosen, rejected in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)]
    right = sum((margin > 0) + 0.5 * (margin == 0) for margin in margins)
    longer = sum((len(p.chosen) > len(p.rejected)) + 0.5 * (len(p.chosen) == len(p.rejected)) for p in pairs)
    low, high = wilson_interval(right, len(pairs))
    by_length = max(longer, len(pairs) - longer)
    length_low, length_high = wilson_interval(by_length, len(pairs))
    return {
        "accuracy": right / len(pairs),
        "accuracy_low": low,
        "accuracy_high": high,
        "pairs": len(pairs),
        "length_baseline": by_length / len(pairs),
        "length_baseline_low": length_low,
        "length_baseline_high": length_high,
        "longer_wins": longer / len(pairs),
        "margin": sum(margins) / len(pairs),
        "score_mean": sum(scores) / len(scores),
    }


def _sentence(measured: dict[str, Any]) -> str:
    if not measured["pairs"]:
        return "no pair is held out, so the accuracy is not known"
    direction = "longer" if measured["longer_wins"] >= 0.5 else "shorter"
    text = (
        f"held-out accuracy {measured['accuracy']:.1%} (95 %: {measured['accuracy_low']:.1%} to "
        f"{measured['accuracy_high']:.1%}, {measured['pairs']:,} pairs); length alone ({direction} wins) "
        f"{measured['length_baseline']:.1%}"
    )
    if measured["accuracy_low"] <= measured["length_baseline"]:
        text += "; not shown to be better than length"
    return text


def _prove_saved(job: Job, trained: RewardModel, pairs: Sequence[EncodedPair]) -> float:
    """Load what was saved; the largest difference of its scores from those of the trained model.

    Raises:
        TrainingError: the head was not saved or not trained, or the scores differ.
    """
    import torch

    from rlhf_pipeline import models

    model = job.settings.model
    loaded = models.load_reward_model(
        model, job.folder, device=job.device, base=models.full_model(job.inputs["sft"].folder)
    )
    full: Any = loaded.classifier
    head = models.read_score_head(job.folder / "adapter") if job.config.lora else full.score.weight
    if not head.any():
        raise TrainingError("the saved score head is zero as at the start, so training did not reach it")
    rows = [ids for column in _columns(pairs[:_PARITY_PAIRS]).values() for ids in column]
    before, after = trained.score(rows, batch_size=16), loaded.score(rows, batch_size=16)
    drift = max(abs(a - b) for a, b in zip(before, after, strict=True))
    exact = models.dtype_of(model, job.device) == torch.float32 and job.device == "cpu"
    allowed = 1e-6 if exact else 1e-3
    scale = max(1.0, *(abs(score) for score in before))
    if not drift <= allowed * scale:
        raise TrainingError(
            f"after saving and loading, scores differ by up to {drift:.3g} (allowed: {allowed * scale:.0e})",
            where=str(job.folder),
            advice="this is a bug, or the disk is failing: please report it with the versions from manifest.json",
        )
    return drift
