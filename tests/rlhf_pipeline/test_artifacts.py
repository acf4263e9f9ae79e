"""An artifact is complete if and only if its manifest is there, and every change to it is noticed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rlhf_pipeline.artifacts import (
    MANIFEST,
    Artifact,
    complete,
    find_damage,
    open_artifact,
    require_same_identity,
    source_digest,
)
from rlhf_pipeline.errors import ArtifactError, DamagedArtifact, IncompatibleArtifact

BASE = {"name": "pocket", "revision": None, "digest": "a" * 64}
TOKENIZER = {"tokenizer": "b" * 64, "chat_template": "c" * 64, "eos": [2]}


def make(folder: Path, name: str = "sft", **changes: object) -> Artifact:
    partial = folder / f"{name}.partial"
    (partial / "adapter").mkdir(parents=True)
    (partial / "adapter" / "weights.safetensors").write_bytes(b"weights")
    (partial / "metrics.jsonl").write_text("{}\n")
    made_by = {
        "stage": name, "kind": "policy", "settings": {"sft.epochs": 1}, "seed": 0, "inputs": {}, "data": {},
        "base": BASE, "tokenizer": TOKENIZER, "metrics": {"loss": 1.5}, "device": "cpu", "seconds": 2.0,
    }  # fmt: skip
    return complete(partial, folder / name, **(made_by | changes))


def test_complete_renames_and_hashes_every_file(tmp_path: Path) -> None:
    artifact = make(tmp_path)
    assert not (tmp_path / "sft.partial").exists()
    assert set(artifact.manifest.files) == {"adapter/weights.safetensors", "metrics.jsonl"}
    assert artifact.manifest.files["adapter/weights.safetensors"] == {
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
        "size": 7,
    }
    assert open_artifact(tmp_path / "sft").digest == artifact.digest


def test_a_folder_without_manifest_is_not_an_artifact(tmp_path: Path) -> None:
    artifact = make(tmp_path)
    (artifact.folder / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        open_artifact(artifact.folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "metrics.jsonl").unlink(), "metrics.jsonl: missing"),
        (lambda f: (f / "metrics.jsonl").write_text("{} "), "content differs"),
        (lambda f: (f / "metrics.jsonl").write_text("{}{}{}"), "6 bytes, its manifest says 3"),
    ],
)
def test_damage_is_named(tmp_path: Path, change, said: str) -> None:
    artifact = make(tmp_path)
    change(artifact.folder)
    assert any(said in line for line in find_damage(artifact))
    with pytest.raises(DamagedArtifact, match=r"metrics\.jsonl"):
        open_artifact(artifact.folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"stage": "sft"}', "\x00\x01"])
def test_a_broken_manifest_is_damage(tmp_path: Path, text: str) -> None:
    artifact = make(tmp_path)
    (artifact.folder / MANIFEST).write_text(text)
    with pytest.raises(DamagedArtifact, match="the manifest cannot be read"):
        open_artifact(artifact.folder)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path).folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(ArtifactError, match="newer version"):
        open_artifact(path.parent)


def test_what_stood_there_before_is_kept(tmp_path: Path) -> None:
    first = make(tmp_path)
    make(tmp_path, settings={"sft.epochs": 2})
    assert open_artifact(tmp_path / "replaced" / "sft-1").digest == first.digest
    make(tmp_path)
    assert (tmp_path / "replaced" / "sft-2").is_dir()


def test_files_are_readable_as_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        artifact = make(tmp_path)
    finally:
        os.umask(before)
    assert (artifact.folder / "metrics.jsonl").stat().st_mode & 0o777 == 0o644


def test_same_identity_passes_under_another_name(tmp_path: Path) -> None:
    require_same_identity(make(tmp_path), BASE | {"name": "/elsewhere/pocket"}, TOKENIZER)


@pytest.mark.parametrize(
    ("base", "tokenizer", "said"),
    [
        (BASE | {"digest": "d" * 64}, TOKENIZER, "base weights: aaaaaaaaaaaa… there, dddddddddddd… here"),
        (BASE, TOKENIZER | {"eos": [2, 3]}, r"stop tokens: \[2\] there, \[2, 3\] here"),
        (BASE, TOKENIZER | {"chat_template": "e" * 64}, "chat template: cccccccccccc… there, eeeeeeeeeeee… here"),
    ],
)
def test_the_gate_names_both_values_and_the_command(tmp_path: Path, base, tokenizer, said: str) -> None:
    with pytest.raises(IncompatibleArtifact, match=said) as caught:
        require_same_identity(make(tmp_path), base, tokenizer)
    assert "rlhf run CONFIG sft --again" in str(caught.value)


def test_an_artifact_without_a_model_passes_the_gate(tmp_path: Path) -> None:
    require_same_identity(make(tmp_path, base=None, tokenizer=None), BASE, TOKENIZER)


def test_source_digest_follows_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("1")
    before_file, before_folder = source_digest(str(path)), source_digest(str(tmp_path))
    path.write_text("2")
    assert source_digest(str(path)) != before_file
    assert source_digest(str(tmp_path)) != before_folder
    assert source_digest("org/name") == source_digest("org/name") != source_digest("org/other")
