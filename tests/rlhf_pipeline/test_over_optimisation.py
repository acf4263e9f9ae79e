"""Over-optimisation (Gao et al. 2022, arXiv:2210.10760) where all of it can be computed: no sampling, no training.

Responses are five words out of eight. The gold score likes word 7 once and hates it repeated; the reward model counts
words, so that it cannot know. It is fitted by our Bradley–Terry loss to comparisons of the reference's responses. The
policy at every KL is the optimum of the KL-penalised score.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rlhf_pipeline.preference_losses import bradley_terry_loss

WORDS, LENGTH = 8, 5
QUALITY = torch.tensor([0.6, -0.4, 0.3, -0.2, 0.1, -0.5, 0.2, 0.0], dtype=torch.float64)
WORD = torch.tensor([0.2, 0.18, 0.16, 0.14, 0.12, 0.1, 0.08, 0.02], dtype=torch.float64)  # the reference's
COUNTS = torch.tensor([c for c in itertools.product(range(LENGTH + 1), repeat=WORDS) if sum(c) == LENGTH]).double()
ORDERS = torch.tensor([math.factorial(LENGTH) / math.prod(math.factorial(int(n)) for n in c) for c in COUNTS])
REF = ORDERS * (COUNTS * WORD.log()).sum(1).exp()
GOLD = COUNTS @ QUALITY * 0.5 + 1.2 * COUNTS[:, 7] - 0.8 * COUNTS[:, 7] * (COUNTS[:, 7] - 1)
BETAS = torch.logspace(1.5, -1.5, 121, dtype=torch.float64)


def proxy(comparisons: int, seed: int) -> Tensor:
    """Scores of a reward model that was fitted to so many comparisons by the gold score."""
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.multinomial(REF, 2 * comparisons, replacement=True, generator=generator).view(2, -1)
    won = torch.rand(comparisons, dtype=torch.float64, generator=generator) < torch.sigmoid(GOLD[one] - GOLD[other])
    chosen, rejected = torch.where(won, one, other), torch.where(won, other, one)
    weights = torch.zeros(WORDS, dtype=torch.float64, requires_grad=True)
    fit = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        fit.zero_grad()
        scores = COUNTS @ weights
        loss = bradley_terry_loss(scores[chosen], scores[rejected]).mean()
        loss.backward()
        return loss

    fit.step(closure)
    return COUNTS @ weights.detach()


def curve(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL to the reference, gold and proxy score of the optimum for every β: three tensors like ``BETAS``."""
    policies = torch.softmax(REF.log() + scores / BETAS[:, None], -1)
    kl = (policies * (policies.clamp(min=1e-300).log() - REF.log())).sum(-1)
    return kl, policies @ GOLD, policies @ scores


def test_gold_rises_and_falls_while_the_proxy_rises() -> None:
    assert REF.sum().item() == pytest.approx(1)
    kl, gold, learnt = curve(proxy(3_000, 0))
    assert (kl.diff() > 0).all()
    assert (learnt.diff() > 0).all()
    top = int(gold.argmax())
    assert 1 < kl[top] < 4
    assert gold[top] - REF @ GOLD > 0.5
    assert gold[-1] < REF @ GOLD - 3
    assert (gold[: top + 1].diff() > 0).all()
    assert (gold[top:].diff() < 0).all()


def test_more_comparisons_buy_more_gold_for_the_same_kl_and_exaggerate_less() -> None:
    gold_at_1, excess_at_2 = [], []
    for comparisons in (30, 100, 1_000):
        rows = []
        for seed in range(8):
            scores = proxy(comparisons, seed)
            kl, gold, learnt = curve(scores)
            one, two = (int((kl >= nats).nonzero()[0]) for nats in (1, 2))
            rows.append((gold[one] - REF @ GOLD, (learnt[two] - REF @ scores) - (gold[two] - REF @ GOLD)))
        gains, excesses = zip(*rows, strict=True)
        gold_at_1.append(sum(gains).item() / len(rows))
        excess_at_2.append(sum(excesses).item() / len(rows))
    assert gold_at_1 == sorted(gold_at_1)
    assert excess_at_2 == sorted(excess_at_2, reverse=True)
    assert excess_at_2[-1] > 0.3


def test_no_policy_of_the_same_kl_has_a_higher_score() -> None:
    """The frontier that PPO's checkpoints are held to: every mixture of two optima lies below it."""
    scores = proxy(1_000, 0)
    kl, _, learnt = curve(scores)
    policies = torch.softmax(REF.log() + scores / BETAS[:, None], -1)
    for i, j in itertools.combinations(range(0, len(BETAS), 20), 2):
        mixed = (policies[i] + policies[j]) / 2
        its_kl = (mixed * (mixed.clamp(min=1e-300).log() - REF.log())).sum()
        above = int((kl >= its_kl).nonzero()[0])
        assert mixed @ scores <= learnt[above]
