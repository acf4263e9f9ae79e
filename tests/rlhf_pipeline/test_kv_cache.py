"""Room in the cache against transformers' own layers, which are concatenated with every token."""

from __future__ import annotations

import pytest
import transformers

from rlhf_pipeline import generation, kv_cache
from tests.rlhf_pipeline.test_generation import CONFIGS, PROMPTS, sample, tiny


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("room", [1, 5, 64])
def test_room_in_the_cache_changes_no_bit(architecture: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, lengths = tiny(architecture), []
    handle = model.register_forward_hook(lambda _m, _i, output: lengths.append(_room(output.past_key_values)))
    monkeypatch.setattr(kv_cache, "_ROOM", room)
    with_room = sample(model, PROMPTS * 2, max_new_tokens=20)
    assert max(lengths) <= 7 + 20  # no more than was asked for
    handle.remove()
    monkeypatch.setattr(generation, "decoding_cache", lambda config, _limit: transformers.DynamicCache(config=config))
    plain = sample(model, PROMPTS * 2, max_new_tokens=20)
    assert with_room == plain
    assert [r.logprobs for r in with_room] == [r.logprobs for r in plain]


def _room(cache: transformers.DynamicCache) -> int:
    """The most tokens that a layer's tensors have place for."""
    return max(layer.keys.untyped_storage().nbytes() // layer.keys[..., 0, :].nbytes for layer in cache.layers)
