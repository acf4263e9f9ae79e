"""Random models and data on which PPO implementations are compared; started by ``ppo_peers.py``.

    python benchmarks/ppo_peer_models.py FOLDER

Writes ``25m-fixed``, ``25m-natural``, ``110m-fixed`` and ``110m-natural`` (Llama models, vocabulary 8192, tied
embeddings), each with a ``-reward`` twin for TRL, and the same prompts and preferences in each program's own format.
The weights decide how long responses get: in ``fixed`` the end token is never drawn, in ``natural`` with probability
1/24 each time.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

SIZES = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
    "25m": {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 1536},
    "110m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2688},
}
VOCABULARY = 8192
PROMPT = 32
END_PROBABILITY = {"fixed": 0.0, "natural": 1 / 24}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"]
PAD, END = 0, 2
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<|assistant|> {{ message.content }} </s>"
    "{% else %}<|user|> {{ message.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def main() -> None:
    """Write everything that is not there yet."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder)
    for size in SIZES:
        for lengths, probability in END_PROBABILITY.items():
            if not (folder / f"{size}-{lengths}-reward" / "config.json").exists():
                write_model(folder / f"{size}-{lengths}", SIZES[size], probability)


def write_model(path: Path, shape: dict[str, int], end_probability: float) -> None:
    """One random model and its twin with a score head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        num_key_value_heads=shape["num_attention_heads"],
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=END,
        **shape,
    )
    model = LlamaForCausalLM(config)
    settle_end(model, end_probability)
    model.save_pretrained(path)
    write_tokenizer(path)
    config.num_labels = 1
    scorer = LlamaForSequenceClassification(config)
    scorer.model.load_state_dict(model.model.state_dict())
    torch.nn.init.normal_(scorer.score.weight, std=0.05)
    scorer.save_pretrained(f"{path}-reward")
    write_tokenizer(Path(f"{path}-reward"))


@torch.no_grad()
def settle_end(model: LlamaForCausalLM, probability: float) -> None:
    """Make the end token as probable as is wanted, wherever it is asked for.

    One hidden unit is given the same large value by every token, so that it is nearly constant after the last norm;
    the end token alone has another weight on it in the (tied) head.
    """
    embeddings, norm = model.model.embed_tokens.weight, model.model.norm.weight
    embeddings[:, 0], norm[0] = 2.0, 0.01
    hidden = model.model(torch.randint(len(SPECIAL), VOCABULARY, (8, PROMPT))).last_hidden_state[..., 0].mean()
    wanted = math.log(VOCABULARY * probability / (1 - probability)) if probability else -40.0
    embeddings[END, 0] += wanted / hidden


def write_tokenizer(path: Path) -> None:
    """One token a word, in files that old and new transformers both read."""
    words = SPECIAL + [f"w{i}" for i in range(len(SPECIAL), VOCABULARY)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(path / "tokenizer.json"))
    roles = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
        "model_max_length": 2048,
        **roles,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def write_data(folder: Path) -> None:
    """Preferences between random words, for us and for LLaMA-Factory."""
    rng = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{rng.randrange(len(SPECIAL), VOCABULARY)}" for _ in range(count))

    ours, theirs = [], []
    for _ in range(256):
        prompt, chosen, rejected = words(PROMPT - 2), words(8), words(8)  # the template adds two tokens
        ours.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        theirs.append({"instruction": prompt, "input": "", "output": chosen, "chosen": chosen, "rejected": rejected})
    (folder / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ours))
    (folder / "alpaca.json").write_text(json.dumps(theirs))
    ranking = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    known = {
        "prompts": {"file_name": "alpaca.json"},
        "pairs": {"file_name": "alpaca.json", "ranking": True, "columns": ranking},
    }
    (folder / "dataset_info.json").write_text(json.dumps(known))


if __name__ == "__main__":
    main()
