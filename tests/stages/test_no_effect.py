"""Settings marked as without effect: a stage ends with the same bits, stays complete, and resumes when they change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_pipeline.config import without_effect
from rlhf_pipeline.data import DataConfig
from stages import dpo, ppo, reward, sft
from stages.settings import Settings
from stages.states import differences
from tests import stage_jobs, tiny_models
from tests.stage_jobs import job, same_tensors
from tests.stages import test_ppo

MARKED = without_effect(Settings)
OTHER = {"save_every": 2, "log_every": 3, "gradient_checkpointing": True, "lease_minutes": 7}
"""Another value for every marked field; the defaults save and log at the end."""


def marked(stage: str) -> dict[str, Any]:
    """The marked fields of a stage, with other values."""
    return {name: value for name, value in OTHER.items() if f"{stage}.{name}" in MARKED}


def test_what_is_marked() -> None:
    for stage in ("sft", "reward", "dpo", "ppo"):
        assert {f"{stage}.save_every", f"{stage}.gradient_checkpointing"} <= MARKED
    assert {key.partition(".")[2] for key in MARKED} <= OTHER.keys(), "a marked field needs a test of its bits"


@pytest.mark.parametrize("key", sorted(MARKED))
def test_a_change_is_no_difference(key: str) -> None:
    assert differences({key: 1, "run.seed": 1}, {key: 2, "run.seed": 1}) == []
    assert differences({"run.seed": 1}, {key: 2, "run.seed": 1}) == [], "an older manifest does not have it"
    assert differences({key: 1, "run.seed": 1}, {key: 2, "run.seed": 2}) == ["run.seed: 1 → 2"]


@pytest.mark.slow
@pytest.mark.parametrize("module", [sft, reward, dpo], ids=lambda m: m.__name__)
def test_training_ends_with_the_same_bits(module: Any, tmp_path: Path) -> None:
    model = tiny_models.make("llama", tmp_path / "base")
    source = stage_jobs.write_demonstrations(tmp_path / "rows.jsonl", stage_jobs.demonstrations(24))
    data = DataConfig(demonstrations=source, held_out=0.25)
    given = {
        "sft": stage_jobs.sft_input(model, tmp_path / "policy"),
        "collect": stage_jobs.write_preferences(tmp_path / "collect", stage_jobs.preferences(24)),
    }
    steps = {"max_steps": 5, "epochs": 3, "batch_size": 4, "max_length": 200, "lora": {"rank": 4, "dropout": 0.3}}
    for name, changes in (("one", {}), ("other", marked(module.__name__.removeprefix("stages.")))):
        module.run(job(module.Config(**steps, **changes), model, tmp_path / name, inputs=given, data=data))
    assert (tmp_path / "other" / "checkpoints" / "checkpoint-4").is_dir()
    assert not (tmp_path / "one" / "checkpoints" / "checkpoint-4").is_dir()
    assert same_tensors(tmp_path / "one", tmp_path / "other")


def test_ppo_ends_with_the_same_bits(tmp_path: Path) -> None:
    model = test_ppo.make_inputs(tmp_path)
    for name, changes in (("one", {"save_every": 100}), ("other", marked("ppo"))):
        ppo.run(test_ppo.make_job(tmp_path, model, name, **changes))
    test_ppo.assert_same(tmp_path / "one", tmp_path / "other")
