"""PPO's losses: numbers worked by hand, invariances, published vectors."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_pipeline.losses import (
    explained_variance,
    kl_k1,
    kl_k3,
    masked_mean,
    masked_sum,
    ppo_policy_loss,
    ppo_value_loss,
)


def policy(ratios, advantages, mask=None, *, count=None, **changes):
    log_ratio = torch.tensor([ratios], dtype=torch.float64).log()
    old = torch.full_like(log_ratio, -1.5)
    mask = torch.ones_like(log_ratio) if mask is None else torch.tensor([mask])
    count = int(mask.sum()) if count is None else count
    arguments = {"cliprange": 0.2, "token_count": count} | changes
    return ppo_policy_loss(old + log_ratio, old, torch.tensor([advantages], dtype=torch.float64), mask, **arguments)


def test_masked_mean_published() -> None:
    """Vectors of TRL's TestCore and OpenRLHF's test_loss_aggregation."""
    assert masked_mean(torch.tensor([1.0, 2, 3, 4]), torch.tensor([0, 1, 1, 0])).item() == 2.5
    loss = torch.tensor([[1.0, 2, 0], [3, 4, 5], [7, 0, 0]])
    assert masked_mean(loss, loss != 0).item() == pytest.approx(22 / 6)
    assert masked_mean(torch.tensor([math.nan, 1.0]), torch.tensor([0, 1])).item() == 1  # garbage under the mask
    assert masked_mean(torch.ones(2), torch.zeros(2)).item() == 0
    assert masked_sum(loss, loss > 2).item() == 19


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 2.0, -2.0),
        (1.1, 2.0, -2.2),
        (1.5, 2.0, -2.4),  # clipped at 1.2
        (0.5, 2.0, -1.0),  # the pessimistic side is not clipped
        (0.5, -2.0, 1.6),  # clipped at 0.8
        (1.5, -2.0, 3.0),
        (5.0, -2.0, 6.0),  # dual clip at 3 |A|
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float) -> None:
    assert policy([ratio], [advantage]).loss.item() == pytest.approx(loss)


def test_policy_loss_statistics() -> None:
    result = policy([1.5, 0.5, 1.0, 9.0], [1.0, 1.0, 1.0, 1.0], [1, 1, 1, 0])
    assert result.loss.item() == pytest.approx(-(1.2 + 0.5 + 1.0) / 3)
    assert (result.clipped_low.item(), result.clipped_high.item()) == (0, 1)
    assert result.ratio.item() == pytest.approx(3)
    assert (result.smallest_ratio.item(), result.largest_ratio.item()) == pytest.approx((0.5, 1.5))
    low = policy([0.5, 1.5], [-1.0, -1.0])
    assert (low.clipped_low.item(), low.clipped_high.item()) == (1, 0)
    k3 = (1.5 - 1 - math.log(1.5)) + (0.5 - 1 - math.log(0.5))
    assert result.old_kl.item() == pytest.approx(k3)
    assert result.largest_ratio_error.item() == pytest.approx(0.5)
    assert policy([5.0], [-2.0], dual_clip=None).loss.item() == pytest.approx(10)


def test_extreme_ratios_stay_finite() -> None:
    new = torch.tensor([[0.0, -300.0]], requires_grad=True)
    loss = ppo_policy_loss(
        new, torch.tensor([[-300.0, 0.0]]), torch.tensor([[-1.0, 1.0]]), torch.ones(1, 2), cliprange=0.2, token_count=2,
        dual_clip=None,
    ).loss  # fmt: skip
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(new.grad).all()
    assert loss.item() == pytest.approx(math.exp(20) / 2)


def test_micro_batches_add_up_to_the_whole_and_means_of_means_do_not() -> None:
    torch.manual_seed(0)
    old, advantages = torch.randn(6, 9, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([[9], [2], [5], [1], [7], [3]])
    shift = (0.3 * torch.randn(6, 9, dtype=torch.float64)).requires_grad_()

    def gradient(parts: list[slice], global_count: bool) -> torch.Tensor:
        total = sum(
            ppo_policy_loss(
                (old + shift)[p], old[p], advantages[p], mask[p], cliprange=0.2,
                token_count=mask.sum() if global_count else mask[p].sum() * len(parts),
            ).loss
            + ppo_value_loss(
                shift[p], old[p] * 0, advantages[p], mask[p], cliprange_value=0.2,
                token_count=mask.sum() if global_count else mask[p].sum() * len(parts),
            ).loss
            for p in parts
        )  # fmt: skip
        return torch.autograd.grad(total, shift)[0]

    split = [slice(0, 1), slice(1, 4), slice(4, 6)]
    whole = gradient([slice(None)], True)
    assert torch.allclose(gradient(split, True), whole, rtol=1e-12, atol=1e-15)
    assert (gradient(split, False) - whole).norm() > 0.05 * whole.norm()


def test_value_loss_by_hand() -> None:
    def one(value: float, old: float, target: float) -> tuple[float, float]:
        row = [torch.tensor([[x]]) for x in (value, old, target)]
        result = ppo_value_loss(*row, torch.ones(1, 1), cliprange_value=0.2, token_count=1)
        return result.loss.item(), result.clipped.item()

    assert one(1.0, 1.0, 3.0) == (pytest.approx(2.0), 0)
    assert one(1.5, 1.0, 3.0) == (pytest.approx(0.5 * 1.8**2), 1)  # moved too far towards the target
    assert one(0.5, 1.0, 3.0) == (pytest.approx(0.5 * 2.5**2), 0)  # moved away: not forgiven


def test_kl_estimators_are_unbiased_and_k3_is_never_negative() -> None:
    torch.manual_seed(0)
    p, q = (torch.log_softmax(torch.randn(7, dtype=torch.float64), 0) for _ in range(2))
    exact = (p.exp() * (p - q)).sum()
    assert torch.allclose((p.exp() * kl_k1(p, q)).sum(), exact)
    assert torch.allclose((p.exp() * kl_k3(p, q)).sum(), exact)
    assert (kl_k3(p, q) >= 0).all()
    assert (kl_k1(p, q) < 0).any()
    assert kl_k3(torch.tensor(-1.0), torch.tensor(-1.0 + math.log(2))).item() == pytest.approx(1 - math.log(2))
    assert math.isfinite(kl_k3(torch.tensor(-200.0), torch.tensor(0.0)).item())


def test_explained_variance() -> None:
    targets, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1, 1, 0]])
    assert explained_variance(targets, targets, mask) == 1
    assert explained_variance(torch.full_like(targets, 7.0), targets, mask) == 0
    assert explained_variance(torch.tensor([[1.0, 2.0, 0.0]]), targets, mask) == pytest.approx(0.75)
    assert math.isnan(explained_variance(targets, torch.ones(1, 3), mask))
