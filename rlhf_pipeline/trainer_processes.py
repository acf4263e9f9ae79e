"""TRL's trainers in several processes: the batch of one process is divided, and the gradients of the parts averaged.

No DDP: it wants every layer in every pass, and a base that is whole. Rows lie in the order of training; accelerate
gives process r the micro-batches r, r + processes, …, so that those of one step are together the batch that one process
would have had.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from rlhf_pipeline import processes
from rlhf_pipeline.errors import TrainingError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import Trainer

    _Base = Trainer
else:
    _Base = object


class Together(_Base):
    """What a trainer does otherwise in several processes; with one it changes nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (found := self.accelerator.num_processes) != (wanted := processes.world()):
            raise TrainingError(f"{wanted} processes are at work, but accelerate knows of {found}")
        if wanted > 1:
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch; after the last of a step the gradients are the mean over processes, as losses suppose."""
        loss = super().training_step(*args, **kwargs)
        if processes.world() > 1 and self.accelerator.sync_gradients:
            trained = self._trained()
            processes.add_up_gradients(trained)
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.grad.div_(processes.world())
        return loss

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """Every process measures all rows, in the batches of one process: parts would have other means."""
        if processes.world() == 1:
            return super().get_eval_dataloader(*args, **kwargs)
        prepare, self.accelerator.prepare = self.accelerator.prepare, _as_it_is
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.accelerator.prepare = prepare

    def start_alike(self, seed: int) -> None:
        """The same weights in every process, and random numbers of its own for dropout."""
        if processes.world() > 1:
            processes.copy_from_first(self._trained())
            torch.manual_seed(seed + processes.rank())

    def _trained(self) -> list[torch.nn.Parameter]:
        assert self.model is not None
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def _as_it_is(loader: Any) -> Any:
    return loader
