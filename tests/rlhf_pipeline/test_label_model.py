"""Labelling functions of planted accuracy; agreement by moments as the reference; what does not vote is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlhf_pipeline.errors import DataError
from rlhf_pipeline.label_model import fit_label_model, vote_on
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.vote_models import PRIOR_RIGHT

PLANTED = {"good": (0.9, 0.5), "fair": (0.75, 0.8), "poor": (0.6, 0.9), "perverse": (0.3, 0.6)}
"""Accuracy and coverage."""


def planted(pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    lot = np.random.default_rng(seed)
    truth = lot.choice([-1, 1], pairs)
    columns = [
        np.where(lot.random(pairs) < coverage, np.where(lot.random(pairs) < accuracy, truth, -truth), 0)
        for accuracy, coverage in PLANTED.values()
    ]
    return np.stack(columns, 1).astype(float), truth


def test_planted_accuracies_are_found_without_the_truth() -> None:
    votes, truth = planted(20_000)
    model = fit_label_model(votes, list(PLANTED))
    for name, (accuracy, coverage) in PLANTED.items():
        assert model.functions[name].accuracy == pytest.approx(accuracy, abs=0.02), name
        assert model.functions[name].coverage == pytest.approx(coverage, abs=0.02), name
    for low, high in ((0.5, 0.7), (0.7, 0.9), (0.9, 1.0)):  # what it is sure of, it is right about as often
        sure = np.maximum(model.probability, 1 - model.probability)
        there = (sure > low) & (sure <= high)
        right = ((model.probability > 0.5) == (truth > 0))[there].mean()
        assert right == pytest.approx(sure[there].mean(), abs=0.03)
    by_majority = np.sign(votes.sum(1))
    decided = by_majority != 0
    assert ((model.probability > 0.5) == (truth > 0))[decided].mean() > (by_majority == truth)[decided].mean() + 0.02


def test_accuracies_agree_with_the_method_of_moments() -> None:
    """Of three independent functions ``E[λ_i λ_j | both vote] = a_i a_j`` with ``a = 2 α - 1`` (Fu et al. 2020,
    arXiv:2002.11955, equation 1), which gives each accuracy in closed form."""
    votes, _ = planted(50_000)
    agree = {}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        both = (votes[:, i] != 0) & (votes[:, j] != 0)
        agree[i, j] = (votes[both, i] * votes[both, j]).mean()
    by_moments = (1 + np.sqrt(agree[0, 1] * agree[0, 2] / agree[1, 2])) / 2
    assert fit_label_model(votes[:, :3], list(PLANTED)[:3]).functions["good"].accuracy == pytest.approx(
        by_moments, abs=0.02
    )


def test_one_function_by_hand() -> None:
    """EM's equation for one function that votes on both of two pairs: α = (2 α + 2) / (2 + 3), so α = 2/3."""
    model = fit_label_model(np.array([[1.0], [-1.0], [0.0]]), ["only"])
    assert model.functions["only"].accuracy == pytest.approx(PRIOR_RIGHT[0] / sum(PRIOR_RIGHT), abs=1e-6)
    assert model.functions["only"].coverage == pytest.approx(2 / 3)
    assert model.probability == pytest.approx([2 / 3, 1 / 3, 0.5], abs=1e-6)


def test_turned_pairs_turn_and_nothing_is_nothing() -> None:
    votes, _ = planted(500)
    assert fit_label_model(-votes, list(PLANTED)).probability == pytest.approx(
        1 - fit_label_model(votes, list(PLANTED)).probability, abs=1e-6
    )
    empty = fit_label_model(np.zeros((0, 2)), ["a", "b"])
    assert (len(empty.probability), empty.functions["a"].coverage) == (0, 0)


def test_functions_are_asked_about_each_pair_and_may_not_say_anything_else() -> None:
    q, r = (Prompt((Message("user", text),)) for text in "qr")
    pairs = [(q, "short", "longer"), (r, "same", "size")]
    assert vote_on(lambda prompt, a, b: (len(a) > len(b)) - (len(a) < len(b)), Path("f.py"), "longer", pairs) == [-1, 0]
    assert vote_on(lambda prompt, a, b: int(prompt[0]["content"] == "q"), Path("f.py"), "about q", pairs) == [1, 0]
    with pytest.raises(DataError, match=r"labelling function odd said 0\.7") as refused:
        vote_on(lambda prompt, a, b: 0.7, Path("f.py"), "odd", pairs)  # type: ignore[arg-type, return-value]
    assert "0 to abstain" in str(refused.value)
    with pytest.raises(DataError, match="second better said False"):  # which would be an abstention
        vote_on(lambda prompt, a, b: len(a) > len(b), Path("f.py"), "second better", pairs)
    with pytest.raises(DataError, match="wrong failed: ZeroDivisionError"):
        vote_on(lambda prompt, a, b: 1 // 0, Path("f.py"), "wrong", pairs)
