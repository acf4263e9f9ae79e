"""The glue around TRL's trainers: their arguments, the order of the rows, progress, and checkpoints that verify.

TRL gets token ids, never text. Rows are laid out in the order in which they are trained on and read sequentially, so
that a resumed run continues with exactly the rows that an uninterrupted one would have seen.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets.utils.logging
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    PretrainedConfig,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.data_utils import pack_dataset
from trl.trainer import utils as trl_utils
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_trainer import SFTTrainer

from rlhf_pipeline import processes
from rlhf_pipeline.config import ModelConfig, TrainingSection
from rlhf_pipeline.encoding import Text
from rlhf_pipeline.errors import ConfigError, TrainingError
from rlhf_pipeline.length_groups import classify
from rlhf_pipeline.metrics import MetricsWriter, read_metrics
from rlhf_pipeline.model_source import is_encoder
from rlhf_pipeline.models import dtype_of, save_adapter, save_full
from rlhf_pipeline.models import quiet as models_quiet
from rlhf_pipeline.tracking import require_tracker
from rlhf_pipeline.trainer_checkpoints import newest_checkpoint, read_complete, seal
from rlhf_pipeline.trainer_processes import Together

# TRL computes the language head only where there is a label, but on a device without Triton at every position, for the
# sake of one kind of device. The numbers are the same; on a CPU this halves the time of the head.
trl_utils._use_triton = lambda device: True  # type: ignore[attr-defined]

WINDOW = 8  # batches among which rows are sorted by length: little padding, and still mixed


class _Quiet(Together):
    """No telemetry whatever the environment says, and no model card in every checkpoint."""

    def _send_telemetry(self) -> None:
        return

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        return


class SftTrainer(_Quiet, SFTTrainer):
    """TRL's trainer for demonstrations: columns ``input_ids`` and ``labels``."""


class RewardModelTrainer(_Quiet, RewardTrainer):
    """TRL's trainer for reward models: columns ``chosen_ids`` and ``rejected_ids`` (whole sequences)."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's, with less padding where that is worth it."""
        return super().compute_loss(partial(classify, model), inputs, *args, **kwargs)


