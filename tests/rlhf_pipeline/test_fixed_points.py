"""What our formulas lead to, with every response enumerated: exact gradients, and where each KL treatment ends.

No sampling: the loss of each response is weighted with its probability.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf_pipeline.advantages import gae, kl_penalised_rewards
from rlhf_pipeline.losses import kl_k1, kl_k3, ppo_policy_loss


class World:
    """All responses of up to ``length`` tokens over stop (0) and words; a policy is a table of logits by state.

    With one token the table has a single state; with two the second state is the first word.
    """

    def __init__(self, words: int, length: int, kl_coef: float) -> None:
        generator = torch.Generator().manual_seed(3)
        stopped, longer = [(0,)], itertools.product(range(1, words), range(words))
        self.responses = stopped + (list(longer) if length == 2 else [(a,) for a in range(1, words)])
        self.mask = torch.tensor([[1, len(y) > 1][:length] for y in self.responses]).long()
        self.states = torch.tensor([[0, y[0]][:length] for y in self.responses])
        self.tokens = torch.tensor([[y[0], y[-1]][:length] for y in self.responses])
        self.kl_coef, self.shape = kl_coef, (words if length == 2 else 1, words)
        self.scores = torch.randn(len(self.responses), dtype=torch.float64, generator=generator)
        self.ref = self.logprobs(torch.randn(self.shape, dtype=torch.float64, generator=generator))

    def logprobs(self, table: Tensor) -> Tensor:
        """``(responses, length)`` token log-probabilities."""
        return torch.log_softmax(table, -1)[self.states, self.tokens] * self.mask

    def objective(self, table: Tensor) -> Tensor:
        """E[score - β log π/π_ref]."""
        sums, ref = self.logprobs(table).sum(1), self.ref.sum(1)
        return (sums.exp() * (self.scores - self.kl_coef * (sums - ref))).sum()

    def distance(self, table: Tensor) -> float:
        """Total variation to π_ref exp(score / β) / Z."""
        optimum = torch.softmax(self.ref.sum(1) + self.scores / self.kl_coef, 0)
        return 0.5 * (self.logprobs(table).sum(1).exp() - optimum).abs().sum().item()

    def loss(self, table: Tensor, rewards: Tensor, *, lam: float = 1.0, values: Tensor | None = None) -> Tensor:
        """The engine's loss of the whole distribution."""
        logprobs = self.logprobs(table)
        old = logprobs.detach()
        advantages, _ = gae(rewards, old * 0 if values is None else values, self.mask, gamma=1.0, lam=lam)
        weight = old.sum(1).exp()[:, None]
        return ppo_policy_loss(logprobs, old, advantages * weight, self.mask, cliprange=0.2, token_count=1).loss

    def rewards(self, old: Tensor) -> Tensor:
        """Ours."""
        return kl_penalised_rewards(self.scores, old, self.ref, self.mask, kl_coef=self.kl_coef)


Treatment = Callable[[World, Tensor], Tensor]


def in_reward(penalty: Callable[[Tensor, Tensor], Tensor]) -> Treatment:
    def loss(world: World, table: Tensor) -> Tensor:
        old = world.logprobs(table).detach()
        score = kl_penalised_rewards(world.scores, old, world.ref, world.mask, kl_coef=0.0)
        return world.loss(table, score - world.kl_coef * penalty(old, world.ref) * world.mask)

    return loss


def in_loss(penalty: Callable[[Tensor, Tensor], Tensor]) -> Treatment:
    def loss(world: World, table: Tensor) -> Tensor:
        logprobs = world.logprobs(table)
        score = kl_penalised_rewards(world.scores, logprobs.detach(), world.ref, world.mask, kl_coef=0.0)
        weight = logprobs.detach().sum(1).exp()[:, None]
        return world.loss(table, score) + world.kl_coef * (weight * penalty(logprobs, world.ref) * world.mask).sum()

    return loss


def without_credit(world: World, table: Tensor) -> Tensor:
    """The penalty of a token charged to that token alone: no return carries it back."""
    old = world.logprobs(table).detach()
    score = kl_penalised_rewards(world.scores, old, world.ref, world.mask, kl_coef=0.0)
    own = -world.kl_coef * kl_k1(old, world.ref) * world.mask
    return world.loss(table, score) + world.loss(table, own, lam=0.0)


