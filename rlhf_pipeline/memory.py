"""How much memory training will need: arithmetic from a model's shape, before anything is loaded.

Bytes per parameter: a frozen weight costs its own width; a trained float32 adapter costs 16 (weight, gradient and
Adam's two moments, each float32); full fine-tuning keeps float32 weights and costs the same 16.
NF4 costs 0.516 bytes: 4 bits and a quantised constant per 64 weights (Dettmers et al., 2305.14314, section 3).
What a Llama block keeps for the backward pass was counted tensor by tensor; :func:`ppo_bytes` is held to the peak
memory of real runs by a test.
"""

from __future__ import annotations

from dataclasses import dataclass

_NF4_BYTES = 4.127 / 8
_FLOAT32 = 4
_ADAM_BYTES = 12  # a gradient and two moments of every trained weight, float32
_CHUNK_TOKENS = 512  # of which the head's float32 logits exist at one time (logprobs.CHUNK_TOKENS)
GIB = 2**30
LIBRARIES = 0.40 * GIB
"""What a process with torch, transformers and peft takes on the CPU before there is a model; measured."""


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


@dataclass(frozen=True)
class PpoLoad:
    """What PPO has in memory at one time, for responses as long as is allowed."""

    rank: int
    """Of every adapter."""
    layers: int
    """That carry an adapter."""
    trained: int
    """Adapters that learn: the policy's, and the value's where it has one."""
    frozen: int
    """Adapters that do not: reference and reward."""
    prompt: int
    """Tokens of each prompt."""
    new: int
    """Tokens of each response."""
    sampled_rows: int
    """Responses sampled at the same time."""
    learned_rows: int
    """Responses in one forward pass of learning."""
    kept_rows: int
    """Responses of an iteration, for which the states below the adapters are kept where some layers have none."""
    checkpointing: bool


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
    return float(shape.parameters * (_FLOAT32 + _ADAM_BYTES))


def adapters_bytes(shape: Shape, *, rank: int, trained: int, frozen: int) -> float:
    """So many trained and frozen adapters of this rank."""
    each = adapter_parameters(shape, rank)
    return float(each * (trained * (_FLOAT32 + _ADAM_BYTES) + frozen * _FLOAT32))


def activation_bytes(shape: Shape, *, tokens: int, width: int, checkpointing: bool) -> float:
    """What a forward pass over ``tokens`` keeps for the backward pass, through PEFT's own layers.

    With checkpointing a block keeps only its input, and one whole block is there while it is recomputed. The head
    keeps float32 logits and their gradient, for every token.
    """
    block = block_bytes(shape, width)
    if width < _FLOAT32:  # PEFT keeps the inputs of the attention's and the MLP's adapters in float32 besides
        block += 2 * _FLOAT32 * shape.hidden
    kept = shape.layers * shape.hidden * width + block if checkpointing else shape.layers * block
    return float(tokens * (kept + 2 * shape.vocabulary * _FLOAT32))


def generation_bytes(shape: Shape, *, rows: int, prompt: int, new: int, width: int) -> float:
    """What sampling ``new`` tokens after ``prompt`` tokens takes for so many rows at once.

    The larger of its beginning, when all the prompts go through one block, and its end, when every token has its keys
    and values and the last one logits, their float32 probabilities, and the sums of these in float64.
    """
    beginning = cache_bytes(shape, tokens=prompt, width=width)
    beginning += prompt * 4 * (shape.hidden + shape.intermediate) * width
    end = cache_bytes(shape, tokens=prompt + new, width=width) + shape.vocabulary * (width + _FLOAT32 + 2 * 8)
    return rows * max(beginning, end)


def cache_bytes(shape: Shape, *, tokens: int, width: int) -> float:
    """Keys and values of so many tokens in every layer."""
    return float(tokens * 2 * shape.layers * shape.key_value * width)


def block_bytes(shape: Shape, width: int) -> int:
    """What one Llama block with a role's adapter keeps of one token for the backward pass.

    Four tensors of the hidden size (the inputs of the attention's and the MLP's adapters, queries and the attention's
    output), keys and values, and four of the intermediate size; the inputs of both norms are kept in float32.
    """
    own = 4 * shape.hidden + 2 * shape.key_value + 4 * shape.intermediate
    return own * width + 2 * _FLOAT32 * shape.hidden


def logits_bytes(shape: Shape, *, tokens: int, width: int) -> float:
    """Logits of so many response tokens, their gradient in chunks and in one, and a chunk of them in float32."""
    chunk = min(tokens, _CHUNK_TOKENS) * (_FLOAT32 if width == _FLOAT32 else 3 * _FLOAT32)
    return float(shape.vocabulary * (3 * tokens * width + chunk))


def ppo_bytes(shape: Shape, load: PpoLoad, *, width: int, four_bit: bool) -> dict[str, float]:
    """The most memory that PPO holds, by what it is for; ``sum`` is the whole.

    Sampling and learning take turns, so the sum has the larger of them: the KV cache with what ``sampling`` needs
    beside it, or activations with logits.
    """
    adapter = adapter_parameters(shape, load.rank) * load.layers / shape.layers
    tokens = load.learned_rows * (load.prompt + load.new)
    block = tokens * block_bytes(shape, width)
    logits = logits_bytes(shape, tokens=load.learned_rows * load.new, width=width)
    kept = load.kept_rows * (load.prompt + load.new) * shape.hidden * width if load.layers < shape.layers else 0
    if load.checkpointing:  # a block is computed again when the logits are gone
        activations = kept + load.layers * tokens * shape.hidden * width + max(block - logits, 0.0)
    else:
        activations = kept + load.layers * block
    sampling = generation_bytes(shape, rows=load.sampled_rows, prompt=load.prompt, new=load.new, width=width)
    cache = load.sampled_rows * cache_bytes(shape, tokens=load.prompt + load.new, width=width)
    parts = {
        "base": base_bytes(shape, width=width, four_bit=four_bit),
        "adapters": (load.trained + load.frozen) * adapter * _FLOAT32,
        "optimizer": load.trained * adapter * _ADAM_BYTES,
        "activations": float(activations),
        "logits": logits,
        "KV cache": cache,
        "sampling": sampling - cache,
    }
    always = parts["base"] + parts["adapters"] + parts["optimizer"]
    return parts | {"sum": always + max(activations + logits, sampling)}
