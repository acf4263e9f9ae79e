"""Direct preference optimisation (Rafailov et al., 2305.18290): preferences → policy, against the SFT policy.

Continues the SFT adapter with TRL's DPOTrainer; writes ``adapter/``, or ``model/`` without LoRA. The reference is the
SFT policy: its log-probabilities are taken once, before the first step. A pair counts as decided when its probability
reaches ``min_probability``.

    rlhf run CONFIG dpo
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rlhf_pipeline.config import TrainingSection
from rlhf_pipeline.metrics import require_finite, wilson_interval
from stages.job import Job
from stages.pairs import load_pairs

if TYPE_CHECKING:
    from rlhf_pipeline.encoding import EncodedPair
    from rlhf_pipeline.tokenization import ChatTokenizer


class Config(TrainingSection):
    """Direct preference optimisation."""

    learning_rate: float = Field(5e-5, gt=0)
    """Peak learning rate of AdamW; full fine-tuning wants a tenth of it or less."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull towards the SFT policy; raising it keeps the policy closer."""
    loss: Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm", "apo_zero", "apo_down", "nca_pair"] = "sigmoid"
    """TRL's loss: ``sigmoid`` is DPO, ``ipo`` does not push decided pairs apart for ever, ``robust`` expects that the
    share ``label_noise`` of the pairs is the wrong way round, ``sigmoid_norm`` divides by length."""
    label_noise: float = Field(0.0, ge=0, lt=0.5)
    """Probability that a judgement is wrong (conservative DPO with ``sigmoid``)."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of an added SFT loss on chosen responses, which keeps their probability from falling."""
    min_probability: float = Field(0.6, gt=0.5, le=1)
    """Learn only from pairs whose chosen side is the better one with at least this probability."""


def run(job: Job) -> dict[str, Any]:
    """Encode, train, measure on held-out pairs, save."""
    import torch
    from trl.trainer.dpo_config import DPOConfig

    from rlhf_pipeline import training
    from rlhf_pipeline.model_source import load_config
    from rlhf_pipeline.tokenization import load_tokenizer

    config: Config = job.config
    model = job.settings.model
    chat = load_tokenizer(model)
    limit = training.context_limit(config, load_config(model), job.say)
    pairs = load_pairs(job, chat, limit=limit, min_probability=config.min_probability)
    steps = training.plan(config, [len(pair) for pair in pairs.train], seed=job.seed)
    torch.manual_seed(job.seed)
    policy = _start(job)
    budget = 2 * steps.micro_batch * min(limit, max(len(pair) for pair in pairs.train))
    with training.precision(config, model, job.device):  # as in training: else the first log-ratios would not be 0
        reference = _logprobs(policy, pairs.train, chat, budget)
        reference_held_out = _logprobs(policy, pairs.held_out, chat, budget)
    losses: dict[str, Any] = {"loss_type": [config.loss]}
    if config.sft_weight:
        losses = {"loss_type": [config.loss, "sft"], "loss_weights": [1.0, config.sft_weight]}
    with training.quiet():
        trainer = training.DpoTrainer(
            model=policy,
            args=training.arguments(
                DPOConfig,
                config,
                steps,
                model=model,
                folder=job.folder / "checkpoints",
                seed=job.seed,
                device=job.device,
                tracking=job.settings.run.tracking,
                max_length=None,
                precompute_ref_log_probs=config.lora is None,
                beta=config.beta,
                label_smoothing=config.label_noise,
                **losses,
            ),
            train_dataset=training.dataset(_columns(pairs.train, reference), steps.order),
            processing_class=training.processing_class(chat),
        )
    job.say(training.describe(policy, steps))
    with job.track("direct preference optimisation", steps.steps) as advance:
        trained = training.train(trainer, folder=job.folder, say=job.say, advance=advance)
    with training.precision(config, model, job.device):
        measured = _measure(reference_held_out, _logprobs(policy, pairs.held_out, chat, budget))
    training.finish(policy, model, job.device)
    if measured["pairs"]:
        require_finite(measured["chosen_shift"], "the log-ratio of held-out responses")
        job.say(
            f"on held-out pairs the policy prefers the chosen response in {measured['accuracy']:.1%} "
            f"(95 %: {measured['accuracy_low']:.1%} to {measured['accuracy_high']:.1%}, {measured['pairs']:,} pairs)"
        )
    training.save(policy, job.folder, model)
    return {**trained, "rows": pairs.account, **measured}


