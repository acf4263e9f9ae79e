"""One step of the trainer on a real model: the loss is the pure function, and missing answers reach nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.reward_config import RewardConfig

from rlhf_pipeline import models, training
from rlhf_pipeline.config import LoraSection, TrainingSection
from rlhf_pipeline.metrics import read_metrics
from rlhf_pipeline.reward_models import RewardModel
from rlhf_pipeline.rule_models import UNANSWERED, rule_loss, rule_weights
from rlhf_pipeline.rule_trainer import RuleTrainer
from rlhf_pipeline.tokenization import load_tokenizer
from tests import tiny_models

IDS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [5, 9, 13]]
BROKEN = [[1.0, UNANSWERED], [0.0, 0.0], [0.25, UNANSWERED], [0.0, 1.0]]


def test_a_step_has_the_loss_of_the_pure_function(tmp_path: Path) -> None:
    model = tiny_models.make("llama", tmp_path / "base")
    section = TrainingSection(max_steps=1, batch_size=4, micro_batch_size=2, log_every=1, warmup=0.0)
    steps = training.plan(section, [len(row) for row in IDS], seed=0)
    arguments = training.arguments(
        RewardConfig, section, steps, model=model, folder=tmp_path / "checkpoints", seed=0, device="cpu",
        max_length=None,
    )  # fmt: skip
    torch.manual_seed(0)
    classifier = models.add_adapter(
        models.load_classifier(model, device="cpu", labels=2), LoraSection(rank=2), task="SEQ_CLS"
    )
    torch.nn.init.normal_(models.score_layer(classifier).weight)
    before = RewardModel(classifier).outputs(IDS)
    weights = rule_weights(torch.tensor(BROKEN))
    head = models.score_layer(classifier).weight.detach().clone()
    given: dict[str, Any] = {"processing_class": training.processing_class(load_tokenizer(model))}
    rows = training.dataset({"ids": IDS, "broken": BROKEN}, steps.order)
    with training.quiet():
        trainer = RuleTrainer(
            model=classifier, args=arguments, weights=weights, answers=1.5, train_dataset=rows, **given
        )
    training.train(trainer, folder=tmp_path, say=print, advance=lambda _: None)
    [line] = read_metrics(tmp_path / "metrics.jsonl")
    expected = rule_loss(before, torch.tensor(BROKEN), weights, answers=1.5)
    assert line["loss"] == pytest.approx(expected.item(), abs=1e-5)
    odds, answered = before - weights.log(), torch.tensor(BROKEN) != UNANSWERED
    right = ((odds > 0) == (torch.tensor(BROKEN) > 0.5)) & answered
    assert line["accuracy"] == pytest.approx((right.sum() / answered.sum()).item(), abs=0.26), "a mean of batches"
    assert line["num_tokens"] == sum(map(len, IDS))
    assert not torch.equal(models.score_layer(classifier).weight, head)
