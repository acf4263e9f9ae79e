"""Several reward models as one: how their scores are combined, and what their disagreement is good for.

The members are adapters on one base that differ by their seed: the head they start from, the order of the data and, if
wished, which comparisons they see. Coste et al. 2023 (arXiv:2310.02743) train policies on the minimum or on the mean
less the spread, which a policy that exploits one member's mistake does not raise. Or the adapters become one, whose
weights are their mean (WARM, Ramé et al. 2024, arXiv:2401.12187).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from rlhf_pipeline.errors import ArtifactError

Rule = Literal["mean", "min", "mean_minus_std"]

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Combination:
    """One score of several.

    Args:
        rule: ``mean``, ``min``, or ``mean_minus_std``: the mean less ``k`` standard deviations of the members.
        offsets: what is first taken from each member's score. Scores are only known up to a constant, which every
            member sets where it likes: without this the minimum would be that of the member with the lowest constant.
        k: of ``mean_minus_std``.
    """

    rule: Rule
    offsets: tuple[float, ...]
    k: float = 1.0

    def __call__(self, scores: Tensor) -> Tensor:
        """``(members, batch)`` to ``(batch,)``."""
        level = self.level(scores)
        if self.rule == "min":
            return level.min(0).values
        mean = level.mean(0)
        return mean if self.rule == "mean" else mean - self.k * level.std(0)

    def level(self, scores: Tensor) -> Tensor:
        """The members' scores on one level: ``(members, batch)`` less the offsets."""
        return scores - torch.tensor(self.offsets, dtype=scores.dtype, device=scores.device)[:, None]


def uncertainty(differences: Sequence[Sequence[float]]) -> list[float]:
    """How unsure the members are of each comparison: standard deviation of their differences over the mean's size.

    Args:
        differences: ``(members, pairs)``, score of one response less that of the other.
    """
    values = torch.tensor(differences, dtype=torch.float64)
    return (values.std(0) / values.mean(0).abs().clamp(min=1e-12)).tolist()


def auc(values: Sequence[float], events: Sequence[bool]) -> tuple[float, float, float] | None:
    """The area under the ROC curve of ``values`` for ``events``, with its 95 % interval (Hanley and McNeil 1982,
    https://doi.org/10.1148/radiology.143.1.7063747); None where all or none are events.

    It is the probability that an event has the larger value of the two, ties counting half.
    """
    with_event = [v for v, e in zip(values, events, strict=True) if e]
    without = [v for v, e in zip(values, events, strict=True) if not e]
    m, n = len(with_event), len(without)
    if not m or not n:
        return None
    area = sum((a > b) + 0.5 * (a == b) for a in with_event for b in without) / (m * n)
    q1, q2 = area / (2 - area), 2 * area * area / (1 + area)
    variance = (area * (1 - area) + (m - 1) * (q1 - area**2) + (n - 1) * (q2 - area**2)) / (m * n)
    half = 1.959964 * math.sqrt(max(0.0, variance))
    return area, max(0.0, area - half), min(1.0, area + half)


def average_adapters(folders: Sequence[Path], out: Path) -> None:
    """Write the adapter whose weights are the exact mean of several of one base (WARM, arXiv:2401.12187, equation 3).

    The mean of products ``s B A`` is not the product of the means of B and A. It is that of the stacked matrices::

        1/M Σ s_i B_i A_i = [s_1/M B_1 … s_M/M B_M] [A_1; …; A_M]

    so that the mean has the sum of the ranks. Heads, which are no products, are averaged as they are.

    Raises:
        ArtifactError: the adapters have not the same layers, or are more than plain LoRA.
    """
    configs = [LoraConfig.from_pretrained(str(folder)) for folder in folders]
    states = [load_file(folder / _WEIGHTS) for folder in folders]
    plain = all(not (c.use_dora or c.use_rslora or c.rank_pattern or c.alpha_pattern) for c in configs)
    kinds = all("lora_A" in key or "lora_B" in key or "lora" not in key for key in states[0])
    if not plain or not kinds or any(state.keys() != states[0].keys() for state in states):
        raise ArtifactError("these adapters cannot be averaged: they differ in shape", where=str(folders[0]))
    shares = [config.lora_alpha / config.r / len(folders) for config in configs]
    mean: dict[str, Tensor] = {}
    for key in states[0]:
        parts = [state[key].float() for state in states]
        if "lora_A" in key:
            mean[key] = torch.cat(parts, 0).contiguous()
        elif "lora_B" in key:
            mean[key] = torch.cat([share * part for share, part in zip(shares, parts, strict=True)], 1).contiguous()
        else:
            mean[key] = torch.stack(parts).mean(0)
    rank = sum(config.r for config in configs)
    values: Mapping[str, Any] = json.loads((folders[0] / _CONFIG).read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    (out / _WEIGHTS).write_bytes(serialise(mean, metadata={"format": "pt"}))
    text = json.dumps({**values, "r": rank, "lora_alpha": rank}, indent=2, sort_keys=True)  # scaling alpha / r is 1
    (out / _CONFIG).write_text(text + "\n", encoding="utf-8")
