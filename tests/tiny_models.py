"""Tiny random models of six families with their tokenizers' oddities, written as ordinary model folders.

Each is made by transformers' own classes and read back by the program's own loading code:

- llama:   BOS, byte fallback, ``<|eot_id|>``, a reserved token for padding, a second end in generation_config
- qwen3:   ChatML ending with ``<|im_end|>\\n``, thinking switch, tied embeddings, pad token that is also a stop
- mistral: SentencePiece-like prefix space, ``[INST]``, sliding window, no pad token
- mixtral: the same tokenizer, mixture of experts
- gemma:   refuses system turns, calls the assistant "model", scaled and tied embeddings, a pad token of its own
- gpt2:    learned positions, tied embeddings, no template, no pad, one special token for everything
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GemmaConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from rlhf_pipeline.config import ModelConfig

FAMILIES = ("llama", "qwen3", "mistral", "mixtral", "gemma", "gpt2")

_TEXT = [
    "How do I water the plants in my garden? Water them early in the morning, slowly, at the roots.",
    "Why is the sky blue? Because air scatters blue light more than red light.",
    "Thank you very much, that was helpful! You are welcome. What else can I do for you today?",
    "User: hello\n\nAssistant: hello there, my friend.\n\nYou are a helpful assistant.",
] * 4

LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'assistant') != (loop.index0 % 2 == 1) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def make(family: str, folder: Path, *, seed: int = 0) -> ModelConfig:
    """Write a tiny model of a family into a folder; returns the ``model`` section that a user would write for it."""
    tokenizer = _TOKENIZERS[family]()
    config = _config(family, len(tokenizer))
    torch.manual_seed(seed)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    stops: dict[str, Any] = {"llama": [1, 2], "qwen3": [1, 0], "gemma": [1, 5]}
    model.generation_config = GenerationConfig(eos_token_id=stops.get(family, [tokenizer.eos_token_id]))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings: dict[str, Any] = {"gpt2": {"chat_template": "plain"}}
    settings["qwen3"] = {"template_arguments": {"enable_thinking": False}}
    return ModelConfig(name=str(folder), **settings.get(family, {}))


def make_encoder(folder: Path, *, kind: str = "bert", seed: int = 0) -> ModelConfig:
    """A tiny encoder, as a checkpoint of pre-training is: without a classification head (and DistilBERT: no pooler)."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(special), model_max_length=128, **dict(zip(names, special, strict=True))
    )
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 128}
    torch.manual_seed(seed)
    if kind == "bert":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        model: Any = BertModel(BertConfig(**shape, **sizes))
    else:
        model = DistilBertModel(DistilBertConfig(**shape, dim=32, hidden_dim=48, n_layers=2, n_heads=4))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelConfig(name=str(folder))


def _config(family: str, vocabulary: int) -> PretrainedConfig:
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    if family == "llama":
        return LlamaConfig(**shape, bos_token_id=0, eos_token_id=2)
    if family == "qwen3":
        return Qwen3Config(**shape, head_dim=8, tie_word_embeddings=True, eos_token_id=1)
    if family == "mistral":
        return MistralConfig(**shape, sliding_window=24, bos_token_id=1, eos_token_id=2)
    if family == "mixtral":
        return MixtralConfig(**shape, num_local_experts=4, num_experts_per_tok=2, bos_token_id=1, eos_token_id=2)
    if family == "gemma":
        return GemmaConfig(**shape, head_dim=8, bos_token_id=2, eos_token_id=1, pad_token_id=0)
    return GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0
    )


def _byte_level(special: list[str], size: int = 420) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _TEXT, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    )
    return tokenizer


def _sentencepiece_like(special: list[str]) -> Tokenizer:
    """A space becomes ▁, one stands before every text, and unknown characters fall back to bytes."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(_TEXT, trainers.BpeTrainer(vocab_size=420, special_tokens=pieces))
    vocabulary = trained.get_vocab()
    merges = [tuple(m) for m in json.loads(trained.to_str())["model"]["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return tokenizer


def _with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def _llama() -> PreTrainedTokenizerFast:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    backend = _with_bos(_byte_level([*special, "<|reserved_special_token_0|>"]), "<|begin_of_text|>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    tokenizer.chat_template = LLAMA_TEMPLATE
    return tokenizer


def _qwen3() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|vision_pad|>"]
    backend = _byte_level(special)
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML_TEMPLATE
    return tokenizer


def _mistral() -> PreTrainedTokenizerFast:
    backend = _with_bos(_sentencepiece_like(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]), "<s>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = MISTRAL_TEMPLATE
    return tokenizer


def _gemma() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    backend = _with_bos(_sentencepiece_like(special), "<bos>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
    )
    tokenizer.chat_template = GEMMA_TEMPLATE
    return tokenizer


def _gpt2() -> PreTrainedTokenizerFast:
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=_byte_level([end]), bos_token=end, eos_token=end, unk_token=end)


_TOKENIZERS = {
    "llama": _llama,
    "qwen3": _qwen3,
    "mistral": _mistral,
    "mixtral": _mistral,
    "gemma": _gemma,
    "gpt2": _gpt2,
}
