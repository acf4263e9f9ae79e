"""The shape of the program: which way imports run, how large things may be, and that every setting is read."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

from rlhf_pipeline.config import Section, describe
from stages import NAMES, STAGES
from stages.settings import Settings

ROOT = Path(__file__).parent.parent
PACKAGES = ("rlhf_pipeline", "stages", "annotation_ui")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
# The command line puts the parts together: the one place that may know both sides.
COMPOSITION_ROOT = ROOT / "stages" / "__main__.py"
MAY_IMPORT = {"rlhf_pipeline": set(), "stages": {"rlhf_pipeline"}, "annotation_ui": {"rlhf_pipeline"}}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names & set(PACKAGES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    if path == COMPOSITION_ROOT:
        return
    package = path.relative_to(ROOT).parts[0]
    assert imported_packages(path) <= MAY_IMPORT[package] | {package}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = 120 if node.name == "run" else 70
            assert node.end_lineno - node.lineno < limit, f"{node.name} is too long"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_things_have_docstrings(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module), "the module says what it is for"
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parts[-2] == "rlhf_pipeline"], ids=lambda p: p.name)
def test_the_library_names_no_stage(path: Path) -> None:
    """A module of ours is never asked for by string, so the arrows above are the whole truth."""
    assert not re.search(r"""["'](stages|annotation_ui)[."']""", path.read_text(encoding="utf-8"))


def test_table_and_modules_agree() -> None:
    for stage in STAGES:
        module = ROOT / "stages" / f"{stage.name}.py"
        assert module.is_file()
        assert stage.name in Settings.model_fields
        for needed in (*stage.needs, *stage.reads_if_there):
            assert NAMES.index(needed) < NAMES.index(stage.name), "the table is in the order of the chain"


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_a_stage_has_help_and_is_read(name: str) -> None:
    schema = Settings.model_fields[name].annotation
    assert issubclass(schema, Section)
    assert len(schema.model_fields) <= 25
    # What a stage hands to the library is read there.
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if path.name != "config.py")
    own = (ROOT / "stages" / f"{name}.py").read_text(encoding="utf-8")
    for field, info in schema.model_fields.items():
        assert info.description, f"{name}.{field} has no docstring"
        inherited = field not in own.split("def run")[0]
        where = code if inherited else own + code
        assert re.search(rf"\b(config|section|training)\.{field}\b", where), f"nothing reads {name}.{field}"


def test_every_key_is_described() -> None:
    assert all(text for _, _, text in describe(Settings))


def test_stage_modules_and_settings_load_without_torch() -> None:
    code = (
        "import sys; import stages.settings, stages.states, stages.runner, stages.__main__;"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'gradio', 'sqlalchemy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_pickle_and_no_remote_code() -> None:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) (pickle|dill|cloudpickle|joblib)\b", text, re.M), path
        assert "trust_remote_code=True" not in text, path
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, path


def test_the_modules_of_the_library_have_tests() -> None:
    tested = {path.name.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    # one test file for modules that are two halves of one thing
    families = {"model_source": "models.py", "special_tokens": "tokenization.py", "trainer_": "training.py"}
    for path in sorted((ROOT / "rlhf_pipeline").glob("*.py")):
        name = next((whole for start, whole in families.items() if path.name.startswith(start)), path.name)
        assert name in tested or name in ("__init__.py", "errors.py"), path.name


def test_the_wheel_has_exactly_three_packages_and_their_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = find_packages(str(ROOT), include=project["packages"]["find"]["include"])
    assert {name.split(".")[0] for name in found} == set(PACKAGES)
    shipped = {
        path
        for package, patterns in project["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert path in shipped, f"{path.relative_to(ROOT)} would be missing from the wheel"
