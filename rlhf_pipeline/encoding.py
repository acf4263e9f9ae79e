"""Records to token ids, with an account of every row: what was read, what fits, and what is too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rlhf_pipeline.encoder_text import EncoderText
from rlhf_pipeline.errors import DataError, ModelError
from rlhf_pipeline.records import Demonstration, Preference
from rlhf_pipeline.tokenization import ChatTokenizer

_NAMED_ROWS = 10

R = TypeVar("R", Demonstration, Preference)
Text = ChatTokenizer | EncoderText


@dataclass(frozen=True)
class EncodedDemonstration:
    """Ids of a prompt and of the response that follows it."""

    prompt: list[int]
    response: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class EncodedPair:
    """Ids of a prompt and of two responses to it; an encoder, which cuts each prompt for its response, has no prompt
    apart."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    def __len__(self) -> int:
        """Length of the longer sequence."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


E = TypeVar("E", EncodedDemonstration, EncodedPair)


@dataclass(frozen=True)
class Encoded(Generic[E]):
    """Rows that fit, and the account of those that do not."""

    rows: list[E]
    kept: list[int]
    """Position of each row among the records."""
    read: int
    overlong: int
    """Rows longer than the limit: left out, or cut where that was asked for."""
    longest: int
    """Tokens of the longest row before any was left out."""

    def account(self, what: str, limit: int, *, cut: bool = False) -> str:
        """One line for the terminal."""
        line = f"{len(self.rows):,} of {self.read:,} {what} used, longest {self.longest:,} tokens"
        if self.overlong:
            line += f"; {self.overlong:,} longer than {limit:,} tokens {'cut' if cut else 'left out'}"
        return line


def encode_demonstrations(
    chat: ChatTokenizer, demonstrations: Sequence[Demonstration], *, limit: int, cut: bool = False
) -> Encoded[EncodedDemonstration]:
    """Encode; rows above ``limit`` tokens are left out, or lose the end of their response with ``cut``.

    Raises:
        DataError: conversations that the template refuses, or no row that fits.
    """

    def encode(one: Demonstration) -> EncodedDemonstration:
        messages = one.prompt.messages
        return EncodedDemonstration(chat.encode_prompt(messages), chat.encode_response(messages, one.response))

    def shorten(row: EncodedDemonstration) -> EncodedDemonstration | None:
        room = limit - len(row.prompt)
        return EncodedDemonstration(row.prompt, row.response[:room]) if cut and room > 0 else None

    return _encode(demonstrations, encode, shorten, limit, "demonstrations")


def encode_pairs(chat: Text, preferences: Sequence[Preference], *, limit: int) -> Encoded[EncodedPair]:
    """Encode; a pair is left out when either side is above ``limit`` tokens, as cutting one would change the judgement.

    A response that was cut off when it was sampled has no end token: nobody shall learn to stop in mid-sentence.

    Raises:
        DataError: conversations that the template refuses, or no pair that fits.
    """

    def encode(one: Preference) -> EncodedPair:
        messages = one.prompt.messages
        if isinstance(chat, EncoderText):
            sides = ((one.chosen, one.chosen_cut), (one.rejected, one.rejected_cut))
            return EncodedPair([], *(chat.encode(messages, text, ended=not cut) for text, cut in sides))
        return EncodedPair(
            chat.encode_prompt(messages),
            chat.encode_response(messages, one.chosen, ended=not one.chosen_cut),
            chat.encode_response(messages, one.rejected, ended=not one.rejected_cut),
        )

    return _encode(preferences, encode, lambda _: None, limit, "preferences")


def _encode(
    records: Sequence[R], encode: Callable[[R], E], shorten: Callable[[E], E | None], limit: int, what: str
) -> Encoded[E]:
    rows: list[E] = []
    kept: list[int] = []
    refused: list[str] = []
    overlong = longest = 0
    for position, record in enumerate(records):
        try:
            row = encode(record)
        except ModelError as error:
            refused.append(f"{_opening(record)}: {error.what}")
            continue
        longest = max(longest, len(row))
        if len(row) > limit:
            overlong += 1
            shortened = shorten(row)
            if shortened is None:
                continue
            row = shortened
        rows.append(row)
        kept.append(position)
    if refused:
        more: list[str] = [f"… and {len(refused) - _NAMED_ROWS:,} more"] if len(refused) > _NAMED_ROWS else []
        raise DataError(
            f"{len(refused):,} of {len(records):,} {what} cannot be rendered by the chat template",
            details=[*refused[:_NAMED_ROWS], *more],
            advice="mend these conversations, or choose another template: model.chat_template: plain",
        )
    if not rows:
        raise DataError(
            f"none of the {len(records):,} {what} fits into {limit:,} tokens (the longest has {longest:,})",
            advice=f"raise max_length to {longest}, if the model's context allows it",
        )
    return Encoded(rows, kept, len(records), overlong, longest)


def _opening(record: Demonstration | Preference) -> str:
    text = " ".join(record.prompt.messages[-1].content.split())
    return repr(text[:60] + ("…" if len(text) > 60 else ""))
