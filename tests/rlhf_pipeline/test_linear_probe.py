"""The head first: the features are what the head reads, its fit is scikit-learn's, and nothing else moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rlhf_pipeline import linear_probe, models
from rlhf_pipeline.config import LoraSection
from rlhf_pipeline.linear_probe import choose_penalty, features, fit_head
from rlhf_pipeline.reward_models import RewardModel
from tests import tiny_models

LOTS = np.random.default_rng(0)
CHOSEN = [LOTS.integers(7, 60, LOTS.integers(3, 12)).tolist() for _ in range(60)]
REJECTED = [LOTS.integers(7, 60, LOTS.integers(3, 12)).tolist() for _ in range(60)]


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("lora", [True, False])
def test_the_optimum_on_frozen_features(kind: str, lora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "PENALTIES", (1e-3,))
    model = tiny_models.make_encoder(tmp_path) if kind == "bert" else tiny_models.make(kind, tmp_path)
    classifier = models.load_classifier(model, device="cpu")
    if lora:
        classifier = models.add_adapter(classifier, LoraSection(rank=1), task="SEQ_CLS")
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    rows = features(classifier, CHOSEN + REJECTED, batch_size=7)
    loss = fit_head(classifier, CHOSEN, REJECTED, steps=200, batch_size=7)

    apart = (rows[:60] - rows[60:]).double().numpy()
    reference = fitted(apart, 1e-3)
    assert loss == pytest.approx(float(np.logaddexp(0, -apart @ reference).mean()), abs=2e-3)
    assert loss < 0.69
    scores = RewardModel(classifier).score([CHOSEN[0], REJECTED[0]])
    weight = models.score_layer(classifier).weight[0].detach()
    assert scores[0] - scores[1] == pytest.approx(float(torch.from_numpy(apart[0]).float() @ weight), abs=1e-4)
    changed = [name for name, tensor in classifier.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(changed) == 1, changed


def fitted(apart: np.ndarray, penalty: float) -> np.ndarray:
    """scikit-learn's weights for the same objective; each pair in both directions, so that there are two classes."""
    scaled = penalty * float((apart**2).mean())
    reference = LogisticRegression(C=1 / (2 * scaled * 2 * len(apart)), fit_intercept=False, tol=1e-10, max_iter=10_000)
    reference.fit(np.concatenate([apart, -apart]), np.repeat([1, 0], len(apart)))
    return np.asarray(reference.coef_[0])


@pytest.mark.parametrize(("pairs", "signal"), [(400, 2.0), (40, 0.0)])
def test_the_penalty_is_the_best_on_pairs_left_out(pairs: int, signal: float) -> None:
    lots = np.random.default_rng(pairs)
    rows = lots.normal(size=(pairs, 20))
    right = lots.random(pairs) < 1 / (1 + np.exp(-signal * rows[:, 0] - signal * rows[:, 1]))
    apart = rows * np.where(right, 1, -1)[:, None]

    def loss(penalty: float) -> float:
        part = np.arange(pairs) * 5 // pairs
        weights = [fitted(apart[part != out], penalty) for out in range(5)]
        return float(sum(np.logaddexp(0, -apart[part == out] @ weights[out]).sum() for out in range(5)))

    chosen = choose_penalty(torch.from_numpy(apart).float(), torch.zeros(pairs, 20), steps=200, centering=0.0)
    assert chosen == min(linear_probe.PENALTIES, key=loss)
    assert chosen == 10.0 if signal == 0 else chosen < 1, "nothing is learnt from chance"


def test_a_handful_of_pairs_hardly_moves_the_head() -> None:
    apart = torch.eye(4)
    assert choose_penalty(apart, apart, steps=50, centering=0.0) == linear_probe.PENALTIES[-1]
