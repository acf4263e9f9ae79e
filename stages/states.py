"""What stands in a run folder: the state of each stage, with the reason."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlhf_pipeline.alarms import read_alarms
from rlhf_pipeline.artifacts import MANIFEST, Artifact, find_damage, open_artifact, source_digest, write_atomically
from rlhf_pipeline.config import is_known, without_effect
from rlhf_pipeline.errors import ArtifactError, UsageError
from stages import BY_NAME, Stage, collect
from stages.settings import Settings

State = Literal["missing", "waiting", "running", "interrupted", "failed", "complete", "stale", "damaged"]
FINGERPRINT = "fingerprint.json"
WAITING = "waiting.json"
FAILED = "failed.json"
_LOCK = ".lock"
_WITHOUT_EFFECT = without_effect(Settings)


@dataclass(frozen=True)
class StageState:
    """The state of one stage; ``reasons`` say why it is not simply complete."""

    name: str
    state: State
    reasons: tuple[str, ...] = ()
    artifact: Artifact | None = None


def partial_folder(run_folder: Path, stage: Stage) -> Path:
    """Where a stage writes until it is complete."""
    return run_folder / f"{stage.name}.partial"


def inspect(settings: Settings, run_folder: Path, unknown: Sequence[str] = ()) -> dict[str, StageState]:
    """The state of every stage of the run, in the order of the chain.

    ``unknown``: keys of the kept configuration that this version does not know; a stage that would read one is stale.
    """
    running = running_stages(run_folder)
    states: dict[str, StageState] = {}
    for name in BY_NAME:
        if name in settings.run.stages:
            states[name] = inspect_stage(BY_NAME[name], settings, run_folder, states, running, unknown)
    return states


def inspect_stage(
    stage: Stage,
    settings: Settings,
    run_folder: Path,
    upstream: Mapping[str, StageState],
    running: Collection[str],
    unknown: Sequence[str] = (),
) -> StageState:
    """The state of one stage, given the states of those before it."""
    finished = _inspect_finished(stage, settings, run_folder / stage.name, upstream, unknown)
    partial = partial_folder(run_folder, stage)
    if finished.state == "complete":
        alarms = _alarms(run_folder / stage.name)
        return replace(finished, reasons=(*_made_anew(stage, settings, partial, running), *alarms))
    if stage.name in running:
        return StageState(stage.name, "running", _alarms(partial))
    if (partial / WAITING).is_file():
        now = collect.still_needed(settings.collect, run_folder) if stage.name == "collect" else None
        return StageState(stage.name, "waiting", (now or _noted(partial / WAITING),))
    if (partial / FAILED).is_file():
        return StageState(stage.name, "failed", (_noted(partial / FAILED),))
    if (partial / FINGERPRINT).is_file():
        return StageState(stage.name, "interrupted", ("it resumes when the run is started again", *_alarms(partial)))
    return finished


def _made_anew(stage: Stage, settings: Settings, partial: Path, running: Collection[str]) -> tuple[str, ...]:
    """What became of a try to make a complete stage anew, where it has not ended."""
    if stage.name in running:
        return ("it is being made anew",)
    if not (partial / FINGERPRINT).is_file():
        return ()
    if differences(json.loads((partial / FINGERPRINT).read_text())["settings"], settings.relevant_to(stage)):
        return ()  # it was a try with other settings
    what = "was interrupted"
    if (partial / FAILED).is_file():
        what = f"failed ({_noted(partial / FAILED)})"
    elif (partial / WAITING).is_file():
        what = "waits for people"
    command = f"rlhf run {shlex.quote(str(partial.parent))} {stage.name} --again"
    return (f"making it anew {what}; {command} goes on with it, removing {partial} gives it up",)


def _alarms(folder: Path) -> tuple[str, ...]:
    return tuple(f"alarm, {one.name}: {one.sentence()}" for one in read_alarms(folder))


def note(path: Path, what: str) -> None:
    """Keep in an unfinished folder, in one line, why its stage has stopped."""
    write_atomically(path, json.dumps({"what": what}))


def _noted(path: Path) -> str:
    return str(json.loads(path.read_text())["what"])


def _inspect_finished(
    stage: Stage, settings: Settings, folder: Path, upstream: Mapping[str, StageState], unknown: Sequence[str]
) -> StageState:
    if not folder.exists():
        return StageState(stage.name, "missing")
    try:
        artifact = open_artifact(folder, verify=False)
    except ArtifactError as error:
        return StageState(stage.name, "damaged", (error.what,))
    damage = find_damage(artifact)
    if damage:
        return StageState(stage.name, "damaged", tuple(damage), artifact)
    reasons = [f"its manifest has the key {key}, which this version does not know" for key in artifact.unknown]
    reasons += [_no_setting(key) for key in unknown if settings.reads(stage, key)]
    reasons += differences(artifact.manifest.settings, settings.relevant_to(stage))
    for name in (*stage.needs, *stage.reads_if_there):
        reasons += _input_changed(name, artifact, upstream)
    for source in settings.data_sources(stage):
        if artifact.manifest.data.get(source) != source_digest(source):
            made_anew = Path(source).name == MANIFEST
            reasons.append(f"{Path(source).parent} was made anew" if made_anew else f"the data in {source} changed")
    if stage.name == "collect" and not reasons:
        news = collect.judged_since(settings.collect, folder.parent, artifact.manifest.metrics)
        reasons += [news] if news else []
    return StageState(stage.name, "stale" if reasons else "complete", tuple(dict.fromkeys(reasons)), artifact)


def _input_changed(name: str, artifact: Artifact, upstream: Mapping[str, StageState]) -> list[str]:
    recorded = artifact.manifest.inputs.get(name)
    if name not in upstream:
        return [f"it was made with {name}, which this run leaves out"] if recorded else []
    now = upstream[name]
    if now.state != "complete" or now.artifact is None:
        return [f"its input {name} {'has' if now.state == 'failed' else 'is'} {now.state}"]
    return [] if recorded == now.artifact.digest else [f"its input {name} was made anew"]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each setting whose value differs and can change a result, by dotted key."""
    absent = "(none)"
    return [
        f"{key}: {before.get(key, absent)} → {now.get(key, absent)}" if is_known(Settings, key) else _no_setting(key)
        for key in dict.fromkeys([*before, *now])
        if before.get(key, absent) != now.get(key, absent) and key not in _WITHOUT_EFFECT
    ]


def _no_setting(key: str) -> str:
    return f"{key} is no setting of this version"


@contextlib.contextmanager
def locked(run_folder: Path) -> Iterator[None]:
    """Hold the run folder: one ``rlhf run`` at a time.

    Raises:
        UsageError: another process holds it.
    """
    with (run_folder / _LOCK).open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            handle.seek(0)
            holder = handle.read().split()
            who = f"process {holder[0]}" if holder else "another process"
            raise UsageError(
                f"{who} is running in this folder",
                where=str(run_folder),
                advice="wait for it, or use another run.folder",
            ) from None
        note_running(run_folder, [])  # at once: who comes in the first seconds is told the number too
        try:
            yield
        finally:
            handle.truncate(0)


def note_running(run_folder: Path, names: Collection[str]) -> None:
    """Write into the lock file which stages are at work, for ``rlhf status``."""
    (run_folder / _LOCK).write_text(" ".join([str(os.getpid()), *names]))


def running_stages(run_folder: Path) -> list[str]:
    """The stages that a living process works on."""
    path = run_folder / _LOCK
    if not path.is_file():
        return []
    with path.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return handle.read().split()[1:]
    return []
