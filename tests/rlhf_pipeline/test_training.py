"""The order of rows, checkpoints that verify, and what is passed to the trainers."""

from __future__ import annotations

import json
import random
from itertools import chain
from pathlib import Path

import pytest
import torch
from trl.trainer.sft_config import SFTConfig

from rlhf_pipeline import models, training
from rlhf_pipeline.config import TrainingSection
from rlhf_pipeline.errors import ConfigError
from rlhf_pipeline.model_source import load_config
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


@pytest.mark.parametrize(("micro", "world"), [(3, 1), (4, 4), (None, 3)])
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


def arguments(tmp_path: Path, **changes: object) -> SFTConfig:
    steps = training.plan(section(), LENGTHS, seed=0, world=1)
    options = {"folder": tmp_path, "seed": 3, "device": "cpu", **changes}
    with training.quiet():
        return training.arguments(SFTConfig, section(), steps, **options)


def test_arguments_on_a_cpu(tmp_path):
    made = arguments(tmp_path)
    assert made.use_cpu
    assert not made.bf16, "TRL's default is mixed precision"
    assert not made.gradient_checkpointing, "TRL's default is true"
    assert made.save_total_limit == 2
    assert made.report_to == []
    assert not made.logging_nan_inf_filter
    assert made.train_sampling_strategy == "sequential"
    assert arguments(tmp_path, full=True, dtype=torch.bfloat16).bf16


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
