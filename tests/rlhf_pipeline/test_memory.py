"""The arithmetic of memory, against published sizes of Llama-3.1-8B."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_pipeline.config import LoraSection
from rlhf_pipeline.logprobs import pad_sequences, response_hidden
from rlhf_pipeline.memory import (
    PpoLoad,
    Shape,
    activation_bytes,
    adapter_parameters,
    adapters_bytes,
    base_bytes,
    block_bytes,
    full_training_bytes,
    generation_bytes,
    ppo_bytes,
)
from rlhf_pipeline.roles import Roles

# hidden 4096, 32 layers, 8 of 32 heads for keys and values, SwiGLU of 14336, 128256 tokens, untied head
_LAYER = ((4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096))
LLAMA_8B = Shape(8_030_261_248, 2 * 128256 * 4096, _LAYER * 32, 32, 4096, 14336, 128256, 1024)


def test_adapter_of_rank_16_has_41_9_million_weights() -> None:
    assert adapter_parameters(LLAMA_8B, 16) == 41_943_040


def test_base_in_bfloat16_and_in_four_bits() -> None:
    assert base_bytes(LLAMA_8B, width=2, four_bit=False) / 1e9 == pytest.approx(16.06, abs=0.01)
    assert base_bytes(LLAMA_8B, width=2, four_bit=True) / 1e9 == pytest.approx(5.70, abs=0.01)


def test_two_trained_and_one_frozen_adapter() -> None:
    assert adapters_bytes(LLAMA_8B, rank=16, trained=2, frozen=1) == 41_943_040 * 36


def test_full_fine_tuning_is_sixteen_bytes_a_weight() -> None:
    assert full_training_bytes(LLAMA_8B) == LLAMA_8B.parameters * 16


TOY = Shape(100, 30, ((2, 3),), layers=3, hidden=2, intermediate=5, vocabulary=7, key_value=1)
_BLOCK = (6 * 2 + 2 * 1 + 4 * 5) * 4  # 136 bytes of a token, float32


def test_checkpointing_keeps_one_block_and_the_inputs_of_the_others() -> None:
    head = 2 * 7 * 4
    assert activation_bytes(TOY, tokens=11, width=4, checkpointing=False) == 11 * (3 * _BLOCK + head)
    assert activation_bytes(TOY, tokens=11, width=4, checkpointing=True) == 11 * (3 * 2 * 4 + _BLOCK + head)


def test_pefts_own_layers_keep_casts_in_half_precision() -> None:
    """Eight bytes a token for each of the hidden size: what autograd kept before roles had layers of their own."""
    found = activation_bytes(TOY, tokens=1, width=2, checkpointing=False) - 2 * 7 * 4
    assert found == 3 * ((4 * 2 + 2 * 1 + 4 * 5) * 2 + 2 * 4 * 2 + 2 * 4 * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_keeps_for_the_backward_pass_what_is_counted(dtype: torch.dtype) -> None:
    one, three = (_kept_bytes(dtype, layers) for layers in (1, 3))
    shape = Shape(0, 0, (), 1, 128, 320, 64, 128)
    assert (three - one) / 2 == pytest.approx(block_bytes(shape, dtype.itemsize), rel=0.02)


def _kept_bytes(dtype: torch.dtype, layers: int) -> float:
    """What autograd keeps of a token in a Llama of so many layers, weights and their casts left out."""
    config = LlamaConfig(
        hidden_size=128, intermediate_size=320, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=64,
    )  # fmt: skip
    roles = Roles(LlamaForCausalLM(config).to(dtype))
    roles.add("policy", lora=LoraSection(rank=1), trainable=True)
    weights = {p.untyped_storage().data_ptr() for p in roles.base.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    rows = pad_sequences([[1] * 1000] * 2, [[2] * 24] * 2, pad_id=0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), roles.use("policy") as model:
        _ = response_hidden(model, rows)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / (2 * 1024)


def test_sampling_holds_128_kib_of_keys_and_values_for_every_token() -> None:
    one = generation_bytes(LLAMA_8B, rows=1, prompt=1, new=1, width=2)
    assert generation_bytes(LLAMA_8B, rows=1, prompt=1, new=2, width=2) - one == 128 * 1024
    assert generation_bytes(LLAMA_8B, rows=3, prompt=1, new=1, width=2) == 3 * one


def test_sampling_needs_most_when_the_prompts_are_read_or_at_its_end() -> None:
    beginning = 11 * (2 * 3 * 1 * 4 + 4 * (2 + 5) * 4)
    assert generation_bytes(TOY, rows=2, prompt=11, new=1, width=4) == 2 * beginning
    end = (11 + 99) * 2 * 3 * 1 * 4 + 7 * (4 + 4 + 16)
    assert generation_bytes(TOY, rows=2, prompt=11, new=99, width=4) == 2 * end


def test_ppo_by_hand() -> None:
    load = PpoLoad(
        rank=2, layers=3, trained=2, frozen=2, prompt=5, new=6, sampled_rows=8, learned_rows=4, kept_rows=16,
        checkpointing=False,
    )  # fmt: skip
    parts = ppo_bytes(TOY, load, width=4, four_bit=False)
    logits = 7 * (3 * 24 * 4 + 24 * 4)
    sampling = 8 * (5 * 2 * 3 * 4 + 5 * 4 * 7 * 4)
    assert parts == {
        "base": 400,
        "adapters": 4 * 10 * 4,
        "optimizer": 2 * 10 * 12,
        "activations": 3 * 44 * _BLOCK,
        "logits": logits,
        "KV cache": 8 * 11 * 2 * 3 * 4,
        "sampling": sampling - 8 * 11 * 2 * 3 * 4,
        "sum": 400 + 160 + 240 + max(3 * 44 * _BLOCK + logits, sampling),
    }
    top = ppo_bytes(TOY, replace(load, layers=1), width=4, four_bit=False)
    assert top["adapters"] == pytest.approx(160 / 3)
    assert top["activations"] == 44 * _BLOCK + 16 * 11 * 2 * 4, "the states below are kept, the blocks there are not"
    recomputed = ppo_bytes(TOY, replace(load, checkpointing=True), width=4, four_bit=False)
    assert recomputed["activations"] == 3 * 44 * 2 * 4 + 44 * _BLOCK - logits


@pytest.mark.parametrize(
    ("four_bit", "sampled", "learned", "measured"), [(True, 64, 8, 14.392e9), (False, 16, 4, 19.706e9)]
)
def test_ppo_of_8_billion_weights_as_a_gpu_measured_it(
    four_bit: bool, sampled: int, learned: int, measured: float
) -> None:
    """``torch.cuda.max_memory_allocated`` of the runs in benchmarks/ppo_cuda.md."""
    load = PpoLoad(
        rank=16, layers=32, trained=2, frozen=2, prompt=384, new=128, sampled_rows=sampled, learned_rows=learned,
        kept_rows=64, checkpointing=True,
    )  # fmt: skip
    assert ppo_bytes(LLAMA_8B, load, width=2, four_bit=four_bit)["sum"] == pytest.approx(measured, rel=0.05)
