"""Token log-probabilities of given responses, and the hidden states that value and reward heads read.

Rows are packed ``[prompt | response | pad]``. A causal model's real tokens cannot see the pads on their right, so that
no attention mask is needed and padding changes nothing but rounding. The response mask comes from the lengths that
were rolled out, never from comparing ids with the pad id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf_pipeline.errors import ModelError
from rlhf_pipeline.trunk import TrunkStates

CHUNK_TOKENS = 512
"""Tokens whose float32 logits exist at one time beside the model's own."""


@dataclass(frozen=True)
class Sequences:
    """Prompts with their responses, right-padded.

    Attributes:
        ids: ``(batch, length)``.
        prompt_lengths: ``(batch,)``.
        response_mask: ``(batch, response_len)``, 1 on the response's tokens, the stop token included.
        below: what the layers that no adapter changes make of these ids, where it is known: passes start from it.
    """

    ids: Tensor
    prompt_lengths: Tensor
    response_mask: Tensor
    below: TrunkStates | None = None

    def places(self) -> tuple[Tensor, Tensor]:
        """Row and column in ``ids`` of every response token, row by row: two tensors ``(tokens,)``."""
        rows, offsets = self.response_mask.nonzero(as_tuple=True)
        return rows, self.prompt_lengths[rows] + offsets

    def dense(self, flat: Tensor) -> Tensor:
        """``(tokens,)`` in the order of :meth:`places`, laid out as ``(batch, response_len)`` with 0 elsewhere."""
        laid_out = torch.zeros(self.response_mask.shape, dtype=flat.dtype, device=flat.device)
        return laid_out.masked_scatter(self.response_mask.bool(), flat)


def pad_sequences(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    pad_id: int,
    device: torch.device | str = "cpu",
) -> Sequences:
    """Pack prompts and responses into one batch; no response may be empty."""
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    if not all(prompts) or not all(responses):
        raise ValueError("a prompt or a response has no tokens")
    length, response_len = max(map(len, rows)), max(map(len, responses))
    ids = torch.tensor([row + [pad_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (response_len - len(r)) for r in responses])
    return Sequences(ids.to(device), torch.tensor([len(p) for p in prompts]).to(device), mask.to(device))


def micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices in groups of similar length, each of at most ``token_budget`` tokens with padding (or a single row).

    Deterministic: sorted by length, then by index; every index appears once.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= token_budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def response_states(model: PreTrainedModel, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Before each response token: the last hidden state ``(tokens, hidden)``, and the logits ``(tokens, vocabulary)``.

    Both in the model's dtype. The head is given only those positions, by a hook on its input, so that logits of prompts
    and pads never exist and whatever the model does after its head (soft caps, logit scales) is still done.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError("the model has no output embeddings, so it cannot score tokens")
    rows, columns = sequences.places()
    states: list[Tensor] = []

    def select(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        states.append(inputs[0][rows, columns - 1])
        return (states[0][None],)

    handle = cast(torch.nn.Module, head).register_forward_pre_hook(select)
    try:
        with _started(sequences):
            logits = cast(Any, model)(input_ids=sequences.ids, use_cache=False).logits[0]
    finally:
        handle.remove()
    return states[0], logits


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """``log softmax(logits / temperature)`` of the given tokens, in float32 (float64 stays), chunk by chunk.

    Args:
        logits: ``(tokens, vocabulary)``, any floating dtype.
        tokens: ``(tokens,)``.

    Returns:
        ``(tokens,)``, with a graph where ``logits`` has one; the float32 copy of low-precision logits is made again in
        the backward pass instead of being kept.
    """
    again = logits.requires_grad and torch.is_grad_enabled() and logits.element_size() < 4
    parts: list[Tensor] = []
    for part, chosen in zip(logits.split(CHUNK_TOKENS), tokens.split(CHUNK_TOKENS), strict=True):
        if again:
            parts.append(checkpoint(_chunk_logprobs, part, chosen, temperature, use_reentrant=False))
        else:
            parts.append(_chunk_logprobs(part, chosen, temperature))
    return torch.cat(parts)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of ``softmax(logits / temperature)``, ``(tokens,)``, for logits ``(tokens, vocabulary)``."""
    parts = [torch.log_softmax(_full(part) / temperature, dim=-1) for part in logits.split(CHUNK_TOKENS)]
    return torch.cat([-(part.exp() * part).nan_to_num().sum(-1) for part in parts])


def response_logprobs(model: PreTrainedModel, sequences: Sequences, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of each response token under ``softmax(logits / temperature)``: ``(batch, response_len)``.

    Float32, 0 where masked. The stop token is an action like any other and counts.
    """
    _, logits = response_states(model, sequences)
    return sequences.dense(token_logprobs(logits, sequences.ids[sequences.places()], temperature))


def response_hidden(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """The backbone's last hidden state before each response token is chosen: ``(tokens, hidden)``.

    Position t holds what the value of the state before action t may depend on: everything up to token t - 1.
    """
    rows, columns = sequences.places()
    return _hidden(model, sequences)[rows, columns - 1]


def last_hidden(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """The backbone's last hidden state at each response's last token, ``(batch, hidden)``: what a reward head reads."""
    last = sequences.prompt_lengths + sequences.response_mask.sum(1) - 1
    return _hidden(model, sequences)[torch.arange(len(last), device=last.device), last]


def in_order(
    parts: Iterable[Tensor], groups: Sequence[Sequence[int]], width: int = 0, count: int | None = None
) -> Tensor:
    """Results by group put back by index: ``(batch, …)`` parts; two-dimensional ones are zero-padded to ``width``.

    With ``count`` the groups may leave rows out, which are 0 among ``count``.
    """
    stacked = torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1])) if p.ndim == 2 else p for p in parts])
    order = torch.tensor([index for group in groups for index in group], device=stacked.device)
    rows = len(order) if count is None else count
    return stacked.new_zeros((rows, *stacked.shape[1:])).index_copy(0, order, stacked)


def _hidden(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Through the backbone alone: asking the whole model for hidden states would keep those of every layer."""
    with _started(sequences):
        return cast(Tensor, cast(Any, model.base_model)(input_ids=sequences.ids, use_cache=False).last_hidden_state)


def _started(sequences: Sequences) -> AbstractContextManager[None]:
    """A pass in here starts from what is known of the lower layers' states."""
    return nullcontext() if sequences.below is None else sequences.below.trunk.skipped(sequences.below.states)


def _chunk_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    logits = _full(logits) if temperature == 1 else _full(logits) / temperature
    return logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(-1)


def _full(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
