"""Planted failures: each raises its alarm in a run of the stage itself, and a stopped run keeps its last good
policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from rlhf_pipeline import models, tokenization
from rlhf_pipeline import rollout as rollouts
from rlhf_pipeline.alarms import read_alarms
from rlhf_pipeline.config import LoraSection, ModelConfig
from rlhf_pipeline.errors import ModelError, TrainingError
from rlhf_pipeline.rewards import Scoring
from rlhf_pipeline.roles import Roles
from stages import ppo, ppo_start
from tests.stages.test_ppo import make_inputs, make_job

ONE_STEP = {"num_ppo_epochs": 1, "num_minibatches": 1, "stop": {"every": None}}


def names(folder: Path) -> set[str]:
    return {one.name for one in read_alarms(folder)}


def test_a_healthy_run_raises_none(tmp_path: Path) -> None:
    metrics = ppo.run(make_job(tmp_path, make_inputs(tmp_path), iterations=4, rollout_batch=16))
    assert metrics["alarms"] == []
    assert not (tmp_path / "ppo" / "alarms.json").exists()


def test_another_temperature_in_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = rollouts.sample

    def colder(*arguments: Any, **options: Any) -> rollouts.Rollout:
        return sample(*arguments, **{**options, "temperature": 0.1})

    monkeypatch.setattr(rollouts, "sample", colder)
    metrics = ppo.run(make_job(tmp_path, make_inputs(tmp_path), iterations=2, **ONE_STEP))
    assert "sampling is not training" in names(tmp_path / "ppo")
    assert capsys.readouterr().out.count("alarm, sampling is not training: iteration 1: decoder and training") == 1
    assert any("Likely: another temperature" in sentence for sentence in metrics["alarms"])


@pytest.fixture
def six_words(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A policy over six words, of which one stops, that is rewarded for each word; settings by which it learns that."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    # With the usual 0.02 the head keeps every policy nearly even, whatever its adapter.
    roles = Roles(LlamaForCausalLM(LlamaConfig(vocab_size=6, initializer_range=0.1, **shape)).eval())
    roles.add("reference", lora=LoraSection(rank=8, alpha=16))
    roles.add("policy", copy_of="reference", trainable=True)

    def score(rollout: rollouts.Rollout, _: Any) -> torch.Tensor:
        return torch.tensor([float(len(ids)) for ids in rollout.responses])

    chat = SimpleNamespace(stop_ids=frozenset({0}), end_id=0, pad_id=1)
    monkeypatch.setattr(tokenization, "load_tokenizer", lambda _: chat)
    monkeypatch.setattr(ppo_start, "encoded_prompts", lambda *_: ppo_start.Prompts([[1, 2], [3, 4, 5]], [], {}))
    monkeypatch.setattr(ppo_start, "make_roles", lambda *_: (roles, Scoring({"length": (1.0, score)})))
    return {
        "estimator": "rloo", "samples_per_prompt": 4, "rollout_batch": 32, "max_new_tokens": 16, "kl_coef": 0.0,
        "learning_rate": 1e-2, "micro_batch_tokens": 4096, "missing_eos_penalty": 0.0,
    }  # fmt: skip


def test_a_learning_rate_a_hundred_times_too_high(six_words: dict[str, Any], tmp_path: Path) -> None:
    ppo.run(make_job(tmp_path, ModelConfig(name="toy"), **six_words | {"learning_rate": 1.0, "iterations": 3}))
    [alarm] = [one for one in read_alarms(tmp_path / "ppo") if one.name == "drastic step"]
    assert alarm.first == 1
    assert alarm.advice.startswith("lower ppo.learning_rate")


@contextmanager
def wrong_adapter(monkeypatch: pytest.MonkeyPatch, asked: str, got: str) -> Iterator[None]:
    """Inside, who asks for one role is given another."""
    use = Roles.use
    with monkeypatch.context() as patch:
        patch.setattr(Roles, "use", lambda self, name: use(self, got if name == asked else name))
        yield


def test_the_reward_model_scores_by_the_adapter_that_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_inputs(tmp_path)
    job = make_job(tmp_path, model, iterations=3)
    with (
        wrong_adapter(monkeypatch, "reward", "policy"),
        pytest.raises(TrainingError, match="reward model scores its probe responses otherwise"),
    ):
        ppo.run(job)
    assert names(job.folder) == {"reward model moved"}


def test_a_broken_critic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loud(roles: Roles, name: str, *_: Any) -> None:
        with torch.no_grad():
            roles.named_parameters(name)["head.weight"].mul_(100)

    monkeypatch.setattr(rollouts, "normalise_head", loud)
    still = {"learning_rate": 1e-9, "critic": {"learning_rate": 1e-9}}
    short = {"iterations": 20, "rollout_batch": 4, "max_new_tokens": 3}
    ppo.run(make_job(tmp_path, make_inputs(tmp_path), **short, **still, **ONE_STEP))
    assert "critic broken" in names(tmp_path / "ppo")


def test_a_reward_that_likes_length(six_words: dict[str, Any], tmp_path: Path) -> None:
    ppo.run(make_job(tmp_path, ModelConfig(name="toy"), **six_words | {"learning_rate": 2e-2}, iterations=8))
    assert "length hacking" in names(tmp_path / "ppo")


def test_a_stopped_run_keeps_its_last_good_policy_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_inputs(tmp_path)
    learn, seen = ppo.learn, []

    def broken(config: Any, roles: Roles, *arguments: Any) -> dict[str, float]:
        row = learn(config, roles, *arguments)
        seen.append({key: value.clone() for key, value in roles.state("policy").items()})
        return row | ({"ppo/loss/policy": float("nan")} if len(seen) == 3 else {})

    monkeypatch.setattr(ppo, "learn", broken)
    job = make_job(tmp_path, model)
    kept = job.folder / "last_good" / "adapter"
    message = (
        rf"a loss.* is not a finite number[\s\S]*the policy after iteration 2, the last good one, is kept in {kept}"
    )
    with pytest.raises(TrainingError, match=message):
        ppo.run(job)
    assert json.loads((job.folder / "alarms.json").read_text())[0]["name"] == "no number"
    PeftModel.from_pretrained(models.load_causal_lm(model, device="cpu"), kept)
    tensors = load_file(kept / "adapter_model.safetensors")
    assert {t.sum().item() for t in tensors.values()} == {t.sum().item() for t in seen[1].values()}


def test_logits_that_are_not_finite_are_a_failure_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = rollouts.sample

    def failing(roles: Roles, role: str, *arguments: Any, **options: Any) -> rollouts.Rollout:
        if role == "policy":
            raise ModelError("the model's logits are not finite", advice="lower its learning_rate")
        return sample(roles, role, *arguments, **options)

    monkeypatch.setattr(rollouts, "sample", failing)
    with pytest.raises(TrainingError, match=r"logits are not finite\n.*learning_rate; there was no checkpoint yet"):
        ppo.run(make_job(tmp_path, make_inputs(tmp_path)))
