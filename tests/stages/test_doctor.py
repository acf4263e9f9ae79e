"""The doctor's memory: what sampling holds counts, and every recipe fits the GPU that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from rlhf_pipeline import model_source
from rlhf_pipeline.config import ModelConfig
from stages import doctor, settings
from tests import tiny_models

ROOT = Path(__file__).parent.parent.parent


# The models' own shapes, and the smallest GPU that each recipe names.
RECIPES: dict[str, tuple[PretrainedConfig, float]] = {
    "smollm2-135m": (
        LlamaConfig(
            hidden_size=576, num_hidden_layers=30, intermediate_size=1536, num_attention_heads=9,
            num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True,
        ),
        8e9,
    ),
    "qwen3-0.6b": (
        Qwen3Config(
            hidden_size=1024, num_hidden_layers=28, intermediate_size=3072, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True,
        ),
        12e9,
    ),
    "llama-3.1-8b-qlora": (
        LlamaConfig(
            hidden_size=4096, num_hidden_layers=32, intermediate_size=14336, num_attention_heads=32,
            num_key_value_heads=8, vocab_size=128256,
        ),
        24e9,
    ),
}  # fmt: skip


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is said of the memory for a recipe's own model, on its GPU, of which 1 GiB is taken already."""

    def find(recipe: str, *overrides: str) -> dict[str, tuple[str, str]]:
        config, size = RECIPES[recipe]
        monkeypatch.setattr(model_source, "load_config", lambda _: config)
        monkeypatch.setattr(doctor, "_width", lambda _: 2)
        monkeypatch.setattr(doctor, "_available", lambda _: size - 2**30)
        chosen = settings.load(ROOT / "configs" / f"{recipe}.yaml", overrides)
        return {sentence.split()[1]: (kind, sentence) for kind, sentence in doctor._memory(chosen)}

    return find


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_fits_the_gpu_that_it_names(findings: Any, recipe: str) -> None:
    found = findings(recipe)
    assert {"sft", "reward", "dpo", "sample", "evaluate", "ppo"} == found.keys() - {"base"}
    assert [kind for name, (kind, _) in found.items() if name != "base"] == ["ok"] * 6, found
    text = (ROOT / "configs" / f"{recipe}.yaml").read_text()
    assert f"GPU with {RECIPES[recipe][1] / 1e9:.0f} GB" in text


@pytest.mark.parametrize(
    ("name", "override", "advice"),
    [
        ("ppo", "ppo.generation_batch=128", "lower ppo.generation_batch, ppo.micro_batch_tokens, "),
        ("sample", "sample.batch_size=64", "lower sample.batch_size, sample.max_new_tokens"),
        ("evaluate", "evaluate.batch_size=64", "lower evaluate.batch_size, evaluate.max_new_tokens"),
        ("sft", "sft.micro_batch_size=32", "lower sft.micro_batch_size, sft.max_length"),
    ],
)
def test_what_does_not_fit_is_named_with_its_settings(findings: Any, name: str, override: str, advice: str) -> None:
    kind, sentence = findings("llama-3.1-8b-qlora", override)[name]
    assert kind == "note"
    assert f"more than is there; {advice}" in sentence
    assert "gradient_checkpointing" not in sentence, "it is set already"


@pytest.mark.parametrize(("strategy", "held"), [("ddp", 14.96), ("fsdp2", 8.46)])
def test_what_each_of_several_processes_holds(findings: Any, strategy: str, held: float) -> None:
    findings("llama-3.1-8b-qlora")
    chosen = settings.load(
        ROOT / "configs" / "llama-3.1-8b-qlora.yaml",
        ["model.quantization=none", "run.launch.processes=2", f"run.launch.strategy={strategy}"],
    )
    [(kind, sentence)] = doctor._launch(chosen)
    assert kind == "note"
    assert f"sft, reward, dpo, ppo in 2 processes ({strategy})" in sentence
    assert f"one holds {held} of the base's 14.96 GiB" in sentence
    assert not list(doctor._launch(settings.load(ROOT / "configs" / "llama-3.1-8b-qlora.yaml")))


def test_keys_and_values_are_as_wide_as_the_model_says(tmp_path: Path) -> None:
    widths = {"llama": 2 * 8, "qwen3": 2 * 8, "gpt2": 32}
    for family, width in widths.items():
        model = tiny_models.make(family, tmp_path / family)
        chosen: Any = type("Chosen", (), {"model": ModelConfig(name=model.name)})
        assert doctor._shape(chosen).key_value == width


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["reward.rules.learn=true"], [("fails", "collect.form.rules is empty")]),
        (["collect.form.rules=[Do not be rude.]"], [("note", "no model learns them")]),
        (
            ["collect.form.rules=[Do not be rude.]", "reward.rules={learn: true, weight: 2.5}"],
            [("ok", "1 are learnt; breaking all costs 2.5 standard deviations")],
        ),
        (
            ["collect.form.rules=[Do not be rude.]", "reward.rules.learn=true", "collect.judges=imported"],
            [("fails", "collect.judges is imported")],
        ),
        (["ppo.rewards=[{source: rules}]"], [("fails", "the source rules, but reward.rules.learn is false")]),
    ],
)
def test_rules_that_are_asked_learnt_and_used(overrides: list[str], expected: list[tuple[str, str]]) -> None:
    found = list(doctor._rules(settings.load(ROOT / "configs" / "demo.yaml", overrides)))
    assert [kind for kind, _ in found] == [kind for kind, _ in expected]
    for (_, sentence), (_, words) in zip(found, expected, strict=True):
        assert words in sentence
