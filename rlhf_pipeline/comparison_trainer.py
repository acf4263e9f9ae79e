"""Reward models trained on more than who won: soft labels, margins, ties, weights, whole rankings (on TRL's trainer).

A row is a set of responses to one prompt and what was said of them, so that all pairs of a ranking are in one batch and
each response goes through the model once (Ouyang et al. 2022, arXiv:2203.02155, section 3.5).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor, nn

from rlhf_pipeline.encoding import EncodedPair
from rlhf_pipeline.length_groups import classify
from rlhf_pipeline.preference_losses import (
    bradley_terry_loss,
    centering_penalty,
    davidson_loss,
    plackett_luce_loss,
    rao_kupper_loss,
)
from rlhf_pipeline.records import Preference
from rlhf_pipeline.training import RewardModelTrainer

Kind = Literal["bradley_terry", "rao_kupper", "davidson", "plackett_luce"]
_TIE_FILE = "tie.json"  # in a checkpoint: an adapter's has no place for it
_TIE_STEP = 0.03  # by so much may the logarithm of a learnt tie parameter move in a step, at the peak learning rate
PAIR_COLUMNS = ("first", "second", "probability", "tie", "margin", "weight")


@dataclass(frozen=True)
class ComparisonLoss:
    """How people are taken to compare.

    Args:
        kind: a loss of :mod:`rlhf_pipeline.preference_losses`.
        tie: its threshold η (``rao_kupper``) or prevalence ν (``davidson``, ``plackett_luce``); None where rankings
            have no ties.
        centering: weight of the squared sum of both scores.
        mean_weight: of all training rows: losses are divided by it, so that weights change no learning rate.
    """

    kind: Kind
    tie: float | None
    centering: float
    mean_weight: float

    def __call__(self, scores: Tensor, rows: Mapping[str, Tensor], tie: Tensor | None = None) -> Tensor:
        """The mean loss of a batch of rows.

        Args:
            scores: ``(rows, K)``, of each row's responses; zero where there is none.
            rows: ``places`` and ``mask``, ``(rows, K)``; of every pair ``row``, and :data:`PAIR_COLUMNS`, ``(pairs,)``.
            tie: in place of the loss's own, where it is learnt.
        """
        parameter = self.tie if tie is None else tie
        chosen, rejected = (scores[rows["row"], rows[side]] for side in ("first", "second"))
        if self.kind == "plackett_luce":
            weight = torch.zeros_like(scores[:, 0]).index_add(0, rows["row"], rows["weight"])
            losses = weight * plackett_luce_loss(scores, rows["places"], rows["mask"], prevalence=parameter)
        else:
            losses = rows["weight"] * self._of_pairs(chosen, rejected, rows, parameter)
        penalty = rows["weight"] * self.centering * centering_penalty(chosen, rejected)
        return (losses.sum() + penalty.sum()) / (len(scores) * self.mean_weight)

    def _of_pairs(
        self, chosen: Tensor, rejected: Tensor, rows: Mapping[str, Tensor], parameter: Tensor | float | None
    ) -> Tensor:
        said = {"probability": rows["probability"], "margin": rows["margin"]}
        if self.kind == "bradley_terry":
            return bradley_terry_loss(chosen, rejected, **said)
        assert parameter is not None
        if self.kind == "rao_kupper":
            return rao_kupper_loss(chosen, rejected, threshold=parameter, tie=rows["tie"], **said)
        return davidson_loss(chosen, rejected, prevalence=parameter, tie=rows["tie"], **said)


def tie_parameter(kind: Kind, share: float) -> float | None:
    """The η or ν at which responses of equal scores tie this often; None where a ranking has no ties.

    ``tanh(η / 2)`` and ``ν / (2 + ν)`` are those shares (see :mod:`rlhf_pipeline.preference_losses`).
    """
    share = min(share, 0.99)
    if kind == "rao_kupper":
        return 2 * math.atanh(max(share, 1e-3))
    if kind == "plackett_luce" and share == 0:
        return None
    return 2 * max(share, 1e-3) / (1 - max(share, 1e-3))


def tie_share(record: Preference) -> float:
    """The share of the judges of a pair who called it even: by their votes, where the record has them."""
    votes = record.meta.get("votes")
    if not isinstance(votes, Mapping):
        return float(record.tie)
    even = votes.get("tie", 0) + votes.get("all_bad", 0)
    decided = votes.get("chosen", 0) + votes.get("rejected", 0)
    return float(even / (even + decided)) if even + decided else float(record.tie)


def comparison_rows(
    pairs: Sequence[EncodedPair], records: Sequence[Preference], *, soft: bool, margins: bool
) -> list[dict[str, Any]]:
    """Rows for :class:`ComparisonTrainer`: the pairs of one ranking together, every other pair for itself.

    Args:
        soft: labels are the judges' probabilities and shares of ties; else who won, or that nobody did.
        margins: of the records, where they have one.

    ``places`` are the numbers of responses that beat one: of a complete ranking, 0 for the best.
    """
    groups: dict[object, list[int]] = {}
    for place, record in enumerate(records):
        task = record.meta.get("task")
        groups.setdefault(
            (record.prompt.id, task) if task is not None and not record.meta.get("correction") else place, []
        ).append(place)
    return [_row([(pairs[i], records[i]) for i in members], soft, margins) for members in groups.values()]


def _row(members: Sequence[tuple[EncodedPair, Preference]], soft: bool, margins: bool) -> dict[str, Any]:
    ids: dict[tuple[int, ...], int] = {}
    row: dict[str, Any] = {name: [] for name in PAIR_COLUMNS}
    beaten_by: dict[int, int] = {}
    for pair, record in members:
        first = ids.setdefault((*pair.prompt, *pair.chosen), len(ids))
        second = ids.setdefault((*pair.prompt, *pair.rejected), len(ids))
        said = (record.probability, tie_share(record)) if soft else (0.5, 1.0) if record.tie else (1.0, 0.0)
        margin = record.margin if margins and record.margin is not None and not record.tie else 0.0
        for name, value in zip(PAIR_COLUMNS, (first, second, *said, margin, record.weight), strict=True):
            row[name].append(value)
        beaten_by[second] = beaten_by.get(second, 0) + (not record.tie)
    return {"responses": [list(one) for one in ids], "places": [beaten_by.get(i, 0) for i in range(len(ids))], **row}


class ComparisonTrainer(RewardModelTrainer):
    """TRL's trainer for reward models with a loss of ours, on rows of :func:`comparison_rows`."""

    def __init__(
        self,
        model: Any,
        *,
        comparison_loss: ComparisonLoss,
        processing_class: Any,
        learn_tie: bool = False,
        **kwargs: Any,
    ) -> None:
        """``learn_tie``: the loss's tie parameter is where it starts, and is learnt with the scores; it is the model's
        ``tie_bias`` until :meth:`take_tie`."""
        self._comparison_loss = comparison_loss
        self._learnt_tie: nn.Parameter | None = None
        if learn_tie and comparison_loss.tie is not None:
            self._learnt_tie = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))
            model.register_parameter("tie_bias", self._learnt_tie)  # a bias: no weight decay
        collator = _Collator(int(processing_class.pad_token_id))
        given: dict[str, Any] = {**kwargs, "processing_class": processing_class, "data_collator": collator}
        super().__init__(model, **given)

    def tie(self) -> Tensor | None:
        """The tie parameter as it is now: η or ν, scalar; None where it is not learnt.

        Adam moves every parameter by about the learning rate in a step, and its logarithm shall move by
        :data:`_TIE_STEP` whatever that is. Its gradient stays as it is, so that clipping sees nothing of that.
        """
        learnt, start = self._learnt_tie, self._comparison_loss.tie
        if learnt is None or start is None:
            return None
        far = (_TIE_STEP / self.args.learning_rate) * learnt.detach()
        return start * (far + learnt - learnt.detach()).exp()

    def take_tie(self) -> float | None:
        """What was learnt, taken off the model, which is then as it would be without."""
        if (tie := self.tie()) is None:
            return None
        model: Any = self.model
        del model.tie_bias
        return tie.item()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        if self._learnt_tie is not None and self.is_world_process_zero():
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            (folder / _TIE_FILE).write_text(json.dumps(self._learnt_tie.item()), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        if self._learnt_tie is not None:
            kept = json.loads((Path(resume_from_checkpoint) / _TIE_FILE).read_text(encoding="utf-8"))
            self._learnt_tie.data.fill_(kept)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # TRL would look for the columns of its own pairs here

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["responses", "places", *PAIR_COLUMNS]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As TRL's, with the same metrics, for rows of any number of responses."""
        mode = "train" if model.training else "eval"
        outputs = classify(model, inputs["input_ids"], inputs["attention_mask"])
        flat = outputs.logits.squeeze(-1).float()
        mask = inputs["mask"].bool()
        scores = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
        loss = self._comparison_loss(scores, inputs, self.tie())
        if mode == "train":
            self._total_train_tokens += int(self.accelerator.gather(inputs["attention_mask"].sum()).sum().item())
        with torch.no_grad():
            apart = scores[inputs["row"], inputs["first"]] - scores[inputs["row"], inputs["second"]]
            found = {
                "min_reward": flat.min(),
                "mean_reward": flat.mean(),
                "max_reward": flat.max(),
                "accuracy": (apart > 0).float().mean(),
                "margin": apart.mean(),
            }
            if (tie := self.tie()) is not None:
                found["tie"] = tie
            metrics = self._metrics[mode]
            metrics["num_tokens"] = [self._total_train_tokens]
            for name, value in found.items():
                metrics[name].append(self.accelerator.gather(value).mean().item())
        return (loss, outputs) if return_outputs else loss


@dataclass(frozen=True)
class _Collator:
    """Flattens the responses of a batch of rows, and the pairs among them."""

    pad_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        responses = [ids for row in rows for ids in row["responses"]]
        width, most = max(map(len, responses)), max(len(row["responses"]) for row in rows)
        counts = torch.tensor([len(row["responses"]) for row in rows])
        mask = torch.arange(most) < counts[:, None]
        places = [list(row["places"]) + [0] * (most - len(row["places"])) for row in rows]
        pairs = {name: [value for row in rows for value in row[name]] for name in PAIR_COLUMNS}
        return {
            "input_ids": torch.tensor([list(ids) + [self.pad_id] * (width - len(ids)) for ids in responses]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in responses]),
            "mask": mask.long(),
            "places": torch.tensor(places),
            "row": torch.tensor([number for number, row in enumerate(rows) for _ in row["first"]]),
            **{name: torch.tensor(pairs[name]) for name in ("first", "second")},
            **{name: torch.tensor(pairs[name], dtype=torch.float32) for name in PAIR_COLUMNS[2:]},
        }
