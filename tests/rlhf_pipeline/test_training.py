"""The order of rows, checkpoints that verify, and what is passed to the trainers."""

from __future__ import annotations

import json
import random
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.reward_config import RewardConfig
from trl.trainer.sft_config import SFTConfig

from rlhf_pipeline import models, training
from rlhf_pipeline.config import LoraSection, ModelConfig, TrainingSection
from rlhf_pipeline.errors import ConfigError
from rlhf_pipeline.logprobs import pad_sequences, response_logprobs
from rlhf_pipeline.model_source import load_config
from rlhf_pipeline.preference_losses import bradley_terry_loss, centering_penalty, dpo_loss
from rlhf_pipeline.reward_models import RewardModel
from rlhf_pipeline.tokenization import load_tokenizer
from rlhf_pipeline.trainer_checkpoints import newest_checkpoint, read_complete, seal
from tests import tiny_models

_DRAW = random.Random(0)
LENGTHS = [_DRAW.randint(5, 200) for _ in range(100)]


def section(**changes: object) -> TrainingSection:
    return TrainingSection.model_validate({"batch_size": 8, **changes})


def test_plan_by_hand():
    steps = training.plan(section(batch_size=2, epochs=2, micro_batch_size=1), [3, 1, 2], seed=0, world=1)
    assert steps.steps == 3
    assert (steps.micro_batch, steps.accumulation) == (1, 2)
    assert sorted(steps.order) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("epochs", "max_steps", "rows"), [(1, None, 100), (3, None, 300), (0.5, None, 50), (9, 4, 32)])
def test_every_epoch_trains_every_row_once(epochs, max_steps, rows):
    steps = training.plan(section(epochs=epochs, max_steps=max_steps), LENGTHS, seed=1, world=1)
    assert len(steps.order) == rows
    assert steps.steps == -(-rows // 8)
    counts = [steps.order.count(i) for i in range(100)]
    assert set(counts) <= {rows // 100, -(-rows // 100)}


@pytest.mark.parametrize(("micro", "world", "rows"), [(None, 2, 104), (2, 2, 100), (1, 8, 104), (None, 1, 100)])
def test_several_processes_have_as_many_rows_each(micro, world, rows):
    alone = training.plan(section(), LENGTHS, seed=1, world=1)
    steps = training.plan(section(micro_batch_size=micro), LENGTHS, seed=1, world=world)
    assert steps.order[:100] == alone.order, "the rows of one process, in its order"
    assert (len(steps.order), steps.steps) == (rows, alone.steps)
    assert steps.micro_batch * steps.accumulation * world == 8


def test_order_follows_the_seed_and_keeps_like_lengths_together():
    def padding(order):
        groups = [[LENGTHS[i] for i in order[k : k + 8]] for k in range(0, len(order), 8)]
        return sum(max(g) * len(g) for g in groups) / sum(sum(g) for g in groups)

    first, again, other = (training.plan(section(epochs=2), LENGTHS, seed=s, world=1).order for s in (1, 1, 2))
    assert first == again != other
    assert first[:100] != first[100:], "a new permutation in each epoch"
    assert padding(first) < 1.3 < padding(random.Random(1).sample(range(100), 100))
    longest = [max(LENGTHS[i] for i in first[k : k + 8]) for k in range(0, 64, 8)]
    assert longest != sorted(longest), "batches are not in the order of length"
    mixed = training.plan(section(epochs=2), LENGTHS, seed=1, world=1, window=1).order
    assert sorted(mixed) == sorted(first)
    assert padding(mixed) > 1.5, "random batches"


@pytest.mark.parametrize(("micro", "world"), [(4, 4), (None, 3)])
def test_batch_that_cannot_be_divided_is_refused(micro, world):
    with pytest.raises(ConfigError, match="batch_size is 8"):
        training.plan(section(micro_batch_size=micro), LENGTHS, seed=0, world=world)


def make_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "ref").mkdir(parents=True)
    (checkpoint / "weights.safetensors").write_bytes(bytes(range(200)))
    (checkpoint / "ref" / "more.bin").write_bytes(b"abc")
    seal(checkpoint, step=step, tokens=10 * step)
    return checkpoint


def flip(checkpoint: Path) -> None:
    path = checkpoint / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[77] ^= 1
    path.write_bytes(content)


def shorten(checkpoint: Path) -> None:
    (checkpoint / "ref" / "more.bin").write_bytes(b"ab")


def lose(checkpoint: Path) -> None:
    (checkpoint / "ref" / "more.bin").unlink()


def unseal(checkpoint: Path) -> None:
    (checkpoint / "complete.json").unlink()


def tear(checkpoint: Path) -> None:
    (checkpoint / "complete.json").write_text('{"step": 3')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, "weights.safetensors is damaged"),
        (shorten, "is damaged"),
        (lose, "is missing"),
        (unseal, "interrupted"),
        (tear, "interrupted"),
    ],
)
def test_newest_whole_checkpoint_is_taken(tmp_path, damage, words):
    older, newer = make_checkpoint(tmp_path, 9), make_checkpoint(tmp_path, 10)
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == newer
    assert said == []
    damage(newer)
    assert newest_checkpoint(tmp_path, said.append) == older
    assert len(said) == 1
    assert words in said[0]
    assert "checkpoint-10" in said[0]
    assert not newer.exists(), "the Trainer's rotation must not count it"
    assert [p.name for p in (tmp_path / "broken").iterdir()] == ["checkpoint-10-0"]
    assert read_complete(older)["tokens"] == 90


