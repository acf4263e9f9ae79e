"""The head first: the features are what the head reads, its fit is scikit-learn's, and nothing else moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rlhf_pipeline import models
from rlhf_pipeline.config import LoraSection
from rlhf_pipeline.linear_probe import features, fit_head
from rlhf_pipeline.reward_models import RewardModel
from tests import tiny_models

LOTS = np.random.default_rng(0)
CHOSEN = [LOTS.integers(7, 60, LOTS.integers(3, 12)).tolist() for _ in range(60)]
REJECTED = [LOTS.integers(7, 60, LOTS.integers(3, 12)).tolist() for _ in range(60)]


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("lora", [True, False])
def test_the_optimum_on_frozen_features(kind: str, lora: bool, tmp_path: Path) -> None:
    model = tiny_models.make_encoder(tmp_path) if kind == "bert" else tiny_models.make(kind, tmp_path)
    classifier = models.load_classifier(model, device="cpu")
    if lora:
        classifier = models.add_adapter(classifier, LoraSection(rank=1), task="SEQ_CLS")
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    rows = features(classifier, CHOSEN + REJECTED, batch_size=7)
    loss = fit_head(classifier, CHOSEN, REJECTED, steps=200, batch_size=7)

    apart = (rows[:60] - rows[60:]).double().numpy()
    penalty = 1e-3 * float((apart**2).mean())
    # The same objective, with each pair in both directions so that there are two classes.
    reference = LogisticRegression(C=1 / (2 * penalty * 120), fit_intercept=False, tol=1e-10, max_iter=10_000)
    reference.fit(np.concatenate([apart, -apart]), np.repeat([1, 0], 60))
    assert loss == pytest.approx(float(np.logaddexp(0, -apart @ reference.coef_[0]).mean()), abs=2e-3)
    assert loss < 0.69
    scores = RewardModel(classifier).score([CHOSEN[0], REJECTED[0]])
    weight = models.score_layer(classifier).weight[0].detach()
    assert scores[0] - scores[1] == pytest.approx(float(torch.from_numpy(apart[0]).float() @ weight), abs=1e-4)
    changed = [name for name, tensor in classifier.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(changed) == 1, changed
