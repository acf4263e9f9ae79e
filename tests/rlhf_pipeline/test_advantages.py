"""Rewards, GAE and whitening by hand and against brute force; ``test_fixed_points.py`` has what they lead to."""

from __future__ import annotations

import itertools

import pytest
import torch

from rlhf_pipeline.advantages import (
    gae,
    group_normalised,
    kl_penalised_rewards,
    leave_one_out,
    next_kl_coef,
    on_every_token,
    whiten,
)


def test_rewards_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -7.0], [-1.0, -1.0, -1.0]])
    ref = torch.tensor([[-2.0, -1.5, 9.0], [-1.0, -1.0, -1.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    rewards = kl_penalised_rewards(torch.tensor([3.0, -4.0]), logprobs, ref, mask, kl_coef=0.1)
    assert rewards.flatten().tolist() == pytest.approx([-0.1, 3 + 0.05, 0, 0, 0, -4])


def test_gae_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.5, 0.4, 0.2]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=0.95)
    assert advantages[0].tolist() == pytest.approx([0.432, 0.56, 0.8])
    assert returns[0].tolist() == pytest.approx([0.932, 0.96, 1.0])
    advantages, _ = gae(rewards, values, torch.ones(1, 3), gamma=0.9, lam=0.0)
    assert advantages[0].tolist() == pytest.approx([0.36 - 0.5, 0.18 - 0.4, 0.8])


def brute_force(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    deltas = [r + gamma * w - v for r, v, w in zip(rewards, values, [*values, 0.0][1:], strict=True)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gae_is_brute_force_on_the_tokens_that_count(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 64, 37, dtype=dtype)
    mask = torch.rand(64, 37) < 0.7  # holes inside, as a tool's tokens would leave, and padding of any length
    mask &= torch.arange(37) < torch.randint(1, 38, (64, 1))
    for gamma, lam in [(1.0, 0.95), (1.0, 1.0), (0.5, 0.0), *torch.rand(3, 2).tolist()]:
        advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
        for row in range(64):
            chosen = mask[row]
            expected = brute_force(rewards[row][chosen].tolist(), values[row][chosen].tolist(), gamma, lam)
            assert torch.allclose(advantages[row][chosen], torch.tensor(expected, dtype=dtype), atol=tolerance * 10)
        assert torch.equal(returns, torch.where(mask, advantages + values, torch.zeros((), dtype=dtype)))
        assert (advantages[~mask] == 0).all()


def test_undiscounted_returns_are_the_rewards_still_to_come() -> None:
    """γ = λ = 1: the KL penalty of every later token is among them, whatever the values say."""
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 8, 9, dtype=torch.float64)
    mask = torch.arange(9) < torch.randint(1, 10, (8, 1))
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_come = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    assert torch.allclose(returns, to_come, atol=1e-12)


def test_masked_values_change_nothing() -> None:
    """verl's invariance (tests/trainer/ppo/test_core_algos_on_cpu.py), bit for bit."""
    rewards = torch.tensor([[0, 0, 0.1, 0.1, 0.1, 0, 0, 0.1, 1.0, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0]])
    values = torch.zeros(1, 11).masked_scatter(mask.bool(), torch.tensor([4.0, 5, 6, 7, 9]))
    noisy = torch.where(mask.bool(), values, torch.randn(1, 11) * 100)
    for a, b in zip(*(gae(rewards, v, mask, gamma=1.0, lam=0.95) for v in (values, noisy)), strict=True):
        assert torch.equal(a, b)


def test_low_precision_is_summed_in_float32() -> None:
    rewards = torch.full((1, 600), 0.01).bfloat16()
    advantages, _ = gae(rewards, torch.zeros_like(rewards), torch.ones(1, 600), gamma=1.0, lam=1.0)
    assert advantages.dtype == torch.float32
    assert advantages[0, 0].item() == pytest.approx(600 * 0.010009765625, rel=1e-5)


def test_whiten() -> None:
    mask = torch.tensor([[0, 1, 1, 0]])
    assert whiten(torch.tensor([[1.0, 2, 3, 4]]), mask)[0].tolist() == pytest.approx([0, -1, 1, 0])  # biased variance
    torch.manual_seed(0)
    values, mask = torch.randn(20, 30) * 3 + 5, torch.rand(20, 30) < 0.5
    white = whiten(values, mask)
    assert white[mask].mean().abs() < 1e-6
    assert white[mask].var(unbiased=False).item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(whiten(values * 10 - 7, mask), white, atol=1e-5)
    assert torch.equal(whiten(torch.full((2, 2), 3.0), torch.ones(2, 2)), torch.zeros(2, 2))


def test_kl_controller() -> None:
    assert next_kl_coef(0.1, 6.0, target=6.0, horizon=10_000, episodes=500) == 0.1
    assert next_kl_coef(0.1, 6.6, target=6.0, horizon=10_000, episodes=500) == pytest.approx(0.1 * 1.005)
    assert next_kl_coef(0.1, 99.0, target=6.0, horizon=10_000, episodes=500) == pytest.approx(0.1 * 1.01)
    assert next_kl_coef(0.1, -5.0, target=6.0, horizon=10_000, episodes=500) == pytest.approx(0.1 * 0.99)


def test_groups_by_hand() -> None:
    totals = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0])  # two prompts with three responses each
    assert leave_one_out(totals, 3).tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, -1.5, -1.5, 3])
    deviation = (14 / 3) ** 0.5  # of 1, 2, 6: mean 3
    other = 2**0.5  # of 0, 0, 3: mean 1
    wanted = [-2 / deviation, -1 / deviation, 3 / deviation, -1 / other, -1 / other, 2 / other]
    assert group_normalised(totals, 3).tolist() == pytest.approx(wanted, rel=1e-5)


def test_responses_that_are_all_as_good_teach_nothing() -> None:
    totals = torch.tensor([2.5, 2.5, -1.0, -1.0])
    assert not leave_one_out(totals, 2).any()
    assert not group_normalised(totals, 2).any()


def test_one_advantage_for_every_token_of_a_response() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert on_every_token(torch.tensor([2.0, -3.0]), mask).tolist() == [[2, 2, 0], [-3, 0, 0]]


@pytest.mark.parametrize("samples", [2, 3])
def test_leave_one_out_leaves_the_policy_gradient_as_it_is(samples: int) -> None:
    """Over every group of samples, weighted by its probability: the gradient of Σ π R, to rounding."""
    torch.manual_seed(0)
    logits, rewards = torch.randn(4, dtype=torch.float64, requires_grad=True), torch.randn(4, dtype=torch.float64)
    exact = torch.autograd.grad((logits.softmax(0) * rewards).sum(), logits)[0]
    probabilities = logits.softmax(0).detach()
    loss = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(range(4), repeat=samples):
        chosen = list(group)
        advantages = leave_one_out(rewards[chosen], samples)
        loss = loss - probabilities[chosen].prod() * (advantages * logits.log_softmax(0)[chosen]).mean()
    [gradient] = torch.autograd.grad(-loss, logits)
    assert gradient.tolist() == pytest.approx(exact.tolist(), abs=1e-12)
