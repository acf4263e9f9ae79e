"""Does a mistake turn a test red? Mistakes are planted one at a time, and the tests that should see it are run.

    python benchmarks/mutations.py --out benchmarks/mutations.md
    python benchmarks/mutations.py --only whiten

``mutations.toml`` holds the mistakes, most of them made by a program that people use. Each is a piece of our source
that occurs once, what stands there instead, and tests. A copy of the packages in a temporary folder is changed, never
the working tree. The tests must pass on the unchanged copy; then each mistake must make one of its own tests fail.
Exits with 1 when one is not seen. With ``--only`` the other rows of the table stay as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLANTED = Path(__file__).with_suffix(".toml")
COPIED = ("rlhf_pipeline", "stages", "annotation_ui", "tests", "pyproject.toml")
HEADER = """# Planted mistakes

`python benchmarks/mutations.py --out benchmarks/mutations.md`

{killed} of {count} mistakes turn a test red. "as in" names a program that made the mistake, where one is known.

| mistake | as in | place | the test that fails |
| --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Mistake:
    """One planted mistake."""

    name: str
    file: str
    find: str
    """Occurs exactly once in the file."""
    replace: str
    tests: tuple[str, ...]
    """What should fail, as pytest names it; a test file is named without its folders."""
    seen_in: str = ""
    """The program that makes or made it."""

    def planted(self, source: str) -> str:
        """The file with the mistake in it.

        Raises:
            ValueError: the piece does not occur exactly once, or nothing changes.
        """
        if (times := source.count(self.find)) != 1:
            raise ValueError(f"{self.name}: its piece of {self.file} occurs {times} times, not once")
        if self.find == self.replace:
            raise ValueError(f"{self.name}: nothing changes")
        return source.replace(self.find, self.replace)

    def paths(self, tree: Path) -> list[str]:
        """The tests with their folders."""
        return [str(next((tree / "tests").rglob(test.split("::")[0])).parent / test) for test in self.tests]


def mistakes() -> list[Mistake]:
    """All of ``mutations.toml``."""
    rows = tomllib.loads(PLANTED.read_text(encoding="utf-8"))["mistake"]
    return [Mistake(**{**row, "tests": tuple(row["tests"])}) for row in rows]


def run_tests(tree: Path, tests: list[str]) -> tuple[int, list[str]]:
    """pytest's exit status and the tests that failed, with the code of this folder, in a process of its own.

    The process is a fork of this one, which has imported torch already and nothing of ours.
    """
    report = tree / "report.json"
    report.unlink(missing_ok=True)
    if (child := os.fork()) == 0:
        status = 70
        try:
            status = _pytest(tree, tests, report)
        finally:
            os._exit(status)
    os.waitpid(child, 0)
    if not report.exists():
        raise SystemExit(f"pytest ended without a report; it was to run {' '.join(tests)}")
    status, failed = json.loads(report.read_text())
    return status, failed


def _pytest(tree: Path, tests: list[str], report: Path) -> int:
    import pytest

    failed: list[str] = []

    class Watch:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                failed.append(report.nodeid)

    os.chdir(tree)
    sys.path.insert(0, str(tree))
    sys.dont_write_bytecode = True  # two mutants of one size within a second would share it
    os.environ["PYTHONPATH"] = str(tree)
    quiet = os.open(tree / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # plugins and rewritten asserts would take most of the time
    options = [
        "-x",
        "-q",
        "-o",
        "addopts=",
        "--assert=plain",
        "-c",
        str(tree / "pyproject.toml"),
        "--rootdir",
        str(tree),
    ]
    for plugin in ("cacheprovider", "unraisableexception", "threadexception"):
        options += ["-p", f"no:{plugin}"]
    status = int(pytest.main([*options, *tests], plugins=[Watch()]))
    import rlhf_pipeline

    assert str(rlhf_pipeline.__file__).startswith(str(tree)), "the tests ran on another copy"
    report.write_text(json.dumps([status, failed]))
    return status


def main() -> None:
    """Plant every mistake and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mistakes whose name or file has this in it")
    parser.add_argument("--out", type=Path, help="where the table goes; none is written when left out")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # For the forks: what takes the most time to import.
    import peft  # noqa: F401
    import pydantic  # noqa: F401
    import torch
    import trl  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    torch.set_num_threads(1)
    chosen = [one for one in mistakes() if arguments.only in one.name or arguments.only in one.file]
    rows, survived = [], []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve()
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tree / name)
        for stale in [*tree.rglob("__pycache__")]:
            shutil.rmtree(stale)
        status, failed = run_tests(tree, sorted({path for one in chosen for path in one.paths(tree)}))
        if status != 0:
            raise SystemExit(f"the tests must pass without mistakes; pytest gave {status}, failed: {failed}")
        for one in chosen:
            started, path = time.monotonic(), tree / one.file
            source = path.read_text(encoding="utf-8")
            path.write_text(one.planted(source), encoding="utf-8")
            status, failed = run_tests(tree, one.paths(tree))
            path.write_text(source, encoding="utf-8")
            if status not in (0, 1):
                raise SystemExit(f"{one.name}: pytest gave {status}, which is no test's doing\n{_output(tree)}")
            seen = f"`{failed[0].split('/')[-1]}`" if failed else "**none**"
            survived += [] if failed else [one.name]
            rows.append(f"| {one.name} | {one.seen_in} | `{one.file}` | {seen} |")
            if arguments.out:
                write_table(arguments.out, rows)
            print(f"{time.monotonic() - started:5.1f} s  {one.name}: {seen}", flush=True)
    print(f"{len(rows) - len(survived)} of {len(rows)} seen" + (f"; not: {', '.join(survived)}" if survived else ""))
    sys.exit(1 if survived else 0)


def write_table(file: Path, rows: list[str]) -> None:
    """Write these rows and those that the file has of other mistakes, in the order of ``mutations.toml``."""
    old = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    by_name = {row.split(" | ")[0]: row for row in [*old, *rows]}
    kept = [by_name[name] for one in mistakes() if (name := f"| {one.name}") in by_name]
    killed = sum("**none**" not in row for row in kept)
    file.write_text(HEADER.format(killed=killed, count=len(kept)) + "\n".join(kept) + "\n", encoding="utf-8")


def _output(tree: Path) -> str:
    return (tree / "output.txt").read_text(encoding="utf-8")[-2000:]


if __name__ == "__main__":
    main()