OURS: Treatment = lambda world, table: world.loss(table, world.rewards(world.logprobs(table).detach()))  # noqa: E731
WRONG: dict[str, Treatment] = {
    "k3 in the reward": in_reward(kl_k3),  # offered by TRL 1.12
    "k2 in the reward": in_reward(lambda new, ref: (new - ref).square() / 2),  # TRL's and verl's "mse"
    "|k1| in the reward": in_reward(lambda new, ref: (new - ref).abs()),  # TRL's and verl's "abs"
    "k1 as a loss": in_loss(kl_k1),
    "k3 as a loss": in_loss(kl_k3),  # GRPO's
    "k1 without credit": without_credit,
}
WORLDS = {"one token": (8, 1, 0.3), "two tokens": (4, 2, 0.5)}


def ends_at(world: World, treatment: Treatment) -> float:
    """Distance to the optimum after natural gradient descent (Kakade 2001): a few steps where Adam wants thousands.

    For a table of logits it is the gradient divided by how often each word of each state comes.
    """
    table = torch.zeros(world.shape, dtype=torch.float64, requires_grad=True)
    for _ in range(80):
        [gradient] = torch.autograd.grad(treatment(world, table), table)
        probability = world.logprobs(table).detach().sum(1).exp()[:, None] * world.mask
        often = torch.zeros_like(gradient).index_put((world.states, world.tokens), probability, accumulate=True)
        with torch.no_grad():
            table -= 0.5 / world.kl_coef * gradient / often.clamp(min=1e-9)
    return world.distance(table)


@pytest.mark.parametrize("size", WORLDS)
def test_ours_ends_at_the_kl_regularised_optimum_and_other_kl_treatments_do_not(size: str) -> None:
    world = World(*WORLDS[size])
    assert ends_at(world, OURS) < 1e-4
    distances = {name: ends_at(world, wrong) for name, wrong in WRONG.items()}
    if size == "one token":
        assert distances.pop("k1 without credit") < 1e-4  # there is no earlier token to credit
    assert min(distances.values()) > 0.03, distances


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("size", WORLDS)
def test_the_gradient_is_exact(size: str, baseline: bool) -> None:
    """The engine's gradient is that of E[score - β log π/π_ref] at λ = 1, whatever the values."""
    world = World(*WORLDS[size])
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(world.shape, dtype=torch.float64, generator=generator).requires_grad_()
    values = torch.randn(world.shape[0], dtype=torch.float64, generator=generator)[world.states] * baseline
    loss = world.loss(table, world.rewards(world.logprobs(table).detach()), values=values)
    [ours] = torch.autograd.grad(loss, table)
    [exact] = torch.autograd.grad(-world.objective(table), table)
    assert (ours - exact).norm() / exact.norm() < 1e-10


def test_the_gradient_of_samples_is_the_exact_one_within_its_error() -> None:
    """20,000 responses drawn from the policy: every component of the mean gradient within five standard errors."""
    world, count = World(*WORLDS["two tokens"]), 20_000
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(world.shape, dtype=torch.float64, generator=generator)
    probabilities = world.logprobs(table).sum(1).exp()
    values = torch.randn(world.shape[0], dtype=torch.float64, generator=generator)[world.states]
    rewards = world.rewards(world.logprobs(table))
    advantages, _ = gae(rewards, values, world.mask, gamma=1.0, lam=1.0)

    def gradient(response: int) -> Tensor:
        """Of one response's loss: samples of one response have one gradient."""
        own = table.clone().requires_grad_()
        rows = slice(response, response + 1)
        new = world.logprobs(own)[rows]
        loss = ppo_policy_loss(new, new.detach(), advantages[rows], world.mask[rows], cliprange=0.2, token_count=1).loss
        return torch.autograd.grad(loss, own)[0].flatten()

    each = torch.stack([gradient(i) for i in range(len(world.responses))])
    drawn = torch.multinomial(probabilities, count, replacement=True, generator=generator)
    samples = each[drawn]
    own = table.clone().requires_grad_()
    exact = torch.autograd.grad(-world.objective(own), own)[0].flatten()
    error = samples.std(0) / count**0.5
    met = error > 0
    assert (samples.mean(0) - exact)[met].div(error[met]).abs().max() < 5
    assert met.sum() > 10
