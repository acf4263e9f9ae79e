"""From scores to advantages: KL-penalised rewards, GAE, baselines within a group of samples, the KL controller."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_pipeline.losses import kl_k1, masked_mean


def kl_penalised_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, kl_coef: float
) -> Tensor:
    """Reward of each token: ``-kl_coef (log π - log π_ref)``, plus the score at the response's last token.

    InstructGPT (arXiv:2203.02155, equation 2). With γ = 1 the k1 penalty in the reward, credited to the earlier
    tokens through the return, has the KL-regularised optimum ``π_ref exp(score / kl_coef)`` as its fixed point.

    Args:
        scores: one per response, ``(batch,)``, already normalised and clipped.
        logprobs, ref_logprobs: of policy and reference, ``(batch, response_len)``.
        mask: response_mask, ``(batch, response_len)``: 1 on every token up to and including the stop token.
        kl_coef: in units of score per nat.

    Returns:
        ``(batch, response_len)``, 0 where masked.
    """
    rewards = (-kl_coef * kl_k1(logprobs, ref_logprobs)).masked_fill(~mask.bool(), 0.0)
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask.bool(), places, -1).amax(dim=1)
    rewards[torch.arange(len(scores), device=mask.device), last] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equation 16).

    ``A_t = Σ_l (γλ)^l δ_{t+l}``, ``δ_t = r_t + γ V_{t+1} - V_t``, over the masked-in tokens only: a token left out
    (a tool's output, padding) adds no δ and no decay. After the last token the value is 0, also for a truncated
    response, whose score is given already.

    Args:
        rewards, values, mask: ``(batch, response_len)``.

    Returns:
        advantages and returns (``advantages + values``), both ``(batch, response_len)``, float32 at least, 0 where
        masked.
    """
    dtype = torch.promote_types(torch.promote_types(rewards.dtype, values.dtype), torch.float32)
    rewards, values, counts = rewards.to(dtype), values.to(dtype), mask.bool()
    advantages = torch.zeros_like(rewards)
    advantage, next_value = rewards.new_zeros(len(rewards)), rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        here = counts[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(here, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(here, values[:, t], next_value)
        advantages[:, t] = torch.where(here, advantage, 0.0)
    return advantages, torch.where(counts, advantages + values, 0.0)


def leave_one_out(totals: Tensor, samples: int) -> Tensor:
    """RLOO: each response against the mean of the others to its prompt, ``A_i = R_i - Σ_{j≠i} R_j / (samples - 1)``
    (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740).

    A baseline that does not depend on the response itself: the policy gradient stays unbiased.

    Args:
        totals: KL-penalised reward of each response, ``(batch,)``; the responses to one prompt stand side by side.
        samples: responses to each prompt, at least 2; divides ``batch``.
    """
    groups = totals.view(-1, samples)
    others = (groups.sum(1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).view(-1)


def group_normalised(totals: Tensor, samples: int, eps: float = 1e-6) -> Tensor:
    """GRPO: ``(R_i - mean) / (std + eps)`` within the responses to one prompt (DeepSeekMath, arXiv:2402.03300, section
    4.1.2), with the biased standard deviation. Arguments as for :func:`leave_one_out`.

    Every prompt weighs the same, whether its responses differ much or little; the price of KL then differs from prompt
    to prompt, so the optimum is no longer that of the KL-penalised score.
    """
    groups = totals.view(-1, samples)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (centred.square().mean(1, keepdim=True).sqrt() + eps)).view(-1)


def on_every_token(of_response: Tensor, mask: Tensor) -> Tensor:
    """One advantage per response, ``(batch,)``, as that of each of its tokens: ``(batch, response_len)``, else 0."""
    return of_response[:, None] * mask.to(of_response.dtype)


def whiten(values: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """``(values - mean) / √(variance + eps)`` over the masked-in tokens, with the biased variance; 0 where masked.

    ``(batch, response_len)``. To be taken over the whole rollout batch at once, never per micro-batch.
    """
    centred = values - masked_mean(values, mask)
    variance = masked_mean(centred.square(), mask)
    return (centred * torch.rsqrt(variance + eps)).masked_fill(~mask.bool(), 0.0)


def next_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: int, episodes: int) -> float:
    """The adaptive controller of Ziegler et al. 2019 (arXiv:1909.08593, section 2.2).

    ``kl_coef (1 + clip(kl / target - 1, ±0.2) episodes / horizon)``.

    Args:
        kl, target: nats per sequence (not per token).
        horizon: episodes over which the coefficient can change by a fifth.
        episodes: responses since the last update.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon)
