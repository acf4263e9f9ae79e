"""Two processes that work together, for tests; each call starts them anew."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.beside import Beside
from tests import forks


def in_two(call: Callable[..., Any], *arguments: Any, divide_base: bool = False) -> list[Any]:
    """The values of a module's function in both processes."""
    with tempfile.TemporaryDirectory() as folder, forks.instead_of_spawned():
        meeting = Path(folder) / "meeting"
        members = [Beside("test", _work, rank, meeting, divide_base, call, arguments) for rank in range(2)]
        try:
            return [member.result() for member in members]
        finally:
            for member in members:
                member.stop()


def _work(rank: int, meeting: Path, divide_base: bool, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    import torch

    from rlhf_pipeline import processes

    torch.set_num_threads(1)
    processes.join(rank, 2, meeting, "cpu", divide_base=divide_base)
    value = call(*arguments)
    processes.wait()
    processes.leave()
    return value
