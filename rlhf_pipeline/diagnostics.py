"""What one iteration of PPO says of itself: pure functions from tensors that the loop has to named numbers.

Masks are 1 on every response token, the stop token included. KL and rewards are sums per response, in nats and in
normalised scores; lengths are in tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_pipeline.losses import explained_variance, kl_k1, kl_k3, masked_mean, masked_sum
from rlhf_pipeline.rollout import Measured, Rollout, ScoreScale


def describe(
    rollout: Rollout,
    measured: Measured,
    scores: Tensor,
    scale: ScoreScale,
    rewards: Tensor,
    advantages: Tensor,
    returns: Tensor | None,
) -> dict[str, float]:
    """Everything that is known of an iteration's responses before learning from them.

    Args:
        scores: ``(batch,)``, in the reward model's own unit; ``scale`` normalises them.
        rewards, advantages, returns: ``(batch, response_len)``; the advantages are those before whitening, and there
            are no returns without a critic.
    """
    mask = rollout.response_mask
    critic = {}
    if measured.values is not None and returns is not None:
        critic["ppo/val/explained_variance"] = explained_variance(measured.values, returns, mask)
    return {
        **of_kl(measured.logprobs, measured.ref_logprobs, mask),
        "objective/entropy": masked_mean(measured.entropy, mask).item(),
        **of_scores(scores, scale),
        "objective/rlhf_reward": rewards.sum().item() / len(rewards),
        **critic,
        **of_advantages(advantages, mask),
        **of_responses(rollout.prompts, rollout.responses, rollout.ended),
        "response/score_length_correlation": correlation(scores, mask.sum(1)),
        **of_sampling(rollout.sampling_logprobs, measured.logprobs, mask),
    }


def of_kl(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """KL(policy‖reference) per response by k1 and k3: mean and 95th percentile, and k1 per token.

    The means agree where samples are the policy's own; a k1 below zero says that they are not, a k3 far above k1 that
    few tokens carry most of the distance. All ``(batch, response_len)``.
    """
    found = {}
    for name, estimate in (("kl", kl_k1), ("kl_k3", kl_k3)):
        by_token = estimate(logprobs, ref_logprobs).masked_fill(~mask.bool(), 0.0)
        found[f"objective/{name}"] = masked_sum(by_token, mask).item() / len(mask)
        found[f"objective/{name}_p95"] = p95(by_token.sum(1))
    return {**found, "objective/kl_per_token": found["objective/kl"] * len(mask) / mask.sum().item()}


def of_scores(scores: Tensor, scale: ScoreScale) -> dict[str, float]:
    """Mean and standard deviation of the scores, ``(batch,)``, in their own unit and in the SFT policy's deviations.

    At the first iteration the normalised ones are about 0 and 1, by the meaning of ``scale``.
    """
    raw = scores.double()
    mean, std = raw.mean().item(), raw.std(unbiased=False).item()
    return {
        "objective/scores": scores.mean().item(),
        "objective/scores_std": std,
        "objective/scores_normalised": (mean - scale.mean) / scale.std,
        "objective/scores_normalised_std": std / scale.std,
    }


def of_advantages(advantages: Tensor, mask: Tensor) -> dict[str, float]:
    """Mean, standard deviation, share above zero and number of the tokens' advantages, ``(batch, response_len)``.

    To be taken before whitening, which makes unit variance of whatever it is given, noise included.
    """
    chosen = advantages[mask.bool()].double()
    return {
        "advantages/mean": chosen.mean().item(),
        "advantages/std": chosen.std(unbiased=False).item(),
        "advantages/positive": (chosen > 0).double().mean().item(),
        "advantages/tokens": float(chosen.numel()),
    }


def of_responses(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], ended: Tensor
) -> dict[str, float]:
    """To how many different prompts, lengths, how many ended by themselves, and how much they repeat themselves and
    each other.

    ``distinct_2`` is the share of different ones among all pairs of neighbouring tokens (Li et al. 2016,
    arXiv:1510.03055), ``duplicates`` the share of responses that equal an earlier one of the batch.
    """
    lengths = torch.tensor([len(ids) for ids in responses], dtype=torch.float64)
    pairs = [pair for ids in responses for pair in itertools.pairwise(ids)]
    finished = ended.double().mean().item()
    return {
        "response/prompts": float(len({tuple(ids) for ids in prompts})),
        "response/length": lengths.mean().item(),
        "response/length_p95": p95(lengths),
        "response/ended": finished,
        "response/truncated": 1 - finished,
        "response/distinct_2": len(set(pairs)) / len(pairs) if pairs else 1.0,
        "response/duplicates": 1 - len({tuple(ids) for ids in responses}) / len(responses),
    }


def of_sampling(sampling_logprobs: Tensor, logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """How far apart the decoder and the training forward are on the sampled tokens; all ``(batch, response_len)``.

    Rounding alone gives about 1e-6 in float32 and 1e-2 in bfloat16. More says that what was sampled is not what is
    trained: another temperature, a stale adapter, a cache of other weights.
    """
    gap = (sampling_logprobs - logprobs).abs()
    probabilities = (sampling_logprobs.exp() - logprobs.exp()).abs().masked_fill(~mask.bool(), 0.0)
    return {
        "rollout/logprob_gap": masked_mean(gap, mask).item(),
        "rollout/logprob_gap_k3": masked_mean(kl_k3(sampling_logprobs, logprobs), mask).item(),
        "rollout/prob_gap_max": probabilities.max().item(),
    }


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation of two ``(n,)``; 0 where one of them does not vary."""
    a, b = (x.double() - x.double().mean() for x in (one, other))
    scale = math.sqrt((a.square().sum() * b.square().sum()).item())
    return (a * b).sum().item() / scale if scale > 0 else 0.0


def p95(values: Tensor) -> float:
    """The smallest of the values, ``(n,)``, that 95 % of them do not exceed."""
    return values.double().sort().values[math.ceil(0.95 * len(values)) - 1].item()
