"""The doctor's prediction of PPO's peak memory against a process that runs PPO, at 25 and 110 million weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_pipeline import models
from rlhf_pipeline.config import LoraSection
from rlhf_pipeline.memory import GIB
from rlhf_pipeline.roles import WEIGHTS, Roles
from stages import doctor, settings
from tests import tiny_models

ROOT = Path(__file__).parent.parent.parent
PROMPT, NEW = 32, 16
ROWS = {24.6: 64, 108.9: 20}  # by millions of weights: so many that activations are a good part of the whole
SHAPES: dict[float, dict[str, int]] = {
    24.6: {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8},
    108.9: {"hidden_size": 768, "intermediate_size": 2688, "num_hidden_layers": 12, "num_attention_heads": 12},
}

# PPO as `rlhf run` would run it, from adapters that are there; what SFT and reward training take must not be seen.
PROGRAM = """
import resource, sys
from pathlib import Path
from types import SimpleNamespace
from rlhf_pipeline.allocator import give_back_freed_memory
give_back_freed_memory()
from stages import ppo, settings
from stages.job import Job

ppo.max = lambda *_: 8  # responses that measure the scale of scores: sampling so many needs less memory than learning
folder = Path(sys.argv[1])
chosen = settings.load(folder / "run.yaml")
inputs = {name: SimpleNamespace(folder=folder / name) for name in ("sft", "reward")}
(folder / "ppo").mkdir()
ppo.run(Job(chosen.ppo, chosen, folder / "ppo", inputs, folder, 0, "cpu"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_run(folder: Path, millions: float) -> Path:
    """A Llama with random weights, its SFT and reward adapters, prompts, and a configuration."""
    model, shape = folder / "model", SHAPES[millions]
    tiny_models.make("llama", model)  # for its tokenizer
    config = LlamaConfig(
        **shape, vocab_size=8192, num_key_value_heads=shape["num_attention_heads"], tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(model)
    rows = [{"prompt": f"Water them early {n}", "completion": "Yes."} for n in range(100, 180)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "run": {"folder": str(folder / "run"), "stages": ["sft", "collect", "reward", "ppo"], "device": "cpu"},
        "model": {"name": str(model)},
        "data": {"demonstrations": {"path": str(folder / "rows.jsonl")}, "held_out": 4},
        "ppo": {
            "iterations": 1, "rollout_batch": ROWS[millions], "num_ppo_epochs": 1, "num_minibatches": 1,
            "max_prompt_length": PROMPT, "max_new_tokens": NEW, "stop": {"every": None},
        },
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    roles = Roles(models.load_causal_lm(settings.load(folder / "run.yaml").model, device="cpu"))
    roles.add("reference", lora=LoraSection())
    for name in ("sft", "reward"):
        roles.save("reference", folder / name / "adapter")
    weights = load_file(folder / "reward" / "adapter" / WEIGHTS)
    save_file(
        {**weights, models.SCORE_KEY: torch.randn(1, shape["hidden_size"])}, folder / "reward" / "adapter" / WEIGHTS
    )
    return folder / "run.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("millions", SHAPES)
def test_the_prediction_is_within_15_percent_of_what_ppo_takes(millions: float, tmp_path: Path) -> None:
    chosen = settings.load(write_run(tmp_path, millions))
    shape = doctor._shape(chosen)
    assert shape.parameters / 1e6 == pytest.approx(millions, abs=0.1)
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    measured = int(ended.stdout.splitlines()[-1])
    parts = doctor._ppo_parts(chosen, shape, 4 * shape.parameters, width=4)
    assert parts["sum"] / GIB == pytest.approx(measured / GIB, rel=0.15), parts
    assert parts["activations"] > 0.4 * parts["sum"], "so that a mistake in the arithmetic shows"
