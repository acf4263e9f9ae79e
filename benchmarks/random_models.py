"""Models with random weights, as the stages read or hold them: for benchmarks in which only their shape counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<|assistant|> {{ message.content }} </s>"
    "{% else %}<|user|> {{ message.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPES = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 8192, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}  # fmt: skip


def write_model(folder: Path, size: str) -> None:
    """Configuration and tokenizer of a model, whose file of weights is empty: it is made on the device instead."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    folder.mkdir()
    write_tokenizer(folder)
    save_file({}, folder / "model.safetensors")
    LlamaConfig(**SHAPES[size], max_position_embeddings=8192, architectures=["LlamaForCausalLM"],
                bos_token_id=1, eos_token_id=2, pad_token_id=0).save_pretrained(folder)  # fmt: skip


def write_tokenizer(path: Path) -> None:
    """One token a word, so that prompts have a length that is known."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = SPECIAL + [f"w{i}" for i in range(len(SPECIAL), 8192)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(path / "tokenizer.json"))
    roles = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **roles}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


@torch.no_grad()
def make_base(size: str, base: str, where: str) -> Any:
    """A Llama with random weights, made on the device; ``nf4`` quantises each linear layer as it comes."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**SHAPES[size], max_position_embeddings=8192, pad_token_id=0)
    torch.manual_seed(0)
    if base == "bfloat16":
        with torch.device(where):
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    from bitsandbytes.nn import Linear4bit, Params4bit

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or module is head:
            continue
        four_bit = Linear4bit(
            module.in_features,
            module.out_features,
            bias=False,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            device="meta",
        )
        weight = torch.randn(module.out_features, module.in_features, device=where, dtype=torch.bfloat16) * 0.02
        four_bit.weight = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4").to(where)
        model.set_submodule(name, four_bit)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            owner, _, leaf = name.rpartition(".")
            made = torch.empty(parameter.shape, device=where, dtype=torch.bfloat16)
            made.fill_(1.0) if made.ndim == 1 else made.normal_(std=0.02)
            setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(made, requires_grad=False))
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(where)
    model.is_loaded_in_4bit = True
    return model.eval()


def write_adapter(folder: Path, model: Any, with_head: bool) -> None:
    """A random adapter on every linear layer, as PEFT stores it; with a score head it is a reward model."""
    from safetensors.torch import save_file

    from rlhf_pipeline.config import LoraSection
    from rlhf_pipeline.models import SCORE_KEY, lora_config

    lora = LoraSection()
    head = model.get_output_embeddings()
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            key = f"base_model.model.{name}"
            state[f"{key}.lora_A.weight"] = torch.randn(lora.rank, module.in_features) * module.in_features**-0.5
            state[f"{key}.lora_B.weight"] = torch.randn(module.out_features, lora.rank) * 1e-3
    if with_head:
        state[SCORE_KEY] = torch.randn(1, model.config.hidden_size) * 0.05
    config = lora_config(lora, model, task="SEQ_CLS" if with_head else "CAUSAL_LM")
    config.target_modules = sorted({key.split(".lora_")[0].rsplit(".", 1)[-1] for key in state if "lora_" in key})
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_file(state, folder / "adapter_model.safetensors")
