"""Checkpoints: what comes back, what is kept, and what happens to damaged and half-written ones."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from rlhf_pipeline.checkpoints import DIGESTS, load_checkpoint, save_checkpoint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none") is None
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, step, {"weights": {"a": torch.arange(step)}, "scale": (0.5, 2.0), "name": "x"})
    assert names(tmp_path) == ["step-000010", "step-000100"]
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 100
    assert torch.equal(found.state["weights"]["a"], torch.arange(100))
    assert (found.state["scale"], found.state["name"], found.remark()) == ([0.5, 2.0], "x", "")


def test_an_optimizer_and_every_float_come_back_to_the_bit(tmp_path: Path) -> None:
    parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(2).bfloat16())]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, betas=(0.9, 0.95))
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = optimizer.state_dict()
    numbers = [0.1 + 0.2, 1e-300, -0.0, None, True, "é", 2**60]
    save_checkpoint(tmp_path, 1, {"optimizer": state, "numbers": numbers, "turned": torch.arange(6).view(2, 3).T})
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert repr(found.state["numbers"]) == repr(numbers)
    assert torch.equal(found.state["turned"], torch.tensor([[0, 3], [1, 4], [2, 5]]))
    assert found.state["optimizer"]["state"].keys() == {0, 1}
    again = torch.optim.AdamW(parameters, lr=1.0)
    again.load_state_dict(found.state["optimizer"])
    assert again.param_groups[0]["lr"] == 0.1
    for index, before in state["state"].items():
        for key, tensor in before.items():
            after = again.state_dict()["state"][index][key]
            assert after.dtype == tensor.dtype
            assert torch.equal(after, tensor)


def test_it_holds_no_pickle(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"weights": torch.ones(2), "kl_coef": 0.1})
    assert names(tmp_path / "step-000001") == ["checkpoint.json", "state.json", "tensors.safetensors"]


@pytest.mark.parametrize("damage", ["flip", "flip a value", "cut", "no digest", "no state", "empty digest", "older"])
def test_a_damaged_one_is_passed_over_and_can_be_written_again(damage: str, tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step, "weights": torch.randn(100)})
    broken = tmp_path / "step-000002"
    state, digest = broken / ("state.json" if damage == "flip a value" else "tensors.safetensors"), broken / DIGESTS
    if damage.startswith("flip"):
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 4
        state.write_bytes(bytes(content))
    elif damage == "cut":
        state.write_bytes(state.read_bytes()[:-10])
    elif damage == "empty digest":
        digest.write_text("")
    elif damage == "older":  # one file of a version before this one
        digest.write_text('{"step": 2, "sha256": "00"}')
    else:
        (state if damage == "no state" else digest).unlink()
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.state["step"]) == (1, 1)
    assert found.remark() == " (damaged and left out: step-000002)"
    save_checkpoint(tmp_path, 2, {"step": 2})
    again = load_checkpoint(tmp_path)
    assert again is not None
    assert (again.step, again.damaged) == (2, ())


def test_a_write_that_was_cut_short_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 2, {"step": 2})
    assert names(tmp_path) == ["step-000001", "step-000002.partial"]
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.damaged) == (1, ())
    save_checkpoint(tmp_path, 2, {"step": 2})
    assert names(tmp_path) == ["step-000001", "step-000002"]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path, 1, {"weights": torch.ones(2)})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "step-000001").iterdir()} == {0o640}
