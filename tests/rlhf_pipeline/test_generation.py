"""The decode loop against ``model.generate`` on six architectures, and what must not change a response."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from rlhf_pipeline.errors import ModelError
from rlhf_pipeline.generation import Sampled, generate, token_probabilities

VOCABULARY, PAD = 40, 0
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [3, 4], [20, 21, 22, 23]]
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**SHAPE, sliding_window=5),
    "mixtral": lambda: transformers.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "gemma": lambda: transformers.GemmaConfig(**SHAPE, head_dim=8),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.3,
        pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip


def tiny(architecture: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture]()).eval()


def sample(model: torch.nn.Module, prompts=PROMPTS, **changes) -> list[Sampled]:
    arguments = {"stop_ids": frozenset({2}), "pad_id": PAD, "max_new_tokens": 12, "temperature": 1.0, "seed": 7}
    return generate(model, prompts, **(arguments | changes))


def reference_greedy(model: transformers.PreTrainedModel, prompt: list[int], stops: list[int], new: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, eos_token_id=stops,
        pad_token_id=PAD,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_greedy_equals_transformers(architecture: str) -> None:
    model = tiny(architecture)
    free = sample(model, temperature=0, stop_ids=frozenset({VOCABULARY}))  # a stop id that cannot come
    assert [r.ids for r in free] == [reference_greedy(model, p, [VOCABULARY], 12) for p in PROMPTS]
    assert not any(r.ended for r in free)
    stops = {free[0].ids[3], free[2].ids[6]}  # rows now end at different steps and leave the batch
    ours = sample(model, temperature=0, stop_ids=frozenset(stops))
    assert [r.ids for r in ours] == [reference_greedy(model, p, sorted(stops), 12) for p in PROMPTS]
    assert [r.ended for r in ours] == [r.ids[-1] in stops for r in ours]
    assert len({len(r.ids) for r in ours}) > 1


@pytest.mark.parametrize("architecture", CONFIGS)
def test_batch_size_changes_nothing(architecture: str) -> None:
    model = tiny(architecture)
    if architecture != "mixtral":  # whose experts torch multiplies in float32 at most
        model = model.double()  # so that rounding cannot decide a draw
    together = sample(model, PROMPTS * 3)
    assert together == sample(model, PROMPTS * 3, batch_size=4) == sample(model, PROMPTS * 3, batch_size=1)
    assert together[:5] != together[5:10]  # same prompts, other rows, other random numbers
    assert together != sample(model, PROMPTS * 3, seed=8)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_prompt_of_several_rows_is_read_once(architecture: str) -> None:
    model = tiny(architecture)
    if architecture != "mixtral":
        model = model.double()
    repeated = [p for p in PROMPTS for _ in range(3)]
    alone = sample(model, repeated, batch_size=1)
    read: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _m, inputs, _o: read.append(inputs[0].numel()))
    assert sample(model, repeated) == alone
    assert read[0] == len(PROMPTS) * max(map(len, PROMPTS))  # and later one token for each row that goes on
    assert read[1] <= len(repeated)
    handle.remove()
    assert len({tuple(r.ids) for r in alone[:3]}) > 1  # each row has its own random numbers
    assert sample(model, repeated, temperature=0)[::3] == sample(model, temperature=0)


def test_the_active_adapter_samples() -> None:
    model = tiny("llama")
    plain = sample(model, temperature=0)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    with_adapter = sample(peft, temperature=0)
    assert with_adapter != plain
    with peft.disable_adapter():
        assert sample(peft, temperature=0) == plain


def test_samples_follow_the_softmax_at_the_temperature() -> None:
    model, count = tiny("llama"), 4000
    drawn = sample(model, [[5, 6]] * count, max_new_tokens=1, temperature=1.7, batch_size=2000)
    frequency = torch.bincount(torch.tensor([r.ids[0] for r in drawn]), minlength=VOCABULARY).double() / count
    expected = torch.softmax(model(torch.tensor([[5, 6]])).logits[0, -1].double() / 1.7, -1)
    z = (frequency - expected) / (expected * (1 - expected) / count).sqrt()
    assert z.abs().max() < 4.5


def test_nucleus_by_hand() -> None:
    logits = torch.tensor([0.1, 0.5, 0.4]).log()
    assert token_probabilities(logits, 1.0).tolist() == pytest.approx([0.1, 0.5, 0.4])
    assert token_probabilities(logits, 1.0, top_p=0.4).tolist() == pytest.approx([0, 1, 0])
    assert token_probabilities(logits, 1.0, top_p=0.6).tolist() == pytest.approx([0, 5 / 9, 4 / 9])
    assert token_probabilities(logits, 0.5).tolist() == pytest.approx([0.01 / 0.42, 0.25 / 0.42, 0.16 / 0.42])


def test_nucleus_is_never_left() -> None:
    model = tiny("llama")
    allowed = token_probabilities(model(torch.tensor([[5, 6]])).logits[0, -1], 1.0, top_p=0.3).nonzero().flatten()
    drawn = sample(model, [[5, 6]] * 200, max_new_tokens=1, top_p=0.3)
    assert {r.ids[0] for r in drawn} <= set(allowed.tolist())
    assert len(allowed) < VOCABULARY / 2


def test_learned_positions_cannot_be_overrun_but_rotary_ones_can() -> None:
    with pytest.raises(ModelError, match=r"longest prompt has 7 tokens and 26 more .* only 32 positions") as caught:
        sample(tiny("gpt2"), max_new_tokens=26)
    assert "25 or less" in str(caught.value)
    assert len(sample(tiny("gpt2"), max_new_tokens=25)) == len(PROMPTS)
    assert len(sample(tiny("llama"), [[5]], max_new_tokens=70, stop_ids=frozenset({VOCABULARY}))[0].ids) == 70


def test_logits_that_are_not_finite_are_refused() -> None:
    model = tiny("llama")
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        sample(model)


def test_the_training_mode_and_progress() -> None:
    model, seen = tiny("llama").train(), []
    assert sample(model, [], batch_size=2) == []
    sample(model, batch_size=2, on_batch=seen.append)
    assert model.training
    assert seen == [2, 2, 1]
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        sample(model, [[3], []])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7)])
def test_log_probabilities_are_those_of_a_fresh_forward(temperature: float, top_p: float) -> None:
    model = tiny("llama")
    for prompt, response in zip(PROMPTS, sample(model, temperature=temperature, top_p=top_p), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response.ids])).logits[0, len(prompt) - 1 : -1]
        probabilities = token_probabilities(logits, temperature, top_p)
        wanted = probabilities.gather(-1, torch.tensor(response.ids)[:, None]).squeeze(-1).log()
        assert torch.tensor(response.logprobs) == pytest.approx(wanted, abs=1e-5)
    assert sample(model, temperature=0)[0].logprobs == []
