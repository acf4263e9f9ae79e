"""Held-out scoring in PPO: which policy is kept, when training stops, and that an interruption changes neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf_pipeline.errors import ConfigError, TrainingError
from rlhf_pipeline.metrics import read_metrics
from rlhf_pipeline.roles import Roles
from stages import ppo, prompts
from stages.ppo_held_out import HeldOut
from tests.stages.test_ppo import make_inputs, make_job

# Judges each scoring by its number, the SFT policy's first: 9, 1, 5, 3, 4, …
JUDGE = """
VALUES = iter([9, 1, 5, 3, 4, 2, 0, 0, 0])

def score(prompts, responses):
    return [next(VALUES)] * len(responses)
"""


def judged(folder: Path, **stop: Any) -> dict[str, Any]:
    file = folder / "judge.py"
    file.write_text(JUDGE, encoding="utf-8")
    return {"every": 1, "prompts": 4, "judge": str(file), **stop}


@pytest.fixture
def policies(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """A tensor of the policy after each iteration."""
    seen: list[torch.Tensor] = []
    learn = ppo.learn

    def watched(config: Any, roles: Roles, *arguments: Any) -> dict[str, float]:
        row = learn(config, roles, *arguments)
        seen.append(roles.parameters("policy")[0].detach().clone())
        return row

    monkeypatch.setattr(ppo, "learn", watched)
    return seen


def written(folder: Path) -> torch.Tensor:
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    return tensors[min(tensors)]


@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 5)])
def test_the_best_policy_is_kept_and_named(
    keep: str,
    kept: int,
    tmp_path: Path,
    policies: list[torch.Tensor],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prompts, "has_gold_judge", lambda _: True)
    monkeypatch.setattr(HeldOut, "_gold", lambda *_: [2.0, None, None, 4.0])
    model = make_inputs(tmp_path)
    metrics = ppo.run(make_job(tmp_path, model, iterations=5, stop=judged(tmp_path, keep=keep)))
    rows = read_metrics(tmp_path / "ppo" / "held_out.jsonl")
    assert [(row["step"], row["judge"]) for row in rows] == [(0, 9), (1, 1), (2, 5), (3, 3), (4, 4), (5, 2)]
    assert rows[0]["kl"] == 0 != rows[-1]["kl"]
    assert {(row["gold"], row["read"]) for row in rows} == {(3.0, 0.5)}, "the mean of what the gold judge can read"
    assert {"kl_se", "score", "score_se", "objective", "objective_se", "length", "ended"} <= rows[0].keys()
    assert (metrics["kept_iteration"], metrics["stopped"], metrics["step"]) == (kept, None, 5)
    assert torch.equal(written(tmp_path / "ppo"), policies[kept - 1])
    said = "the policy of iteration 2 is the result: held-out judge 5.000"
    assert (said in capsys.readouterr().out) == (keep == "best")


def test_patience_ends_training_and_an_interruption_changes_nothing(
    tmp_path: Path, policies: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_inputs(tmp_path)
    job = make_job(tmp_path, model, iterations=8, stop=judged(tmp_path, patience=2))
    metrics = ppo.run(job)
    assert (metrics["kept_iteration"], metrics["step"]) == (2, 4)
    assert metrics["stopped"] == "2 held-out scorings were no better than that of iteration 2"
    assert "stopped after iteration 4: 2 held-out scorings" in capsys.readouterr().out
    assert torch.equal(written(job.folder), policies[1])

    again = make_job(tmp_path, model, "again", iterations=8, stop=judged(tmp_path, patience=2))
    measure = HeldOut._measure

    def known(self: HeldOut, progress: Any, report: Any) -> dict[str, Any]:
        """A new process begins the judge's list anew, so the values are given by the iteration here."""
        row = measure(self, progress, report)
        return row | {"judge": [9, 1, 5, 3, 4][progress.done]}

    monkeypatch.setattr(HeldOut, "_measure", known)
    with monkeypatch.context() as patch:
        after = HeldOut.after

        def die(self: HeldOut, progress: Any, *arguments: Any) -> Any:
            why = after(self, progress, *arguments)
            if progress.done == 4:
                raise KeyboardInterrupt
            return why

        patch.setattr(HeldOut, "after", die)
        with pytest.raises(KeyboardInterrupt):
            ppo.run(again)
    resumed = ppo.run(again)
    assert "resumed after iteration 3 of 8" in capsys.readouterr().out
    assert resumed == metrics
    assert torch.equal(written(again.folder), written(job.folder))
    steps = [[row["step"] for row in read_metrics(one.folder / "held_out.jsonl")] for one in (job, again)]
    assert steps == [[0, 1, 2, 3, 4]] * 2


def test_the_budget_ends_training_and_bounds_what_is_kept(tmp_path: Path, policies: list[torch.Tensor]) -> None:
    model = make_inputs(tmp_path)
    fast = {"iterations": 12, "learning_rate": 3e-3, "kl_coef": 0.0}
    stop = {"every": 1, "prompts": 5, "kl_budget": 0.1}
    metrics = ppo.run(make_job(tmp_path, model, **fast, stop=stop))
    assert metrics["step"] < 12
    assert "the budget 0.1" in metrics["stopped"]
    rows = {row["step"]: row for row in read_metrics(tmp_path / "ppo" / "held_out.jsonl")}
    assert rows[metrics["kept_iteration"]]["kl"] <= 0.1
    assert torch.equal(written(tmp_path / "ppo"), policies[metrics["kept_iteration"] - 1])
    with pytest.raises(TrainingError, match=r"the budget 0.1, and no policy within it was scored\n.*stop.every"):
        ppo.run(make_job(tmp_path, model, "late", **fast, stop={**stop, "every": 12}))


def test_without_scorings_the_last_policy_is_the_result(tmp_path: Path, policies: list[torch.Tensor]) -> None:
    model = make_inputs(tmp_path)
    metrics = ppo.run(make_job(tmp_path, model, iterations=2, stop={"every": None}))
    assert (metrics["kept_iteration"], metrics["stopped"]) == (2, None)
    assert not (tmp_path / "ppo" / "held_out.jsonl").exists()
    assert torch.equal(written(tmp_path / "ppo"), policies[-1])


def test_settings_that_cannot_be_met(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"patience counts scorings, of which every: null makes none"):
        ppo.Config(stop={"every": None, "patience": 3})
    model = make_inputs(tmp_path)
    with pytest.raises(ConfigError, match=r"ppo.stop.judge: the gold judge reads responses to the built-in prompts"):
        ppo.run(make_job(tmp_path, model, stop={"judge": "gold"}))