def test_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "none", print) is None
    (tmp_path / "checkpoint-7").mkdir()
    assert newest_checkpoint(tmp_path, lambda _: None) is None


def arguments(tmp_path: Path, kind: type = SFTConfig, given: TrainingSection | None = None, **changes: object) -> Any:
    steps = training.plan(given or section(), LENGTHS, seed=0, world=1)
    options = {"model": ModelConfig(name="x"), "folder": tmp_path, "seed": 3, "device": "cpu", **changes}
    with training.quiet():
        return training.arguments(kind, given or section(), steps, **options)


def test_arguments_on_a_cpu(tmp_path):
    made = arguments(tmp_path)
    assert made.use_cpu
    assert not made.bf16, "TRL's default is mixed precision"
    assert not made.gradient_checkpointing, "TRL's default is true"
    assert made.save_total_limit == 2
    assert made.report_to == []
    assert not made.logging_nan_inf_filter
    assert made.train_sampling_strategy == "sequential"
    assert made.warmup_steps > 0
    one_step = arguments(tmp_path, given=section(max_steps=1))
    assert (one_step.max_steps, one_step.warmup_steps) == (1, 0), "a warm-up's first step learns nothing"
    half = ModelConfig(name="x", dtype="bfloat16")
    assert not arguments(tmp_path, model=half).bf16, "adapters are float32 over a bfloat16 base"
    assert arguments(tmp_path, given=section(lora=None), model=half).bf16


def test_tracker_that_is_not_installed(tmp_path):
    with pytest.raises(ConfigError, match="no_such_tracker is not installed"):
        arguments(tmp_path, tracking="no_such_tracker")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packed_rows_do_not_see_each_other(tmp_path, family):
    model = tiny_models.make(family, tmp_path / family)
    chat = load_tokenizer(model)
    draw = random.Random(0)
    rows = [[draw.randrange(10, 100) for _ in range(n)] for n in (30, 7, 12, 21, 5)]
    columns = {"input_ids": rows, "labels": [[-100] * 3 + ids[3:] for ids in rows]}
    packed = training.pack(columns, 64, seed=0)
    assert sorted(chain(*packed["input_ids"])) == sorted(chain(*rows))
    assert sorted(chain(*packed["seq_lengths"])) == [5, 7, 12, 21, 30]
    assert len(packed["input_ids"]) == 2
    losses = []
    for data, free in ((columns, False), (packed, True)):
        with training.quiet():
            trainer = training.SftTrainer(
                model=models.load_causal_lm(model, device="cpu"),
                args=arguments(
                    tmp_path, max_length=None, padding_free=free, dataset_kwargs={"skip_prepare_dataset": True}
                ),
                train_dataset=training.dataset(data),
                processing_class=training.processing_class(chat),
            )
        losses.append(training.evaluation_loss(trainer, data))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


PAIRS = [  # prompt, chosen, rejected
    ([10, 11, 12], [20, 21], [30]), ([13], [22], [31, 32, 33]), ([14, 15], [23, 24, 25], [34, 35]), ([16], [26], [36]),
]  # fmt: skip


