"""Artifacts: a stage's folder, complete if and only if it holds a manifest, and identified by that manifest's digest.

A stage writes into ``NAME.partial``. :func:`complete` hashes and syncs every file, writes ``manifest.json`` last and
renames the folder to ``NAME``. What stood there before moves to ``replaced/``: results are never deleted.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rlhf_pipeline.errors import ArtifactError, DamagedArtifact, IncompatibleArtifact

MANIFEST = "manifest.json"
SCHEMA = 1
_RECORDED_PACKAGES = ("rlhf-pipeline", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers")


@dataclass(frozen=True)
class Manifest:
    """What made an artifact: everything needed to say whether it is still current, whole and fitting."""

    stage: str
    kind: str
    settings: dict[str, Any]
    """Every setting that the stage reads, by dotted key."""
    seed: int
    inputs: dict[str, str]
    """Input artifacts: name to digest."""
    data: dict[str, str]
    """Data sources: path or id to digest of its content."""
    base: dict[str, Any] | None
    """Identity of the base model; null where the stage uses none."""
    tokenizer: dict[str, Any] | None
    """Digests of tokenizer and chat template, and the stop set."""
    files: dict[str, dict[str, Any]]
    """Relative path to ``{"sha256", "size"}``."""
    metrics: dict[str, Any]
    device: str
    seconds: float
    created: str
    versions: dict[str, str] = field(default_factory=dict)
    git: str | None = None
    schema: int = SCHEMA


@dataclass(frozen=True)
class Artifact:
    """A finished stage's folder."""

    folder: Path
    manifest: Manifest
    digest: str
    unknown: tuple[str, ...] = ()
    """Keys of its manifest that this version does not know, and that :class:`Manifest` leaves out."""


def open_artifact(folder: Path, *, verify: bool = True) -> Artifact:
    """Open a finished folder.

    Args:
        folder: the stage's folder.
        verify: compare every file with its hash.

    Raises:
        ArtifactError: there is no manifest, or it cannot be read.
        DamagedArtifact: a file is missing or differs from its hash.
    """
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(
            "not a finished stage: it has no manifest.json",
            where=str(folder),
            advice=f"finish it first: rlhf run {folder.parent}",
        ) from None
    try:
        values = {**json.loads(raw)}
        unknown = tuple(sorted(values.keys() - {known.name for known in fields(Manifest)}))
        manifest = Manifest(**{key: value for key, value in values.items() if key not in unknown})
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise DamagedArtifact(
            f"the manifest cannot be read ({error})",
            where=str(path),
            advice=f"make the stage again: rlhf run {folder.parent}",
        ) from None
    if manifest.schema > SCHEMA:
        raise ArtifactError(
            f"made by a newer version (schema {manifest.schema}, this program reads {SCHEMA})",
            where=str(path),
            advice="pip install --upgrade rlhf-pipeline",
        )
    artifact = Artifact(folder, manifest, hashlib.sha256(raw).hexdigest(), unknown)
    if verify:
        damage = find_damage(artifact)
        if damage:
            raise DamagedArtifact(
                "files differ from what the stage wrote",
                where=str(folder),
                details=damage,
                advice=f"make the stage again: rlhf run {folder.parent}",
            )
    return artifact


def find_damage(artifact: Artifact) -> list[str]:
    """One line for each file that is missing or differs from its hash; empty when the artifact is whole."""
    damage = []
    for name, expected in artifact.manifest.files.items():
        path = artifact.folder / name
        if not path.is_file():
            damage.append(f"{name}: missing")
        elif path.stat().st_size != expected["size"]:
            damage.append(f"{name}: {path.stat().st_size} bytes, its manifest says {expected['size']}")
        elif file_digest(path) != expected["sha256"]:
            damage.append(f"{name}: content differs from its sha256")
    return damage


def complete(partial: Path, final: Path, *, scratch: Sequence[str] = (), **made_by: Any) -> Artifact:
    """Turn an unfinished folder into an artifact: hash, sync, manifest last, rename.

    Args:
        partial: the folder that the stage wrote.
        final: its name once complete; what stands there moves to ``replaced/``.
        scratch: names in it of what is only needed to go on after an interruption, as while large files are hashed:
            no part of the artifact, and deleted at the very end.
        made_by: the fields of :class:`Manifest` that only the caller knows.
    """
    files = {}
    left_out = {MANIFEST, *scratch}  # a manifest is there when an earlier try was stopped just before the rename
    for path in sorted(
        p for p in partial.rglob("*") if p.is_file() and p.relative_to(partial).parts[0] not in left_out
    ):
        _readable_by_umask(path)
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
        files[path.relative_to(partial).as_posix()] = {"sha256": file_digest(path), "size": path.stat().st_size}
    manifest = Manifest(
        files=files,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=versions(),
        git=git_commit(),
        **made_by,
    )
    write_atomically(partial / MANIFEST, json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n")
    if final.exists():
        set_aside(final)
    os.replace(partial, final)
    _sync_folder(final.parent)
    for name in scratch:
        if (final / name).is_dir():
            shutil.rmtree(final / name)
        else:
            (final / name).unlink(missing_ok=True)
    return open_artifact(final, verify=False)


def set_aside(folder: Path) -> Path:
    """Move a folder to ``replaced/NAME-N`` beside it; returns the new place."""
    target_folder = folder.parent / "replaced"
    target_folder.mkdir(exist_ok=True)
    number = 1
    while (target := target_folder / f"{folder.name}-{number}").exists():
        number += 1
    os.replace(folder, target)
    return target


def require_same_identity(
    artifact: Artifact, base: Mapping[str, Any] | None, tokenizer: Mapping[str, Any] | None
) -> None:
    """The gate between stages: base, tokenizer, chat template and stop set are those of this run.

    Raises:
        IncompatibleArtifact: naming each value that differs, here and there.
    """
    made_with = {**(artifact.manifest.base or {}), **(artifact.manifest.tokenizer or {})}
    here = {**(base or {}), **(tokenizer or {})}
    # Base weights are known by their digest: the same weights under another path are the same base.
    ignored = {"name", "revision"} if made_with.get("digest") == here.get("digest") else set()
    words = {"digest": "base weights", "name": "base", "eos": "stop tokens", "chat_template": "chat template"}
    differing = [
        f"{words.get(key, key)}: {_short(made_with[key])} there, {_short(here.get(key))} here"
        for key in made_with
        if key not in ignored and here and made_with[key] != here.get(key)
    ]
    if differing:
        raise IncompatibleArtifact(
            "made with another model than this run's",
            where=str(artifact.folder),
            details=differing,
            advice=f"set `model` back, or make it again: rlhf run CONFIG {artifact.manifest.stage} --again",
        )


def file_digest(path: Path) -> str:
    """sha256 of a file's content, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def source_digest(source: str) -> str:
    """Digest of a data source: of the content of a file or folder, else of the name itself (hub ids, built-in data)."""
    path = Path(source)
    if path.is_file():
        return file_digest(path)
    if path.is_dir():
        listing = [f"{p.relative_to(path)}:{file_digest(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256("\n".join(listing).encode()).hexdigest()
    return hashlib.sha256(source.encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _RECORDED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that this package runs from; null when it is installed."""
    folder = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _readable_by_umask(path: Path) -> None:
    """safetensors writes 0600 (safetensors/safetensors#782); other users and servers need what the umask allows."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text
