"""DPO through the real stage: the reference is the SFT policy, and what is saved is the policy alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from rlhf_pipeline import models, training
from rlhf_pipeline.logprobs import pad_sequences, response_logprobs
from rlhf_pipeline.tokenization import load_tokenizer
from stages import dpo
from tests import stage_jobs, tiny_models
from tests.stage_jobs import Interrupted, job, metrics_lines, same_tensors, sft_input, tensors

FAST = {"max_steps": 4, "batch_size": 4, "warmup": 0.0, "learning_rate": 1e-3, "max_length": 200, "log_every": 1}


def inputs(model: Any, folder: Path, **sft_settings: Any) -> dict[str, Any]:
    return {
        "sft": sft_input(model, folder / "sft", **sft_settings),
        "collect": stage_jobs.write_preferences(folder / "collect", stage_jobs.preferences(32)),
    }


def pair_logprobs(model: Any, policy: Any, count: int) -> torch.Tensor:
    """Summed log-probabilities, (pairs, 2), computed one response at a time."""
    chat = load_tokenizer(model)
    rows = []
    for pair in stage_jobs.preferences(count):
        messages = pair.prompt.messages
        for text in (pair.chosen, pair.rejected):
            one = pad_sequences(
                [chat.encode_prompt(messages)], [chat.encode_response(messages, text)], pad_id=chat.pad_id
            )
            with torch.no_grad():
                rows.append(response_logprobs(policy, one).sum())
    return torch.stack(rows).view(-1, 2)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_learns(tmp_path, family):
    model = tiny_models.make(family, tmp_path / "base")
    given = inputs(model, tmp_path)
    before = tensors(given["sft"].folder)
    made = job(dpo.Config(**FAST), model, tmp_path / "dpo", inputs=given)
    metrics = dpo.run(made)
    lines = metrics_lines(made.folder)
    # Policy and reference are the same at the first step, so the loss is log 2 whatever the batch.
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.03 if family == "mixtral" else 1e-4)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert metrics["chosen_shift"] > metrics["rejected_shift"]
    assert metrics["pairs"] == metrics["rows"]["held_out"]
    assert [p.name for p in (made.folder / "adapter").iterdir() if p.is_dir()] == [], "the reference is not saved"
    after = tensors(given["sft"].folder)
    assert all(torch.equal(after[k], before[k]) for k in before), "the SFT artifact is only read"
    # What was measured in training is what the saved policy does.
    shift = pair_logprobs(model, models.load_policy(model, made.folder, device="cpu"), 32)
    shift -= pair_logprobs(model, models.load_policy(model, given["sft"].folder, device="cpu"), 32)
    assert (shift[:, 0] > shift[:, 1]).float().mean() > 0.7


@pytest.mark.slow
def test_loss_and_gradient_of_the_stage_are_those_of_trl(tmp_path, monkeypatch):
    """The stage's own trainer, whose reference was read once before, against TRL's, which keeps a second adapter."""
    model = tiny_models.make("llama", tmp_path / "base")
    given, caught = inputs(model, tmp_path), []

    def stop(trainer, **_):
        caught.append(trainer)
        raise Interrupted

    monkeypatch.setattr(training, "train", stop)
    with pytest.raises(Interrupted):
        dpo.run(job(dpo.Config(**FAST, beta=0.3), model, tmp_path / "dpo", inputs=given))
    rows = [caught[0].train_dataset[i] for i in range(4)]
    monkeypatch.setattr(DPOTrainer, "_prepare_dataset", lambda _, dataset, *__, **___: dataset)  # ids, not texts
    plain = DPOTrainer(
        model=models.load_policy(model, given["sft"].folder, device="cpu", trainable=True),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"), beta=0.3, use_cpu=True, bf16=False, report_to="none", max_length=None,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{k: v for k, v in row.items() if k.endswith("_ids")} for row in rows]),
        processing_class=training.processing_class(load_tokenizer(model)),
    )  # fmt: skip
    losses, gradients = [], []
    for trainer, kept in ((caught[0], rows), (plain, list(plain.train_dataset))):
        trained = {name: p for name, p in sorted(trainer.model.named_parameters()) if ".default." in name}
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # away from the reference
            for parameter in trained.values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(kept))
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: parameter.grad for name, parameter in trained.items()})
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert abs(losses[0] - math.log(2)) > 1e-3
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).norm() <= 1e-4 * gradients[1][name].norm(), name


def test_resumed_run_ends_as_the_uninterrupted_one(tmp_path, monkeypatch):
    model = tiny_models.make("llama", tmp_path / "base")
    given = inputs(model, tmp_path)
    config = dpo.Config(**{**FAST, "max_steps": 7, "epochs": 3, "save_every": 2})
    expected = dpo.run(whole := job(config, model, tmp_path / "whole", inputs=given))
    with monkeypatch.context() as patch:
        stage_jobs.interrupt_at(patch, 6)
        with pytest.raises(Interrupted):
            dpo.run(job(config, model, tmp_path / "resumed", inputs=given))
    resumed = job(config, model, tmp_path / "resumed", inputs=given)
    assert {**dpo.run(resumed), "resumed_at": 0} == expected
    assert same_tensors(whole.folder, resumed.folder)
    assert metrics_lines(resumed.folder) == metrics_lines(whole.folder)


def test_micro_batches_give_the_result_of_the_whole_batch(tmp_path):
    model = tiny_models.make("llama", tmp_path / "base")
    given = inputs(model, tmp_path)
    for name, micro in (("whole", None), ("parts", 2)):
        config = dpo.Config(**FAST, micro_batch_size=micro)
        dpo.run(job(config, model, tmp_path / name, inputs=given))
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    start = tensors(given["sft"].folder)
    moved = max(float((whole[k] - start[k]).abs().max()) for k in whole)
    assert max(float((whole[k] - parts[k]).abs().max()) for k in whole) < 0.02 * moved


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sft_lora", [{"rank": 4}, None])
def test_without_lora_and_after_full_fine_tuning(tmp_path, sft_lora, dtype):
    model = tiny_models.make("qwen3", tmp_path / "base").model_copy(update={"dtype": dtype})
    given = inputs(model, tmp_path, lora=sft_lora)
    full = job(dpo.Config(**FAST, lora=None, gradient_checkpointing=True), model, tmp_path / "full", inputs=given)
    adapter = job(dpo.Config(**FAST, lora={"rank": 2}), model, tmp_path / "adapter", inputs=given)
    for made in (full, adapter):
        dpo.run(made)
        first = metrics_lines(made.folder)[0]["loss"]
        assert first == pytest.approx(math.log(2), abs=1e-4 if dtype == "float32" else 2e-2)
    assert models.full_model(full.folder)
    rank = models.adapter_rank(
        models.load_policy(model, adapter.folder, device="cpu", base=models.full_model(given["sft"].folder))
    )
    assert rank == (4 if sft_lora else 2), "an existing adapter is continued in its own shape"


@pytest.mark.parametrize("sft_lora", [{"rank": 4}, None])
def test_the_reference_is_read_in_the_precision_of_training(tmp_path, sft_lora):
    """In mixed precision too the first log-ratios are 0, which a large beta would show up."""
    model = tiny_models.make("qwen3", tmp_path / "base").model_copy(update={"dtype": "bfloat16"})
    given = inputs(model, tmp_path, lora=sft_lora)
    made = job(dpo.Config(**FAST, lora=None, beta=5.0), model, tmp_path / "full", inputs=given)
    dpo.run(made)
    first = metrics_lines(made.folder)[0]
    assert first["rewards/chosen"] == pytest.approx(0, abs=2e-4)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize("loss", ["hinge", "ipo", "robust", "sigmoid_norm", "apo_zero", "apo_down", "nca_pair"])
def test_losses(tmp_path, loss):
    model = tiny_models.make("llama", tmp_path / "base")
    given = inputs(model, tmp_path, max_steps=1)
    config = dpo.Config(**{**FAST, "max_steps": 2}, loss=loss, label_noise=0.1, sft_weight=0.5)
    metrics = dpo.run(job(config, model, tmp_path / "dpo", inputs=given))
    assert math.isfinite(metrics["loss"])
