"""Ensembles: combinations by hand, an average that is exact, an area under the curve held to scikit-learn's."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from rlhf_pipeline import models
from rlhf_pipeline.config import LoraSection
from rlhf_pipeline.ensembles import Combination, auc, average_adapters, uncertainty
from rlhf_pipeline.errors import ArtifactError
from tests import tiny_models

SCORES = torch.tensor([[1.0, 5.0], [2.0, 2.0], [6.0, 5.0]])


def test_combinations_by_hand() -> None:
    none = (0.0, 0.0, 0.0)
    assert Combination("mean", none)(SCORES).tolist() == [3.0, 4.0]
    assert Combination("min", none)(SCORES).tolist() == [1.0, 2.0]
    expected = [3 - 2 * 7**0.5, 4 - 2 * 3**0.5]  # standard deviations √7 and √3, with M - 1
    assert Combination("mean_minus_std", none, k=2.0)(SCORES).tolist() == pytest.approx(expected)


def test_the_constant_of_a_member_decides_nothing() -> None:
    moved = SCORES + torch.tensor([[10.0], [0.0], [-7.0]])
    for rule in ("mean", "min", "mean_minus_std"):
        here, there = Combination(rule, (0.0, 0.0, 0.0)), Combination(rule, (10.0, 0.0, -7.0))
        assert torch.equal(here(SCORES), there(moved))


def test_uncertainty_is_spread_over_size() -> None:
    assert uncertainty([[1.0, 1.0], [3.0, 1.0]]) == pytest.approx([2**0.5 / 2, 0.0])


def test_auc_is_scikit_learns() -> None:
    lots = random.Random(0)
    values = [lots.randrange(6) for _ in range(80)]
    events = [lots.random() < 0.2 + value / 10 for value in values]
    found = auc(values, events)
    assert found is not None
    assert found[0] == pytest.approx(roc_auc_score(events, values))
    assert found[1] < found[0] < found[2]
    assert auc([1.0, 2.0], [True, True]) is None


def make(folder: Path, model, rank: int, seed: int) -> Path:
    torch.manual_seed(seed)
    lora = LoraSection(rank=rank, alpha=4.0 * seed)
    trained = models.add_adapter(models.load_classifier(model, device="cpu"), lora, task="SEQ_CLS")
    for name, parameter in trained.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data.normal_(std=0.2)
    models.save_adapter(trained, folder, base_name=model.name)
    return folder


def test_the_average_is_that_of_the_weights(tmp_path: Path) -> None:
    model = tiny_models.make("llama", tmp_path / "base")
    folders = [make(tmp_path / str(seed), model, rank, seed) for seed, rank in ((1, 2), (2, 3), (3, 2))]
    average_adapters(folders, tmp_path / "mean")

    def merged(folder: Path) -> dict[str, torch.Tensor]:
        classifier = models.load_classifier(model, device="cpu")
        return models.with_adapter(classifier, folder, trainable=False).merge_and_unload().state_dict()

    members, mean = [merged(folder) for folder in folders], merged(tmp_path / "mean")
    for key, value in mean.items():
        torch.testing.assert_close(value, torch.stack([one[key] for one in members]).mean(0), atol=1e-6, rtol=1e-5)
    layer = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(mean[layer], members[0][layer], atol=1e-3)


def test_adapters_of_other_layers_have_no_average(tmp_path: Path) -> None:
    model = tiny_models.make("llama", tmp_path / "base")
    first = make(tmp_path / "a", model, 2, 1)
    policy = models.add_adapter(models.load_causal_lm(model, device="cpu"), LoraSection(rank=2), task="CAUSAL_LM")
    models.save_adapter(policy, tmp_path / "b", base_name=model.name)
    with pytest.raises(ArtifactError, match="cannot be averaged"):
        average_adapters([first, tmp_path / "b"], tmp_path / "mean")
