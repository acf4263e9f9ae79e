"""The decoder's lower layers: where no role has an adapter they give every role the same states, which are kept.

Adapters on the uppermost layers (``lora.top_layers``) leave the layers below them frozen and the same for policy,
reference, reward and value (trlX's hydra heads are this idea with copied layers). Their output is computed once, and
every later pass over the same tokens, each role's in each epoch, starts from it: the log-probabilities and gradients
are those of the whole model, from less work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from rlhf_pipeline.errors import ConfigError, ModelError

_EXACT = 1e-4
"""How far states may be apart, relative to the largest: rounding of float32; bfloat16 is exact on a CPU."""


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's layers, the lowest first.

    Raises:
        ModelError: the architecture is not one stack of layers.
    """
    count = model.config.get_text_config().num_hidden_layers
    stacks = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in module)
    ]
    if len(stacks) != 1:
        raise ModelError(
            f"{type(model).__name__} is not one stack of {count} decoder layers, so the uppermost cannot be told",
            where="lora.top_layers",
            advice="leave it out",
        )
    return stacks[0]


def top_linear_layers(model: PreTrainedModel, count: int, targets: Literal["all-linear"] | list[str]) -> list[str]:
    """The full names of the linear layers in the uppermost decoder layers that are to carry an adapter.

    Args:
        targets: every linear layer, or those whose names end in one of these.

    Raises:
        ConfigError: the model has fewer layers.
    """
    layers = decoder_layers(model)
    if count > len(layers):
        raise ConfigError(f"the model has only {len(layers)} layers", where="lora.top_layers", advice="lower it")
    top = {id(module) for layer in layers[-count:] for module in layer.modules()}
    # A layer that has an adapter already is PEFT's own around a linear one.
    linear = [n for n, m in model.named_modules() if id(m) in top and isinstance(m, nn.Linear | Conv1D | LoraLayer)]
    if targets != "all-linear":
        return [name for name in linear if name.endswith(tuple(f".{target}" for target in targets))]
    return [name for name in linear if ".lora_" not in name and not name.endswith(".base_layer")]


class Trunk:
    """The layers that every role shares, from the lowest up to the first that carries an adapter."""

    def __init__(self, base: PreTrainedModel, depth: int) -> None:
        """Prove that the layers above read nothing of those below but their last state.

        Args:
            depth: how many layers are shared, at least 1.

        Raises:
            ModelError: they read more, as in architectures whose layers share keys and values.
        """
        layers = decoder_layers(base)
        self.depth = depth
        self._base, self._lower, self._upper = base, layers[:depth], layers[depth:]
        self._in_tuple = False  # some architectures' layers return (state, …)
        probe = torch.arange(min(8, base.config.get_text_config().vocab_size), device=base.device)[None]
        with torch.no_grad():
            whole = self._run(probe)
            with self.skipped(self.states(probe)):
                short = self._run(probe)
        if not (whole - short).abs().max() <= _EXACT * whole.abs().max():
            raise ModelError(
                f"the upper layers of {type(base).__name__} read more than the last state of the lower ones",
                where="lora.top_layers",
            )

    @torch.no_grad()
    def states(self, ids: Tensor) -> Tensor:
        """What the first adapted layer reads: ``(batch, length)`` → ``(batch, length, hidden)``."""
        outputs: list[Any] = []
        handle = self._lower[-1].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            with _standing_in(self._upper, lambda *_, **__: outputs[0]):
                self._run(ids)
        finally:
            handle.remove()
        self._in_tuple = isinstance(outputs[0], tuple)
        return cast(Tensor, outputs[0][0] if self._in_tuple else outputs[0])

    @contextmanager
    def skipped(self, states: Tensor) -> Iterator[None]:
        """Passes in here start from these states, ``(batch, length, hidden)``, instead of running the lower layers."""
        output = (states,) if self._in_tuple else states
        with _standing_in(self._lower, lambda *_, **__: output):
            yield

    def _run(self, ids: Tensor) -> Tensor:
        return cast(Tensor, cast(Any, self._base.base_model)(input_ids=ids, use_cache=False).last_hidden_state)


@dataclass(frozen=True)
class TrunkStates:
    """The states of some rows, padded on the right: ``(batch, length, hidden)``."""

    trunk: Trunk
    states: Tensor


@dataclass(frozen=True)
class KeptStates:
    """The states of all rows of a rollout, ``(length, hidden)`` each, in the base's precision."""

    trunk: Trunk
    rows: list[Tensor]

    def batch(self, rows: Sequence[int]) -> TrunkStates:
        """Those of these rows. Zeros stand for pads, which no real token of a causal model sees."""
        return TrunkStates(self.trunk, pad_sequence([self.rows[i] for i in rows], batch_first=True))


@contextmanager
def _standing_in(layers: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Let a function answer for these layers."""
    for layer in layers:
        layer.forward = forward  # on the instance: its class, hooks and parameters stay as they are
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
