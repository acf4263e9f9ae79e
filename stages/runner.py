"""Run stages: what is missing or stale, in order; resume what was interrupted; stop where people are needed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_pipeline import artifacts, config
from rlhf_pipeline.errors import ConfigError, PipelineError, TrainingError, UsageError, WaitingForPeople
from stages import BY_NAME, NAMES, Stage, launch
from stages.beside import Beside
from stages.job import Job, say
from stages.ppo_progress import LAST_GOOD
from stages.settings import Settings
from stages.states import (
    FAILED,
    FINGERPRINT,
    WAITING,
    StageState,
    differences,
    inspect,
    inspect_stage,
    locked,
    note,
    note_running,
    partial_folder,
)

_MACHINE = {"device": None, "dtype": None, "processes": 1}
"""What an unfinished stage goes on with unchanged; the values are those of older versions, which did not note them."""


def run(settings: Settings, only: Sequence[str] = (), *, again: bool = False) -> None:
    """Bring the named stages (all of the run's, when none is named) up to date, with whatever they need.

    Args:
        settings: the whole configuration.
        only: names of stages.
        again: make the named stages anew even where they are complete.

    Raises:
        UsageError: an unknown stage, or another process at work in the folder.
        WaitingForPeople: the chain cannot go on before people have judged.
    """
    launch.require_no_launcher(settings.run.launch)
    wanted = _wanted(settings, only)
    run_folder = _make_folder(Path(settings.run.folder))
    with locked(run_folder):
        artifacts.write_atomically(run_folder / "config.yaml", config.dump(settings))
        states = inspect(settings, run_folder)
        forced = {name for name in wanted if again and (not only or name in only)}
        _run_all([name for name in NAMES if name in wanted], forced, settings, run_folder, states)


def _run_all(
    todo: list[str], forced: Collection[str], settings: Settings, run_folder: Path, states: dict[str, StageState]
) -> None:
    """Bring these stages up to date, each when its inputs are there: one here, others that are ready beside it."""
    identity: dict[str, Any] | None = None
    beside: dict[str, Beside] = {}
    try:
        while todo or beside:
            ready = _ready(todo, beside)
            for name in [n for n, process in beside.items() if not (ready and process.alive())]:
                states[name] = beside.pop(name).result()
            for name in ready:
                states[name] = inspect_stage(BY_NAME[name], settings, run_folder, states, ())
                if states[name].state == "complete" and name not in forced:
                    say(f"{name}: complete{''.join(f' ({reason})' for reason in states[name].reasons)}")
                    todo.remove(name)
            ready = [name for name in ready if name in todo][: max(1, settings.run.parallel - len(beside))]
            if identity is None and any(BY_NAME[name].uses_model for name in ready):
                identity = {**_identity(settings), **_machine(settings)}
                say(_machine_in_words(identity, settings))
            for name in ready[1:]:
                beside[name] = Beside(name, _run_stage, BY_NAME[name], settings, run_folder, states, identity)
            for name in ready[:1]:
                note_running(run_folder, [name, *beside])
                states[name] = _run_stage(BY_NAME[name], settings, run_folder, states, identity)
            todo = [name for name in todo if name not in ready]
    finally:
        for process in beside.values():
            process.stop()


def _ready(todo: Sequence[str], beside: Collection[str]) -> list[str]:
    """The stages that wait for none of the others, in the order of the chain."""
    unfinished = {*todo, *beside}
    return [n for n in todo if not unfinished & {*BY_NAME[n].needs, *BY_NAME[n].reads_if_there}]


def _make_folder(run_folder: Path) -> Path:
    advice = "name another: --set run.folder=FOLDER"
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"the run folder cannot be made: {error.strerror}"
        raise UsageError(what, where=f"run.folder: {run_folder}", advice=advice) from None
    if not os.access(run_folder, os.W_OK):
        raise UsageError("no permission to write into it", where=f"run.folder: {run_folder}", advice=advice)
    return run_folder


def _wanted(settings: Settings, only: Sequence[str]) -> set[str]:
    """The named stages and everything they need, within the stages of the run."""
    for name in only:
        if name not in NAMES:
            raise UsageError(f"there is no stage {name!r}", advice=f"stages: {', '.join(NAMES)}")
        if name not in settings.run.stages:
            raise UsageError(f"this run leaves out {name}", advice="add it to run.stages")
    wanted: set[str] = set()
    waiting = list(only or settings.run.stages)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            stage = BY_NAME[name]
            waiting += [n for n in (*stage.needs, *stage.reads_if_there) if n in settings.run.stages]
    return wanted


def _run_stage(
    stage: Stage,
    settings: Settings,
    run_folder: Path,
    states: Mapping[str, StageState],
    identity: Mapping[str, Any] | None,
) -> StageState:
    before = states[stage.name]
    why = f" ({before.state}: {'; '.join(before.reasons[:3])})" if before.reasons else ""
    # People are counted anew below, and a complete stage is made anew because somebody said so.
    say(f"{stage.name}: {stage.summary}{'' if before.state in ('waiting', 'complete') else why}")
    inputs = _open_inputs(stage, states, identity)
    device = identity["device"] if identity and stage.uses_model else "cpu"
    made_by = {
        "stage": stage.name,
        "kind": stage.kind,
        "settings": settings.relevant_to(stage),
        "seed": settings.run.seed,
        "inputs": {name: artifact.digest for name, artifact in inputs.items()},
        "data": {source: artifacts.source_digest(source) for source in settings.data_sources(stage)},
        "base": identity["base"] if identity and stage.uses_model else None,
        "tokenizer": identity["tokenizer"] if identity and stage.uses_model else None,
        "device": device,
    }
    dtype = identity["dtype"] if identity and stage.uses_model else None
    processes = launch.processes_of(stage, settings)
    partial = _prepare(partial_folder(run_folder, stage), {**made_by, "dtype": dtype, "processes": processes})
    started = time.monotonic()
    with _noting_why_it_stops(partial):
        job = Job(settings.section(stage), settings, partial, inputs, run_folder, settings.run.seed, device)
        metrics = launch.in_processes(stage, job, _call) if processes > 1 else _call(stage, job)
        seconds = round(time.monotonic() - started, 1)
        artifact = artifacts.complete(
            partial,
            run_folder / stage.name,
            scratch=(FINGERPRINT, "checkpoints"),
            metrics=metrics,
            seconds=seconds,
            **made_by,
        )
    say(f"{stage.name}: done in {seconds:.0f} s → {artifact.folder}")
    return StageState(stage.name, "complete", (), artifact)


@contextlib.contextmanager
def _noting_why_it_stops(partial: Path) -> Iterator[None]:
    """Keep for ``rlhf status`` that people are waited for, or what went wrong; Ctrl+C and a kill leave no such note."""
    try:
        yield
    except WaitingForPeople as waiting:
        note(partial / WAITING, waiting.what)
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        with contextlib.suppress(OSError):  # a full disk has no room for the note either
            note(partial / FAILED, first if isinstance(error, PipelineError) else f"{type(error).__name__}: {first}")
        raise


def _call(stage: Stage, job: Job) -> dict[str, Any]:
    """Import the stage's module and run it with fresh seeds, so that a result does not depend on what ran before."""
    import importlib

    if stage.uses_model:
        import random

        import numpy
        import torch

        random.seed(job.seed)
        numpy.random.seed(job.seed)
        torch.manual_seed(job.seed)
        if job.settings.run.threads is not None:
            torch.set_num_threads(job.settings.run.threads)
    try:
        metrics: dict[str, Any] = importlib.import_module(f"stages.{stage.name}").run(job)
    except ConfigError as error:
        if error.where is None or not config.is_known(type(job.config), error.where):
            raise
        where = f"{stage.name}.{error.where}"
        raise ConfigError(error.what, where=where, advice=error.advice, details=error.details) from None
    except Exception as error:
        if stage.memory and _lacks_memory(error):
            raise _out_of_memory(stage, job) from None
        raise
    json.dumps(metrics)  # what cannot be written into a manifest fails here, not after hashing
    return metrics


def _lacks_memory(error: Exception) -> bool:
    """Whether an allocation failed: torch has a class of its own for GPUs, and none for the CPU."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _out_of_memory(stage: Stage, job: Job) -> TrainingError:
    whose = "GPU's memory" if job.device == "cuda" else "memory"
    return TrainingError(
        f"the {whose} is too small for {stage.name} with these settings",
        advice=f"{job.settings.memory_advice(stage)}; rlhf doctor estimates what each stage needs",
    )


def _open_inputs(
    stage: Stage, states: Mapping[str, StageState], identity: Mapping[str, Any] | None
) -> dict[str, artifacts.Artifact]:
    """The input artifacts, whole and made with the same model."""
    inputs = {}
    for name in (*stage.needs, *stage.reads_if_there):
        state = states.get(name)
        if state is None or state.artifact is None:
            continue
        if identity and stage.uses_model:
            artifacts.require_same_identity(state.artifact, identity["base"], identity["tokenizer"])
        inputs[name] = state.artifact
    return inputs


def _prepare(partial: Path, made_by: Mapping[str, Any]) -> Path:
    """The unfinished folder: what an interrupted try left when it was made by the same things, else an empty one."""
    keys = ("settings", "inputs", "data", "base", "tokenizer", *_MACHINE)
    fingerprint = json.loads(json.dumps({key: made_by[key] for key in keys}))
    path = partial / FINGERPRINT
    if (partial / WAITING).is_file():  # what people do is kept in the store
        shutil.rmtree(partial)
    if path.is_file():
        before = json.loads(path.read_text())
        moved = [
            f"{key}: {before.get(key, older)} → {fingerprint[key]}"
            for key, older in _MACHINE.items()
            if before.get(key, older) != made_by[key]
        ]
        changed = differences(before["settings"], fingerprint["settings"])
        same = dict.fromkeys(("settings", *_MACHINE))
        if {**before, **same} != {**fingerprint, **same}:
            changed.append("its inputs changed")
        if not changed and not moved:
            (partial / FAILED).unlink(missing_ok=True)
            say(f"  resuming what was interrupted in {partial}")
            return partial
        say(f"  the interrupted try was made with other settings ({'; '.join([*moved, *changed][:3])}): starting over")
        if not changed:
            say(f"  it is kept in {artifacts.set_aside(partial)}; to go on with it there, move it back to {partial}")
        elif (partial / LAST_GOOD).is_dir():
            say(f"  its last good policy is kept in {artifacts.set_aside(partial) / LAST_GOOD}")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    artifacts.write_atomically(path, json.dumps(fingerprint))
    return partial


def _identity(settings: Settings) -> dict[str, Any]:
    from rlhf_pipeline.models import base_identity
    from rlhf_pipeline.tokenization import load_tokenizer

    return {"base": base_identity(settings.model), "tokenizer": load_tokenizer(settings.model).identity()}


def _machine(settings: Settings) -> dict[str, str]:
    """On what the model runs, and in which precision its weights are loaded: an unfinished stage goes on with neither
    changed."""
    import torch

    from rlhf_pipeline.models import dtype_of

    wanted = settings.run.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("run.device is cuda, but torch finds no CUDA device", advice="--set run.device=cpu")
    device = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    launch.require_devices(settings.run.launch, device)
    return {"device": device, "dtype": str(dtype_of(settings.model, device)).removeprefix("torch.")}


def _machine_in_words(identity: Mapping[str, Any], settings: Settings) -> str:
    import torch

    on_gpu = identity["device"] == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else f"threads: {settings.run.threads or torch.get_num_threads()}"
    weights = "in 4 bits, computing in" if settings.model.quantization == "4bit" else "in"
    return f"device: {identity['device']} ({where}), the base model {weights} {identity['dtype']}"
