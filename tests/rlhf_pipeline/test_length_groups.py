"""Groups by hand; the same scores, gradients and losses with and without; and where a batch stays whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.reward_config import RewardConfig

from rlhf_pipeline import length_groups, models, training
from rlhf_pipeline.comparison_trainer import ComparisonLoss, ComparisonTrainer, comparison_rows
from rlhf_pipeline.config import LoraSection, TrainingSection
from rlhf_pipeline.encoding import EncodedPair
from rlhf_pipeline.records import Message, Preference, Prompt
from rlhf_pipeline.reward_models import load_text
from rlhf_pipeline.rule_trainer import RuleTrainer
from tests import tiny_models

ROWS = [[5, 6, 7, 8, 9, 10, 11, 12], [5, 6], [7, 8, 9, 10, 11, 12, 13], [9, 8, 7]]


def test_groups_by_hand() -> None:
    lengths = [10, 2, 9, 3]
    # cuts of 2 3 | 9 10 save 1 × 8, 2 × 7 and 3 × 1; then 2 | 3 and 9 | 10 save 1 each
    assert length_groups.length_groups(lengths, 15) == [[1, 3, 2, 0]]
    assert length_groups.length_groups(lengths, 14) == [[1, 3], [2, 0]]
    assert length_groups.length_groups(lengths, 1) == [[1], [3], [2], [0]]
    assert length_groups.length_groups([4, 4, 4], 1) == [[0, 1, 2]], "nothing to save"
    assert length_groups.length_groups([4], 1) == [[0]]


def divide(monkeypatch: pytest.MonkeyPatch, model: Any) -> list[tuple[int, ...]]:
    """From now on this model's batches are divided wherever a token is saved; the shapes that it gets."""
    monkeypatch.setattr(length_groups, "_SMALL", 0)
    monkeypatch.setattr(length_groups, "_TOKENS", 1)
    shapes: list[tuple[int, ...]] = []
    hook = lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape))  # noqa: E731
    model.register_forward_pre_hook(hook, with_kwargs=True)
    return shapes


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, ROWS))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in ROWS])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ROWS])


@pytest.mark.parametrize("reads", ["causally", "adapted", "whole"])
def test_scores_and_gradients_are_those_of_the_whole_batch(
    reads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny_models.make_encoder(tmp_path) if reads == "whole" else tiny_models.make("llama", tmp_path)
    classifier: Any = models.load_classifier(made, device="cpu", labels=2)
    classifier.config.pad_token_id = 0  # as TRL sets it
    torch.nn.init.normal_(models.score_layer(classifier).weight)
    if reads == "adapted":
        classifier = models.add_adapter(classifier, LoraSection(rank=2), task="SEQ_CLS")
    classifier.eval()
    found = []
    for divided in (False, True):
        if divided:
            shapes = divide(monkeypatch, classifier)
        classifier.zero_grad()
        logits = length_groups.classify(classifier, *batch()).logits
        (logits.float() * torch.tensor([[1.0, 2.0], [-3.0, 0.5], [0.7, -1.0], [2.0, 1.0]])).sum().backward()
        gradients = [p.grad.clone() for p in classifier.parameters() if p.grad is not None]
        found.append([logits.detach(), *gradients])
    assert shapes == [(1, 2), (1, 3), (1, 7), (1, 8)]
    assert len(found[0]) > 4
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_small_models_and_several_processes_have_batches_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = models.load_classifier(tiny_models.make("llama", tmp_path), device="cpu")
    weights = classifier.num_parameters(exclude_embeddings=True)
    monkeypatch.setattr(length_groups, "_TOKENS", 14)
    monkeypatch.setattr(length_groups, "_SMALL", weights + 1)
    assert length_groups.groups_for(classifier, [10, 2, 9, 3]) == [[0, 1, 2, 3]]
    monkeypatch.setattr(length_groups, "_SMALL", weights)
    assert length_groups.groups_for(classifier, [10, 2, 9, 3]) == [[1, 3], [2, 0]]
    monkeypatch.setattr(length_groups.processes, "world", lambda: 2)
    assert length_groups.groups_for(classifier, [10, 2, 9, 3]) == [[0, 1, 2, 3]]
    monkeypatch.setattr(length_groups.processes, "world", lambda: 1)
    assert length_groups.groups_for(classifier.to("meta"), [10, 2, 9, 3]) == [[0, 1, 2, 3]], "not a CPU"


@pytest.mark.parametrize("learns", ["winners", "comparisons", "rules"])
def test_every_trainer_of_scores_divides_its_batches(
    learns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny_models.make("llama", tmp_path / "base")
    classifier = models.load_classifier(made, device="cpu", labels=2 if learns == "rules" else 1)
    torch.nn.init.normal_(classifier.score.weight)
    section = TrainingSection(max_steps=1, batch_size=4)
    steps = training.plan(section, [1] * 4, seed=0)
    arguments = training.arguments(
        RewardConfig, section, steps, model=made, folder=tmp_path, seed=0, device="cpu", max_length=None
    )
    given: dict[str, Any] = {"args": arguments, "processing_class": training.processing_class(load_text(made, 64))}
    kind: Any = training.RewardModelTrainer
    columns: dict[str, Any] = {"chosen_ids": ROWS[::2], "rejected_ids": ROWS[1::2]}
    if learns == "comparisons":
        pair, record = EncodedPair([], ROWS[0], ROWS[1]), Preference(Prompt((Message("user", "?"),)), "a", "b")
        kind, columns = ComparisonTrainer, {}
        [row] = comparison_rows([pair], [record], soft=False, margins=False)
        columns = {name: [value] for name, value in row.items()}
        given["comparison_loss"] = ComparisonLoss("bradley_terry", None, 0.0, 1.0)
    elif learns == "rules":
        kind, columns = RuleTrainer, {"ids": ROWS, "broken": [[1.0, 0.0]] * 4}
        given |= {"weights": torch.ones(2), "answers": 1.0}
    with training.quiet():
        trainer = kind(classifier, train_dataset=training.dataset(columns), **given)
    whole = training.evaluation_loss(trainer, columns)
    shapes = divide(monkeypatch, classifier)
    assert training.evaluation_loss(trainer, columns) == pytest.approx(whole, abs=1e-6)
    assert sorted(shapes) == ([(1, 2), (1, 8)] if learns == "comparisons" else [(1, 2), (1, 3), (1, 7), (1, 8)])
