"""Each number by hand, and what a mask leaves out changes none of them."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_pipeline import diagnostics
from rlhf_pipeline.rollout import Measured, Rollout, ScoreScale

MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def test_kl_by_hand() -> None:
    logprobs, reference = torch.tensor([[-1.0, -2, -1], [-1, -3, 9]]), torch.tensor([[-2.0, -2, -1], [-1, -2, -50]])
    row = diagnostics.of_kl(logprobs, reference, MASK)
    k3 = {True: math.e - 1 - 1, False: math.exp(-1) - 1 + 1}  # of log-ratios 1 and -1, reference above policy
    assert row["objective/kl"] == pytest.approx((1 - 1) / 2)
    assert row["objective/kl_p95"] == 1
    assert row["objective/kl_k3"] == pytest.approx((k3[False] + k3[True]) / 2)
    assert row["objective/kl_k3_p95"] == pytest.approx(k3[True])
    assert diagnostics.of_kl(logprobs, reference - 0.5, MASK)["objective/kl_per_token"] == pytest.approx(0.5)


def test_scores_by_hand() -> None:
    row = diagnostics.of_scores(torch.tensor([1.0, 3, 5, 7]), ScoreScale(mean=2.0, std=4.0))
    assert row == {
        "objective/scores": 4, "objective/scores_std": pytest.approx(5**0.5), "objective/scores_normalised": 0.5,
        "objective/scores_normalised_std": pytest.approx(5**0.5 / 4),
    }  # fmt: skip


def test_advantages_by_hand() -> None:
    row = diagnostics.of_advantages(torch.tensor([[1.0, -1, 2], [0, -2, 77]]), MASK)
    assert row == {
        "advantages/mean": 0, "advantages/std": pytest.approx(2**0.5), "advantages/positive": 0.4,
        "advantages/tokens": 5,
    }  # fmt: skip


def test_responses_by_hand() -> None:
    responses = [[1, 2, 1, 2], [1, 2, 1, 2], [5], [1, 2]]
    row = diagnostics.of_responses([[1], [1], [2], [3]], responses, torch.tensor([True, True, True, False]))
    assert row == {
        "response/prompts": 3,
        "response/length": 11 / 4, "response/length_p95": 4, "response/ended": 0.75, "response/truncated": 0.25,
        "response/distinct_2": 2 / 7, "response/duplicates": 0.25,
    }  # fmt: skip
    single = diagnostics.of_responses([[1]], [[3]], torch.tensor([True]))
    assert single["response/distinct_2"] == 1  # no pair, no repetition


def test_the_gap_between_sampling_and_training_by_hand() -> None:
    drawn, trained = torch.tensor([0.5, 0.2, 0.1, 0.9, 1.0]).log(), torch.tensor([0.5, 0.4, 0.1, 0.9, 0.001]).log()
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    row = diagnostics.of_sampling(drawn[None], trained[None], mask)
    assert row["rollout/logprob_gap"] == pytest.approx(math.log(2) / 4)
    assert row["rollout/logprob_gap_k3"] == pytest.approx((2 - 1 - math.log(2)) / 4)
    assert row["rollout/prob_gap_max"] == pytest.approx(0.2)


def test_correlation_and_percentile() -> None:
    x = torch.randn(50)
    assert diagnostics.correlation(x, 3 * x + 2) == pytest.approx(1)
    assert diagnostics.correlation(x, -x) == pytest.approx(-1)
    y = torch.randn(50)
    assert diagnostics.correlation(x, y) == pytest.approx(torch.corrcoef(torch.stack([x, y]))[0, 1].item(), abs=1e-6)
    assert diagnostics.correlation(x, torch.ones(50)) == 0
    assert diagnostics.p95(torch.arange(100.0).flip(0)) == 94
    assert diagnostics.p95(torch.arange(10.0)) == 9


def test_what_is_masked_is_not_seen() -> None:
    torch.manual_seed(0)
    ended, responses = torch.tensor([True, False]), [[5, 6, 7], [8, 9]]

    def described(junk: float) -> dict[str, float]:
        torch.manual_seed(1)
        parts = [torch.where(MASK.bool(), -torch.rand(2, 3), junk) for _ in range(8)]
        rollout = Rollout([[1], [2, 3]], responses, ended, MASK, parts[0], pad_id=0)
        rewards = torch.where(MASK.bool(), parts[5], 0.0)  # as they come from kl_penalised_rewards
        measured = Measured(parts[1], parts[2], parts[3], parts[4])
        return diagnostics.describe(
            rollout, measured, torch.tensor([1.0, 2]), ScoreScale(0, 1), rewards, parts[6], parts[7]
        )

    assert described(0.0) == described(1e9)
    row = described(0.0)
    assert all(math.isfinite(value) for value in row.values())
    assert row["response/score_length_correlation"] == -1
    assert "ppo/val/explained_variance" in row
