"""Training and held-out sides: by dialogue, so that no prompt, and no later turn of one, is on both."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rlhf_pipeline.errors import DataError
from rlhf_pipeline.records import Demonstration, Preference, Prompt

T = TypeVar("T", Prompt, Demonstration, Preference)
_RANGE = 2**53  # the largest range in which a float names every integer


def dialogue_key(prompt: Prompt) -> str:
    """What a dialogue is known by: its first user turn, whatever its case, spacing, system message or later turns."""
    first = next(message.content for message in prompt.messages if message.role == "user")
    text = " ".join(first.casefold().split())
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def is_held_out(key: str, *, seed: int, fraction: float) -> bool:
    """Whether a dialogue is held out: by its key and the seed alone, so every data set agrees about it."""
    return _place(key, seed) < fraction * _RANGE


@dataclass(frozen=True, slots=True)
class Split:
    """A rule that puts each dialogue on one side; one rule serves prompts, demonstrations and preferences."""

    seed: int
    below: float
    """Dialogues whose place (0 to 1) is below this are held out."""
    spared: frozenset[str] = frozenset()
    """Dialogues below it that train all the same: with them the wanted number would be exceeded."""

    def is_held_out(self, prompt: Prompt) -> bool:
        key = dialogue_key(prompt)
        return key not in self.spared and is_held_out(key, seed=self.seed, fraction=self.below)

    def divide(self, items: Iterable[T]) -> tuple[list[T], list[T]]:
        """``(train, held_out)``, each in the order given."""
        train: list[T] = []
        held_out: list[T] = []
        for item in items:
            prompt = item if isinstance(item, Prompt) else item.prompt
            (held_out if self.is_held_out(prompt) else train).append(item)
        return train, held_out


def make_split(held_out: float, *, seed: int, prompts: Sequence[Prompt] = ()) -> Split:
    """The rule for a fraction below 1, or for an exact number of the given prompts.

    A number is met by taking whole dialogues in the order of their hashes and sparing those that would exceed it
    (where dialogues of several prompts leave no way to meet it, the held-out side is the next smaller one).

    Raises:
        DataError: when the number leaves nothing to train on.
    """
    if held_out < 1:
        return Split(seed, held_out)
    wanted = int(held_out)
    sizes = Counter(dialogue_key(prompt) for prompt in set(prompts))
    if wanted >= sizes.total():
        raise DataError(
            f"{wanted} prompts are to be held out, but there are only {sizes.total()}",
            where="data.held_out",
            advice="hold out fewer, a fraction such as 0.1, or give more prompts",
        )
    taken, spared, below = 0, [], 0
    for key in sorted(sizes, key=lambda key: _place(key, seed)):
        if taken == wanted:
            break
        if taken + sizes[key] > wanted:
            spared.append(key)
            continue
        taken += sizes[key]
        below = _place(key, seed) + 1
    return Split(seed, below / _RANGE, frozenset(spared))


def split_by_prompt(items: Sequence[T], *, held_out: float, seed: int) -> tuple[list[T], list[T]]:
    """``(train, held_out)`` of one data set; a number counts its distinct prompts."""
    prompts = [item if isinstance(item, Prompt) else item.prompt for item in items]
    return make_split(held_out, seed=seed, prompts=prompts).divide(items)


def _place(key: str, seed: int) -> int:
    """Where a dialogue stands in an order that is random in the seed: 0 to 2^53 - 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") >> 11
