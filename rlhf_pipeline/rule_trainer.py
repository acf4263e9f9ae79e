"""Training of a rule model on TRL's trainer for reward models: single responses with a label for each rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from rlhf_pipeline.length_groups import classify
from rlhf_pipeline.rule_models import UNANSWERED, rule_loss
from rlhf_pipeline.training import RewardModelTrainer

COLUMNS = ("ids", "broken")


class RuleTrainer(RewardModelTrainer):
    """Rows are ``ids`` (prompt and response) and ``broken`` (a label for each rule, see :func:`rule_loss`)."""

    def __init__(self, model: Any, *, weights: Tensor, answers: float, processing_class: Any, **kwargs: Any) -> None:
        """``weights`` and ``answers`` as for :func:`rule_loss`."""
        self._weights, self._answers = weights, answers
        collator = _Collator(int(processing_class.pad_token_id))
        given: dict[str, Any] = {**kwargs, "processing_class": processing_class, "data_collator": collator}
        outputs, model.config.num_labels = model.config.num_labels, 1  # TRL would refuse a head with several
        super().__init__(model, **given)
        model.config.num_labels = outputs

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # TRL would look for the columns of its own pairs here

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = list(COLUMNS)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss of a batch, with the share of the answers that the model is on the side of."""
        outputs = classify(model, inputs["input_ids"], inputs["attention_mask"])
        logits, broken = outputs.logits.float(), inputs["broken"]
        weights = self._weights.to(logits.device)
        loss = rule_loss(logits, broken, weights, answers=self._answers)
        mode = "train" if model.training else "eval"
        if mode == "train":
            self._total_train_tokens += int(self.accelerator.gather(inputs["attention_mask"].sum()).sum().item())
        with torch.no_grad():
            decided = (broken != UNANSWERED) & (broken != 0.5)
            right = ((logits > weights.log()) == (broken > 0.5)) & decided
            counts = self.accelerator.gather(torch.stack([right.sum(), decided.sum()])[None]).sum(0).tolist()
        metrics = self._metrics[mode]
        metrics["num_tokens"] = [self._total_train_tokens]
        metrics["accuracy"].append(counts[0] / max(1, counts[1]))
        return (loss, outputs) if return_outputs else loss


@dataclass(frozen=True)
class _Collator:
    """Pads the responses of a batch on the right."""

    pad_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["ids"]) for row in rows)
        return {
            "input_ids": torch.tensor([[*row["ids"], *[self.pad_id] * (width - len(row["ids"]))] for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row["ids"]) + [0] * (width - len(row["ids"])) for row in rows]),
            "broken": torch.tensor([list(row["broken"]) for row in rows], dtype=torch.float32),
        }
