"""The arithmetic of memory, against published sizes of Llama-3.1-8B."""

from __future__ import annotations

import pytest

from rlhf_pipeline.memory import (
    Shape,
    activation_bytes,
    adapter_parameters,
    adapters_bytes,
    base_bytes,
    full_training_bytes,
    generation_bytes,
)

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


def test_checkpointing_keeps_one_block_and_the_inputs_of_the_others() -> None:
    toy = Shape(0, 0, (), layers=3, hidden=2, intermediate=5, vocabulary=7, key_value=1)
    block = (10 * 2 + 4 * 5) * 4  # 160 bytes
    head = 2 * 7 * 4
    assert activation_bytes(toy, tokens=11, width=4, checkpointing=False) == 11 * (3 * block + head)
    assert activation_bytes(toy, tokens=11, width=4, checkpointing=True) == 11 * (3 * 2 * 4 + block + head)


def test_sampling_holds_128_kib_of_keys_and_values_for_every_token() -> None:
    one = generation_bytes(LLAMA_8B, rows=1, prompt=1, new=1, width=2)
    assert generation_bytes(LLAMA_8B, rows=1, prompt=1, new=2, width=2) - one == 128 * 1024
    assert generation_bytes(LLAMA_8B, rows=3, prompt=1, new=1, width=2) == 3 * one


def test_sampling_holds_a_block_of_the_prompts_and_one_token_of_probabilities() -> None:
    toy = Shape(0, 0, (), layers=3, hidden=2, intermediate=5, vocabulary=7, key_value=1)
    cache = (11 + 13) * 2 * 3 * 1 * 4
    block = 11 * (10 * 2 + 4 * 5) * 4
    assert generation_bytes(toy, rows=2, prompt=11, new=13, width=4) == 2 * (cache + block + 7 * (4 + 4 + 16))