@pytest.mark.parametrize("margins", [None, [0.7, -0.4, 0.0, 2.0]])
@pytest.mark.parametrize("centering", [0.0, 0.2])
def test_the_trainer_of_reward_models_minimises_bradley_terry(tmp_path, centering, margins):
    model = tiny_models.make("llama", tmp_path / "llama")
    classifier = models.load_classifier(model, device="cpu")
    torch.nn.init.normal_(classifier.score.weight, generator=torch.Generator().manual_seed(0))
    sides = [prompt + chosen for prompt, chosen, _ in PAIRS], [prompt + rejected for prompt, _, rejected in PAIRS]
    columns = {"chosen_ids": sides[0], "rejected_ids": sides[1]} | ({"margin": margins} if margins else {})
    with training.quiet():
        trainer = training.RewardModelTrainer(
            model=classifier,
            args=arguments(tmp_path, kind=RewardConfig, max_length=None, center_rewards_coefficient=centering or None),
            train_dataset=training.dataset(columns),
            processing_class=training.processing_class(load_tokenizer(model)),
        )
        theirs = training.evaluation_loss(trainer, columns)
    chosen, rejected = (torch.tensor(RewardModel(classifier).score(rows)) for rows in sides)
    assert (chosen - rejected).abs().min() > 1e-2
    ours = bradley_terry_loss(chosen, rejected, margin=torch.tensor(margins or 0.0))
    ours = ours + centering * centering_penalty(chosen, rejected)
    assert theirs == pytest.approx(ours.mean().item(), abs=1e-6)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_trainer_of_dpo_minimises_its_formula(tmp_path, beta):
    model = tiny_models.make("llama", tmp_path / "llama")
    policy = models.add_adapter(models.load_causal_lm(model, device="cpu"), LoraSection(rank=2), task="CAUSAL_LM")
    prompts, *sides = (list(side) for side in zip(*PAIRS, strict=True))
    reference = [[-3.0, -9.0, -11.0, -4.0], [-5.0, -8.0, -2.0, -4.5]]
    columns = {"prompt_ids": prompts, "chosen_ids": sides[0], "rejected_ids": sides[1]}
    columns |= dict(zip(("ref_chosen_logps", "ref_rejected_logps"), reference, strict=True))
    with training.quiet():
        trainer = training.DpoTrainer(
            model=policy,
            args=arguments(tmp_path, kind=DPOConfig, max_length=None, beta=beta),
            train_dataset=training.dataset(columns),
            processing_class=training.processing_class(load_tokenizer(model)),
        )
        theirs = training.evaluation_loss(trainer, columns)
    with torch.no_grad():
        spoken = [response_logprobs(policy, pad_sequences(prompts, side, pad_id=0)).sum(-1) for side in sides]
    ours = dpo_loss(*spoken, *(torch.tensor(side) for side in reference), beta=beta).mean()
    assert theirs == pytest.approx(ours.item(), rel=1e-5)


@pytest.mark.parametrize("learns", ["preferences", "a policy"])
def test_an_adapters_dropout_is_off_where_two_responses_are_compared(tmp_path, learns):
    """As the help text of ``lora.dropout`` says; TRL does it without a word."""
    model = tiny_models.make("llama", tmp_path / "llama")
    of_policy = learns == "a policy"
    loaded = (models.load_causal_lm if of_policy else models.load_classifier)(model, device="cpu")
    task = "CAUSAL_LM" if of_policy else "SEQ_CLS"
    adapted = models.add_adapter(loaded, LoraSection(rank=2, dropout=0.5), task=task)
    layers = [m for name, m in adapted.named_modules() if "lora_dropout" in name and isinstance(m, torch.nn.Dropout)]
    assert {layer.p for layer in layers} == {0.5}
    columns = {"chosen_ids": [[1, 2]], "rejected_ids": [[1, 3]]}
    columns |= {"prompt_ids": [[1]], "ref_chosen_logps": [0.0], "ref_rejected_logps": [0.0]} if of_policy else {}
    with training.quiet():
        (training.DpoTrainer if of_policy else training.RewardModelTrainer)(
            model=adapted,
            args=arguments(tmp_path, kind=DPOConfig if of_policy else RewardConfig, max_length=None),
            train_dataset=training.dataset(columns),
            processing_class=training.processing_class(load_tokenizer(model)),
        )
    assert {layer.p for layer in layers} == {0.0}


def test_context_of_the_model_is_the_limit(tmp_path):
    said: list[str] = []
    config = load_config(tiny_models.make("gpt2", tmp_path / "gpt2"))
    assert training.context_limit(section(max_length=1024), config, said.append) == 256
    assert said == ["max_length is 1,024, the model's context only 256 tokens: that is the limit"]
    assert training.context_limit(section(max_length=100), config, said.append) == 100
    assert len(said) == 1


def test_seal_names_every_file(tmp_path):
    checkpoint = make_checkpoint(tmp_path, 4)
    sealed = json.loads((checkpoint / "complete.json").read_text())
    assert sealed["step"] == 4
    assert set(sealed["files"]) == {"weights.safetensors", "ref/more.bin"}
    assert sealed["files"]["ref/more.bin"]["size"] == 3
