"""Trains the pocket model: ``python -m rlhf_pipeline.pocket.make_pocket OUT``.

The shipped weights took three runs on one thread of a CPU, about 15 minutes each when nothing else runs on it:

    python -m rlhf_pipeline.pocket.make_pocket FIRST
    python -m rlhf_pipeline.pocket.make_pocket SECOND --start FIRST --seed 1
    python -m rlhf_pipeline.pocket.make_pocket OUT --start SECOND --seed 2

The same seed and torch version on the same kind of CPU give the same weights.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..records import Messages
from .grammar import corpus

VOCABULARY = 2048
BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT = 512
"""Longest conversation in tokens that the model is made for."""


def make_tokenizer(dialogues: Sequence[Messages]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: begin, end-of-turn, pad and role tokens are all different."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(text, special=True) for text in (PAD, BEGIN, END, *ROLES)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((message.content for turns in dialogues for message in turns), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of about a million parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def encode(tokenizer: PreTrainedTokenizerFast, dialogues: Sequence[Messages]) -> list[list[int]]:
    """Each dialogue as the chat template renders it, cut to :data:`CONTEXT` tokens."""
    begin, end = BEGIN, END
    texts = [begin + "".join(f"<|{message.role}|>{message.content}{end}" for message in turns) for turns in dialogues]
    rows: list[list[int]] = []
    for start in range(0, len(texts), 1000):  # all at once, the offsets and masks would take gigabytes
        rows += tokenizer(texts[start : start + 1000], add_special_tokens=False)["input_ids"]
    return [row[:CONTEXT] for row in rows]


def batches(rows: Sequence[list[int]], tokens: int, seed: int) -> Iterator[torch.Tensor]:
    """Rows of like length, padded with -1, about ``tokens`` in each batch ``(rows, longest)``, in random order."""
    rng = random.Random(seed)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), rng.random()))
    groups: list[list[int]] = [[]]
    for i in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(rows[i]) > tokens:
            groups.append([])
        groups[-1].append(i)
    rng.shuffle(groups)
    for group in groups:
        longest = max(len(rows[i]) for i in group)
        yield torch.tensor([rows[i] + [-1] * (longest - len(rows[i])) for i in group])


def train(model: LlamaForCausalLM, rows: Sequence[list[int]], *, epochs: int, tokens: int, rate: float) -> None:
    """Next-token training with AdamW and a cosine schedule; every token counts, people's words too.

    People's reactions to rude, wrong and endless answers teach the model what sets those apart.
    """
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    total = epochs * sum(1 for _ in batches(rows, tokens, 0))
    step, seen, start = 0, 0, time.monotonic()
    model.train()
    for epoch in range(epochs):
        for batch in batches(rows, tokens, epoch):
            progress = step / total
            warm = min(1.0, (step + 1) / 100)
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
            # Rows are padded on the right, where a causal model cannot see them: no attention mask is needed.
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch.clamp(min=0)).logits[:, :-1]
            targets = batch[:, 1:].reshape(-1)
            loss = F.cross_entropy(logits.reshape(len(targets), -1).float(), targets, ignore_index=-1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step, seen = step + 1, seen + int((targets >= 0).sum())
            if step % 100 == 0:
                speed = seen / (time.monotonic() - start)
                print(f"step {step}/{total} loss {loss.item():.3f} {speed:.0f} tokens/s", flush=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model, tokenizer and generation defaults; weights are stored in bfloat16 to keep the package small."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=96,
    )
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner can read


def main() -> None:
    """Make the corpus, the tokenizer and the model, and write them."""
    parser = argparse.ArgumentParser(description="Train the pocket model.")
    parser.add_argument("out", type=Path, help="folder for the model")
    parser.add_argument("--dialogues", type=int, default=100_000, help="size of the corpus")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another corpus and another model")
    parser.add_argument("--start", type=Path, help="a folder of an earlier run to continue from")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)  # the matrices are small: a second thread mostly waits
    dialogues = corpus(arguments.dialogues, arguments.seed)
    if arguments.start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.start)
        model = LlamaForCausalLM.from_pretrained(arguments.start, use_safetensors=True, dtype=torch.float32)
    else:
        tokenizer = make_tokenizer(dialogues[:20_000])
        model = make_model(tokenizer)
    rows = encode(tokenizer, dialogues)
    print(f"{len(rows)} dialogues, {sum(map(len, rows))} tokens, {model.num_parameters()} parameters", flush=True)
    train(model, rows, epochs=1, tokens=2048, rate=2e-3)
    save(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
