"""What the README and the help texts say is so."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.main import get_command

from rlhf_pipeline.config import describe
from stages.__main__ import app
from stages.settings import Settings, load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMMANDS = set(get_command(app).commands)


def test_every_command_of_the_readme_exists_and_every_command_is_there() -> None:
    named = set(re.findall(r"`?(?:\.venv/bin/)?rlhf ([a-z][a-z-]+)", README))
    assert named == COMMANDS


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.M))
    assert set(re.findall(r"^make ([a-z]+)", README, re.M)) <= targets


@pytest.mark.parametrize("target", ["demo", "annotate", "test", "quick", "lint"])
def test_make_targets_call_what_exists(target: str) -> None:
    shown = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for command in re.findall(r"rlhf (\w+)", shown.stdout):
        assert command in COMMANDS
    for path in re.findall(r"configs/\S+\.yaml", shown.stdout):
        assert (ROOT / path).is_file()


def test_every_file_named_in_the_readme_exists() -> None:
    paths = re.findall(r"(?:configs|docs|benchmarks)/[\w.-]+\.\w+", README)
    assert paths
    for path in paths:
        assert (ROOT / path).is_file(), path
    listing = README.split("## Where things are")[1]
    for package in ("rlhf_pipeline", "stages"):
        for path in (ROOT / package).glob("*.py"):
            if path.name != "__init__.py":
                assert path.name in listing, f"{path.name} is missing from the README's list"
    for name in re.findall(r"\b(\w+\.py)\b", listing):
        assert list(ROOT.rglob(name)), name


def test_the_readme_names_every_recipe() -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"`configs/{path.name}`" in README


def test_the_configuration_in_the_readme_loads(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", README, re.S)
    assert block is not None
    path = tmp_path / "ours.yaml"
    path.write_text(textwrap.dedent(block.group(1).rstrip(" ")))
    assert load(path).collect.overlap == 2


def test_help_config_prints_every_key() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "stages", "help-config"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for key, _, text in describe(Settings):
        assert f"{key} = " in shown
        assert " ".join(text.split()) in shown


def test_the_readme_has_no_gap() -> None:
    assert not re.search(r"\b(NUMBERS|TODO|TBD|FIXME)\b", README)


def test_versions_in_the_constraints_fit_the_bounds() -> None:
    import tomllib

    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name.lower().replace("_", "-"): version for name, version in (x.split("==") for x in lines if "==" in x)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"] + project["optional-dependencies"]["dev"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), line
