"""The shipped weights, and the script that made them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_pipeline.pocket import FOLDER
from rlhf_pipeline.pocket.grammar import corpus, prompts
from rlhf_pipeline.pocket.judge import read
from rlhf_pipeline.pocket.make_pocket import batches, encode, make_model, make_tokenizer, train
from rlhf_pipeline.records import Message, Messages


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    return AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=True, dtype=torch.float32)


def test_a_million_parameters_in_a_small_package(model) -> None:  # type: ignore[no-untyped-def]
    assert 0.8e6 < model.num_parameters() < 1.3e6
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3e6
    assert not [path for path in FOLDER.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_begin_end_and_pad_are_three_tokens(tokenizer, model) -> None:  # type: ignore[no-untyped-def]
    ids = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert len(ids) == 3
    assert None not in ids
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_every_turn_ends_with_the_end_of_turn_token_and_nothing_after_it(tokenizer) -> None:  # type: ignore[no-untyped-def]
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Good question!"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == ("<|begin|><|system|>Be kind.<|end|><|user|>Hello!<|end|><|assistant|>Good question!<|end|>")
    prompt = tokenizer.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)
    assert prompt.endswith("<|assistant|>")
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    assert whole.count(tokenizer.eos_token_id) == 3
    assert whole[-1] == tokenizer.eos_token_id
    assert whole[0] == tokenizer.bos_token_id
    assert whole.count(tokenizer.bos_token_id) == 1


def test_any_text_survives_the_tokenizer(tokenizer) -> None:  # type: ignore[no-untyped-def]
    for text in ("Why does dough rise?", "  Grüße, 東京 🙂\n\ttab", "a<b & c>d"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_encoding_the_corpus_is_what_the_chat_template_renders(tokenizer) -> None:  # type: ignore[no-untyped-def]
    dialogues = corpus(20, 3)
    rendered = [
        tokenizer.apply_chat_template([m.to_json() for m in turns], return_dict=False)[:512] for turns in dialogues
    ]
    assert encode(tokenizer, dialogues) == rendered


def test_the_shipped_model_speaks_what_the_judge_can_read(tokenizer, model) -> None:  # type: ignore[no-untyped-def]
    asked = prompts(48, seed=77)
    rows = [
        tokenizer.apply_chat_template([m.to_json() for m in p.messages], add_generation_prompt=True, return_dict=False)
        for p in asked
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows])
    torch.manual_seed(0)
    out = model.generate(
        input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), max_new_tokens=96, do_sample=True, top_k=0
    )[:, longest:]
    ended = [tokenizer.eos_token_id in row for row in out.tolist()]
    texts = tokenizer.batch_decode(out, skip_special_tokens=True)
    readings = [read(p.messages, text, end) for p, text, end in zip(asked, texts, ended, strict=True)]
    assert sum(ended) >= 36
    assert sum(reading is not None for reading in readings) >= 44
    contents = {reading.attributes.content for reading in readings if reading is not None}
    assert {"right", "wrong"} <= contents, "good and bad responses, so that there is something to prefer"


def test_batches_hold_every_row_once_and_pad_on_the_right() -> None:
    rows = [[1] * n for n in (3, 9, 4, 4, 8, 2)]
    found = list(batches(rows, tokens=16, seed=0))
    assert sorted(int((row >= 0).sum()) for batch in found for row in batch) == [2, 3, 4, 4, 8, 9]
    assert all(batch.numel() <= 16 for batch in found)
    assert all((row[: int((row >= 0).sum())] == 1).all() for batch in found for row in batch)


def test_training_is_the_same_for_the_same_seed_and_lowers_the_loss() -> None:
    dialogues: list[Messages] = [*corpus(6, 0), (Message("user", "Hello!"),)]
    tokenizer = make_tokenizer(dialogues)
    rows = encode(tokenizer, dialogues)

    def trained() -> tuple[torch.Tensor, float, float]:
        torch.manual_seed(0)
        model = make_model(tokenizer)
        ids = torch.tensor([rows[0]])
        with torch.no_grad():
            before = float(model(ids, labels=ids).loss)
        train(model, rows, epochs=2, tokens=128, rate=1e-2)
        with torch.no_grad():
            return model.lm_head.weight.detach().clone(), before, float(model(ids, labels=ids).loss)

    first, before, after = trained()
    assert torch.equal(first, trained()[0])
    assert after < before - 0.2
