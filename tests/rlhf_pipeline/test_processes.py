"""Sums over processes: alone everything is the identity, and two have what one would have."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_pipeline import processes
from rlhf_pipeline.errors import TrainingError
from rlhf_pipeline.rollout import Rollout
from tests.two_processes import in_two

ROWS = [[7], [], [1, 0, 2], [0, 0], [9, 9, 9, 9]]


def rollout(lengths: list[int]) -> Rollout:
    responses = [[1] * length for length in lengths]
    mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
    ended = torch.ones(len(lengths), dtype=torch.bool)
    return Rollout([[1, 2]] * len(lengths), responses, ended, mask, torch.zeros(mask.shape), 0)


def work_together(folder: Path) -> dict[str, Any]:
    """What one of two processes sees."""
    rank, mine = processes.rank(), processes.share(len(ROWS))
    found: dict[str, Any] = {"rank": rank, "world": processes.world(), "first": processes.is_first(), "share": mine}
    found["sum"] = processes.add_up(torch.tensor([1.0 + rank, 10.0])).tolist()
    found["numbers"] = processes.add_up_numbers({"a": 0.1 + rank, "b": 2})
    found["largest"] = processes.largest(-3.0 - rank)
    found["rows"] = processes.gather_rows(ROWS[mine.start : mine.stop], len(ROWS))
    one, two = (torch.zeros(2, 2, requires_grad=True), torch.zeros(3, dtype=torch.float64, requires_grad=True))
    one.grad = torch.full((2, 2), 1.0 + rank)
    if rank == 1:
        two.grad = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    processes.add_up_gradients([one, two])
    found["gradients"] = [one.grad.tolist(), two.grad is not None and two.grad.tolist()]
    start = torch.tensor([5.0 + rank])
    processes.copy_from_first([start])
    found["start"] = start.item()
    processes.require_same("it", "equal")
    for name, check in (
        ("differs", lambda: processes.require_same("the policy", f"{rank}")),
        ("launched", lambda: processes.require_launched(3, "cpu")),
        ("backend", lambda: processes.require_launched(2, "cuda")),
    ):
        with pytest.raises(TrainingError) as caught:
            check()
        found[name] = str(caught.value)
    processes.require_launched(2, "cpu")
    with processes.first_alone():
        time.sleep(0.3 * (1 - rank))
        (folder / "order").open("a").write(str(rank))
    found["dealt"] = rollout([5, 1, 4, 4, 2, 9, 3, 3]).minibatches(2, 12, 0)
    found["dealt long"] = rollout([30, 1, 1, 1, 1, 1, 1, 1]).minibatches(1, 12, 0)[0]
    return found


def test_two_processes(tmp_path: Path) -> None:
    both = in_two(work_together, tmp_path)
    for rank, found in enumerate(both):
        assert (found["rank"], found["world"], found["first"]) == (rank, 2, rank == 0)
        assert found["sum"] == [3.0, 20.0]
        assert found["numbers"] == {"a": pytest.approx(1.2, abs=1e-15), "b": 4}
        assert found["largest"] == -3.0
        assert found["rows"] == ROWS
        assert found["gradients"] == [[[3.0, 3.0], [3.0, 3.0]], [1.0, 2.0, 3.0]]
        assert found["start"] == 5.0
        assert "the policy is no longer the same in all 2 processes" in found["differs"]
        assert "run.launch.processes is 3, but 2 are at work" in found["launched"]
        assert "on cuda processes talk by nccl, but these by gloo" in found["backend"]
    assert [found["share"] for found in both] == [range(2), range(2, 5)]
    assert (tmp_path / "order").read_text() == "01"

    alone = rollout([5, 1, 4, 4, 2, 9, 3, 3]).minibatches(2, 12, 0)
    for place, minibatch in enumerate(alone):
        shares = [found["dealt"][place] for found in both]
        assert len(shares[0]) == len(shares[1]), "as many passes in both"
        rows = [[row for group in share for row in group] for share in shares]
        assert len(rows[0]) == len(rows[1]), "as many rows in both"
        assert sorted(rows[0] + rows[1]) == sorted(row for group in minibatch for row in group)
    assert [len(found["dealt long"]) for found in both] == [2, 2], "a group is divided where the other has more"


def test_alone_nothing_is_changed() -> None:
    tensor = torch.tensor([1.0, float("nan")])
    assert processes.add_up(tensor) is tensor
    assert (processes.world(), processes.rank(), processes.is_first(), processes.share(5)) == (1, 0, True, range(5))
    numbers = {"a": 0.1, "b": 3}
    assert processes.add_up_numbers(numbers) == numbers
    assert processes.largest(-1.5) == -1.5
    assert processes.gather_rows(ROWS, len(ROWS)) == ROWS
    parameter = torch.zeros(2, requires_grad=True)
    processes.add_up_gradients([parameter])
    assert parameter.grad is None
    processes.copy_from_first([parameter])
    processes.require_same("it", "x")
    processes.require_launched(1, "cpu")
    with processes.first_alone():
        processes.wait()


def test_asking_for_more_than_there_are() -> None:
    with pytest.raises(TrainingError, match=r"run.launch.processes is 2, but 1 are at work\n.*not by torchrun"):
        processes.require_launched(2, "cpu")
