"""How an encoder such as BERT reads a conversation: it has no chat template, so this is the one.

``[CLS] User: … ⏎ Assistant: … ⏎ User: … [SEP] the response [SEP]``, all of one segment, so that the ids alone say
everything and any loader of the model gives the same score. A response that was cut off has no last ``[SEP]``. Where
there is too little room the oldest part of the conversation goes, down to a quarter of the model's context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.errors import ModelError
from rlhf_pipeline.model_source import first_line, load_config, model_folder
from rlhf_pipeline.records import Message

_SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class EncoderText:
    """An encoder's tokenizer and its longest row in tokens."""

    tokenizer: PreTrainedTokenizerBase
    limit: int

    @property
    def pad_id(self) -> int:
        """What rows are padded with; attention masks leave it out."""
        return int(self.tokenizer.pad_token_id or 0)

    def encode(self, messages: Sequence[Message], response: str, *, ended: bool = True) -> list[int]:
        """Ids of a conversation with a response; longer than ``limit`` where the response alone leaves too little room.

        What people type cannot become a separator: ``[SEP]`` in a text is plain characters.
        """
        answer = self._ids(response)
        conversation = self._ids("\n".join(f"{_SPEAKERS[m.role]}: {m.content.strip()}" for m in messages))
        room = max(self.limit // 4, self.limit - len(answer) - 3)
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return [first, *conversation[-room:], last, *answer, *([last] if ended else [])]

    def response_length(self, response: str) -> int:
        """Tokens of a response."""
        return len(self._ids(response))

    def _ids(self, text: str) -> list[int]:
        ids = self.tokenizer(text.strip(), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(ids["input_ids"])


def load_encoder_text(model: ModelConfig) -> EncoderText:
    """The tokenizer of an encoder.

    Raises:
        ModelError: it cannot be loaded, or has no tokens for the start and between two texts.
    """
    where = f"model.name: {model.name}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_folder(model), trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise ModelError(
            f"its tokenizer cannot be loaded: {first_line(error)}", where=where, advice="fetch its files again"
        ) from None
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise ModelError(
            "the tokenizer has no token for the start of a text and between two ([CLS], [SEP])",
            where=where,
            advice="take an encoder such as BERT, RoBERTa or MiniLM",
        )
    config = load_config(model, encoders=True)
    # RoBERTa's positions begin after that of the pad token, so that its tokenizer knows the limit better.
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 512]
    return EncoderText(tokenizer, int(min(limits)))
