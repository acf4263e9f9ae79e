"""Log-probabilities: against a plain log_softmax, and what padding, batching, chunks and adapters must not change."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from torch import Tensor

from rlhf_pipeline import logprobs as module
from rlhf_pipeline.logprobs import (
    in_order,
    last_hidden,
    micro_batches,
    pad_sequences,
    response_hidden,
    response_logprobs,
    token_entropy,
    token_logprobs,
)
from tests.rlhf_pipeline.test_generation import CONFIGS, tiny

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15]]
RESPONSES = [[3, 2], [20, 21, 22, 23, 2], [30]]


def batch(rows: list[int] | None = None, pad_id: int = 0):
    rows = [0, 1, 2] if rows is None else rows
    return pad_sequences([PROMPTS[i] for i in rows], [RESPONSES[i] for i in rows], pad_id=pad_id)


def alone(model: transformers.PreTrainedModel, row: int, temperature: float = 1.0) -> Tensor:
    """Unpadded, through the model's own forward."""
    ids = torch.tensor([PROMPTS[row] + RESPONSES[row]])
    logits = model(input_ids=ids).logits[0, len(PROMPTS[row]) - 1 : -1].double() / temperature
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(RESPONSES[row])[:, None])[:, 0]


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_the_unpadded_forward(architecture: str, temperature: float) -> None:
    model = tiny(architecture)
    with torch.no_grad():
        ours = response_logprobs(model, batch(), temperature=temperature)
        assert ours.dtype == torch.float32
        for row, response in enumerate(RESPONSES):
            assert torch.allclose(ours[row, : len(response)].double(), alone(model, row, temperature), atol=1e-5)
            assert (ours[row, len(response) :] == 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.2)])
def test_padding_and_batching_change_rounding_only(dtype: torch.dtype, tolerance: float) -> None:
    model = tiny("llama").to(dtype)
    with torch.no_grad():
        together = response_logprobs(model, batch())
        other_pads = response_logprobs(model, batch(pad_id=33))
        assert torch.equal(together, other_pads)
        permuted = response_logprobs(model, batch([2, 0, 1]))
        assert (permuted[[1, 2, 0]] - together).abs().max() <= tolerance
        for row, response in enumerate(RESPONSES):
            single = response_logprobs(model, batch([row]))
            assert (single[0] - together[row, : len(response)]).abs().max() <= tolerance


def test_what_follows_the_head_is_kept() -> None:
    """Gemma 2 squashes its logits after the head: a hand-rolled ``hidden @ weight`` would miss it."""
    shape = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "initializer_range": 0.5}
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.Gemma2Config(**shape, **heads, final_logit_softcapping=0.5)
    ).eval()
    with torch.no_grad():
        assert torch.allclose(response_logprobs(model, batch())[1].double(), alone(model, 1), atol=1e-5)
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_and_recomputation_keep_value_and_gradient(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, tokens = torch.randn(50, 11).mul(4).to(dtype).requires_grad_(), torch.randint(11, (50,))
    expected = torch.log_softmax(logits.float() / 0.7, -1).gather(-1, tokens[:, None])[:, 0]
    weights = torch.randn(50)
    gradient = torch.autograd.grad(expected @ weights, logits)[0]
    monkeypatch.setattr(module, "CHUNK_TOKENS", 7)
    ours = token_logprobs(logits, tokens, 0.7)
    assert torch.allclose(ours, expected, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(ours @ weights, logits)[0], gradient, atol=1e-6)


def test_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -math.inf, -math.inf, 0.0], [50.0, 0, 0, 0]])
    assert token_entropy(logits).tolist() == pytest.approx([math.log(4), math.log(2), 0], abs=1e-6)
    p = 1 / (1 + math.exp(-2))
    binary = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert token_entropy(torch.tensor([[1.0, 0.0]]), temperature=0.5).item() == pytest.approx(binary)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_hidden_states_stand_before_the_action_and_at_the_last_token(architecture: str) -> None:
    model = tiny(architecture)
    with torch.no_grad():
        before, last = response_hidden(model, batch()), last_hidden(model, batch())
        start = 0
        for row, response in enumerate(RESPONSES):
            ids = torch.tensor([PROMPTS[row] + response])
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            expected = states[len(PROMPTS[row]) - 1 : -1]
            assert torch.allclose(before[start : start + len(response)], expected, atol=1e-5)
            assert torch.allclose(last[row], states[-1], atol=1e-5)
            start += len(response)


def test_micro_batches() -> None:
    lengths = [3, 10, 4, 4, 1, 9]
    groups = micro_batches(lengths, 12)
    assert groups == [[1], [5], [2, 3, 0], [4]]
    assert micro_batches(lengths, 1) == [[1], [5], [2], [3], [0], [4]]  # a row longer than the budget is on its own
    parts = [torch.tensor([[float(i)] * lengths[i] for i in [g[0]]] * len(g)) for g in groups]
    assert in_order(parts, groups, 12).shape == (6, 12)
    back = in_order([torch.tensor([float(i) for i in g]) for g in groups], groups)
    assert back.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_response_may_hold_the_pad_id() -> None:
    """Many models pad with a token that they also write: a mask by comparing ids would lose it (TRL 1.12 did)."""
    sequences = pad_sequences([[5, 0], [8]], [[0, 3, 0], [4]], pad_id=0)
    assert sequences.response_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert sequences.ids[sequences.places()].tolist() == [0, 3, 0, 4]


def test_dense_and_places() -> None:
    sequences = batch()
    rows, columns = sequences.places()
    assert sequences.ids[rows, columns].tolist() == [t for r in RESPONSES for t in r]
    laid_out = sequences.dense(torch.arange(1.0, 9.0))
    assert laid_out.tolist() == [[1, 2, 0, 0, 0], [3, 4, 5, 6, 7], [8, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="no tokens"):
        pad_sequences([[1]], [[]], pad_id=0)
