"""Several processes at one stage: two give what one gives, end together, and go on from their checkpoint."""

from __future__ import annotations

import importlib
import os
import signal
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf_pipeline import processes
from rlhf_pipeline.errors import ConfigError, DataError, TrainingError, UsageError
from rlhf_pipeline.metrics import COSTS, read_metrics
from stages import BY_NAME, Stage, launch, ppo_learn, settings
from stages.job import Job
from stages.launch import Launch
from tests import forks, stage_jobs
from tests.command_line import write_config
from tests.stages import test_ppo

TWO = Launch(processes=2)


def run(stage: Stage, job: Job) -> Any:
    return importlib.import_module(f"stages.{stage.name}").run(job)


def run_all(_: Stage, job: Job) -> list[Any]:
    """One job after the other in the same processes: starting them takes longer than their work."""
    return [run(stage, replace(one, first=job.first)) for stage, one in job.inputs["jobs"]]


def in_two(job: Job, call: Any = run, strategy: Any = "ddp") -> Any:
    job.settings.run.launch = Launch(processes=2, strategy=strategy)
    with forks.instead_of_spawned():
        return launch.in_processes(BY_NAME["ppo"], job, call)


def ppo_job(folder: Path, name: str, **changes: Any) -> Job:
    return test_ppo.make_job(folder, test_ppo.tiny_models.ModelConfig(name=str(folder / "base")), name, **changes)


def assert_alike(one: Path, two: Path, steps: int, only: tuple[str, ...] | None = None) -> None:
    """Every metric of every step (or these), and every weight."""
    rows, others = read_metrics(one / "metrics.jsonl"), read_metrics(two / "metrics.jsonl")
    assert len(rows) == len(others) == steps
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            if key in only if only else not key.startswith(COSTS):
                assert other[key] == pytest.approx(value, rel=1e-5, abs=1e-5), (row["step"], key)
    weights, other_weights = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (one, two))
    assert all((weights[key] - other_weights[key]).abs().max() < 1e-4 for key in weights)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    test_ppo.make_inputs(folder)
    (folder / "short.py").write_text("def score(prompts, responses):\n    return [-len(r) for r in responses]\n")
    return folder


