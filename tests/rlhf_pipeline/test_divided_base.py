"""A base in parts: each process holds half of the layers, computes what the whole would, and never waits for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlhf_pipeline import models, processes
from rlhf_pipeline.config import LoraSection, ModelConfig
from rlhf_pipeline.divided_base import divide_layers, in_step, own_part
from rlhf_pipeline.errors import ModelError
from rlhf_pipeline.roles import Roles
from tests import tiny_models
from tests.two_processes import in_two

IDS = torch.arange(12).view(2, 6)


def hidden(model: Any) -> list[Any]:
    with torch.no_grad():
        return model.base_model(input_ids=IDS, use_cache=False).last_hidden_state.tolist()  # type: ignore[no-any-return]


def look(model: ModelConfig) -> dict[str, Any]:
    """What one of two processes has and sees."""
    base = models.load_causal_lm(model, device="cpu")
    found: dict[str, Any] = {
        "whole": sum(p.numel() for p in base.model.layers.parameters()),
        "held": sum(own_part(p).numel() for p in base.model.layers.parameters()),
        "hidden": hidden(base),
    }
    roles = Roles(base)
    before = roles.fingerprint(None)
    torch.manual_seed(3)
    roles.add("policy", lora=LoraSection(rank=2, alpha=4), trainable=True)
    for passes in (1 + 2 * processes.rank(), 3 - processes.rank()):  # one runs it more often, then the other
        with roles.use("policy") as adapted:
            states = [hidden(adapted) for _ in range(passes)]
        assert all(one == states[0] for one in states)
    with roles.use("policy") as adapted:
        adapted.base_model(input_ids=IDS, use_cache=False).last_hidden_state.square().sum().backward()
    found["gradients"] = [[] if p.grad is None else p.grad.tolist() for p in roles.parameters("policy")]
    found["same"] = roles.fingerprint(None) == before
    found["fingerprint"] = before
    with pytest.raises(RuntimeError, match="on purpose"), in_step(base):  # an error is not waited for
        raise RuntimeError("on purpose")
    return found


def test_half_of_it_does_what_the_whole_does(tmp_path: Path) -> None:
    model = tiny_models.make("llama", tmp_path)
    whole = look(model)
    assert whole["held"] == whole["whole"]
    assert any(torch.tensor(gradient).any() for gradient in whole["gradients"])
    parts = in_two(look, model, divide_base=True)
    for part in parts:
        assert part["held"] * 2 == part["whole"] == whole["whole"]
        assert torch.allclose(torch.tensor(part["hidden"]), torch.tensor(whole["hidden"]), atol=1e-6)
        for gradient, expected in zip(part["gradients"], whole["gradients"], strict=True):
            assert torch.allclose(torch.tensor(gradient), torch.tensor(expected), rtol=1e-4, atol=1e-6)
        assert part["same"]
    assert parts[0]["fingerprint"] != parts[1]["fingerprint"], "each has its own part"


def test_what_has_no_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_pipeline.divided_base.init_device_mesh", lambda *_: None)
    with pytest.raises(ModelError, match=r"cannot be divided\n.*strategy: ddp"):
        divide_layers(nn.Linear(2, 2), "cpu")  # type: ignore[arg-type]
