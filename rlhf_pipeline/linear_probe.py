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

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the squared weights, times the mean square of the features. With fewer pairs than features the smallest fits any
labels, also those of chance; the largest leaves next to nothing of the head."""
_FOLDS = 5


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

    The optimum is that with the one of :data:`PENALTIES` that does best on pairs left out.

    Args:
        classifier: a reward model; only its last linear layer is changed.
        chosen, rejected: ids of both sides of each pair.
        steps: of L-BFGS at most; the loss is convex, and 50 are usually plenty.
        batch_size: sequences in one forward pass, of which there is one for all of them.
        centering: weight of the squared sum of both scores, as in the training that follows.
    """
    rows = features(classifier, [*chosen, *rejected], batch_size)
    apart, together = rows[: len(chosen)] - rows[len(chosen) :], rows[: len(chosen)] + rows[len(chosen) :]
    penalty = choose_penalty(apart, together, steps=steps, centering=centering)
    weight = optimum(apart, together, penalty=penalty, steps=steps, centering=centering)
    with torch.no_grad():
        score_layer(classifier).weight.copy_(weight[None])
        return F.softplus(-apart @ weight).mean().item()


def choose_penalty(apart: Tensor, together: Tensor, *, steps: int, centering: float) -> float:
    """The one of :data:`PENALTIES` with the lowest loss on pairs that the head did not learn from (5 parts, each left
    out once); the largest where there are fewer pairs than parts.

    Args as :func:`optimum`.
    """
    if len(apart) < _FOLDS:
        return PENALTIES[-1]
    # In a row, as pairs of one prompt usually lie together: they shall be left out together.
    part = torch.arange(len(apart), device=apart.device) * _FOLDS // len(apart)

    def loss(penalty: float) -> float:
        total = 0.0
        for out in range(_FOLDS):
            kept = part != out
            weight = optimum(apart[kept], together[kept], penalty=penalty, steps=steps, centering=centering)
            total += F.softplus(-apart[~kept] @ weight).sum().item()
        return total

    return min(PENALTIES, key=loss)


def optimum(apart: Tensor, together: Tensor, *, penalty: float, steps: int, centering: float) -> Tensor:
    """The weights ``w``, ``(hidden,)``, with the lowest mean Bradley–Terry loss and penalty, by L-BFGS::

        mean(softplus(-apart w) + centering (together w)²) + penalty mean(apart²) |w|²

    Args:
        apart, together: ``(pairs, hidden)``, the features of chosen less those of rejected, and their sum.
    """
    weight = torch.zeros(apart.shape[1], device=apart.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")
    scaled = penalty * apart.square().mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.softplus(-apart @ weight).mean() + scaled * weight.square().sum()
        loss = loss + centering * (together @ weight).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


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