VARIANTS: dict[str, dict[str, Any]] = {
    # Stops passes early: both processes must, at the same place.
    "gae": {"iterations": 4, "target_kl": 1e-4, "adaptive_kl": 0.01},
    "rloo": {
        "estimator": "rloo", "iterations": 4, "samples_per_prompt": 2,
        "rewards": [{"source": "reward_model"}, {"source": "short.py", "weight": 0.5}],
    },
    "features": {"critic": {"on": "reward_features", "learning_rate": 1e-3}, "iterations": 2},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_equal_one(strategy: str, inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(inputs)
    torch.set_num_threads(1)
    jobs = []
    for name, changes in VARIANTS.items():
        run(BY_NAME["ppo"], ppo_job(inputs, f"{strategy} one {name}", **changes))
        jobs.append((BY_NAME["ppo"], ppo_job(inputs, f"{strategy} two {name}", **changes)))
    capsys.readouterr()
    in_two(replace(ppo_job(inputs, "both"), inputs={"jobs": jobs}), run_all, strategy)
    assert capsys.readouterr().out.count("iteration 4 of 4") == 2, "the first alone talks"
    for name, changes in VARIANTS.items():
        assert_alike(inputs / f"{strategy} one {name}", inputs / f"{strategy} two {name}", changes["iterations"])
    passes = [row["ppo/passes"] for row in read_metrics(inputs / f"{strategy} two gae" / "metrics.jsonl")]
    assert min(passes) < 2, "passes were ended early"


STEPS: dict[str, Any] = {
    "max_steps": 6, "epochs": 9, "batch_size": 8, "max_length": 200, "learning_rate": 1e-3, "log_every": 1,
    "lora": {"rank": 4}, "save_every": 3,
}  # fmt: skip
TRAINED: dict[str, dict[str, Any]] = {"sft": {}, "reward": {}, "dpo": {"micro_batch_size": 2}}


def trainer_jobs(folder: Path) -> dict[str, dict[str, Job]]:
    """Of each stage that trains with TRL, for one process and for two; rows are of many lengths."""
    model = test_ppo.tiny_models.make("llama", folder / "base")
    source = stage_jobs.write_demonstrations(folder / "rows.jsonl", stage_jobs.demonstrations(24))
    inputs = {
        "sft": stage_jobs.sft_input(model, folder / "policy"),
        "collect": stage_jobs.write_preferences(folder / "collect", stage_jobs.preferences(24)),
    }
    data = stage_jobs.DataConfig(demonstrations=source, held_out=0.25)
    jobs: dict[str, dict[str, Job]] = {"one": {}, "two": {}}
    for name, changes in TRAINED.items():
        config = importlib.import_module(f"stages.{name}").Config(**{**STEPS, **changes})
        for number, of_stage in jobs.items():
            made = stage_jobs.job(config, model, folder / f"{number} {name}", inputs=inputs, data=data)
            of_stage[name] = Job(**{field.name: getattr(made, field.name) for field in fields(Job)})
    return jobs


@pytest.mark.slow
def test_trainers_in_two_processes_equal_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    jobs = trainer_jobs(tmp_path)
    one = {name: run(BY_NAME[name], job) for name, job in jobs["one"].items()}
    together = [(BY_NAME[name], job) for name, job in jobs["two"].items()]
    both = replace(together[0][1], inputs={"jobs": together})
    two = dict(zip(TRAINED, in_two(both, run_all), strict=True))
    for name, changes in TRAINED.items():
        # The mean over micro-batches of a ratio depends on how many there are.
        only = ("loss", "grad_norm", "learning_rate") if changes else None
        assert_alike(tmp_path / f"one {name}", tmp_path / f"two {name}", 6, only)
        assert (tmp_path / f"two {name}" / "checkpoints" / "checkpoint-6" / "complete.json").is_file()
        assert two[name].keys() == one[name].keys()
        for key, value in one[name].items():
            number = isinstance(value, int | float)
            assert two[name][key] == (pytest.approx(value, rel=1e-4, abs=1e-5) if number else value)


def die_at_the_third_iteration(stage: Stage, job: Job) -> Any:
    learn, times = ppo_learn.learn, []

    def dying(*arguments: Any) -> Any:
        times.append(1)
        if len(times) == 3 and not processes.is_first():
            (job.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(*arguments)

    importlib.import_module("stages.ppo").learn = dying  # type: ignore[attr-defined]
    return run(stage, job)


@pytest.mark.slow
def test_killed_one_ends_the_other_and_the_stage_resumes(inputs: Path) -> None:
    with pytest.raises(TrainingError, match=r"process 1 of the 2 at work on ppo was ended from outside.*exit code -9"):
        in_two(ppo_job(inputs, "killed"), die_at_the_third_iteration)
    assert time.time() - (inputs / "killed" / "killed").stat().st_mtime < 30
    assert [row["step"] for row in read_metrics(inputs / "killed" / "metrics.jsonl")] == [1, 2]
    in_two(ppo_job(inputs, "killed"))
    run(BY_NAME["ppo"], ppo_job(inputs, "whole"))
    assert_alike(inputs / "whole", inputs / "killed", 4)


def refuse(_: Stage, job: Job) -> Any:
    if processes.is_first():
        processes.wait()  # the other never comes
    raise DataError("line 3 is empty", advice="delete it")


def test_a_mistake_in_one_is_told_as_it_is(inputs: Path) -> None:
    with pytest.raises(DataError, match="line 3 is empty"):
        in_two(ppo_job(inputs, "refused"), refuse)


def test_who_else_starts_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launch.require_no_launcher(TWO)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match=r"one of 4 processes of a launcher.*run.launch.processes is 1") as caught:
        launch.require_no_launcher(Launch())
    assert "--set run.launch.processes=4" in str(caught.value)


def test_too_few_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    launch.require_devices(TWO, "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=r"processes is 2, but torch finds 1 CUDA") as caught:
        launch.require_devices(TWO, "cuda")
    assert "--set run.launch.processes=1" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {"launch": {"processes": 3}}}, r"sft.batch_size is 4, which run.launch.processes \(3\)"),
        ({"run": {"launch": {"processes": 2}}, "ppo": {"rollout_batch": 5}}, r"ppo.rollout_batch / .* is 5, which"),
        (
            {"run": {"launch": {"processes": 2}}, "reward": {"micro_batch_size": 4}},
            r"reward.batch_size is 4, .* \(2\) times reward.micro_batch_size \(4\) does not divide",
        ),
        ({"run": {"launch": {"processes": 2}, "parallel": 2}}, "run.parallel must then be 1"),
        (
            {"run": {"launch": {"processes": 2, "strategy": "fsdp2"}}, "dpo": {"lora": None}},
            "fsdp2 divides a frozen base, but dpo.lora is null",
        ),
        (
            {"run": {"launch": {"processes": 2, "strategy": "fsdp2"}}, "model": {"quantization": "4bit"}},
            "fsdp2 cannot divide 4-bit weights",
        ),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        settings.load(write_config(tmp_path, changes))


def test_finished_stages_stay_complete_and_others_are_alone(tmp_path: Path) -> None:
    one = settings.load(write_config(tmp_path))
    two = settings.load(write_config(tmp_path, {"run": {"launch": {"processes": 2}}}))
    for stage in BY_NAME.values():
        assert one.relevant_to(stage) == two.relevant_to(stage)
        assert launch.processes_of(stage, one) == 1
        assert launch.processes_of(stage, two) == (2 if stage.trains else 1)
