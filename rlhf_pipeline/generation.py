"""Sample responses: one decode loop with a key-value cache, in which every row has its own random numbers.

The loop is ours because the distribution that is sampled must be exactly the one whose log-probabilities are trained on
(softmax of ``logits / temperature`` in float32, nothing else), and because finished rows leave the batch at once.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_pipeline.errors import ModelError
from rlhf_pipeline.kv_cache import decoding_cache

_LEARNED_POSITIONS = ("wpe", "embed_positions", "position_embeddings")


@dataclass(frozen=True)
class Sampled:
    """One response: its token ids (the stop token included when there is one), and whether it ended by itself."""

    ids: list[int]
    ended: bool
    logprobs: list[float] = field(default_factory=list, compare=False)
    """Of each token, under the distribution that it was drawn from; empty where nothing was drawn (temperature 0)."""


@dataclass
class _Batch:
    """The rows that are still being continued; every tensor's first dimension is the row."""

    rows: list[int]  # places in the list of prompts
    cache: Any
    mask: Tensor  # (rows, length so far)
    tokens: Tensor  # (rows, new) what the next forward reads
    positions: Tensor  # (rows, new)
    uniforms: Tensor | None  # (rows, max_new_tokens), None when greedy
    copies: Tensor | None  # (rows,) places among the different prompts, where one stands for several rows until read
    responses: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)

    def keep(self, alive: Tensor) -> None:
        """Drop the finished rows, from the cache too: what is left costs only what it needs."""
        index = alive.nonzero().squeeze(-1)
        self.rows = [self.rows[i] for i in index.tolist()]
        self.cache.batch_select_indices(index)
        self.mask, self.tokens, self.positions = self.mask[index], self.tokens[index], self.positions[index]
        if self.uniforms is not None:
            self.uniforms = self.uniforms[index]

    def spread(self, logits: Tensor) -> Tensor:
        """After the prompts were read: a row for every sample of one, ``(prompts, vocabulary)`` → ``(rows, …)``."""
        if self.copies is None:
            return logits
        index, self.copies = self.copies, None
        self.cache.batch_select_indices(index)
        self.mask, self.positions = self.mask[index], self.positions[index]
        return logits[index]


def generate(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: frozenset[int],
    pad_id: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int,
    first_row: int = 0,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> list[Sampled]:
    """Continue each prompt until a token of ``stop_ids`` or ``max_new_tokens`` tokens; result i is for prompt i.

    Row i draws from its own generator, seeded from ``(seed, first_row + i)``, so that its response depends neither on
    ``batch_size`` nor on the other prompts (beyond the rounding of the forward itself). The model runs in eval mode;
    its mode is restored afterwards.

    Args:
        model: a causal language model, or a PeftModel around one, whose active adapter is then the policy.
        prompts: token ids, at least one per prompt; no padding.
        temperature: divides the logits; 0 takes the most probable token.
        top_p: sample only from the smallest set of tokens that has this probability (nucleus sampling, Holtzman et al.
            2020, arXiv:1904.09751). Below 1 the samples are no longer the policy's own distribution.
        first_row: the place of the first prompt, where these are a part of more.
        on_batch: called after each batch with the number of its prompts.

    Raises:
        ModelError: a learned position embedding is too short for prompt + ``max_new_tokens``, or logits are not finite.
    """
    if temperature < 0 or not 0 < top_p <= 1 or max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"{temperature=}, {top_p=}, {max_new_tokens=}, {batch_size=}: out of range")
    if not all(prompts):
        raise ValueError(f"prompt {next(i for i, p in enumerate(prompts) if not p)} is empty")
    inner = _causal_lm(model)
    _check_context(inner, max((len(p) for p in prompts), default=0), max_new_tokens)
    results: list[Sampled | None] = [None] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding within a batch
    was_training = inner.training
    inner.train(False)
    try:
        with torch.no_grad():
            for start in range(0, len(by_length), batch_size):
                rows = by_length[start : start + batch_size]
                batch = _start(inner, prompts, rows, pad_id, max_new_tokens, seed, first_row, greedy=temperature == 0)
                _continue(inner, batch, stop_ids, max_new_tokens, temperature, top_p)
                for row, ids in batch.responses.items():
                    results[row] = Sampled(ids, ids[-1] in stop_ids, batch.logprobs[row])
                if on_batch is not None:
                    on_batch(len(rows))
    finally:
        inner.train(was_training)
    return cast(list[Sampled], results)


def ending_with(ids: list[int], ended: bool, end_id: int) -> list[int]:
    """A response with the stop token that was sampled as ``end_id``: the one that a reward model has learnt on."""
    return [*ids[:-1], end_id] if ended else ids


