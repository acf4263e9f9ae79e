"""Two processes that work together, for tests; each call starts them anew."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.beside import Beside


def in_two(call: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The values of a module's function in both processes."""
    with tempfile.TemporaryDirectory() as folder:
        members = [Beside("test", _work, rank, Path(folder) / "meeting", call, arguments) for rank in range(2)]
        try:
            return [member.result() for member in members]
        finally:
            for member in members:
                member.stop()


def _work(rank: int, meeting: Path, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    import torch

    from rlhf_pipeline import processes

    torch.set_num_threads(1)
    processes.join(rank, 2, meeting, "cpu")
    value = call(*arguments)
    processes.wait()
    processes.leave()
    return value