class DpoTrainer(_Quiet, DPOTrainer):
    """TRL's trainer for DPO on finished rows, which hold the reference's log-probabilities: no reference model is kept.

    Columns: ``prompt_ids``; ``chosen_ids`` and ``rejected_ids`` (the responses alone); ``ref_chosen_logps`` and
    ``ref_rejected_logps`` (summed over the response). All weights are trained with ``precompute_ref_log_probs``, which
    keeps TRL from loading a reference; with an adapter the switch would only hash the whole model.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.precompute_ref_logps = True
        if isinstance(self.model, PeftModel) and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # TRL would tokenise text here, and has no switch for rows that are ids already

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


@dataclass(frozen=True)
class Plan:
    """How many optimiser steps of how many rows, and the rows in the order of training."""

    order: tuple[int, ...]
    steps: int
    micro_batch: int
    accumulation: int


def plan(
    section: TrainingSection,
    lengths: Sequence[int],
    *,
    seed: int,
    world: int | None = None,
    micro: int | None = None,
    window: int = WINDOW,
) -> Plan:
    """Lay out the training rows: a new permutation in each epoch, batches of like length, in random order.

    Several processes need as many rows each: where the last batch is shorter, it is filled up with some rows again.

    Args:
        section: epochs, batch sizes and the limit on steps.
        lengths: tokens of each row.
        seed: of the order.
        world: processes that share a batch; null: those at work.
        micro: rows in one forward pass where ``section`` leaves it open.
        window: batches among which rows are sorted by length; 1 leaves all of them random.

    Raises:
        ConfigError: the batch cannot be divided into micro-batches.
    """
    world = world or processes.world()
    micro = section.micro_batch_size or micro or max(1, section.batch_size // world)
    if section.batch_size % (micro * world):
        raise ConfigError(
            f"batch_size is {section.batch_size}, which {micro} rows in each of {world} process(es) do not divide",
            where="micro_batch_size",
            advice="take a divisor of batch_size / processes",
        )
    rows = max(1, round(len(lengths) * section.epochs))
    if section.max_steps is not None:
        rows = min(rows, section.max_steps * section.batch_size)
    draw = random.Random(seed)
    order: list[int] = []
    while len(order) < rows:
        order += draw.sample(range(len(lengths)), len(lengths))
    order = order[:rows]
    arranged: list[int] = []
    for start in range(0, rows, window * section.batch_size):
        among = sorted(order[start : start + window * section.batch_size], key=lambda i: lengths[i])
        batches = [among[i : i + section.batch_size] for i in range(0, len(among), section.batch_size)]
        short = batches.pop() if len(batches[-1]) < section.batch_size else []
        draw.shuffle(batches)
        arranged += [i for batch in [*batches, short] for i in batch]
    missing = -rows % (micro * world) if world > 1 else 0
    arranged += [draw.randrange(len(lengths)) for _ in range(missing)]
    return Plan(tuple(arranged), math.ceil(rows / section.batch_size), micro, section.batch_size // (micro * world))


def dataset(columns: Mapping[str, Sequence[Any]], order: Sequence[int] | None = None) -> Dataset:
    """Rows for a trainer; ``order`` may repeat rows and leave some out."""
    rows = Dataset.from_dict(dict(columns))
    return rows.select(list(order)) if order is not None else rows


def arguments(
    kind: type[TrainingArguments],
    section: TrainingSection,
    steps: Plan,
    *,
    model: ModelConfig,
    folder: Path,
    seed: int,
    device: str,
    tracking: str = "none",
    **own: Any,
) -> Any:
    """The trainer's arguments.

    Args:
        kind: TRL's class of arguments; ``own`` is what only this kind has.
        section: the stage's training settings; ``steps`` is their :func:`plan`.
        model: its precision is that of the run. Where all weights are trained they are float32, and a run in bfloat16
            computes in mixed precision; adapters need none of that, as they stay float32 over a bfloat16 base.
        folder: where checkpoints go.
        seed: of initialisation and dropout.
        device: ``cpu`` or ``cuda``.
        tracking: name of a tracker, or ``none``.

    Raises:
        ConfigError: the tracker is not installed.
    """
    require_tracker(tracking)
    schedule = "constant_with_warmup" if section.schedule == "constant" else section.schedule
    return kind(
        output_dir=str(folder),
        max_steps=steps.steps,
        per_device_train_batch_size=steps.micro_batch,
        per_device_eval_batch_size=steps.micro_batch * processes.world(),
        gradient_accumulation_steps=steps.accumulation,
        train_sampling_strategy="sequential",
        learning_rate=section.learning_rate,
        warmup_steps=section.warmup if steps.steps > 1 else 0,  # below 1 a share of the steps; the first has rate 0
        lr_scheduler_type=schedule,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        gradient_checkpointing=section.gradient_checkpointing,  # the name that all supported versions know
        logging_steps=min(section.log_every, steps.steps),
        logging_nan_inf_filter=False,  # it would show a running mean in place of a NaN
        save_strategy="steps",
        save_steps=section.save_every,
        save_total_limit=2,  # with one, the good checkpoint is deleted before its successor is known to be whole
        seed=seed,
        use_cpu=device == "cpu",
        bf16=_mixed(section, model, device),  # TRL's default: true, also on a CPU
        report_to=tracking,
        disable_tqdm=True,
        dataloader_pin_memory=device != "cpu",
        **own,
    )


def _mixed(section: TrainingSection, model: ModelConfig, device: str) -> bool:
    return section.lora is None and dtype_of(model, device) == torch.bfloat16


def precision(section: TrainingSection, model: ModelConfig, device: str) -> contextlib.AbstractContextManager[Any]:
    """For a forward pass outside of the trainer whose numbers are compared with those that the trainer computes."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=_mixed(section, model, device))