def _start(job: Job) -> Any:
    """The policy to train; before its first step it is the reference."""
    from rlhf_pipeline import models, training

    config: Config = job.config
    model = job.settings.model
    sft = job.inputs["sft"].folder
    full = models.full_model(sft)
    dtype = training.weight_dtype(model, job.device, full=config.lora is None)
    if config.lora is None:
        job.say("trains all weights, from those of the SFT policy")
        return models.load_merged(model, sft, device=job.device, dtype=dtype)
    if full is None:
        adapted = models.load_policy(model, sft, device=job.device, trainable=True)
        job.say(f"continues the SFT adapter (rank {models.adapter_rank(adapted)}, as there)")
        return adapted
    job.say("starts a new adapter on the fully fine-tuned SFT model")
    base = models.load_causal_lm(model, device=job.device, folder=full)
    return models.add_adapter(base, config.lora, task="CAUSAL_LM")


LogProbs = list[tuple[float, float]]
"""Summed log-probabilities of the chosen and of the rejected response, for each pair."""


def _columns(pairs: Sequence[EncodedPair], reference: LogProbs) -> dict[str, list[Any]]:
    return {
        "prompt_ids": [pair.prompt for pair in pairs],
        "chosen_ids": [pair.chosen for pair in pairs],
        "rejected_ids": [pair.rejected for pair in pairs],
        "ref_chosen_logps": [chosen for chosen, _ in reference],
        "ref_rejected_logps": [rejected for _, rejected in reference],
    }


def _logprobs(policy: Any, pairs: Sequence[EncodedPair], chat: ChatTokenizer, budget: int) -> LogProbs:
    """Of every pair, at most ``budget`` tokens at once, without dropout; a response of several pairs is read once."""
    import torch

    from rlhf_pipeline import processes
    from rlhf_pipeline.divided_base import in_step
    from rlhf_pipeline.logprobs import micro_batches, pad_sequences, response_logprobs
    from rlhf_pipeline.models import quiet

    policy.eval()
    both = [[(tuple(pair.prompt), tuple(response)) for response in (pair.chosen, pair.rejected)] for pair in pairs]
    distinct = list(dict.fromkeys(row for rows in both for row in rows))
    groups = micro_batches([len(prompt) + len(response) for prompt, response in distinct], budget)
    sums = torch.zeros(len(distinct), dtype=torch.float64, device=policy.device)
    with quiet(), torch.no_grad(), in_step(policy):
        for places in groups[processes.rank() :: processes.world()]:
            rows = [distinct[i] for i in places]
            prompts, responses = zip(*rows, strict=True)
            batch = pad_sequences(prompts, responses, pad_id=chat.pad_id, device=policy.device)
            sums[places] = response_logprobs(policy, batch).sum(-1).double()
    found = dict(zip(distinct, processes.add_up(sums).tolist(), strict=True))
    return [(found[chosen], found[rejected]) for chosen, rejected in both]


def _measure(before: LogProbs, after: LogProbs) -> dict[str, Any]:
    """How often the policy, compared with its reference, prefers the chosen response; ties count half.

    ``chosen_shift`` and ``rejected_shift`` are mean log-ratios to the reference in nats: DPO lowers both when it
    learns by making everything in the data less likely.
    """
    pairs = len(before)
    if not pairs:
        return {"accuracy": None, "pairs": 0}
    chosen = [new[0] - old[0] for old, new in zip(before, after, strict=True)]
    rejected = [new[1] - old[1] for old, new in zip(before, after, strict=True)]
    right = sum((c > r) + 0.5 * (c == r) for c, r in zip(chosen, rejected, strict=True))
    low, high = wilson_interval(right, pairs)
    return {
        "accuracy": right / pairs,
        "accuracy_low": low,
        "accuracy_high": high,
        "pairs": pairs,
        "chosen_shift": sum(chosen) / pairs,
        "rejected_shift": sum(rejected) / pairs,
    }
