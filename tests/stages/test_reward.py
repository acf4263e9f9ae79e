"""Reward modelling through the real stage: the head is trained, saved and read back, and length is told apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from rlhf_pipeline import models, training
from rlhf_pipeline.data import DataConfig
from rlhf_pipeline.errors import DataError, TrainingError
from rlhf_pipeline.logprobs import last_hidden, pad_sequences
from rlhf_pipeline.records import write_jsonl
from rlhf_pipeline.reward_models import RewardModel, Scorer, load_reward_model, load_text
from rlhf_pipeline.roles import Roles
from rlhf_pipeline.tokenization import load_tokenizer
from stages import reward, reward_check
from tests import stage_jobs, tiny_models
from tests.stage_jobs import Interrupted, job, metrics_lines, same_tensors, sft_input, tensors

FAST = {"max_steps": 4, "batch_size": 4, "warmup": 0.0, "learning_rate": 1e-2, "max_length": 200, "log_every": 1}


def inputs(model: Any, folder: Path, rows: Any = None, **sft_settings: Any) -> dict[str, Any]:
    return {
        "sft": sft_input(model, folder / "sft", **sft_settings),
        "collect": stage_jobs.write_preferences(folder / "collect", rows or stage_jobs.preferences(32)),
    }


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_learns_and_loads(tmp_path, family):
    model = tiny_models.make(family, tmp_path / "base")
    given = inputs(model, tmp_path)
    before = tensors(given["sft"].folder)
    made = job(reward.Config(**FAST), model, tmp_path / "reward", inputs=given)
    metrics = reward.run(made)
    assert metrics["score_drift_after_loading"] <= 1e-6
    assert metrics["pairs"] == metrics["rows"]["held_out"] > 0
    lines = metrics_lines(made.folder)
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-4), "a zero head scores everything alike"
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert models.read_score_head(made.folder / "adapter").any()
    assert any(line.startswith("held-out accuracy") and "length alone" in line for line in made.said)
    after = tensors(given["sft"].folder)
    assert all(torch.equal(after[k], before[k]) for k in before), "the SFT artifact is only read"
    chat = load_tokenizer(model)
    pair = stage_jobs.preferences(1)[0]
    rows = [
        chat.encode_prompt(pair.prompt.messages) + chat.encode_response(pair.prompt.messages, text)
        for text in (pair.chosen, pair.rejected)
    ]
    chosen, rejected = load_reward_model(model, made.folder, device="cpu").score(rows)
    assert chosen != rejected


def test_starts_from_the_sft_adapter_or_from_the_base(tmp_path):
    model = tiny_models.make("llama", tmp_path / "base")
    given = inputs(model, tmp_path, lora={"rank": 4})
    config = {**FAST, "learning_rate": 1e-9, "max_steps": 1}
    reward_lora = {"lora": {"rank": 8}}
    reward.run(job(reward.Config(**config, **reward_lora), model, tmp_path / "a", inputs=given))
    sft, copied = tensors(given["sft"].folder), tensors(tmp_path / "a")
    assert all(torch.allclose(copied[name], sft[name], atol=1e-6) for name in sft)
    base = job(reward.Config(**config, **reward_lora, init="base"), model, tmp_path / "b", inputs=given)
    reward.run(base)
    fresh = tensors(tmp_path / "b")
    assert next(t for name, t in fresh.items() if "lora_A" in name).shape[0] == 8
    assert any("without what SFT learnt" in line for line in base.said)


@pytest.mark.parametrize("sft_lora", [{"rank": 4}, None])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_lora_and_after_full_fine_tuning(tmp_path, sft_lora, dtype):
    model = tiny_models.make("qwen3", tmp_path / "base").model_copy(update={"dtype": dtype})
    given = inputs(model, tmp_path, lora=sft_lora)
    full = job(reward.Config(**{**FAST, "learning_rate": 1e-3}, lora=None), model, tmp_path / "full", inputs=given)
    assert reward.run(full)["score_drift_after_loading"] < 1e-3
    assert models.full_model(full.folder)
    adapter = job(reward.Config(**FAST), model, tmp_path / "adapter", inputs=given)
    assert reward.run(adapter)["score_drift_after_loading"] < 1e-3


def test_resumed_run_ends_as_the_uninterrupted_one(tmp_path, monkeypatch):
    model = tiny_models.make("gpt2", tmp_path / "base")
    given = inputs(model, tmp_path)
    config = reward.Config(**{**FAST, "max_steps": 7, "epochs": 3, "save_every": 2, "learning_rate": 1e-3})
    expected = reward.run(whole := job(config, model, tmp_path / "whole", inputs=given))
    with monkeypatch.context() as patch:
        stage_jobs.interrupt_at(patch, 6)
        with pytest.raises(Interrupted):
            reward.run(job(config, model, tmp_path / "resumed", inputs=given))
    resumed = job(config, model, tmp_path / "resumed", inputs=given)
    assert {**reward.run(resumed), "resumed_at": 0} == expected
    assert same_tensors(whole.folder, resumed.folder)
    assert metrics_lines(resumed.folder) == metrics_lines(whole.folder)


def test_undecided_and_long_pairs_are_counted(tmp_path):
    model = tiny_models.make("llama", tmp_path / "base")
    rows = stage_jobs.preferences(24)
    rows += stage_jobs.preferences(3, probability=0.5) + stage_jobs.preferences(2, probability=0.55)
    long = stage_jobs.preferences(1)[0]
    rows.append(type(long)(long.prompt, long.chosen, "Go away. " * 60))
    made = job(reward.Config(**FAST), model, tmp_path / "reward", inputs=inputs(model, tmp_path, rows))
    account = reward.run(made)["rows"]
    assert (account["read"], account["undecided"], account["overlong"]) == (30, 5, 1)
    assert account["train"] + account["held_out"] == 24
    assert any("5 undecided left out" in line and "1 longer than 200 tokens left out" in line for line in made.said)


def test_no_decided_pair(tmp_path):
    model = tiny_models.make("llama", tmp_path / "base")
    given = inputs(model, tmp_path, stage_jobs.preferences(4, probability=0.5))
    with pytest.raises(DataError, match="none of the 4 preferences is decided"):
        reward.run(job(reward.Config(**FAST), model, tmp_path / "reward", inputs=given))


def test_everything_held_out(tmp_path):
    model = tiny_models.make("llama", tmp_path / "base")
    given = inputs(model, tmp_path)
    data = DataConfig(held_out=0.999999)
    with pytest.raises(DataError, match="every pair is held out"):
        reward.run(job(reward.Config(**FAST), model, tmp_path / "reward", inputs=given, data=data))


def test_scores_that_change_on_the_way_to_the_disk_are_noticed(tmp_path, monkeypatch):
    model = tiny_models.make("llama", tmp_path / "base")
    given = inputs(model, tmp_path)
    original = training.save

    def save_badly(trained, folder, model):
        original(trained, folder, model)
        path = folder / "adapter" / "adapter_model.safetensors"
        content = load_file(path)
        content[models.SCORE_KEY] = content[models.SCORE_KEY] * self.factor
        save_file(content, path)

    self = SimpleNamespace(factor=1.01)
    monkeypatch.setattr(training, "save", save_badly)
    with pytest.raises(TrainingError, match="scores differ by up to"):
        reward.run(job(reward.Config(**FAST), model, tmp_path / "a", inputs=given))
    self.factor = 0
    with pytest.raises(TrainingError, match="head is zero"):
        reward.run(job(reward.Config(**FAST), model, tmp_path / "b", inputs=given))


def test_what_is_measured_and_said(tmp_path):
    model = tiny_models.make("llama", tmp_path / "base")
    given = inputs(model, tmp_path)
    given["collect"] = stage_jobs.write_preferences(
        tmp_path / "judged", stage_jobs.preferences(32), agreement=0.82, agreement_pairs=100
    )
    rewardbench = tmp_path / "bench.jsonl"
    write_jsonl(
        rewardbench,
        [
            {
                "prompt": f"Question {i}?",
                "chosen": "You are welcome.",
                "rejected": "Go away.",
                "subset": f"part-{i % 2}",
            }
            for i in range(6)
        ],
    )
    evaluation = {"test_sets": [str(rewardbench)]}
    made = job(reward.Config(**FAST, evaluation=evaluation), model, tmp_path / "reward", inputs=given)
    metrics = reward.run(made)
    found = json.loads((made.folder / "evaluation.json").read_text())
    assert metrics["ceiling"] == found["ceiling"]["value"] == pytest.approx(0.9, abs=1e-6), "(1 + √(2 · 0.82 - 1)) / 2"
    assert metrics["accuracy"] == found["accuracy"]["value"]
    variants = {row["variant"]: row for row in found["sensitivity"]}
    assert len(variants) == 4
    assert variants["a newline at the end"]["shift"] == 0, "the tokenizer's seam takes it away"
    assert variants["a plain transcript for a template"]["shift"] > 0
    [bench] = found["test_sets"]
    assert (bench["pairs"], set(bench["subsets"]), bench["sections"]) == (6, {"part-0", "part-1"}, {})
    assert any("the judges' agreement allows 90.0%" in line for line in made.said)
    assert sum(one["pairs"] for one in found["slices"] if one["by"] == "group") == metrics["pairs"]
    assert metrics["warnings"] == [one["sentence"] for one in found["warnings"]]


def test_a_gate_that_is_named_ends_the_stage(tmp_path):
    model = tiny_models.make("llama", tmp_path / "base")
    rows = stage_jobs.preferences(32)
    turned = [replace(p, chosen=p.rejected, rejected=p.chosen) if i % 2 else p for i, p in enumerate(rows)]
    given = inputs(model, tmp_path, turned)
    config = {**FAST, "learning_rate": 1e-9, "max_steps": 1}
    made = job(reward.Config(**config), model, tmp_path / "a", inputs=given)
    [warning] = [one for one in reward.run(made)["warnings"] if "guessing" in one]
    assert f"warning: {warning}" in made.said
    stopped = reward.Config(**config, evaluation={"stop_on": ["chance"]})
    with pytest.raises(TrainingError, match=r"cannot be told from guessing[^→]*→.*stop_on"):
        reward.run(job(stopped, model, tmp_path / "b", inputs=given))


def test_gates_and_curves_need_held_out_pairs():
    said: list[str] = []
    wanted = reward.Config(evaluation={"stop_on": ["chance", "length"], "learning_curve": [0.5]})
    made = SimpleNamespace(config=wanted, say=said.append)
    reward_check.require_held_out(made, [object()])
    with pytest.raises(DataError, match="no pair is held out, so nothing can be said about chance, length"):
        reward_check.require_held_out(made, [])
    made.config = reward.Config(evaluation={"learning_curve": [0.5]})
    reward_check.require_held_out(made, [])
    assert said == ["no pair is held out, so there is no learning curve"]


def test_the_same_scores_by_every_way_in(tmp_path):
    """Trained, loaded, merged, as PPO's role, as a plain classifier of transformers, as text: one score to 1e-6."""
    model = tiny_models.make("llama", tmp_path / "base")
    made = job(reward.Config(**FAST), model, tmp_path / "reward", inputs=inputs(model, tmp_path))
    reward.run(made)
    chat = load_tokenizer(model)
    records = stage_jobs.preferences(6)
    rows = [chat.encode(one.prompt.messages, text) for one in records for text in (one.chosen, one.rejected)]
    loaded = load_reward_model(model, made.folder, device="cpu")
    expected = loaded.score(rows)

    roles = Roles(models.load_causal_lm(model, device="cpu"))
    roles.add("reward", folder=made.folder / "adapter")
    roles.set_head("reward", models.read_score_head(made.folder / "adapter"))
    prompts = [chat.encode_prompt(one.prompt.messages) for one in records for _ in "ab"]
    responses = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    packed = pad_sequences(prompts, responses, pad_id=chat.pad_id)
    with roles.use("reward") as base, torch.no_grad():
        as_role = roles.head("reward", last_hidden(base, packed)).tolist()

    merged = load_reward_model(model, made.folder, device="cpu").classifier.merge_and_unload()
    merged.config.pad_token_id = chat.pad_id
    merged.save_pretrained(tmp_path / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    mask = (torch.arange(packed.ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]).long()
    with torch.no_grad():
        as_plain = plain(packed.ids, attention_mask=mask).logits[:, 0].tolist()

    scorer = Scorer(load_text(model), loaded)
    text = scorer.score(
        [one.prompt.messages for one in records for _ in "ab"],
        [t for one in records for t in (one.chosen, one.rejected)],
    )
    for scores in (as_role, as_plain, RewardModel(merged).score(rows), text):
        assert scores == pytest.approx(expected, abs=1e-6)
    assert max(expected) - min(expected) > 1e-3