def processing_class(text: Text) -> Any:
    """A copy of the tokenizer with its pad token set, for trainers; never save it (see :class:`ChatTokenizer`)."""
    import copy

    tokenizer = copy.deepcopy(text.tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(text.pad_id)
    return tokenizer


def train(
    trainer: Together, *, folder: Path, say: Callable[[str], None], advance: Callable[[int], None]
) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint that verifies when there is one.

    Args:
        trainer: ready to train.
        folder: gets ``metrics.jsonl``; its ``checkpoints/`` was given to :func:`arguments`.
        say: tells a person what is resumed.
        advance: moves the progress bar by so many optimiser steps.

    Returns:
        ``steps``, ``loss`` (mean of the last tenth of the logged ones), ``tokens``, ``resumed_at`` (0: not resumed).

    Raises:
        TrainingError: the loss is not a number.
    """
    metrics = folder / "metrics.jsonl"
    with processes.first_alone():
        resume = newest_checkpoint(folder / "checkpoints", say)
    before = read_complete(resume) if resume else {"step": 0, "tokens": 0}
    if resume:
        say(f"resuming at step {before['step']} of {trainer.args.max_steps}")
        advance(before["step"])
    # TRL counts tokens of this process only.
    trainer._total_train_tokens = before["tokens"]  # type: ignore[attr-defined]
    writer = MetricsWriter(metrics if processes.is_first() else None, resume_step=before["step"])
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Watch(trainer, writer, advance))
    trainer.start_alike(trainer.args.seed)
    try:
        with quiet():
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finally:
        writer.close()
    processes.wait()  # until all is written
    losses = [row["loss"] for row in read_metrics(metrics) if row.get("loss") is not None]
    last = losses[-max(1, len(losses) // 10) :]
    return {
        "steps": trainer.state.global_step,
        "loss": sum(last) / len(last) if last else None,
        "tokens": trainer._total_train_tokens,  # type: ignore[attr-defined]
        "resumed_at": before["step"],
    }


class _Watch(TrainerCallback):
    """Writes metrics, moves the bar, stops at a loss that is not a number, and seals each checkpoint."""

    def __init__(self, trainer: Trainer, writer: MetricsWriter, advance: Callable[[int], None]) -> None:
        self._trainer, self._writer, self._advance = trainer, writer, advance

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._advance(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return  # the summary at the end of training
        row = {key: value for key, value in logs.items() if isinstance(value, int | float) and key != "epoch"}
        self._writer.write({"step": state.global_step, **row})
        if not math.isfinite(row["loss"]):
            raise TrainingError(
                f"the loss is {row['loss']} at step {state.global_step}, so training was stopped",
                advice="lower learning_rate, raise warmup, or train in float32 (model.dtype: float32)",
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.accelerator.wait_for_everyone()  # every process writes its own random state
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            seal(folder, step=state.global_step, tokens=self._trainer._total_train_tokens)  # type: ignore[attr-defined]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' bars, and without warnings about choices made on purpose."""
    trl_logger = logging.getLogger("trl")
    level, bars = trl_logger.level, datasets.utils.logging.is_progress_bar_enabled()
    trl_logger.setLevel(logging.ERROR)
    datasets.utils.logging.disable_progress_bar()
    try:
        with models_quiet():
            yield
    finally:
        trl_logger.setLevel(level)
        if bars:
            datasets.utils.logging.enable_progress_bar()


def context_limit(section: TrainingSection, config: PretrainedConfig, say: Callable[[str], None]) -> int:
    """The longest row in tokens: the configured one, or the model's context where that is shorter."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None or section.max_length <= context:
        return section.max_length
    say(f"max_length is {section.max_length:,}, the model's context only {context:,} tokens: that is the limit")
    return int(context)


def weight_dtype(model: ModelConfig, device: str, full: bool) -> torch.dtype:
    """Precision of the weights in training: full fine-tuning keeps float32, which small updates need."""
    if full and model.quantization != "none":
        raise ConfigError(
            "4-bit weights cannot be trained themselves",
            where="model.quantization",
            advice="train an adapter (remove lora: null), or set model.quantization: none",
        )
    return torch.float32 if full else dtype_of(model, device)


def pack(columns: Mapping[str, Sequence[Any]], length: int, *, seed: int) -> dict[str, list[Any]]:
    """Join rows into rows of at most ``length`` tokens, by best fit; ``seq_lengths`` tells the parts apart."""
    with quiet():
        packed = pack_dataset(dataset(columns).shuffle(seed=seed), length, "bfd")
        return {name: list(packed[name]) for name in packed.column_names}


def describe(model: Any, steps: Plan) -> str:
    """One line: what is trained, and for how long."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    rows = steps.micro_batch * steps.accumulation * processes.world()
    parts = f" ({steps.accumulation} × {steps.micro_batch})" if steps.accumulation > 1 else ""
    return f"{trainable:,} of {total:,} parameters are trained, {steps.steps:,} steps of {rows} rows{parts}"


def evaluation_loss(trainer: Trainer, columns: Mapping[str, Sequence[Any]]) -> float:
    """The trainer's loss on other rows, as the mean over batches; no random number is taken from the training."""
    trainer.remove_callback(PrinterCallback)
    with quiet(), torch.random.fork_rng():
        return float(trainer.evaluate(eval_dataset=dataset(columns))["eval_loss"])


def finish(trained: Any, model: ModelConfig, device: str) -> None:
    """Fully trained weights to the precision in which they are saved and loaded; adapters stay float32."""
    if isinstance(trained, PeftModel) or is_encoder(trained.config):  # an encoder is float32 everywhere
        return
    trained.to(dtype_of(model, device))
    if (head := getattr(trained, "score", None)) is not None:
        head.float()  # as it is after loading


def save(trained: Any, folder: Path, model: ModelConfig) -> None:
    """Write ``adapter/`` or ``model/``; it is there for every process afterwards."""
    with processes.first_alone():
        if not processes.is_first():
            return
        if isinstance(trained, PeftModel):
            save_adapter(trained, folder / "adapter", base_name=model.name)
        else:
            save_full(trained, folder / "model")
