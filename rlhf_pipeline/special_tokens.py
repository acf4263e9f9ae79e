"""Tokens with a meaning of their own: which end a turn, which can pad, and what identifies a vocabulary."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from rlhf_pipeline.errors import ModelError

# Words that mark a special token as meant for padding or for nothing.
_SPARE = re.compile(r"pad|reserved|unused|extra_id|placeholder", re.IGNORECASE)
# Bytes that valid UTF-8 never contains, as byte-level BPE and as byte-fallback vocabularies spell them.
_IMPOSSIBLE_BYTES = [*(chr(byte) for byte in (0xFF, 0xFE, 0xC0, 0xC1)), *(f"<0x{b:02X}>" for b in (0xFF, 0xFE, 0xC0))]
_STRANGE_TEXT = "\u0378 \ufffe 漢 \U0010fffd ☃ \x01 ÿþÀÁ Ω"


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text, without anything added around it."""
    return list(tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"])


def text_of(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """What one token decodes to."""
    return str(tokenizer.decode([token]))


def declared_ends(tokenizer: PreTrainedTokenizerBase, folder: Path) -> set[int]:
    """The end tokens that the tokenizer and the model's ``generation_config.json`` name."""
    ends = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    try:
        declared = GenerationConfig.from_pretrained(folder).eos_token_id
    except (OSError, ValueError, TypeError):
        declared = None  # the file is optional
    return ends | set(declared if isinstance(declared, list) else [declared] if declared is not None else [])


def choose_pad(tokenizer: PreTrainedTokenizerBase, end_id: int, stop_ids: frozenset[int], where: str) -> int:
    """An id that no text and no stop uses; the embedding table is never resized for it.

    Raises:
        ModelError: there is none.
    """
    vocabulary = tokenizer.get_vocab()
    possible = set(ids_of(tokenizer, _STRANGE_TEXT)) | stop_ids
    if tokenizer.bos_token_id is not None:
        possible.add(tokenizer.bos_token_id)
    special = [token for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    names = [
        tokenizer.pad_token,
        *(token.content for token in special if _SPARE.search(token.content)),
        tokenizer.unk_token,
        *_IMPOSSIBLE_BYTES,
    ]
    for name in names:
        found = vocabulary.get(name) if name else None
        if found is not None and found not in possible and not _is_plain_text(tokenizer, found):
            return found
    own = vocabulary.get(tokenizer.pad_token) if tokenizer.pad_token else None
    if own is not None and own != end_id:
        return own  # it may be in the stop set (Qwen3 declares its pad token as a second end)
    raise ModelError(
        "the tokenizer has no token that could serve as padding: its pad token ends a turn, and no spare one is there",
        where=where,
        advice="add a pad token to the tokenizer and an embedding for it to the model, and give that folder",
    )


def _is_plain_text(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Text may contain the token (the text of special ones is encoded literally, so it may not)."""
    added = tokenizer.added_tokens_decoder.get(token)
    if added is not None and added.special:
        return False
    return ids_of(tokenizer, text_of(tokenizer, token)) == [token]


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of what decides ids; not of what loading and saving change (truncation, padding, post-processing)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    else:
        whole = json.loads(backend.to_str())
        content = {key: whole.get(key) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer", "decoder")}
    text = json.dumps([content, tokenizer.bos_token, tokenizer.eos_token], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
