"""The kept states of the layers below all adapters: the same log-probabilities and gradients from fewer layers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import transformers
from torch import Tensor

from rlhf_pipeline.config import LoraSection
from rlhf_pipeline.errors import ConfigError, ModelError
from rlhf_pipeline.generation import Sampled
from rlhf_pipeline.logprobs import last_hidden, response_hidden, response_logprobs
from rlhf_pipeline.roles import Roles
from rlhf_pipeline.rollout import Rollout
from rlhf_pipeline.trunk import Trunk, decoder_layers
from tests.rlhf_pipeline.test_generation import CONFIGS, tiny

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12], [3, 4]]
SAMPLED = [Sampled([3, 2], True), Sampled([20, 21, 22], False), Sampled([2], True), Sampled([30, 31, 9], True)]
ROLLOUT = Rollout.of(PROMPTS, SAMPLED, pad_id=0, device=torch.device("cpu"))


def make(architecture: str, dtype: torch.dtype, **lora: object) -> Roles:
    roles = Roles(tiny(architecture))
    torch.manual_seed(1)
    for name in ("policy", "reward"):
        roles.add(name, lora=LoraSection(**{"rank": 2, "top_layers": 1, **lora}), trainable=name == "policy")
        with torch.no_grad():
            for parameter in roles.parameters(name):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    roles.base.to(dtype)  # with its adapters
    return roles


def passes(roles: Roles, rollout: Rollout, rows: Sequence[int]) -> list[Tensor]:
    """Log-probabilities, hidden states of policy and reward, and the policy's gradient."""
    batch = rollout.sequences(rows)
    for parameter in roles.parameters("policy"):
        parameter.grad = None
    with roles.use("policy") as model:
        logprobs = response_logprobs(model, batch)
        logprobs.sum().backward()
        hidden = response_hidden(model, batch).detach()
    with torch.no_grad(), roles.use("reward") as model:
        last = last_hidden(model, batch)
    return [logprobs.detach(), hidden, last, *(p.grad for p in roles.parameters("policy"))]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_kept_states_change_nothing(architecture: str, recompute: bool) -> None:
    """Made in micro-batches of other shapes than those that are learnt from."""
    exact = architecture != "mixtral"  # whose experts torch multiplies in float32 at most
    roles = make(architecture, torch.float64 if exact else torch.float32)
    if recompute:
        roles.recompute_layers()
    trunk = roles.trunk()
    assert trunk is not None
    assert trunk.depth == 1
    kept = ROLLOUT.keeping(trunk, [[3, 1], [0], [2]])
    runs: list[int] = []
    handle = decoder_layers(roles.base)[0].mlp.register_forward_hook(lambda *_: runs.append(1))
    short = passes(roles, kept, [2, 0, 1, 3])
    assert not runs
    whole = passes(roles, ROLLOUT, [2, 0, 1, 3])
    assert len(runs) == 3
    handle.remove()
    for one, other in zip(short, whole, strict=True):
        assert (one - other).abs().max() <= (1e-12 if exact else 1e-5) * other.abs().max()


def test_the_same_micro_batches_give_the_same_bits() -> None:
    roles = make("llama", torch.float32)
    trunk = roles.trunk()
    assert trunk is not None
    kept = ROLLOUT.keeping(trunk, [[2, 0], [1, 3]])
    short, whole = passes(roles, kept, [2, 0]), passes(roles, ROLLOUT, [2, 0])
    assert all(torch.equal(one, other) for one, other in zip(short, whole, strict=True))


def test_other_tokens_have_other_states() -> None:
    roles = make("llama", torch.float32)
    trunk = roles.trunk()
    assert trunk is not None
    kept = ROLLOUT.keeping(trunk, [[0, 1, 2, 3]])
    assert kept.ending_with(2).below is None  # row 3 ended with another stop token, which is replaced
    only_two = Rollout.of(PROMPTS[:3], SAMPLED[:3], pad_id=0, device=torch.device("cpu"))
    assert only_two.keeping(trunk, [[0, 1, 2]]).ending_with(2).below is not None


@pytest.mark.parametrize("architecture", CONFIGS)
def test_adapters_are_in_the_uppermost_layers_alone(architecture: str) -> None:
    stem = {"gpt2": "transformer.h"}.get(architecture, "model.layers")
    every, top = (make(architecture, torch.float32, top_layers=n).named_parameters("policy") for n in (2, 1))
    upper = {name for name in every if f"{stem}.1." in name and ".experts." not in name}
    assert upper == set(top) < set(every)
    assert make(architecture, torch.float32, top_layers=None).trunk() is None
    named = {"gpt2": "c_attn"}.get(architecture, "q_proj")
    assert len(make(architecture, torch.float32, targets=[named]).parameters("policy")) == 2


def test_roles_with_other_layers_share_what_is_below_all() -> None:
    roles = make("llama", torch.float32)
    roles.add("value", lora=LoraSection(rank=2), trainable=True)
    assert roles.trunk() is None


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora.top_layers: the model has only 2 layers"):
        make("llama", torch.float32, top_layers=3)
    t5 = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    with pytest.raises(ModelError, match="not one stack of 2 decoder layers"):
        decoder_layers(transformers.T5ForConditionalGeneration(t5))

    roles = make("llama", torch.float32)
    lower, upper = decoder_layers(roles.base)
    seen: list[Tensor] = []
    roles.base.get_input_embeddings().register_forward_hook(lambda *_: seen.clear())
    lower.mlp.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    upper.mlp.register_forward_hook(lambda _module, _inputs, output: output + seen.pop() if seen else output)
    with pytest.raises(ModelError, match="upper layers of LlamaForCausalLM read more than the last state"):
        Trunk(roles.base, 1)
