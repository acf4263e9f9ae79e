"""The runner and what it says of a run folder: states, reasons, resuming, keeping what was replaced.

The stages themselves are replaced by small functions here; `test_chain.py` runs the real ones.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlhf_pipeline.artifacts import open_artifact
from rlhf_pipeline.errors import (
    ConfigError,
    DataError,
    IncompatibleArtifact,
    TrainingError,
    UsageError,
    WaitingForPeople,
)
from stages import STAGES, collect, runner, sample, sft
from stages.job import Job
from stages.settings import Settings, load, load_kept
from stages.states import StageState, inspect, locked, note_running, partial_folder

IDENTITY = {
    "base": {"name": "pocket", "revision": None, "digest": "a" * 64},
    "tokenizer": {"tokenizer": "b", "chat_template": "c", "eos": [2]},
}


@pytest.fixture
def run_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings of a run of three stages whose bodies write one file each."""
    monkeypatch.setattr(runner, "_identity", lambda settings: IDENTITY)
    for module in (sft, sample, collect):
        monkeypatch.setattr(module, "run", writes_a_file)

    def build(**overrides: Any) -> Settings:
        values = {"run.folder": str(tmp_path / "run"), "run.stages": "[sft, sample, collect]"} | overrides
        path = tmp_path / "run.yaml"
        path.write_text("model: {name: pocket}\ndata: {demonstrations: pocket}\nrun: {}\n")
        return load(path, [f"{key.replace('__', '.')}={value}" for key, value in values.items()])

    return build


def writes_a_file(job: Job) -> dict[str, Any]:
    (job.folder / "out.txt").write_text("made")
    return {"rows": 1}


def states(settings: Settings) -> dict[str, str]:
    return {name: s.state for name, s in inspect(settings, Path(settings.run.folder)).items()}


def reasons(settings: Settings, name: str) -> str:
    return "; ".join(inspect(settings, Path(settings.run.folder))[name].reasons)


def test_a_run_completes_in_order_and_is_not_done_twice(run_of, capsys: pytest.CaptureFixture[str]) -> None:
    settings = run_of()
    Path(settings.run.folder).mkdir()
    assert set(states(settings).values()) == {"missing"}
    runner.run(settings)
    assert set(states(settings).values()) == {"complete"}
    digest = open_artifact(Path(settings.run.folder) / "sft").digest
    capsys.readouterr()
    runner.run(settings)
    assert capsys.readouterr().out == "sft: complete\nsample: complete\ncollect: complete\n"
    assert open_artifact(Path(settings.run.folder) / "sft").digest == digest


def test_a_changed_setting_makes_its_stage_and_what_follows_stale(run_of) -> None:
    runner.run(run_of())
    changed = run_of(sample__responses=3)
    assert states(changed) == {"sft": "complete", "sample": "stale", "collect": "stale"}
    assert "sample.responses: 4 → 3" in reasons(changed, "sample")
    assert "its input sample is stale" in reasons(changed, "collect")
    runner.run(changed)
    assert set(states(changed).values()) == {"complete"}
    assert (Path(changed.run.folder) / "replaced" / "sample-1" / "manifest.json").is_file()
    assert not (Path(changed.run.folder) / "replaced" / "sft-1").exists()


def test_a_setting_without_effect_leaves_everything_complete(run_of) -> None:
    runner.run(run_of())
    changed = run_of(sft__save_every=7, sft__log_every=3)
    assert set(states(changed).values()) == {"complete"}
    manifest = open_artifact(Path(changed.run.folder) / "sft").manifest
    assert manifest.settings["sft.save_every"] == 200, "the manifest says what it was"


def test_an_interrupted_try_is_resumed_when_only_a_setting_without_effect_changed(run_of, monkeypatch, capsys) -> None:
    def dies(job: Job) -> dict[str, Any]:
        (job.folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sft, "run", dies)
        with pytest.raises(KeyboardInterrupt):
            runner.run(run_of())
    changed = run_of(sft__save_every=7)
    runner.run(changed, ["sft"])
    assert "resuming what was interrupted" in capsys.readouterr().out
    manifest = open_artifact(Path(changed.run.folder) / "sft").manifest
    assert "half.txt" in manifest.files
    assert manifest.settings["sft.save_every"] == 7


