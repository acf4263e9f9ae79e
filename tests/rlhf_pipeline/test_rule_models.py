"""The loss and the combined reward by hand; the optimum of the weighted loss; one base for both models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from rlhf_pipeline import models
from rlhf_pipeline.config import LoraSection
from rlhf_pipeline.errors import ArtifactError
from rlhf_pipeline.records import RuleVotes
from rlhf_pipeline.reward_models import RewardModel, Spec, load_reward_model
from rlhf_pipeline.rule_models import RULES, UNANSWERED, RulePart, WithRules, rule_labels, rule_loss, rule_weights
from tests import tiny_models

NO = UNANSWERED


def log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z))


def test_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    broken = torch.tensor([[1.0, 0.25], [0.0, NO]])
    expected = -(2 * log_sigmoid(1.0) + 5 * 0.25 * log_sigmoid(-2.0) + 0.75 * log_sigmoid(2.0) + log_sigmoid(-0.5))
    loss = rule_loss(logits, broken, torch.tensor([2.0, 5.0]), answers=1.5)
    assert loss.item() == pytest.approx(expected / (2 * 1.5), rel=1e-6)


def test_what_was_not_answered_moves_nothing() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    rule_loss(logits, torch.tensor([[1.0, NO], [NO, 0.0]]), torch.ones(2), answers=1.0).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad == 0).tolist() == [[False, True], [True, False]]


def test_weights_balance_what_was_answered_from_one_to_ten() -> None:
    rows = [[1.0, 1.0, 0.0, NO]] + [[0.0, 1.0, 0.0, NO]] * 3 + [[NO, NO, 0.0, 1.0]] + [[0.0, 0.0, 0.0, 0.0]] * 45
    assert rule_weights(torch.tensor(rows)).tolist() == pytest.approx([10.0, 10.0, 10.0, 10.0])
    few = torch.tensor([[1.0, 1.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, NO], [0.0, 1.0, NO]])
    assert rule_weights(few).tolist() == pytest.approx([3.0, 1.0, 3.0])


@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
def test_the_optimum_of_the_weighted_loss_less_the_offset_is_the_share(share: float) -> None:
    broken = torch.tensor([[1.0]] * round(200 * share) + [[0.0]] * round(200 * (1 - share)))
    weights = rule_weights(broken)
    logit = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([logit], max_iter=100, tolerance_grad=1e-9)

    def step() -> torch.Tensor:
        optimiser.zero_grad()
        loss = rule_loss(logit.expand(len(broken), 1), broken, weights, answers=1.0)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(step)  # type: ignore[no-untyped-call]
    part = RulePart(("rude",), tuple(weights.log().tolist()), 1.0, 1.0)
    assert part.broken(logit.detach()[None]).item() == pytest.approx(share, abs=1e-4)


def test_combined_reward_by_hand_and_as_the_papers_sum() -> None:
    part = RulePart(("a", "b"), (0.0, 0.0), weight=1.5, spread=2.0)
    preference, broken = torch.tensor([1.0, -0.5, 4.0]), torch.tensor([[0.0, 0.0], [1.0, 0.5], [0.2, 0.2]])
    combined = part.combine(preference, broken)
    assert combined.tolist() == pytest.approx([1.0, -0.5 - 3 * 0.75, 4.0 - 3 * 0.2])
    mean = 0.7  # R = (s - μ) / σ + w/n Σ (1 - p_i), up to a factor σ and a constant
    paper = (preference - mean) / 2.0 + 1.5 * (1 - broken).mean(-1)
    assert (2.0 * paper + mean - 1.5 * 2.0).tolist() == pytest.approx(combined.tolist())


def test_labels_are_shares_of_the_votes() -> None:
    assert rule_labels([RuleVotes(0.75, 4), None]) == [0.75, UNANSWERED]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_one_base_serves_preference_and_rules(family: str, tmp_path: Path) -> None:
    model = tiny_models.make(family, tmp_path / "base")
    expected = {}
    for seed, (folder, labels) in enumerate({"rm": 1, f"rm/{RULES}": 3}.items()):
        torch.manual_seed(seed)
        made = models.add_adapter(
            models.load_classifier(model, device="cpu", labels=labels), LoraSection(rank=2 + seed), task="SEQ_CLS"
        )
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_B" in name or "score" in name:
                    parameter.normal_(std=0.5)
        models.save_adapter(made, tmp_path / folder / "adapter", base_name=model.name)
        expected[labels] = RewardModel(made).outputs(ROWS)
    part = RulePart(("a", "b", "c"), (0.1, 0.2, 0.3), weight=2.0, spread=0.5)
    spec = Spec(model, rules=part)
    spec.write(tmp_path / "rm")
    assert Spec.read(tmp_path / "rm") == spec
    loaded = load_reward_model(model, tmp_path / "rm", device="cpu")
    assert isinstance(loaded, WithRules)
    assert loaded.rules.model.classifier is loaded.preference.classifier  # type: ignore[union-attr]
    for _ in range(2):  # whichever was at work before
        assert torch.allclose(loaded.rules.model.outputs(ROWS), expected[3], atol=1e-6)
        assert torch.tensor(loaded.preference.score(ROWS)).tolist() == pytest.approx(
            expected[1].flatten().tolist(), abs=1e-6
        )
    broken = torch.sigmoid(expected[3] - torch.tensor([0.1, 0.2, 0.3]))
    combined = expected[1].flatten() - 2.0 * 0.5 * broken.mean(-1)
    assert loaded.score(ROWS) == pytest.approx(combined.tolist(), abs=1e-6)
    assert loaded.rules.score(ROWS) == pytest.approx((-broken.mean(-1)).tolist(), abs=1e-6)


ROWS = [[5, 6, 7, 8], [9, 5, 6], [7, 7, 8, 9, 10, 11]]


def test_a_rule_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = tiny_models.make("llama", tmp_path / "base")
    for folder, lora in {"rm": LoraSection(rank=2), f"rm/{RULES}": LoraSection(rank=2, targets=["q_proj"])}.items():
        made = models.add_adapter(models.load_classifier(model, device="cpu"), lora, task="SEQ_CLS")
        models.save_adapter(made, tmp_path / folder / "adapter", base_name=model.name)
    weights = tmp_path / "rm" / RULES / "adapter" / "adapter_model.safetensors"
    weights.write_bytes((tmp_path / "rm" / "adapter" / "adapter_model.safetensors").read_bytes())
    Spec(model, rules=RulePart(("a",), (0.0,), 1.0, 1.0)).write(tmp_path / "rm")
    with pytest.raises(ArtifactError, match="does not fit"):
        load_reward_model(model, tmp_path / "rm", device="cpu")
