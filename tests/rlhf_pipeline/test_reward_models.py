"""Reward models at work: what the folder says of itself, text and ids, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_pipeline import artifacts, models
from rlhf_pipeline.config import LoraSection, ModelConfig
from rlhf_pipeline.errors import ArtifactError, IncompatibleArtifact
from rlhf_pipeline.model_source import base_identity
from rlhf_pipeline.records import Message
from rlhf_pipeline.reward_models import Scorer, Spec, load_reward_model
from rlhf_pipeline.tokenization import load_tokenizer
from tests import tiny_models

PROMPTS = [(Message("user", "How do I water a fern?"),), (Message("user", "Why is the sky blue?"),)]
RESPONSES = ["Slowly, at the roots.", "Because air scatters blue light."]


@pytest.fixture
def llama(tmp_path: Path) -> ModelConfig:
    return tiny_models.make("llama", tmp_path / "llama")


def finished(model: ModelConfig, folder: Path, spec: Spec | None = None, **made_by: Any) -> Path:
    """A finished reward model with a random adapter and head."""
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True)
    torch.manual_seed(0)
    trained = models.add_adapter(models.load_classifier(model, device="cpu"), LoraSection(rank=2), task="SEQ_CLS")
    for name, parameter in trained.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data.normal_(std=0.2)
    models.save_adapter(trained, partial / "adapter", base_name=model.name)
    (spec or Spec(model)).write(partial)
    made: dict[str, Any] = {
        "stage": "reward", "kind": "reward_model", "settings": {}, "seed": 0, "inputs": {}, "data": {},
        "base": base_identity(model), "tokenizer": load_tokenizer(model).identity(), "metrics": {}, "device": "cpu",
        "seconds": 1.0,
    }  # fmt: skip
    return artifacts.complete(partial, folder, **{**made, **made_by}).folder


def test_text_gives_the_scores_of_its_ids_and_a_cut_response_has_no_end(llama, tmp_path):
    folder = finished(llama, tmp_path / "reward")
    chat, scorer = load_tokenizer(llama), Scorer.open(folder)
    rows = [chat.encode(prompt, response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert scorer.score(PROMPTS, RESPONSES) == load_reward_model(llama, folder, device="cpu").score(rows)
    cut = scorer.score(PROMPTS, RESPONSES, ended=[True, False])
    assert cut[0] == pytest.approx(scorer.score(PROMPTS, RESPONSES)[0], abs=1e-6)
    assert cut[1] == pytest.approx(scorer.model.score([rows[1][:-1]])[0], abs=1e-6)


def test_the_folder_says_what_it_is(llama, tmp_path):
    spec = Spec(llama, base="../sft/model", own_model=True)
    spec.write(tmp_path)
    assert Spec.read(tmp_path) == spec
    assert Spec.read(tmp_path / "llama") is None
    (tmp_path / "reward_model.json").write_text("{}")
    with pytest.raises(ArtifactError, match="cannot be read"):
        Spec.read(tmp_path)


def test_another_base_or_template_is_refused(llama, tmp_path):
    other = tiny_models.make("llama", tmp_path / "other", seed=1)
    folder = finished(llama, tmp_path / "reward", Spec(other))
    with pytest.raises(IncompatibleArtifact, match="base weights"):
        Scorer.open(folder)
    templated = llama.model_copy(update={"chat_template": "plain"})
    with pytest.raises(IncompatibleArtifact, match="chat template"):
        Scorer.open(finished(llama, tmp_path / "templated", Spec(templated)))


def test_a_base_that_was_made_anew_is_refused(llama, tmp_path):
    (tmp_path / "sft.partial").mkdir()
    models.save_full(models.load_causal_lm(llama, device="cpu"), tmp_path / "sft.partial" / "model")
    made: dict[str, Any] = {"settings": {}, "seed": 0, "inputs": {}, "data": {}, "base": None, "tokenizer": None}
    made |= {"stage": "sft", "kind": "policy", "metrics": {}, "device": "cpu", "seconds": 1.0}
    sft = artifacts.complete(tmp_path / "sft.partial", tmp_path / "sft", **made)
    spec = Spec(llama, base="../sft/model")
    assert Scorer.open(finished(llama, tmp_path / "a", spec, inputs={"sft": sft.digest})).score(PROMPTS, RESPONSES)
    with pytest.raises(ArtifactError, match="made anew since"):
        Scorer.open(finished(llama, tmp_path / "b", spec, inputs={"sft": "0" * 64}))


def test_what_is_no_reward_model(llama, tmp_path):
    folder = finished(llama, tmp_path / "reward")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["reward_model.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "reward_model.json").unlink()
    with pytest.raises(ArtifactError, match=r"no reward_model\.json"):
        Scorer.open(folder)
