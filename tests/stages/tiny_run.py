"""Artifacts with random adapters on a tiny random model: real files for the stages that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from rlhf_pipeline import artifacts, models
from rlhf_pipeline.config import LoraSection, ModelConfig
from rlhf_pipeline.tokenization import load_tokenizer


def make_adapter(model: ModelConfig, folder: Path, seed: int, *, classifier: bool = False) -> None:
    """Write ``folder/adapter`` whose weights are far from zero, with a score head for a classifier."""
    torch.manual_seed(seed)
    load, task = (models.load_classifier, "SEQ_CLS") if classifier else (models.load_causal_lm, "CAUSAL_LM")
    loaded = load(model, device="cpu")
    adapted = get_peft_model(loaded, models.lora_config(LoraSection(rank=2), loaded, task=task))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "score" in name:
                parameter.normal_(std=0.3)
    models.save_adapter(adapted, folder / "adapter", base_name=model.name)


def finish(run_folder: Path, name: str, kind: str, model: ModelConfig, **inputs: str) -> artifacts.Artifact:
    """Complete ``NAME.partial`` as made with this model from inputs with these digests."""
    made_by: dict[str, Any] = {"settings": {}, "inputs": inputs, "data": {}, "metrics": {}}
    made_by |= {"base": models.base_identity(model), "tokenizer": load_tokenizer(model).identity()}
    made_by |= {"stage": name, "kind": kind, "seed": 0, "device": "cpu", "seconds": 1.0}
    return artifacts.complete(run_folder / f"{name}.partial", run_folder / name, **made_by)
