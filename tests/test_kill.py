"""``kill -9`` in the middle of each stage: status says so, and the same command ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from rlhf_pipeline.artifacts import file_digest
from stages import NAMES
from tests import forks
from tests.command_line import STEPS, complete_stages, rlhf, write_config

pytestmark = pytest.mark.slow

# Large enough that every stage is still at work when its first results are on the disk.
STEADY = {**STEPS, "epochs": 4, "max_steps": 10, "save_every": 3}
SETTINGS: dict[str, Any] = {
    "data": {"demonstrations": {"path": "pocket", "limit": 60}, "prompts": {"path": "pocket", "limit": 160}},
    "sft": STEADY,
    "sample": {"prompts": 110, "held_out_prompts": 10, "responses": 3, "max_new_tokens": 8},
    "collect": {"pairs_per_prompt": 3, "overlap": 2},
    "reward": STEADY,
    "dpo": STEADY,
    "ppo": {"iterations": 5, "rollout_batch": 4, "stop": {"prompts": 8}},
    "evaluate": {"prompts": 16, "max_new_tokens": 16},
}
RESULTS = {
    "sft": "adapter/adapter_model.safetensors",
    "sample": "responses.jsonl",
    "collect": "preferences.jsonl",
    "reward": "adapter/adapter_model.safetensors",
    "dpo": "adapter/adapter_model.safetensors",
    "ppo": "adapter/adapter_model.safetensors",
    "evaluate": "metrics.json",
}
RESUMED = {
    "sft": "resuming at step ",
    "sample": "prompts were sampled before the interruption",
    "collect": "judgements are there already",
    "reward": "resuming at step ",
    "dpo": "resuming at step ",
    "ppo": "resumed after iteration ",
    "evaluate": "kept from the interrupted try: the responses of base",
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole chain, never interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    made = rlhf("run", write_config(folder, SETTINGS))
    assert made.code == 0, made.err
    return folder / "run"


def judgements(run: Path) -> int:
    """How many are in the store; it may not be there yet."""
    if not (run / "judgements.db").is_file():
        return 0
    with sqlite3.connect(f"file:{run / 'judgements.db'}?mode=ro", uri=True) as store:
        try:
            return int(store.execute("SELECT count(*) FROM judgement").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def evidence(stage: str) -> Callable[[Path], bool]:
    """Whether a stage has written something that it can go on from."""
    if stage == "collect":
        return lambda run: judgements(run) > 0
    if stage == "sample":  # a whole chunk of 64 prompts
        return lambda run: any(p.read_bytes().count(b"\n") >= 64 for p in run.glob("sample.partial/responses.jsonl"))
    patterns = {"ppo": "checkpoints/step-*", "evaluate": "checkpoints/base.jsonl"}
    pattern = f"{stage}.partial/" + patterns.get(stage, "checkpoints/checkpoint-*/complete.json")
    return lambda run: any(path.suffix != ".partial" for path in run.glob(pattern))


def wait_until(is_under_way: Callable[[Path], bool], run: Path, running: BaseProcess) -> None:
    """Return once there is evidence of work."""
    end = time.monotonic() + 200
    while not is_under_way(run):
        assert running.is_alive(), "it ended before it came to the middle"
        assert time.monotonic() < end, "it never came to the middle"
        time.sleep(0.002)


def pause(pid: int | None) -> None:
    """Let a process wait, so that it does not end while it is looked at."""
    assert pid
    os.kill(pid, signal.SIGSTOP)


def kill_in_the_middle(settings: Path, run: Path, stage: str) -> None:
    """Start the run in a process of its own and kill it once there is evidence of work."""
    said = run.parent / "said.txt"
    running = forks.start_rlhf("run", settings, said=said)
    try:
        wait_until(evidence(stage), run, running)
        pause(running.pid)
        during = rlhf("status", run, "--json").states() if stage in ("sft", "ppo") else {stage: "running"}
    finally:
        running.kill()
        running.join()
    assert running.exitcode == -signal.SIGKILL, f"it ended by itself before it was killed: {said.read_text()}"
    assert during[stage] == "running"


@pytest.mark.parametrize("stage", NAMES)
def test_killed_in_the_middle(stage: str, undisturbed: Path, tmp_path: Path) -> None:
    before = NAMES[: NAMES.index(stage)]
    run = tmp_path / "run"
    run.mkdir()
    for name in before:
        shutil.copytree(undisturbed / name, run / name)
    if "collect" in before:
        shutil.copy(undisturbed / "judgements.db", run)
    settings = write_config(tmp_path, {**SETTINGS, "run": {"stages": [*before, stage]}})

    kill_in_the_middle(settings, run, stage)
    after_kill = rlhf("status", run, "--json")
    assert after_kill.states() == dict.fromkeys(before, "complete") | {stage: "interrupted"}
    assert "resumes" in json.loads(after_kill.out)["stages"][stage]["reasons"][0]
    assert complete_stages(run) == set(before)

    again = rlhf("run", settings)
    assert again.code == 0, again.err
    assert f"resuming what was interrupted in {run / stage}.partial" in again.out
    assert RESUMED[stage] in again.out, again.out
    assert set(rlhf("status", run, "--json").states().values()) == {"complete"}
    assert complete_stages(run) == {*before, stage}
    assert file_digest(run / stage / RESULTS[stage]) == file_digest(undisturbed / stage / RESULTS[stage])
    assert not [path.name for path in (run / stage).iterdir() if path.name in ("checkpoints", "fingerprint.json")]


def children(pid: int | None) -> list[int]:
    """Processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_killed_with_a_stage_beside(undisturbed: Path, tmp_path: Path) -> None:
    """With ``run.parallel`` a kill of the first process ends the second, and both stages resume to the same files."""
    before = ("sft", "sample", "collect")
    run = tmp_path / "run"
    run.mkdir()
    for name in before:
        shutil.copytree(undisturbed / name, run / name)
    shutil.copy(undisturbed / "judgements.db", run)
    settings = write_config(tmp_path, {**SETTINGS, "run": {"parallel": 2}})

    running = forks.start_rlhf("run", settings, said=tmp_path / "said.txt")
    try:
        wait_until(evidence("dpo"), run, running)
        pause(running.pid)
        beside = children(running.pid)
        for pid in beside:
            pause(pid)
        during = rlhf("status", run, "--json").states()
    finally:
        running.kill()
        running.join()
    for pid in beside:
        os.kill(pid, signal.SIGCONT)
    assert during["dpo"] == "running"
    assert beside, "no stage ran beside another"
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in beside):
        assert time.monotonic() < end, "an orphan goes on"
        time.sleep(0.01)
    last = run / "dpo.partial" / "checkpoints" / f"checkpoint-{STEADY['max_steps']}"
    assert not last.exists(), "an orphan went on writing into the run folder"

    with forks.instead_of_spawned():
        again = rlhf("run", settings)
    assert again.code == 0, again.err
    assert "resuming at step " in again.out, again.out
    assert complete_stages(run) == set(NAMES)
    for stage in ("reward", "dpo", "ppo", "evaluate"):
        assert file_digest(run / stage / RESULTS[stage]) == file_digest(undisturbed / stage / RESULTS[stage]), stage


