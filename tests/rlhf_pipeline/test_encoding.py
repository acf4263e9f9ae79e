"""Records become ids, and nothing leaves without being counted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rlhf_pipeline.encoding import encode_demonstrations, encode_pairs
from rlhf_pipeline.errors import DataError, ModelError
from rlhf_pipeline.records import Demonstration, Message, Preference, Prompt


class Letters:
    """A chat tokenizer with one id for each letter, 0 at the end of a response."""

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        if messages[0].content.startswith("!"):
            raise ModelError("the template refuses it")
        return [ord(letter) for letter in messages[-1].content]

    def encode_response(self, messages: Sequence[Message], response: str, *, ended: bool = True) -> list[int]:
        return [*(ord(letter) for letter in response), *([0] if ended else [])]


def demonstration(prompt: str, response: str) -> Demonstration:
    return Demonstration(Prompt((Message("user", prompt),)), response)


def preference(prompt: str, chosen: str, rejected: str) -> Preference:
    return Preference(Prompt((Message("user", prompt),)), chosen, rejected)


def test_overlong_demonstrations_are_left_out_and_counted() -> None:
    encoded = encode_demonstrations(Letters(), [demonstration("ab", "c"), demonstration("ab", "cdef")], limit=5)
    assert [(row.prompt, row.response) for row in encoded.rows] == [([97, 98], [99, 0])]
    assert (encoded.kept, encoded.read, encoded.overlong, encoded.longest) == ([0], 2, 1, 7)
    assert encoded.account("demonstrations", 5) == (
        "1 of 2 demonstrations used, longest 7 tokens; 1 longer than 5 tokens left out"
    )


def test_exactly_the_limit_fits() -> None:
    assert encode_demonstrations(Letters(), [demonstration("ab", "cd")], limit=5).overlong == 0


def test_cutting_takes_the_end_of_the_response_and_never_the_prompt() -> None:
    rows = [demonstration("ab", "cdef"), demonstration("abcdefg", "h")]
    encoded = encode_demonstrations(Letters(), rows, limit=5, cut=True)
    assert [(row.prompt, row.response) for row in encoded.rows] == [([97, 98], [99, 100, 101])]
    assert (encoded.kept, encoded.overlong) == ([0], 2)


def test_a_pair_is_as_long_as_its_longer_side_and_is_never_cut() -> None:
    encoded = encode_pairs(Letters(), [preference("a", "b", "bcde"), preference("a", "bc", "b")], limit=5)
    assert encoded.kept == [1]
    assert encoded.longest == 6
    assert len(encoded.rows[0]) == 4


def test_a_response_that_was_cut_off_has_no_end() -> None:
    pair = Preference(Prompt((Message("user", "a"),)), "b", "c", chosen_cut=True)
    other = Preference(Prompt((Message("user", "a"),)), "b", "c", rejected_cut=True)
    encoded = encode_pairs(Letters(), [pair, other], limit=10).rows
    assert [(row.chosen, row.rejected) for row in encoded] == [([98], [99, 0]), ([98, 0], [99])]


def test_refused_conversations_are_named_all_at_once() -> None:
    rows = [preference("fine", "a", "b"), *(preference(f"!bad {i}", "a", "b") for i in range(12))]
    with pytest.raises(DataError, match="12 of 13 preferences cannot be rendered") as caught:
        encode_pairs(Letters(), rows, limit=100)
    assert "'!bad 0': the template refuses it" in str(caught.value)
    assert "and 2 more" in str(caught.value)


def test_nothing_that_fits_is_an_error_with_the_length_needed() -> None:
    with pytest.raises(DataError, match="none of the 1 demonstrations fits into 2 tokens") as caught:
        encode_demonstrations(Letters(), [demonstration("abc", "d")], limit=2)
    assert "raise max_length to 5" in str(caught.value)
