"""The losses of PPO, and the estimators beside them: pure functions on tensors.

Masks are 1 where a token counts. What a mask leaves out never enters a result, whatever stands there.
A loss over tokens is a sum divided by ``token_count``, the number of tokens of the whole optimiser step, so that
micro-batches (and processes) add up to exactly the gradient of the whole: a mean of means does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ± this before they are exponentiated (as OpenRLHF and verl do)."""


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of ``values`` where ``mask`` is 1; both of one shape, the result is a scalar."""
    return torch.where(mask.bool(), values, torch.zeros((), dtype=values.dtype, device=values.device)).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask`` is 1; both of one shape, the result is a scalar (0 where nothing counts)."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


@dataclass(frozen=True)
class PolicyLoss:
    """The loss, and sums over its tokens (divide by ``token_count``) that say how far the policy has moved."""

    loss: Tensor
    clipped_low: Tensor
    """Tokens in which the clipped side was the larger one, below 1 - ε."""
    clipped_high: Tensor
    """The same above 1 + ε."""
    old_kl: Tensor
    """Sum of the k3 estimates of KL(old‖new)."""
    ratio: Tensor
    """Sum of the ratios."""
    largest_ratio: Tensor
    smallest_ratio: Tensor
    largest_ratio_error: Tensor
    """max |ratio - 1|."""


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    cliprange: float,
    token_count: int | Tensor,
    dual_clip: float | None = 3.0,
) -> PolicyLoss:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, equation 7), summed over tokens / token_count.

    ``max(-A ρ, -A clip(ρ, 1-ε, 1+ε))`` with ``ρ = exp(logprob - old_logprob)``; where ``A < 0`` it is at most ``-A c``
    (dual clip, Ye et al. 2019, arXiv:1912.09729, equation 5).

    Args:
        logprobs: of the policy being trained, ``(batch, response_len)``, with a graph.
        old_logprobs, advantages, mask: the same shape, without a graph.
        cliprange: ε.
        token_count: tokens in the whole optimiser step.
        dual_clip: c, above 1; None leaves it out.
    """
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask.bool(), 0.0)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    losses = torch.maximum(plain, clipped)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * dual_clip), losses)
    with torch.no_grad():
        beyond = (clipped > plain) & mask.bool()
        # KL(old‖new) has its samples from old, so the ratio in k3 is new/old.
        old_kl = masked_sum(kl_k3(old_logprobs, logprobs), mask)
        counted = ratio[mask.bool()] if mask.any() else ratio.new_ones(1)
    return PolicyLoss(
        masked_sum(losses, mask) / token_count,
        clipped_low=(beyond & (ratio < 1)).sum(),
        clipped_high=(beyond & (ratio > 1)).sum(),
        old_kl=old_kl,
        ratio=masked_sum(ratio.detach(), mask),
        largest_ratio=counted.max().detach(),
        smallest_ratio=counted.min().detach(),
        largest_ratio_error=(counted - 1).abs().max().detach(),
    )


@dataclass(frozen=True)
class ValueLoss:
    """The loss, and how many tokens the clip decided."""

    loss: Tensor
    clipped: Tensor


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    cliprange_value: float,
    token_count: int | Tensor,
) -> ValueLoss:
    """``½ max((v - R)², (clip(v, v_old ± c) - R)²)`` summed over tokens / token_count; all ``(batch, response_len)``.

    The clip is that of OpenAI's ``lm-human-preferences`` (``train_policy.py``); ``cliprange_value`` has the unit of the
    rewards, so it supposes rewards of about unit variance.
    """
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    plain, clipped = (values - returns).square(), (near - returns).square()
    with torch.no_grad():
        decided = masked_sum((clipped > plain).to(values.dtype), mask)
    return ValueLoss(0.5 * masked_sum(torch.maximum(plain, clipped), mask) / token_count, decided)


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``log π - log π_ref`` per token, for tokens sampled from π: unbiased for KL(π‖π_ref), of either sign.

    k1 of Schulman 2020 (http://joschu.net/blog/kl-approx.html); any one shape, usually ``(batch, response_len)``.
    """
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``r - 1 - log r`` with ``r = π_ref/π`` per token, for tokens sampled from π: unbiased for KL(π‖π_ref), never < 0.

    k3 of Schulman 2020 (http://joschu.net/blog/kl-approx.html); the log-ratio is clamped. A number to look at: as a
    penalty in the reward its optimum is not the KL-regularised one.
    """
    log_ratio = (ref_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(log_ratio) - log_ratio


def explained_variance(predictions: Tensor, targets: Tensor, mask: Tensor) -> float:
    """``1 - Var(targets - predictions) / Var(targets)`` over the masked tokens; nan where the targets do not vary.

    All ``(batch, response_len)``. 1 is a perfect critic, 0 is no better than a constant.
    """
    chosen = mask.bool()
    variance = targets[chosen].double().var(unbiased=False).item()
    residual = (targets - predictions)[chosen].double().var(unbiased=False).item()
    return 1 - residual / variance if variance > 0 else math.nan
