"""How much memory training will need: arithmetic from a model's shape, before anything is loaded.

Bytes per parameter: a frozen weight costs its own width; a trained float32 adapter costs 16 (weight, gradient and
Adam's two moments, each float32); full fine-tuning keeps float32 weights and costs the same 16.
NF4 costs 0.516 bytes: 4 bits and a quantised constant per 64 weights (Dettmers et al., 2305.14314, section 3).
Activations are counted per token and layer, the head's logits per scored token; both are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass

_NF4_BYTES = 4.127 / 8
_TRAINED_ADAPTER_BYTES = 16
_FROZEN_ADAPTER_BYTES = 4
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """What the arithmetic needs of a model; sizes in numbers of weights or units."""

    parameters: int
    embedding_parameters: int
    linear_shapes: tuple[tuple[int, int], ...]
    """(in, out) of every linear layer that an adapter would sit on."""
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    key_value: int
    """Width of the keys of one token in one layer, which is that of its values too."""


def adapter_parameters(shape: Shape, rank: int) -> int:
    """Weights of one LoRA adapter on all linear layers: ``rank * (in + out)`` each (Hu et al., 2106.09685, 4.1)."""
    return sum(rank * (inputs + outputs) for inputs, outputs in shape.linear_shapes)


def base_bytes(shape: Shape, *, width: int, four_bit: bool) -> float:
    """The frozen base; embeddings are never quantised."""
    if not four_bit:
        return float(shape.parameters * width)
    return shape.embedding_parameters * width + (shape.parameters - shape.embedding_parameters) * _NF4_BYTES


def full_training_bytes(shape: Shape) -> float:
    """Weights, gradients and Adam's moments of full fine-tuning, each float32."""
    return float(shape.parameters * 16)


def adapters_bytes(shape: Shape, *, rank: int, trained: int, frozen: int) -> float:
    """So many trained and frozen adapters of this rank."""
    each = adapter_parameters(shape, rank)
    return float(each * (trained * _TRAINED_ADAPTER_BYTES + frozen * _FROZEN_ADAPTER_BYTES))


def activation_bytes(shape: Shape, *, tokens: int, width: int, checkpointing: bool) -> float:
    """What a forward pass over ``tokens`` keeps for the backward pass.

    A block keeps about ten tensors of the hidden size and four of the intermediate size per token; with checkpointing
    only its input, plus one whole block while it is recomputed. The head keeps float32 logits and their gradient.
    """
    block = _block_bytes(shape, width)
    kept = shape.layers * shape.hidden * width + block if checkpointing else shape.layers * block
    return float(tokens * (kept + 2 * shape.vocabulary * 4))


def generation_bytes(shape: Shape, *, rows: int, prompt: int, new: int, width: int) -> float:
    """What sampling ``new`` tokens after ``prompt`` tokens takes for so many rows at once, at its end.

    Every layer's keys and values; one block, through which all the prompts go; and of one token the logits, their
    float32 probabilities, and the sums of these in float64.
    """
    cache = (prompt + new) * 2 * shape.layers * shape.key_value * width
    return float(rows * (cache + prompt * _block_bytes(shape, width) + shape.vocabulary * (width + 4 + 2 * 8)))


def _block_bytes(shape: Shape, width: int) -> int:
    return (10 * shape.hidden + 4 * shape.intermediate) * width
