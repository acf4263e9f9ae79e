"""Every mistake in a configuration is one line that names file, line and key."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from rlhf_pipeline.config import LoraSection, Section, TrainingSection, describe, dump, load
from rlhf_pipeline.errors import ConfigError


class Inner(Section):
    """A stage."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    lora: LoraSection | None = Field(default_factory=LoraSection)
    """The adapter."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How it falls."""


class Outer(Section):
    """A run."""

    name: str
    """What it is called."""
    stage: Inner = Field(default_factory=Inner)
    """The stage."""
    items: list[int] = Field(default_factory=list)
    """Some numbers."""


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def mistakes(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(Outer, write(folder, text), overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    settings = load(Outer, write(tmp_path, "name: x\nstage: {learning_rate: 1e-5}\n"))
    assert settings.stage.learning_rate == 1e-5


def test_a_number_written_without_a_dot_is_no_string(tmp_path: Path) -> None:
    assert "valid string" in mistakes(tmp_path, "name: 5e-6\n")


def test_unknown_key_names_line_and_suggests(tmp_path: Path) -> None:
    text = mistakes(tmp_path, "name: x\nstage:\n  lerning_rate: 1\n")
    assert "run.yaml:3: unknown key stage.lerning_rate; did you mean learning_rate?" in text


def test_unknown_key_inside_an_optional_section(tmp_path: Path) -> None:
    text = mistakes(tmp_path, "name: x\nstage:\n  lora:\n    rnak: 4\n")
    assert "run.yaml:4: unknown key stage.lora.rnak; did you mean rank?" in text


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    text = mistakes(tmp_path, "stage:\n  learning_rate: -1\n  schedule: cubic\nitems: [1, two]\n")
    assert "4 mistakes" in text
    assert "name is required" in text
    assert "run.yaml:2: stage.learning_rate: input should be greater than 0, found -1" in text
    assert "run.yaml:3: stage.schedule" in text
    assert "run.yaml:4: items.1" in text


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    assert "run.yaml:2: not valid YAML: the key 'name' stands twice (first on line 1)" in mistakes(
        tmp_path, "name: x\nname: y\n"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "found NoneType"),
        ("- a\n- b\n", "found list"),
        ("name: [", "not valid YAML"),
        ("name: x\n\tstage: 1\n", "run.yaml:2"),
        ("{[1]: 2}", "a key must be a plain name"),
        ("name: !!python/object:os.system x", "not valid YAML"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in mistakes(tmp_path, text)


def test_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigError, match="not a text file"):
        load(Outer, path)


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "name: x\n")
    with pytest.raises(ConfigError, match=r"did you mean .*run\.yaml"):
        load(Outer, tmp_path / "runn.yaml")


def test_override_wins_and_is_named_when_wrong(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nstage: {learning_rate: 0.1}\n")
    assert load(Outer, path, ["stage.learning_rate=1e-3"]).stage.learning_rate == 1e-3
    assert load(Outer, path, ["stage.lora=null"]).stage.lora is None
    assert load(Outer, path, ["items=[1, 2]"]).items == [1, 2]
    with pytest.raises(ConfigError, match=r"--set stage\.learning_rate: stage\.learning_rate: .*found oops"):
        load(Outer, path, ["stage.learning_rate=oops"])
    with pytest.raises(ConfigError, match="an override is KEY=VALUE, found 'stage'"):
        load(Outer, path, ["stage"])
    with pytest.raises(ConfigError, match="name is a single value"):
        load(Outer, path, ["name.inner=1"])


def test_dump_reads_back_the_same(tmp_path: Path) -> None:
    settings = load(Outer, write(tmp_path, "name: x\nstage: {learning_rate: 3e-7, lora: null}\n"))
    assert load(Outer, write(tmp_path, dump(settings))) == settings


def test_describe_lists_every_key_with_its_help() -> None:
    rows = {key: (default, text) for key, default, text in describe(Outer)}
    assert rows["stage.learning_rate"] == ("0.0001", "Peak learning rate.")
    assert rows["name"] == ("required", "What it is called.")
    assert rows["stage.lora.rank"][0] == "16"
    assert all(text for _, text in rows.values())


class Training(Section):
    stage: TrainingSection = Field(default_factory=TrainingSection)
    other: TrainingSection = Field(default_factory=TrainingSection)


def test_a_rule_about_several_keys_names_the_section_and_the_override_that_broke_it(tmp_path: Path) -> None:
    path = write(tmp_path, "stage:\n  batch_size: 8\n  epochs: 2\nother: {batch_size: 2}\n")
    message = "stage: micro_batch_size 3 does not divide batch_size 8"
    with pytest.raises(ConfigError) as caught:
        load(Training, path, ["stage.micro_batch_size=3", "stage.epochs=3", "other.micro_batch_size=2"])
    assert caught.value.details == (f"--set stage.micro_batch_size: {message}",)
    path.write_text(path.read_text().replace("epochs: 2", "micro_batch_size: 3"))
    with pytest.raises(ConfigError) as caught:
        load(Training, path, ["stage.epochs=3"])
    assert caught.value.details == (f"{path}:1: {message}",)


class Both(Section):
    one: LoraSection
    other: LoraSection


def test_an_override_changes_one_section_though_yaml_shares_it(tmp_path: Path) -> None:
    path = tmp_path / "shared.yaml"
    path.write_text("one: &same {rank: 1}\nother: *same\n")
    loaded = load(Both, path, ["one.rank=3"])
    assert (loaded.one.rank, loaded.other.rank) == (3, 1)
