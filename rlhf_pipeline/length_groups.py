"""The rows of a batch through a model in groups of like length, so that less of what is computed is padding.

Batches are drawn by lot, a reward model's and PPO's alike, and one side of a pair can be much shorter than the other.
Outputs and gradients are those of the whole batch, but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from rlhf_pipeline import processes

# A further pass costs calls, and reads the weights again: on one core up to as much as these tokens. In a small model
# its calls outweigh what padding costs as soon as a CPU is fast, so batches stay whole.
_TOKENS = 128
_SMALL = 5_000_000  # weights without embeddings


def length_groups(lengths: Sequence[int], least: int) -> list[list[int]]:
    """Divide rows, each group padded to its own longest, as long as that saves ``least`` tokens; shortest group first.

    Args:
        lengths: tokens of each row.
        least: tokens of padding that a division has to save.
    """
    return _divided(sorted(range(len(lengths)), key=lambda place: lengths[place]), lengths, least)


def _divided(order: list[int], lengths: Sequence[int], least: int) -> list[list[int]]:
    saved = [count * (lengths[order[-1]] - lengths[order[count - 1]]) for count in range(1, len(order))]
    if not saved or max(saved) < least:
        return [order]
    cut = saved.index(max(saved)) + 1
    return [*_divided(order[:cut], lengths, least), *_divided(order[cut:], lengths, least)]


def pass_cost(model: Any) -> int | None:
    """How many tokens of padding one more pass through this model has to save.

    None where rows stay together: where the model is small, on a GPU (where it was not measured), and in one of several
    processes (which make all passes together).
    """
    if (
        next(model.parameters()).device.type == "cpu"
        and processes.world() == 1
        and model.num_parameters(exclude_embeddings=True) >= _SMALL
    ):
        return _TOKENS
    return None


def groups_for(model: Any, lengths: Sequence[int]) -> list[list[int]]:
    """The groups in which rows of these lengths go through this model: one, in the order in which they came, where
    :func:`pass_cost` has no price."""
    least = pass_cost(model)
    return [list(range(len(lengths)))] if least is None else length_groups(lengths, least)


def classify(model: Any, input_ids: Tensor, attention_mask: Tensor, **given: Any) -> Any:
    """The model's outputs, with ``logits`` ``(rows, labels)``, in groups of like length where that is worth it.

    Args:
        input_ids: ``(rows, tokens)``, padded on the right; ``attention_mask`` is alike.
        given: further arguments of the model.
    """
    lengths: list[int] = attention_mask.sum(1).tolist()
    groups = groups_for(model, lengths)
    if len(groups) == 1:
        return model(input_ids=input_ids, attention_mask=attention_mask, **given)
    parts = []
    for group in groups:
        width = max(lengths[place] for place in group)
        part = model(input_ids=input_ids[group, :width], attention_mask=attention_mask[group, :width], **given)
        parts.append(part.logits)
    places = torch.tensor([place for group in groups for place in group])
    return SequenceClassifierOutput(logits=torch.cat(parts)[places.argsort()])