def test_changed_data_makes_its_stages_stale(run_of, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    settings = run_of(data__demonstrations=f"{{path: {data}}}")
    runner.run(settings)
    data.write_text('{"prompt": "a", "completion": "c"}\n')
    assert states(settings)["sft"] == "stale"
    assert f"the data in {data} changed" in reasons(settings, "sft")


@pytest.mark.parametrize("judges", ["people", "simulated", "imported"])
def test_preferences_matter_to_collect_only_where_they_are_the_judgements(run_of, tmp_path: Path, judges: str) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    given = {"collect__judges": judges, "data__prompts": "pocket"}
    settings = run_of(data__preferences=f"{{path: {rows}}}", **given)
    runner.run(settings)
    rows.write_text('{"prompt": "a", "chosen": "d", "rejected": "c"}\n')
    other = run_of(data__preferences="{path: pocket}", **given)
    expected = "stale" if judges == "imported" else "complete"
    assert [states(one)["collect"] for one in (settings, other)] == [expected, expected]
    assert states(settings)["sft"] == states(settings)["sample"] == "complete"


def test_a_policy_of_another_run_that_is_made_anew_makes_sample_stale(run_of, tmp_path: Path) -> None:
    policy = tmp_path / "other" / "ppo"
    policy.mkdir(parents=True)
    (policy / "manifest.json").write_text("{}")
    settings = run_of(sample__policy=policy)
    runner.run(settings)
    assert set(states(settings).values()) == {"complete"}
    (policy / "manifest.json").write_text('{"made": "anew"}')
    assert states(settings) == {"sft": "complete", "sample": "stale", "collect": "stale"}
    assert reasons(settings, "sample") == f"{policy} was made anew"
    assert open_artifact(Path(settings.run.folder) / "sample").manifest.data.keys() == {
        "pocket",
        f"{policy}/manifest.json",
    }


def test_damage_is_named_and_mended_by_a_run(run_of) -> None:
    settings = run_of()
    runner.run(settings)
    (Path(settings.run.folder) / "sft" / "out.txt").write_text("m4de")
    assert states(settings)["sft"] == "damaged"
    assert "out.txt: content differs" in reasons(settings, "sft")
    runner.run(settings)
    assert set(states(settings).values()) == {"complete"}


def test_an_interrupted_stage_resumes_in_its_folder(run_of, monkeypatch, capsys) -> None:
    settings = run_of()

    def dies(job: Job) -> dict[str, Any]:
        (job.folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(sft, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        runner.run(settings)
    assert states(settings)["sft"] == "interrupted"
    seen = []

    def goes_on(job: Job) -> dict[str, Any]:
        seen.extend(p.name for p in job.folder.iterdir())
        return {}

    monkeypatch.setattr(sft, "run", goes_on)
    runner.run(settings, ["sft"])
    assert "half.txt" in seen
    assert "resuming what was interrupted" in capsys.readouterr().out
    assert states(settings)["sft"] == "complete"


def test_an_interrupted_try_with_other_settings_is_not_resumed(run_of, monkeypatch, capsys) -> None:
    settings = run_of()
    partial = partial_folder(Path(settings.run.folder), next(s for s in runner.BY_NAME.values() if s.name == "sft"))

    def dies(job: Job) -> dict[str, Any]:
        (job.folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(sft, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        runner.run(settings)
    assert (partial / "half.txt").exists()
    monkeypatch.setattr(sft, "run", writes_a_file)
    runner.run(run_of(sft__epochs=2), ["sft"])
    assert "sft.epochs: " in capsys.readouterr().out
    assert not (Path(settings.run.folder) / "sft" / "half.txt").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataError("3 of 10 rows cannot be used", where="rows.jsonl", advice="mend them"), "rows.jsonl: 3 of 10 rows"),
        (KeyError("no such thing"), "KeyError: 'no such thing'"),
        (RuntimeError("first\nsecond"), "RuntimeError: first"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_a_state_with_its_reason_and_is_resumed(run_of, monkeypatch, capsys, error, said) -> None:
    settings = run_of()
    folder = Path(settings.run.folder)

    def fails(job: Job) -> dict[str, Any]:
        (job.folder / "half.txt").write_text("half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(sft, "run", fails)
        with pytest.raises(type(error)):
            runner.run(settings)
    assert states(settings) == {"sft": "failed", "sample": "missing", "collect": "missing"}
    (reason,) = inspect(settings, folder)["sft"].reasons
    assert reason.startswith(said)
    assert "\n" not in reason
    seen = []

    def goes_on(job: Job) -> dict[str, Any]:
        seen.extend([states(settings)["sft"], (job.folder / "half.txt").read_text()])
        raise KeyboardInterrupt

    monkeypatch.setattr(sft, "run", goes_on)
    with pytest.raises(KeyboardInterrupt):
        runner.run(settings)
    assert said in capsys.readouterr().out, "the next try says why"
    assert seen == ["running", "half"]
    assert states(settings)["sft"] == "interrupted", "what went wrong before is no longer the reason"
    monkeypatch.setattr(sft, "run", writes_a_file)
    runner.run(settings)
    assert set(states(settings).values()) == {"complete"}
    assert set(open_artifact(folder / "sft").manifest.files) == {"half.txt", "out.txt"}


def test_what_depends_on_a_failed_stage_says_so(run_of, monkeypatch) -> None:
    runner.run(run_of())

    def fails(job: Job) -> dict[str, Any]:
        raise DataError("nothing to learn")

    monkeypatch.setattr(sft, "run", fails)
    changed = run_of(sft__epochs=3)
    with pytest.raises(DataError):
        runner.run(changed)
    assert states(changed) == {"sft": "failed", "sample": "stale", "collect": "stale"}
    assert reasons(changed, "sample") == "its input sft has failed"


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_manifest_with_keys_of_another_version_is_stale_and_they_are_named(run_of) -> None:
    settings = run_of()
    runner.run(settings)
    path = Path(settings.run.folder) / "sft" / "manifest.json"
    edit_json(path, lambda manifest: manifest.update(colour="red"))
    assert states(settings)["sft"] == "stale"
    assert reasons(settings, "sft") == "its manifest has the key colour, which this version does not know"
    edit_json(path, lambda manifest: (manifest.pop("colour"), manifest["settings"].update({"sft.speed": 9})))
    assert states(settings)["sft"] == "stale"
    assert reasons(settings, "sft") == "sft.speed is no setting of this version"
    runner.run(settings)
    assert set(states(settings).values()) == {"complete"}


@pytest.mark.parametrize(
    ("key", "stale"),
    [
        ("sft.speed", {"sft", "sample", "collect"}),
        ("sft.lora.shape", {"sft", "sample", "collect"}),
        ("sample.speed", {"sample", "collect"}),
        ("model.speed", {"sft", "sample", "collect"}),
        ("data.speed", {"sft", "sample", "collect"}),
        ("run.speed", set()),
        ("speed", set()),
    ],
)
def test_a_kept_configuration_with_keys_of_another_version_can_be_looked_at(run_of, key: str, stale: set[str]) -> None:
    settings = run_of()
    runner.run(settings)
    path = Path(settings.run.folder) / "config.yaml"
    values = yaml.safe_load(path.read_text())
    *parents, name = key.split(".")
    section = values
    for parent in parents:
        section = section[parent]
    section[name] = "fast"
    path.write_text(yaml.safe_dump(values))
    kept, unknown = load_kept(path.parent)
    assert (kept, unknown) == (settings, [key])
    shown = inspect(kept, path.parent, unknown)
    assert {name for name, s in shown.items() if s.state == "stale"} == stale
    first = next((s for s in shown.values() if s.state == "stale"), None)
    assert first is None or first.reasons == (f"{key} is no setting of this version",)
    with pytest.raises(ConfigError, match="unknown key"):
        load(path.parent)


def test_a_half_made_stage_of_another_version_is_started_over(run_of, monkeypatch, capsys) -> None:
    def dies(job: Job) -> dict[str, Any]:
        raise KeyboardInterrupt

    settings = run_of()
    with monkeypatch.context() as patch:
        patch.setattr(sft, "run", dies)
        with pytest.raises(KeyboardInterrupt):
            runner.run(settings)
    edit_json(Path(settings.run.folder) / "sft.partial" / "fingerprint.json", lambda f: f.update(colour="red"))
    runner.run(settings, ["sft"])
    assert "starting over" in capsys.readouterr().out


def dies(job: Job) -> dict[str, Any]:
    (job.folder / "half.txt").write_text("half")
    raise KeyboardInterrupt


def test_what_the_model_runs_on_is_said_once(run_of, capsys) -> None:
    settings = run_of(run__device="cpu")
    runner.run(settings)
    out = capsys.readouterr().out
    assert out.count("device: ") == 1
    assert re.match(r"device: cpu \(threads: \d+\), the base model in float32\nsft: ", out)
    assert "in bfloat16" not in out
    runner.run(run_of(run__device="cpu", model__dtype="bfloat16"))
    assert ", the base model in bfloat16\n" in capsys.readouterr().out


@pytest.mark.parametrize("there", [{"device": "cuda"}, {"dtype": "bfloat16"}], ids=str)
def test_an_unfinished_stage_is_not_resumed_on_another_machine_but_kept(
    run_of, monkeypatch, capsys, there: dict[str, str]
) -> None:
    settings = run_of(run__device="cpu")
    folder = Path(settings.run.folder)
    with monkeypatch.context() as patch:
        patch.setattr(sft, "run", dies)
        patch.setattr(runner, "_machine", lambda _: {"device": "cpu", "dtype": "float32", **there})
        patch.setattr(runner, "_machine_in_words", lambda *_: "device: another")
        with pytest.raises(KeyboardInterrupt):
            runner.run(settings)
    runner.run(settings, ["sft"])
    out = capsys.readouterr().out
    ((key, value),) = there.items()
    assert f"made with other settings ({key}: {value} → " in out
    aside = folder / "replaced" / "sft.partial-1"
    assert f"it is kept in {aside}; to go on with it there, move it back to {folder}/sft.partial" in out
    assert (aside / "half.txt").is_file()
    assert set(open_artifact(folder / "sft").manifest.files) == {"out.txt"}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_said_with_the_settings_that_help(run_of, monkeypatch, error: Exception) -> None:
    def fails(job: Job) -> dict[str, Any]:
        raise error

    settings = run_of(run__parallel=2)
    for module, advice in (
        (
            sft,
            "lower sft.micro_batch_size, sft.max_length, or set sft.gradient_checkpointing: true, or run.parallel: 1",
        ),
        (sample, "lower sample.batch_size, sample.max_new_tokens, or run.parallel: 1; rlhf doctor"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, "run", fails)
            with pytest.raises(TrainingError, match=advice):
                runner.run(settings)
        name = module.__name__.removeprefix("stages.")
        assert reasons(settings, name) == f"the memory is too small for {name} with these settings"
    runner.run(settings)
    assert set(states(settings).values()) == {"complete"}


def test_the_settings_that_are_named_for_memory_exist() -> None:
    for stage in STAGES:
        section = Settings.model_fields[stage.name].annotation
        assert set(stage.memory) <= section.model_fields.keys()
        assert bool(stage.memory) == stage.uses_model


def test_an_interrupted_try_to_make_a_stage_anew_is_not_forgotten(run_of, monkeypatch, capsys) -> None:
    settings = run_of()
    folder = Path(settings.run.folder)
    runner.run(settings)
    seen: list[str] = []

    def looks_and_dies(job: Job) -> dict[str, Any]:
        seen.append(reasons(settings, "sft"))
        return dies(job)

    with monkeypatch.context() as patch:
        patch.setattr(sft, "run", looks_and_dies)
        with pytest.raises(KeyboardInterrupt):
            runner.run(settings, ["sft"], again=True)
    assert seen == ["it is being made anew"]
    how = f"rlhf run {folder} sft --again goes on with it, removing {folder}/sft.partial gives it up"
    assert set(states(settings).values()) == {"complete"}, "what was there is kept"
    assert reasons(settings, "sft") == f"making it anew was interrupted; {how}"
    capsys.readouterr()
    runner.run(settings)
    assert f"sft: complete (making it anew was interrupted; {how})\n" in capsys.readouterr().out
    assert reasons(run_of(sft__save_every=3), "sft"), "a setting without effect"
    runner.run(settings, ["sft"], again=True)
    assert "sft: demonstrations → policy\n  resuming what was interrupted" in capsys.readouterr().out
    assert "half.txt" in open_artifact(folder / "sft").manifest.files
    assert reasons(settings, "sft") == ""


def test_a_failed_try_to_make_a_stage_anew_says_why(run_of, monkeypatch) -> None:
    settings = run_of()
    runner.run(settings)

    def fails(job: Job) -> dict[str, Any]:
        raise DataError("nothing to learn")

    monkeypatch.setattr(sft, "run", fails)
    with pytest.raises(DataError):
        runner.run(settings, ["sft"], again=True)
    assert states(settings)["sft"] == "complete"
    assert reasons(settings, "sft").startswith("making it anew failed (nothing to learn); rlhf run ")


def test_waiting_is_a_state_with_its_words(run_of, monkeypatch, capsys) -> None:
    settings = run_of()

    def waits(job: Job) -> dict[str, Any]:
        raise WaitingForPeople("12 of 40 pairs are judged")

    monkeypatch.setattr(collect, "run", waits)
    with pytest.raises(WaitingForPeople):
        runner.run(settings)
    assert states(settings) == {"sft": "complete", "sample": "complete", "collect": "waiting"}
    assert "12 of 40" in reasons(settings, "collect")
    capsys.readouterr()
    with pytest.raises(WaitingForPeople):
        runner.run(settings)
    assert capsys.readouterr().out.endswith("\ncollect: judgements → preferences\n"), "no old number, no interruption"
    monkeypatch.setattr(collect, "run", writes_a_file)
    runner.run(settings)
    assert set(states(settings).values()) == {"complete"}


def test_checkpoints_and_markers_do_not_enter_the_artifact(run_of, monkeypatch) -> None:
    def checkpoints(job: Job) -> dict[str, Any]:
        (job.folder / "checkpoints").mkdir()
        (job.folder / "checkpoints" / "1").write_text("x")
        return writes_a_file(job)

    monkeypatch.setattr(sft, "run", checkpoints)
    settings = run_of()
    runner.run(settings, ["sft"])
    assert set(open_artifact(Path(settings.run.folder) / "sft").manifest.files) == {"out.txt"}


def test_another_base_is_refused_by_the_gate(run_of, monkeypatch) -> None:
    settings = run_of()
    runner.run(settings, ["sft"])
    other = {**IDENTITY, "base": IDENTITY["base"] | {"digest": "f" * 64}}
    monkeypatch.setattr(runner, "_identity", lambda settings: other)
    with pytest.raises(IncompatibleArtifact, match="base weights: aaaaaaaaaaaa… there, ffffffffffff… here"):
        runner.run(settings, ["sample"])
    assert states(settings)["sample"] == "missing"


def test_again_makes_a_complete_stage_anew(run_of) -> None:
    settings = run_of()
    runner.run(settings, ["sft"])
    runner.run(settings, ["sft"], again=True)
    assert (Path(settings.run.folder) / "replaced" / "sft-1").is_dir()


@pytest.mark.parametrize(
    ("only", "said"), [(["sftt"], "there is no stage 'sftt'"), (["ppo"], "this run leaves out ppo")]
)
def test_wrong_stage_names(run_of, only: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        runner.run(run_of(), only)


def test_one_run_at_a_time_and_status_sees_it(run_of, tmp_path: Path) -> None:
    settings = run_of()
    folder = Path(settings.run.folder)
    folder.mkdir()
    code = (
        "import sys, time; from pathlib import Path; from stages import BY_NAME; from stages.states import *\n"
        f"folder = Path({str(folder)!r})\n"
        "with locked(folder):\n    note_running(folder, ['sft']); print('in', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        assert states(settings)["sft"] == "running"
        with pytest.raises(UsageError, match=f"process {holder.pid} is running in this folder"):
            runner.run(settings)
    finally:
        holder.kill()
        holder.wait()
    assert states(settings)["sft"] == "missing", "a lock dies with its process"


def test_who_holds_the_folder_is_known_from_the_start(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match=f"process {os.getpid()} is running"), locked(tmp_path):
        pass


def test_the_lock_is_released_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="oops"), locked(tmp_path):  # noqa: PT012
        note_running(tmp_path, ["sft"])
        raise ValueError("oops")
    with locked(tmp_path):
        pass


def test_the_resolved_configuration_is_kept_and_reads_back(run_of) -> None:
    settings = run_of(sft__epochs=2)
    runner.run(settings, ["sft"])
    assert load(Path(settings.run.folder)) == settings


def test_manifest_tells_what_made_it(run_of) -> None:
    settings = run_of()
    runner.run(settings)
    manifest = json.loads((Path(settings.run.folder) / "sample" / "manifest.json").read_text())
    sft_digest = open_artifact(Path(settings.run.folder) / "sft").digest
    assert manifest["inputs"] == {"sft": sft_digest}
    assert manifest["settings"]["sample.responses"] == 4
    assert manifest["base"]["digest"] == "a" * 64
    assert manifest["metrics"] == {"rows": 1}
    assert isinstance(inspect(settings, Path(settings.run.folder))["sft"], StageState)
