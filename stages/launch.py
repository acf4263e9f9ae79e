"""Several processes at one stage (``run.launch``): start them, see that they are what was asked for, end them together.

Each is a fresh process with torchrun's environment that runs the stage from its beginning; the first writes and talks.
Where one ends, for whatever reason, the others are ended too, and the stage resumes at the next start.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rlhf_pipeline.config import Section
from rlhf_pipeline.errors import PipelineError, TrainingError, UsageError
from stages import Stage
from stages.beside import Beside
from stages.job import Job, say

if TYPE_CHECKING:
    from stages.settings import Settings

_GRACE = 3.0  # seconds in which the cause of an end may arrive after its consequence in another process


class Launch(Section):
    """Several processes at one stage, on one machine."""

    processes: int = Field(1, ge=1)
    """How many work on sft, reward, dpo and ppo together, on CUDA each on its own device. They share every batch:
    results are those of one process but for rounding. ``batch_size`` must be a multiple of it, and
    ``ppo.rollout_batch / ppo.num_minibatches``."""

    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """``ddp``: each holds the whole base. ``fsdp2``: in ppo, each holds its part of every layer of the frozen base;
    that is slower, needs adapters everywhere, and loads the whole into host memory first. sft, reward and dpo keep it
    whole."""

    @property
    def divides_base(self) -> bool:
        """Whether a process holds only its part of the base's layers."""
        return self.strategy == "fsdp2" and self.processes > 1


def processes_of(stage: Stage, settings: Settings) -> int:
    """How many processes work on a stage."""
    return settings.run.launch.processes if stage.trains else 1


def require_no_launcher(launch: Launch) -> None:
    """See that nobody else starts the processes: every one of theirs would run the whole chain.

    Raises:
        UsageError: this one was started by torchrun or accelerate.
    """
    others = int(os.environ.get("WORLD_SIZE", "1"))
    if others > 1:
        raise UsageError(
            f"this is one of {others} processes of a launcher (WORLD_SIZE), and run.launch.processes is "
            f"{launch.processes}",
            advice=f"start `rlhf run` itself, with --set run.launch.processes={others}: it starts them",
        )


def require_devices(launch: Launch, device: str) -> None:
    """See that there is a device for every process.

    Raises:
        UsageError: there are too few.
    """
    if device != "cuda":
        return
    import torch

    if (there := torch.cuda.device_count()) < launch.processes:
        raise UsageError(
            f"run.launch.processes is {launch.processes}, but torch finds {there} CUDA device(s)",
            advice=f"--set run.launch.processes={there}",
        )


def in_processes(stage: Stage, job: Job, call: Callable[[Stage, Job], dict[str, Any]]) -> dict[str, Any]:
    """Run a stage in ``run.launch.processes`` processes; what the first returns.

    Raises:
        TrainingError: one was ended from outside, or they are not what was asked for.
        Exception: whatever the call raised in one of them.
    """
    number = job.settings.run.launch.processes
    say(f"  {number} processes share the work")
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        members = [
            Beside(stage.name, _work, rank, meeting, stage, job, call, tell=say if rank == 0 else _nothing)
            for rank in range(number)
        ]
        try:
            while True:
                running = any(member.alive() for member in members)
                if any(member.failure() for member in members):
                    raise _cause(stage, members)
                if not running:
                    value: dict[str, Any] = members[0].result()
                    return value
                time.sleep(0.05)
        finally:
            for member in members:
                member.stop()


def _work(
    rank: int, meeting: Path, stage: Stage, job: Job, call: Callable[[Stage, Job], dict[str, Any]]
) -> dict[str, Any]:
    """One of the processes."""
    import torch

    from rlhf_pipeline import processes

    launch = job.settings.run.launch
    torch.set_num_threads(max(1, torch.get_num_threads() // launch.processes))
    divide = launch.divides_base and stage.name == "ppo"
    processes.join(rank, launch.processes, meeting, job.device, divide_base=divide)
    processes.require_launched(launch.processes, job.device)
    value = call(stage, replace(job, first=processes.is_first()))
    processes.wait()  # nobody leaves while another still has something to ask
    processes.leave()
    return value


def _cause(stage: Stage, members: Sequence[Beside]) -> BaseException:
    """Why the processes end: where one does, the others fail soon after, as they can no longer talk to it."""
    failed, told = list[BaseException](), list[BaseException]()
    end = time.monotonic() + _GRACE
    while time.monotonic() < end:
        for rank, member in enumerate(members):
            if member.killed is not None:
                return TrainingError(
                    f"process {rank} of the {len(members)} at work on {stage.name} was ended from outside (exit code "
                    f"{member.killed}), and the others with it",
                    advice="it may have lacked memory; the same command goes on from the last checkpoint",
                )
            if (failure := member.failure()) is not None and failure not in failed:
                failed.append(failure)
        told = [failure for failure in failed if isinstance(failure, PipelineError)]
        # The first process may still be keeping what there is to keep.
        if not members[0].alive() and (told or not any(member.alive() for member in members)):
            return [*told, *failed][0]
        time.sleep(0.05)
    return [*told, *failed][0]


def _nothing(_: str) -> None:
    """What the others say, the first has said."""
