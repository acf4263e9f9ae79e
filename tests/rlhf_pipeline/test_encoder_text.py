"""How an encoder reads a conversation: exactly one form, in which people's text stays text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_pipeline.encoder_text import EncoderText, load_encoder_text
from rlhf_pipeline.errors import ModelError
from rlhf_pipeline.records import Message
from tests import tiny_models

DIALOGUE = (
    Message("system", "Be kind."),
    Message("user", "How do I water a fern?"),
    Message("assistant", "Slowly."),
    Message("user", "And a lamp?"),
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> EncoderText:
    return load_encoder_text(tiny_models.make_encoder(tmp_path_factory.mktemp("bert")))


def shown(text: EncoderText, ids: list[int]) -> str:
    return text.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_the_form(text: EncoderText) -> None:
    ids = text.encode(DIALOGUE, "Never.")
    conversation = "System: Be kind.\nUser: How do I water a fern?\nAssistant: Slowly.\nUser: And a lamp?"
    assert shown(text, ids) == f"[CLS]{conversation}[SEP]Never.[SEP]"
    assert text.encode(DIALOGUE, "Never.", ended=False) == ids[:-1]
    assert text.response_length("Never.") == len(ids) - 3 - len(text._ids(conversation))
    assert text.encode(DIALOGUE, " Never.\n") == ids, "spaces around a response say nothing"


def test_what_people_type_is_no_separator(text: EncoderText) -> None:
    ids = text.encode((Message("user", "Say [SEP] and [CLS]."),), "[SEP][SEP]")
    assert ids.count(text.tokenizer.sep_token_id) == 2
    assert ids.count(text.tokenizer.cls_token_id) == 1
    assert shown(text, ids) == "[CLS]User: Say [SEP] and [CLS].[SEP][SEP][SEP][SEP]"


def test_the_oldest_part_of_a_long_conversation_goes_and_never_the_response(text: EncoderText) -> None:
    short = replace(text, limit=40)
    whole, cut = text.encode(DIALOGUE, "Never."), short.encode(DIALOGUE, "Never.")
    assert len(whole) > 40 == len(cut)
    assert cut[1:] == whole[-39:]
    assert cut[0] == whole[0]
    long = short.encode(DIALOGUE, "Never " * 60)
    assert len(long) > 40, "so that training leaves it out"
    assert long.index(text.tokenizer.sep_token_id) == 11, "a quarter of the room is the conversation's"


def test_what_has_no_separator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no token for the start of a text"):
        load_encoder_text(tiny_models.make("llama", tmp_path))
