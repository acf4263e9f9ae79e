"""The head first: logistic regression on what the backbone makes of the pairs, before anything else moves.

Fine-tuning under a random or zero head first bends the features to fit that head; a head that fits the features from
the start leaves them better on what is unlike the training data (Kumar et al. 2022, arXiv:2202.10054).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_pipeline.models import score_layer
from rlhf_pipeline.reward_models import RewardModel

_PENALTY = 1e-3
"""Of the squared weights, times the mean square of the features: keeps the head finite where pairs can be separated."""


def fit_head(
    classifier: Any,
    chosen: Sequence[Sequence[int]],
    rejected: Sequence[Sequence[int]],
    *,
    steps: int,
    batch_size: int,
    centering: float = 0.0,
) -> float:
    """Set the last layer of the head to the Bradley–Terry optimum on frozen features; returns its mean loss, in nats.

    Args:
        classifier: a reward model; only its last linear layer is changed.
        chosen, rejected: ids of both sides of each pair.
        steps: of L-BFGS at most; the loss is convex, and 50 are usually plenty.
        batch_size: sequences in one forward pass, of which there is one for all of them.
        centering: weight of the squared sum of both scores, as in the training that follows.
    """
    rows = features(classifier, [*chosen, *rejected], batch_size)
    apart, together = rows[: len(chosen)] - rows[len(chosen) :], rows[: len(chosen)] + rows[len(chosen) :]
    layer = score_layer(classifier)
    weight = torch.zeros(apart.shape[1], device=apart.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")
    penalty = _PENALTY * apart.square().mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.softplus(-apart @ weight).mean() + penalty * weight.square().sum()
        loss = loss + centering * (together @ weight).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        layer.weight.copy_(weight[None])
        return F.softplus(-apart @ weight).mean().item()


def features(classifier: Any, sequences: Sequence[Sequence[int]], batch_size: int) -> Tensor:
    """What the last layer of the head reads of each sequence, ``(sequences, hidden)`` in float32."""
    seen: list[Tensor] = []
    layer = score_layer(classifier)
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().float()))
    try:
        RewardModel(classifier).score(sequences, batch_size)
    finally:
        hook.remove()
    order = RewardModel.order(sequences)
    return torch.empty_like(torch.cat(seen)).index_copy(0, torch.tensor(order, device=seen[0].device), torch.cat(seen))
