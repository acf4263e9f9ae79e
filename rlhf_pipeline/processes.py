"""Several processes at one stage, on one machine: who does what, and sums over all of them.

Every process holds the whole rollout and the same adapters; each computes its share of the rows, and the shares are
added up. With one process every function here is the identity and communicates with nobody, so that results are those
of a program without it, to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_pipeline.errors import TrainingError

_PATIENCE = timedelta(hours=2)  # the others wait while the first asks a slow judge; who has died is noticed elsewhere
_BUFFER = 2**25  # numbers that are sent at once, and held twice


_divides_base = False


def join(rank: int, world: int, meeting: Path, device: str, *, divide_base: bool = False) -> None:
    """Become process ``rank`` of ``world``; returns once all have come.

    Args:
        meeting: a file that does not exist yet, in a folder that all of them see.
        device: ``cpu`` (gloo) or ``cuda`` (NCCL; process i takes device i).
        divide_base: whether models are loaded with their layers divided among the processes.
    """
    global _divides_base
    _divides_base = divide_base
    # What torchrun sets too: accelerate and transformers read it.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # never listened on: they meet in the file
    if device == "cuda":
        torch.cuda.set_device(rank)
    where = f"file://{meeting}"
    dist.init_process_group(backend_of(device), init_method=where, rank=rank, world_size=world, timeout=_PATIENCE)


def leave() -> None:
    """Undo :func:`join`."""
    global _divides_base
    _divides_base = False
    dist.destroy_process_group()


def backend_of(device: str) -> str:
    """What processes on this kind of device talk through."""
    return "nccl" if device == "cuda" else "gloo"


def require_launched(wanted: int, device: str) -> None:
    """See that as many processes are at work as were asked for, on a device each.

    Raises:
        TrainingError: naming what was asked for and what there is.
    """
    advice = "start `rlhf run` itself, not by torchrun or accelerate; run.launch.processes says how many"
    if (found := world()) != wanted:
        raise TrainingError(f"run.launch.processes is {wanted}, but {found} are at work", advice=advice)
    if wanted == 1:
        return
    if (backend := dist.get_backend()) != backend_of(device):
        raise TrainingError(
            f"on {device} processes talk by {backend_of(device)}, but these by {backend}", advice=advice
        )
    if device == "cuda":
        mine = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        devices = [""] * wanted
        dist.all_gather_object(devices, mine)
        if (distinct := len(set(devices))) < wanted:
            raise TrainingError(f"{wanted} processes share {distinct} CUDA devices; wanted is one each", advice=advice)


def world() -> int:
    """How many processes are at work on this stage."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which one this is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes files and talks."""
    return rank() == 0


def divides_base() -> bool:
    """Whether models are loaded with their layers divided among the processes."""
    return _divides_base


def wait() -> None:
    """Go on when all have come here."""
    if world() > 1:
        dist.barrier()


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process does it before the others do: what changes files, and is then seen by all."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def share(count: int) -> range:
    """The places among ``count`` that are this process's: neighbours, as many as another's (± 1)."""
    return range(count * rank() // world(), count * (rank() + 1) // world())


def add_up(part: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world() > 1:
        dist.all_reduce(part)
    return part


def add_up_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """The sum of each number over all processes, in float64."""
    if world() == 1:
        return dict(numbers)
    summed = add_up(torch.tensor(list(numbers.values()), dtype=torch.float64, device=_device()))
    return dict(zip(numbers, summed.tolist(), strict=True))


def largest(number: float) -> float:
    """The largest over all processes."""
    if world() == 1:
        return number
    of_all = torch.tensor(number, dtype=torch.float64, device=_device())
    dist.all_reduce(of_all, dist.ReduceOp.MAX)
    return float(of_all.item())


def add_up_gradients(parameters: Iterable[Tensor]) -> None:
    """Let every gradient be the sum over all processes, many at once by way of a flat buffer."""
    if world() == 1:
        return
    waiting: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:  # it got none here; all processes send the same number of numbers
            parameter.grad = torch.zeros_like(parameter)
        if waiting and (waiting[0].dtype != parameter.grad.dtype or sum(g.numel() for g in waiting) > _BUFFER):
            _add_up_flat(waiting)
            waiting = []
        waiting.append(parameter.grad)
    if waiting:
        _add_up_flat(waiting)


def _add_up_flat(gradients: list[Tensor]) -> None:
    flat = add_up(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def gather_rows(mine: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """All ``count`` rows of numbers from 0, of any lengths, of which each process has its :func:`share`."""
    if world() == 1:
        return [list(row) for row in mine]
    width = int(largest(max((len(row) for row in mine), default=0)))
    table = torch.full((count, width + 1), 0, dtype=torch.int64)
    for place, row in zip(share(count), mine, strict=True):
        table[place, : len(row) + 1] = torch.tensor([len(row), *row])
    return [row[1 : row[0] + 1] for row in add_up(table.to(_device())).tolist()]


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Let these be what the first process has in them, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def require_same(what: str, fingerprint: str) -> None:
    """See that a fingerprint is the same in every process.

    Raises:
        TrainingError: it is not.
    """
    if world() == 1:
        return
    found = [""] * world()
    dist.all_gather_object(found, fingerprint)
    if len(set(found)) > 1:
        raise TrainingError(
            f"{what} is no longer the same in all {world()} processes",
            advice="please report this with the versions from manifest.json; with run.launch.processes: 1 it cannot be",
        )


def _device() -> torch.device:
    """Where tensors must lie to be sent."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
