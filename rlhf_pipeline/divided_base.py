"""A frozen base whose layers are divided among the processes (FSDP2): each holds its part of every layer, and has a
layer whole only while it computes it.

Embeddings and head stay whole in every process, and so do adapters and heads of roles, which are added afterwards and
are ordinary tensors. A layer is put together by all processes at once, so all must run the model equally often:
:func:`in_step` sees to that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_pipeline import processes
from rlhf_pipeline.errors import ModelError


def divide_layers(model: PreTrainedModel, device: str) -> None:
    """Divide every layer's weights, which are frozen, among the processes; a process keeps its part on its device.

    Raises:
        ModelError: the architecture has no layers that can be told apart.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    mesh = init_device_mesh(device, (processes.world(),))
    for layer in layers:
        layer.requires_grad_(False)
        # Each layer by itself: a pass through the backbone alone, as for values and scores, has no other root.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    whole = [p for layer in layers for p in layer.parameters() if not isinstance(p, DTensor)]
    if not layers or whole:
        raise ModelError("this architecture's layers cannot be divided", advice="set run.launch.strategy: ddp")


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: a part of one that is divided, else the whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def in_step(model: nn.Module) -> Iterator[None]:
    """Inside, every process may run the model as often as it likes, without gradients: who has done waits at the end
    and runs it idly as long as another is at work. Where the base is not divided nothing is done.
    """
    if not processes.divides_base():
        yield
        return
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    backbone: nn.Module = inner.base_model
    handle = backbone.register_forward_pre_hook(lambda *_: _somebody_works(True) and None)
    try:
        yield
    finally:
        handle.remove()
    idle = torch.zeros(1, 1, dtype=torch.int64, device=inner.device)
    while _somebody_works(False):
        with torch.no_grad():
            backbone(input_ids=idle, use_cache=False)


def _somebody_works(this_one: bool) -> bool:
    return processes.add_up_numbers({"at work": float(this_one)})["at work"] > 0
