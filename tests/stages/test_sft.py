"""Supervised fine-tuning through the real stage, on tiny models of six families."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rlhf_pipeline import models, training
from rlhf_pipeline.config import LoraSection
from rlhf_pipeline.data import DataConfig, SourceConfig
from rlhf_pipeline.errors import ConfigError, DataError, TrainingError
from rlhf_pipeline.records import Demonstration
from stages import sft
from tests import forks, stage_jobs, tiny_models
from tests.stage_jobs import Interrupted, job, metrics_lines, same_tensors

FAST = {"max_steps": 4, "batch_size": 4, "warmup": 0.0, "learning_rate": 1e-2, "max_length": 200, "log_every": 1}


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    source = stage_jobs.write_demonstrations(tmp_path / "demonstrations.jsonl", stage_jobs.demonstrations(24))
    return DataConfig(demonstrations=source, held_out=0.25)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_learns(tmp_path, data, family):
    model = tiny_models.make(family, tmp_path / "base")
    made = job(sft.Config(**FAST), model, tmp_path / "sft", data=data)
    metrics = sft.run(made)
    assert metrics["steps"] == 4
    assert metrics["rows"] == {"read": 24, "overlong": 0, "train": 20, "held_out": 4}
    lines = metrics_lines(made.folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert metrics["tokens"] == lines[-1]["num_tokens"]
    assert metrics["held_out_loss"] < metrics["held_out_loss_before"]
    assert not any("warning" in line for line in made.said)
    assert any("24 of 24 demonstrations used" in line for line in made.said)
    policy = models.load_policy(model, made.folder, device="cpu")
    assert {p.name for p in (made.folder / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    changed = [name for name, p in policy.named_parameters() if "lora_B" in name and p.abs().max() > 0]
    assert changed


def test_unusable_rows_are_named_in_the_folder_of_the_stage(tmp_path, data):
    model = tiny_models.make("llama", tmp_path / "base")
    path = Path(data.demonstrations.path)
    path.write_text(path.read_text() + "{broken\n" * 2)
    source = data.demonstrations.model_copy(update={"on_bad_rows": "drop"})
    made = job(sft.Config(**FAST), model, tmp_path / "sft", data=DataConfig(demonstrations=source, held_out=0.25))
    sft.run(made)
    assert any(
        "unusable_demonstrations.txt in this stage's folder names each unusable row" in line for line in made.said
    )
    named = (made.folder / "unusable_demonstrations.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in named] == [f"{path}:25", f"{path}:26"]


def test_unusable_prompts_that_only_the_split_reads_are_named_too(tmp_path, data):
    model = tiny_models.make("llama", tmp_path / "base")
    path = tmp_path / "prompts.jsonl"
    path.write_text("{broken\n" * 30)
    counted = data.model_copy(update={"prompts": SourceConfig(path=str(path)), "held_out": 4})
    made = job(sft.Config(**FAST), model, tmp_path / "sft", data=counted)
    report = made.folder / "unusable_prompts.txt"
    with pytest.raises(DataError, match=f"and 10 more, all in {report}"):
        sft.run(made)
    assert len(report.read_text().splitlines()) == 30


def test_dropout_on_a_mixture_of_experts_is_refused_in_our_words(tmp_path, data):
    model = tiny_models.make("mixtral", tmp_path / "base")
    config = sft.Config(**FAST, lora={"rank": 2, "dropout": 0.1})
    with pytest.raises(ConfigError, match=r"lora.dropout: .*experts"):
        sft.run(job(config, model, tmp_path / "sft", data=data))
    with pytest.raises(ConfigError, match=r"lora.dropout: .*experts"):
        models.add_adapter(models.load_causal_lm(model, device="cpu"), config.lora, task="CAUSAL_LM")
    named = sft.Config(**FAST, lora={"rank": 2, "dropout": 0.1, "targets": ["q_proj", "v_proj"]})
    assert sft.run(job(named, model, tmp_path / "named", data=data))["steps"] == 4


def test_loss_is_on_responses_only():
    from rlhf_pipeline.encoding import EncodedDemonstration

    columns = sft._columns([EncodedDemonstration([1, 2, 3], [4, 5])])
    assert columns == {"input_ids": [[1, 2, 3, 4, 5]], "labels": [[-100, -100, -100, 4, 5]]}


@pytest.mark.parametrize("lora", [LoraSection(rank=4, dropout=0.2), None])
def test_resumed_run_ends_as_the_uninterrupted_one(tmp_path, data, monkeypatch, lora):
    model = tiny_models.make("llama", tmp_path / "base")
    config = sft.Config(**{**FAST, "max_steps": 11, "epochs": 3, "save_every": 3, "learning_rate": 1e-3, "lora": lora})
    whole = job(config, model, tmp_path / "whole", data=data)
    expected = sft.run(whole)

    with monkeypatch.context() as patch:
        stage_jobs.interrupt_at(patch, 8)
        with pytest.raises(Interrupted):
            sft.run(job(config, model, tmp_path / "resumed", data=data))
    assert metrics_lines(tmp_path / "resumed")[-1]["step"] == 7
    resumed = job(config, model, tmp_path / "resumed", data=data)
    metrics = sft.run(resumed)

    assert metrics["resumed_at"] == 6
    assert "resuming at step 6 of 11" in resumed.said
    assert same_tensors(whole.folder, resumed.folder)
    # Step numbers, token counts and losses go on where they were.
    assert metrics_lines(resumed.folder) == metrics_lines(whole.folder)
    assert {**metrics, "resumed_at": 0} == expected


def test_resumes_from_the_last_whole_checkpoint(tmp_path, data, monkeypatch):
    model = tiny_models.make("llama", tmp_path / "base")
    config = sft.Config(**{**FAST, "max_steps": 6, "save_every": 2})
    sft.run(whole := job(config, model, tmp_path / "whole", data=data))
    with monkeypatch.context() as patch:
        stage_jobs.interrupt_at(patch, 5)
        with pytest.raises(Interrupted):
            sft.run(job(config, model, tmp_path / "resumed", data=data))
    damaged = tmp_path / "resumed" / "checkpoints" / "checkpoint-4" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    resumed = job(config, model, tmp_path / "resumed", data=data)
    assert sft.run(resumed)["resumed_at"] == 2
    assert "checkpoint-4 is not used: optimizer.pt is damaged" in resumed.said
    assert same_tensors(whole.folder, resumed.folder)


def _train(config, model, folder, data):
    sft.run(job(config, model, folder, data=data))


@pytest.mark.slow
def test_resumes_after_kill_9(tmp_path, data):
    model = tiny_models.make("llama", tmp_path / "base")
    config = sft.Config(**{**FAST, "max_steps": 120, "epochs": 100, "save_every": 10})
    training_run = forks.CONTEXT.Process(target=_train, args=(config, model, tmp_path / "run", data))
    training_run.start()
    checkpoints = tmp_path / "run" / "checkpoints"
    try:
        deadline = time.monotonic() + 120
        while not list(checkpoints.glob("checkpoint-*/complete.json")):
            assert training_run.is_alive(), "training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        training_run.kill()
        training_run.join()
    resumed = job(config, model, tmp_path / "run", data=data)
    metrics = sft.run(resumed)
    assert metrics["resumed_at"] >= 10
    assert metrics["steps"] == 120
    assert [line["step"] for line in metrics_lines(resumed.folder)] == list(range(1, 121))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_fine_tuning_makes_a_new_base(tmp_path, data, dtype):
    model = tiny_models.make("qwen3", tmp_path / "base").model_copy(update={"dtype": dtype})
    made = job(sft.Config(**{**FAST, "lora": None, "gradient_checkpointing": True}), model, tmp_path / "sft", data=data)
    sft.run(made)
    folder = models.full_model(made.folder)
    assert folder is not None
    loaded = models.load_causal_lm(model, device="cpu", folder=folder)
    assert str(loaded.dtype) == f"torch.{dtype}"
    assert not (made.folder / "adapter").exists()


def test_packing_trains_every_row(tmp_path, data):
    model = tiny_models.make("llama", tmp_path / "base")
    config = sft.Config(**{**FAST, "packing": True, "max_steps": None, "batch_size": 2, "learning_rate": 1e-3})
    made = job(config, model, tmp_path / "sft", data=data)
    metrics = sft.run(made)
    packed = next(line for line in made.said if line.startswith("packed 20 rows into"))
    assert metrics["steps"] < 10
    assert metrics["tokens"] > 1000, packed


def test_long_rows_are_counted_and_left_out_or_cut(tmp_path):
    short = stage_jobs.demonstrations(8)
    long = Demonstration(stage_jobs.prompt(99), "Water it slowly. " * 40)
    source = stage_jobs.write_demonstrations(tmp_path / "d.jsonl", [*short, long])
    data = DataConfig(demonstrations=source, held_out=0.1)
    model = tiny_models.make("llama", tmp_path / "base")
    config = {**FAST, "max_steps": 1, "max_length": 120}
    dropped = job(sft.Config(**config), model, tmp_path / "a", data=data)
    assert sft.run(dropped)["rows"]["overlong"] == 1
    assert any("8 of 9 demonstrations used" in s and "1 longer than 120 tokens left out" in s for s in dropped.said)
    cut = job(sft.Config(**config, overlong="cut"), model, tmp_path / "b", data=data)
    assert sft.run(cut)["rows"]["overlong"] == 1
    assert any("9 of 9 demonstrations used" in s and "1 longer than 120 tokens cut" in s for s in cut.said)


def test_no_row_fits(tmp_path, data):
    made = job(
        sft.Config(**{**FAST, "max_length": 16}),
        tiny_models.make("llama", tmp_path / "base"),
        tmp_path / "s",
        data=data,
    )
    with pytest.raises(DataError, match="none of the 24 demonstrations fits into 16 tokens"):
        sft.run(made)


def test_no_demonstrations(tmp_path):
    made = job(sft.Config(**FAST), tiny_models.make("llama", tmp_path / "base"), tmp_path / "sft", data=DataConfig())
    with pytest.raises(ConfigError, match="no data with demonstrations"):
        sft.run(made)


def test_conversations_that_the_template_refuses_are_all_named(tmp_path):
    template = tmp_path / "picky.jinja"
    refuse = "{% if 'garden' in message.content %}{{ raise_exception('no gardens, please') }}{% endif %}"
    template.write_text(tiny_models.LLAMA_TEMPLATE.replace("<|start_header_id|>", refuse + "<|start_header_id|>", 1))
    model = tiny_models.make("llama", tmp_path / "base").model_copy(update={"chat_template": str(template)})
    source = stage_jobs.write_demonstrations(tmp_path / "d.jsonl", stage_jobs.demonstrations(96))
    made = job(sft.Config(**FAST), model, tmp_path / "sft", data=DataConfig(demonstrations=source))
    with pytest.raises(DataError, match="12 of 96 demonstrations cannot be rendered") as error:
        sft.run(made)
    assert "look after the garden number 0?': the chat template refuses" in error.value.details[0]
    assert "no gardens, please" in error.value.details[0]
    assert error.value.details[-1] == "… and 2 more"


def test_a_policy_that_became_worse_is_warned_of(tmp_path, data, monkeypatch):
    losses = iter([1.0, 2.0])  # a random model cannot become worse than it is
    monkeypatch.setattr(training, "evaluation_loss", lambda *_: next(losses))
    made = job(sft.Config(**FAST), tiny_models.make("llama", tmp_path / "base"), tmp_path / "sft", data=data)
    metrics = sft.run(made)
    assert (metrics["held_out_loss_before"], metrics["held_out_loss"]) == (1.0, 2.0)
    assert any("warning: the base model was better" in line for line in made.said)


def test_loss_that_is_not_a_number_stops_the_training(tmp_path, data):
    model = tiny_models.make("llama", tmp_path / "base")
    made = job(sft.Config(**{**FAST, "learning_rate": 1e30, "max_grad_norm": 1e30}), model, tmp_path / "sft", data=data)
    with pytest.raises(TrainingError, match="at step"):
        sft.run(made)
    assert not (made.folder / "adapter").exists()