@pytest.mark.parametrize("moment", ["while hashing", "before the rename"])
def test_killed_at_the_very_end(
    moment: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last seconds of a stage are no more dangerous than the others: hashing large models takes minutes."""
    from rlhf_pipeline import artifacts

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    settings = write_config(tmp_path, {**SETTINGS, "run": {"stages": ["sft"]}})
    run = tmp_path / "run"
    with monkeypatch.context() as at:
        at.setattr(artifacts, "versions" if moment == "while hashing" else "_sync_folder", _from_partial(die, run))
        assert rlhf("run", settings).code == 130
    assert (run / "sft.partial").is_dir()
    assert rlhf("status", run, "--json").states() == {"sft": "interrupted"}
    again = rlhf("run", settings)
    assert again.code == 0, again.err
    assert "resuming at step 10 of 10" in again.out, again.out
    assert complete_stages(run) == {"sft"}
    assert file_digest(run / "sft" / RESULTS["sft"]) == file_digest(undisturbed / "sft" / RESULTS["sft"])


def _from_partial(die: Callable[..., None], run: Path) -> Callable[..., Any]:
    """Die once the stage has saved its adapter."""

    def call(*arguments: Any) -> Any:
        if (run / "sft.partial" / "adapter" / "adapter_model.safetensors").is_file():
            die()
        return {}

    return call