def token_probabilities(logits: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """What is sampled from: softmax of ``logits / temperature`` in float32, cut to the nucleus and renormalised.

    Args:
        logits: ``(..., vocabulary)``, any floating dtype.
        temperature: above 0.
        top_p: 1 keeps every token; else the smallest set of most probable tokens that has at least this probability.
    """
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p >= 1:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.zeros_like(probabilities).scatter(-1, order, torch.where(before < top_p, ordered, 0.0))
    return kept / kept.sum(-1, keepdim=True)


def _start(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rows: list[int],
    pad_id: int,
    max_new_tokens: int,
    seed: int,
    first_row: int,
    *,
    greedy: bool,
) -> _Batch:
    """Left-padded tensors of these prompts; pads are masked and hold position 0, and positions count real tokens.

    A prompt that several rows share is there once.
    """
    device = cast(Tensor, model.get_input_embeddings().weight).device
    different = {ids: place for place, ids in enumerate(dict.fromkeys(tuple(prompts[row]) for row in rows))}
    copies = torch.tensor([different[tuple(prompts[row])] for row in rows], device=device)
    width = max(map(len, different))
    tokens = torch.tensor([[pad_id] * (width - len(ids)) + list(ids) for ids in different])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in different])
    uniforms = None if greedy else torch.stack([_uniforms(seed, first_row + row, max_new_tokens) for row in rows])
    return _Batch(
        rows=rows,
        cache=decoding_cache(model.config, width + max_new_tokens),
        mask=mask.to(device),
        tokens=tokens.to(device),
        positions=(mask.cumsum(-1) - 1).clamp(min=0).to(device),
        uniforms=None if uniforms is None else uniforms.to(device),
        copies=copies if len(different) < len(rows) else None,
    )


def _uniforms(seed: int, row: int, count: int) -> Tensor:
    """One row's random numbers: float64 in [0, 1), drawn on the CPU so that every device sees the same ones."""
    digest = hashlib.sha256(f"{seed}:{row}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _continue(
    model: PreTrainedModel,
    batch: _Batch,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> None:
    """Decode until every row has ended or is full; ids and log-probabilities by row are then in the batch."""
    accepted = inspect.signature(model.forward).parameters
    batch.responses, batch.logprobs = {row: [] for row in batch.rows}, {row: [] for row in batch.rows}
    stops = torch.tensor(sorted(stop_ids), device=batch.tokens.device)
    for step in range(max_new_tokens):
        arguments: dict[str, Any] = {"input_ids": batch.tokens, "attention_mask": batch.mask}
        if "position_ids" in accepted:
            arguments["position_ids"] = batch.positions
        if "logits_to_keep" in accepted:
            arguments["logits_to_keep"] = 1
        output = model(**arguments, past_key_values=batch.cache, use_cache=True)
        logits = batch.spread(output.logits[:, -1])
        if batch.uniforms is None:
            chosen = logits.float().argmax(-1)
        else:
            probabilities = token_probabilities(logits, temperature, top_p)
            chosen = _draw(probabilities, batch.uniforms[:, step])
            drawn = probabilities.gather(-1, chosen[:, None]).squeeze(-1).log()
            for row, logprob in zip(batch.rows, drawn.tolist(), strict=True):
                batch.logprobs[row].append(logprob)
        for row, token in zip(batch.rows, chosen.tolist(), strict=True):
            batch.responses[row].append(token)
        alive = ~torch.isin(chosen, stops)
        batch.tokens = chosen[:, None]
        batch.positions = batch.positions[:, -1:] + 1
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.rows), 1)], dim=1)
        if not alive.all():
            batch.keep(alive)
        if not batch.rows:
            break


def _draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds the uniform number; never one of probability 0."""
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[:, -1]
    if not torch.isfinite(total).all():
        raise ModelError(
            "the model's logits are not finite, so nothing can be sampled",
            advice="if training made these weights, lower its learning_rate and run it again; else check the model",
        )
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1)


def _causal_lm(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside; LoRA layers live in its modules, so the adapters act on it as on the wrapper."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def _check_context(model: PreTrainedModel, prompt: int, new: int) -> None:
    """Rotary positions may run over (worse text, no crash); a learned position embedding has no row to read."""
    learned = any(name.rsplit(".", 1)[-1] in _LEARNED_POSITIONS for name, _ in model.named_modules())
    limit = getattr(model.config, "max_position_embeddings", None)
    if learned and limit is not None and prompt + new > limit:
        raise ModelError(
            f"the longest prompt has {prompt} tokens and {new} more are wanted, "
            f"but the model has only {limit} positions",
            advice=f"lower max_new_tokens to {max(limit - prompt, 0)} or less, or leave out prompts that are too long",
        )
