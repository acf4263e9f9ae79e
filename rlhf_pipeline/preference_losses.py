"""The losses of learning from preferences: one function for each model of how people compare, pure, on tensors.

A score ``s`` is in nats: by Bradley and Terry's model the first of two responses wins with ``σ(s_1 - s_2)``. Each
function gives a loss for each pair ``(pairs,)`` or ranking ``(rankings,)``: the negative log-likelihood of what was
said. Whoever trains multiplies by the weights, sums, and divides by the sum of the weights of the whole optimiser step.

Pairs come as ``chosen`` and ``rejected``. ``probability`` is that of ``chosen`` being the better one, half of the ties
included, and ``tie`` the share that called them equal: of a pair that was decided 1 and 0, of a tie 0.5 and 1, of seven
judges of whom four chose the first and two said tie, 5/7 and 2/7. Swapping the sides, with ``1 - probability`` and
``-margin``, changes no loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, *, probability: Tensor | float = 1.0, margin: Tensor | float = 0.0
) -> Tensor:
    """``-p log σ(d - m) - (1 - p) log σ(m - d)`` with ``d = chosen - rejected``, ``(pairs,)``.

    Bradley and Terry 1952, https://doi.org/10.2307/2334029; InstructGPT, arXiv:2203.02155, equation 1, where p is 1.
    The minimum is at ``d = m + log(p / (1 - p))``.

    Args:
        chosen, rejected: scores, ``(pairs,)``.
        probability: p, ``(pairs,)``: a soft label.
        margin: by how much ``chosen`` should lead, ``(pairs,)`` (Llama 2, arXiv:2307.09288, equation 2).
    """
    lead = chosen - rejected - margin
    return -(probability * F.logsigmoid(lead) + (1 - probability) * F.logsigmoid(-lead))


def rao_kupper_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    threshold: Tensor | float,
    probability: Tensor | float = 1.0,
    tie: Tensor | float = 0.0,
    margin: Tensor | float = 0.0,
) -> Tensor:
    """Bradley and Terry's model for people who do not see differences below a threshold η, ``(pairs,)``.

    With ``d = chosen - rejected - margin`` ::

        P(chosen) = σ(d - η)    P(rejected) = σ(-d - η)    P(tie) = (e^{2η} - 1) σ(d - η) σ(-d - η)

    Rao and Kupper 1967, https://doi.org/10.1080/01621459.1967.10482901, whose θ is ``e^η``. Between equals the share of
    ties is ``tanh(η / 2)``.

    Args:
        chosen, rejected: scores, ``(pairs,)``.
        threshold: η, nats, above 0; may be learnt.
        probability, tie, margin: ``(pairs,)``, see the top of the file.
    """
    lead = chosen - rejected - margin
    eta = torch.as_tensor(threshold, dtype=lead.dtype, device=lead.device)
    win, loss = F.logsigmoid(lead - eta), F.logsigmoid(-lead - eta)
    even = 2 * eta + torch.log(-torch.expm1(-2 * eta)) + win + loss
    return -((probability - tie / 2) * win + tie * even + (1 - probability - tie / 2) * loss)


def davidson_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    prevalence: Tensor | float,
    probability: Tensor | float = 1.0,
    tie: Tensor | float = 0.0,
    margin: Tensor | float = 0.0,
) -> Tensor:
    """Bradley and Terry's model with ties as likely as the geometric mean of both sides, ν times, ``(pairs,)``.

    With ``d = chosen - rejected - margin`` ::

        P(chosen) : P(tie) : P(rejected) = e^{d/2} : ν : e^{-d/2}

    Davidson 1970, https://doi.org/10.1080/01621459.1970.10481082. Between equals the share of ties is ``ν / (2 + ν)``.

    Args:
        chosen, rejected: scores, ``(pairs,)``.
        prevalence: ν, above 0; may be learnt.
        probability, tie, margin: ``(pairs,)``, see the top of the file.
    """
    lead = chosen - rejected - margin
    nu = torch.as_tensor(prevalence, dtype=lead.dtype, device=lead.device)
    outcomes = torch.stack([lead / 2, nu.log().expand_as(lead), -lead / 2], -1)
    win, even, loss = torch.log_softmax(outcomes, -1).unbind(-1)
    return -((probability - tie / 2) * win + tie * even + (1 - probability - tie / 2) * loss)


def plackett_luce_loss(
    scores: Tensor, places: Tensor, mask: Tensor, *, prevalence: Tensor | float | None = None
) -> Tensor:
    """Whole rankings: the best of those that are left is chosen again and again, ``(rankings,)``.

    Without ties, of the responses A that are left i comes next with ``e^{s_i} / Σ_{j∈A} e^{s_j}`` (Plackett 1975,
    https://doi.org/10.2307/2346567; Luce 1959). With ties a group C of equals comes next with::

        P(C | A) = w(C) / Σ_{B⊆A} w(B)        w(C) = ν^{|C|-1} exp(mean of s over C)

    Firth, Kosmidis and Turner 2019, Davidson–Luce model for multi-item choice with ties, arXiv:1909.07123, with
    ``δ_n = ν^{n-1}``. Two responses are Bradley and Terry's model, with ties Davidson's.

    Args:
        scores: ``(rankings, K)``.
        places: 0 for the best, ``(rankings, K)``; equals have equal places, which need not follow on one another.
        mask: 1 where there is a response, ``(rankings, K)``.
        prevalence: ν, above 0; may be learnt. None allows no ties: the loss of a ranking with one is infinite. With
            it, the sums have up to ``2^K - 1`` terms.
    """
    there = mask.bool()
    scores = torch.where(there, scores, torch.zeros((), dtype=scores.dtype, device=scores.device))
    nu = torch.as_tensor(0.0 if prevalence is None else prevalence, dtype=scores.dtype, device=scores.device)
    members = _groups(scores, largest=1 if prevalence is None else scores.shape[1])
    sizes = members.sum(1)
    worth = scores @ members.T / sizes + torch.xlogy(sizes - 1, nu)
    pairs = there[:, :, None] & there[:, None, :]
    left = pairs & (places[:, :, None] <= places[:, None, :])  # [r, i, j]: j is left when the group of i comes
    equals = (pairs & (places[:, :, None] == places[:, None, :])).to(scores.dtype)
    possible = ((~left).to(scores.dtype) @ members.T) == 0
    total = torch.where(possible, worth[:, None], torch.finfo(scores.dtype).min).logsumexp(-1)
    count = equals.sum(-1).clamp(min=1)
    chosen = (equals * scores[:, None]).sum(-1) / count + torch.xlogy(count - 1, nu)
    # Each member of a group has its group's term, so it counts a share of it.
    return torch.where(there, (total - chosen) / count, torch.zeros((), dtype=scores.dtype, device=scores.device)).sum(
        -1
    )


def _groups(scores: Tensor, *, largest: int) -> Tensor:
    """Every set of at least one and at most ``largest`` of K responses, ``(sets, K)``, 1 for its members."""
    k = scores.shape[1]
    if largest == 1:
        return torch.eye(k, dtype=scores.dtype, device=scores.device)
    numbers = torch.arange(1, 2**k, device=scores.device)
    return (numbers[:, None] >> torch.arange(k, device=scores.device) & 1).to(scores.dtype)


def centering_penalty(chosen: Tensor, rejected: Tensor) -> Tensor:
    """``(chosen + rejected)²``, ``(pairs,)``: keeps scores, which only differences fix, around zero.

    Eisenstein et al. 2023, arXiv:2312.09244, equation 2; multiply by a small weight (there 0.01) and add to the loss.
    """
    return (chosen + rejected).square()


def dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float,
) -> Tensor:
    """DPO's loss of each pair, ``(pairs,)`` (Rafailov et al. 2023, arXiv:2305.18290, equation 7). Written down for the
    tests: policies are trained by TRL, whose loss they hold to it.

    ``-log σ(β [(log π(chosen) - log π_ref(chosen)) - (log π(rejected) - log π_ref(rejected))])``; each argument is the
    sum of a response's token log-probabilities, ``(pairs,)``.
    """
    margin = (chosen_logprobs - ref_chosen_logprobs) - (rejected_logprobs - ref_rejected_logprobs)
    return -F.logsigmoid(beta * margin)
