"""A key-value cache with room for the tokens to come.

transformers' own layers are concatenated with every new token: each step of decoding copies all keys and values, which
for 128 responses of 256 tokens is more memory traffic than reading the model's weights. These write the new token into
its place and copy only when the room is used up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

_ROOM = 64
"""Tokens that can follow before everything is copied into more room."""


def decoding_cache(config: PretrainedConfig, limit: int) -> DynamicCache:
    """An empty cache for a model with this configuration.

    Layers that transformers would let grow by concatenation have room; others (sliding windows) stay as they are.

    Args:
        limit: tokens that there will be at most, prompt and response.
    """
    cache = DynamicCache(config=config)
    cache.layers = [_RoomyLayer(limit) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _RoomyLayer(DynamicLayer):
    """One layer's keys and values, ``(batch, heads, length, head_dim)``: views of larger tensors."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms = (key_states[..., :0, :], value_states[..., :0, :])
        start, end = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        if end > self._rooms[0].shape[-2]:
            tokens = max(end, min(end + _ROOM, self._limit))
            self._rooms = (_larger(self._rooms[0], start, tokens), _larger(self._rooms[1], start, tokens))
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., start:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self._rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        if (length := self.get_seq_length()) > 0:
            self._rooms = (self._rooms[0][indices], self._rooms[1][indices])
            self.keys, self.values = (room[..., :length, :] for room in self._rooms)


def _larger(room: Tensor, used: int, tokens: int) -> Tensor:
    """The same first ``used`` tokens, with place for ``tokens``."""
    batch, heads, _, width = room.shape
    larger = torch.empty((batch, heads, tokens, width), dtype=room.dtype, device=room.device)
    larger[..., :used, :] = room[..., :used, :]
    return larger
