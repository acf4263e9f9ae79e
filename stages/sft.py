"""Supervised fine-tuning: demonstrations → policy (TRL's SFTTrainer).

Reads ``data.demonstrations`` (or the chosen sides of ``data.preferences``); writes ``adapter/``, or ``model/`` without
LoRA. The loss is on responses only.

    rlhf run CONFIG sft
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from rlhf_pipeline.config import TrainingSection
from rlhf_pipeline.errors import ConfigError, DataError
from rlhf_pipeline.metrics import require_finite
from stages.job import Job
from stages.prompts import split_rule

if TYPE_CHECKING:
    from rlhf_pipeline.encoding import EncodedDemonstration
    from rlhf_pipeline.tokenization import ChatTokenizer


class Config(TrainingSection):
    """Supervised fine-tuning."""

    packing: bool = False
    """Join short rows into rows of ``max_length`` tokens (they do not see each other): faster where lengths vary much.

    ``batch_size`` then counts joined rows, of which one is in memory at a time unless ``micro_batch_size`` says more.
    """
    overlong: Literal["drop", "cut"] = "drop"
    """Rows above ``max_length``: leave them out, or cut the response (which then does not teach how to end)."""


def run(job: Job) -> dict[str, Any]:
    """Encode, train, measure the loss on held-out demonstrations, save."""
    from trl.trainer.sft_config import SFTConfig

    from rlhf_pipeline import models, training
    from rlhf_pipeline.model_source import load_config
    from rlhf_pipeline.tokenization import load_tokenizer

    config: Config = job.config
    model = job.settings.model
    chat = load_tokenizer(model)
    limit = training.context_limit(config, load_config(model), job.say)
    train, held_out, account = _load_rows(job, chat, limit)

    dtype = training.weight_dtype(model, job.device, full=config.lora is None)
    base = models.load_causal_lm(model, device=job.device, dtype=dtype)
    if config.lora:
        models.require_targets(base, config.lora)
    rows = _columns(train)
    if config.packing:
        rows = training.pack(rows, limit, seed=job.seed)
        job.say(f"packed {len(train):,} rows into {len(rows['input_ids']):,} of at most {limit:,} tokens")
    steps = training.plan(
        config, [len(ids) for ids in rows["input_ids"]], seed=job.seed, micro=1 if config.packing else None
    )
    with training.quiet(), models.adapter_refusals():
        trainer = training.SftTrainer(
            model=base,
            args=training.arguments(
                SFTConfig,
                config,
                steps,
                model=model,
                folder=job.folder / "checkpoints",
                seed=job.seed,
                device=job.device,
                tracking=job.settings.run.tracking,
                max_length=None,
                padding_free=config.packing,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=training.dataset(rows, steps.order),
            processing_class=training.processing_class(chat),
            peft_config=models.lora_config(config.lora, base, task="CAUSAL_LM") if config.lora else None,
        )
    job.say(training.describe(trainer.model, steps))
    before = training.evaluation_loss(trainer, _columns(held_out)) if held_out else None
    with job.track("supervised fine-tuning", steps.steps) as advance:
        trained = training.train(trainer, folder=job.folder, say=job.say, advance=advance)
    metrics = {**trained, "rows": account}
    if before is not None:
        after = training.evaluation_loss(trainer, _columns(held_out))
        require_finite(after, "the loss on held-out rows")
        job.say(f"loss {trained['loss']:.3f}, on {len(held_out):,} held-out rows {before:.3f} → {after:.3f}")
        if after >= before:
            job.say("warning: the base model was better on held-out rows; lower sft.learning_rate or sft.epochs")
        metrics |= {"held_out_loss_before": before, "held_out_loss": after}
    training.finish(trainer.model, model, job.device)
    training.save(trainer.model, job.folder, model)
    return metrics


def _load_rows(
    job: Job, chat: ChatTokenizer, limit: int
) -> tuple[list[EncodedDemonstration], list[EncodedDemonstration], dict[str, int]]:
    from rlhf_pipeline.data import read_demonstrations
    from rlhf_pipeline.encoding import encode_demonstrations

    config: Config = job.config
    data = job.settings.data
    source = data.demonstration_source()
    if source is None:
        raise ConfigError(
            "there is no data with demonstrations",
            where="data",
            advice="set data.demonstrations, e.g. {path: pocket} or {path: my.jsonl}",
        )
    report = job.report_on("demonstrations")
    loaded = read_demonstrations(source, system=data.system, seed=job.seed, report=report)
    job.say(loaded.summary())
    cut = config.overlong == "cut"
    encoded = encode_demonstrations(chat, loaded.records, limit=limit, cut=cut)
    job.say(encoded.account("demonstrations", limit, cut=cut))
    split = split_rule(job)
    train: list[EncodedDemonstration] = []
    held_out: list[EncodedDemonstration] = []
    for place, row in zip(encoded.kept, encoded.rows, strict=True):
        (held_out if split.is_held_out(loaded.records[place].prompt) else train).append(row)
    if not train:
        raise DataError(
            "every demonstration is held out, so none is left to train on",
            where="data.held_out",
            advice="hold out fewer, or give more demonstrations",
        )
    account = {"read": loaded.rows, "overlong": encoded.overlong, "train": len(train), "held_out": len(held_out)}
    return train, held_out, account


def _columns(rows: list[EncodedDemonstration]) -> dict[str, list[list[int]]]:
    """Ids, and labels that leave the prompt out of the loss."""
    return {
        "input_ids": [row.prompt + row.response for row in rows],
        "labels": [[-100] * len(row.prompt) + row.response for row in rows],
    }
