"""``rlhf judgements``: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf_pipeline.data import SourceConfig, read_preferences
from rlhf_pipeline.exchange import EXPORT_FORMATS
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Answer, NewResponse, NewTask
from stages.judgements import SUFFIXES
from tests.command_line import Result, program, rlhf, write_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose store has a round of people and one of simulated judges, whose judgements the run uses."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(write_config(tmp_path), folder / "config.yaml")
    store = JudgementStore.open(folder / "judgements.db")
    judge(store, "people", ["Ann"], 2)
    judge(store, "simulated", ["Bob", "Cid"], 4)
    store.close()
    return folder


def judge(store: JudgementStore, name: str, people: list[str], tasks: int) -> None:
    """Everybody prefers what is good, by a margin of the task's number, but for the first task: a tie."""
    round_id = store.open_round(name, overlap=len(people), seed=1, source_digest=name, lease_seconds=60)
    responses = (NewResponse("good"), NewResponse("bad"))
    store.add_tasks(round_id, [NewTask(Prompt((Message("user", f"{n}?"),)), responses) for n in range(tasks)])
    for person in people:
        for held in store.lease(round_id, store.user(person), tasks):
            number = int(held.prompt[0].content[:-1])
            good = next(r.id for r in held.responses if r.text == "good")
            token = f"{name}-{held.id}"
            said = (
                Answer(token, held.id, "response", good, margin=float(number))
                if number
                else Answer(token, held.id, "tie")
            )
            store.submit(held.user_id, said)


def export(run: Path, *options: Any, format: str = "trl", out: str = "out.jsonl") -> Result:
    return rlhf("judgements", "export", run, "--format", format, "--out", run / out, *options)


def test_the_rounds_are_listed(run: Path) -> None:
    shown = rlhf("judgements", "rounds", run)
    assert shown.out.splitlines() == [
        "round 1 (people): 2 judgements by 1 judge, 2 tasks of the kind pair",
        "round 2 (simulated): 8 judgements by 2 judges, 4 tasks of the kind pair",
    ]


def test_pairs_of_the_round_that_the_run_uses(run: Path) -> None:
    shown = export(run)
    assert shown.code == 0, shown.err
    assert shown.out.splitlines() == [
        "3 rows (trl) of round 2 (simulated): 8 judgements of 4 tasks by 2 judges",
        "  left out: 1 pair: a tie has no better response",
        f"  wrote {run}/out.jsonl",
        f"  wrote {run}/out.jsonl.manifest.json",
    ]
    loaded = read_preferences(SourceConfig(path=str(run / "out.jsonl")))
    assert [(p.chosen, p.margin, p.judgements) for p in loaded.records] == [("good", n, 2) for n in (1.0, 2.0, 3.0)]
    assert json.loads((run / "out.jsonl.manifest.json").read_text())["rows"] == 3


def test_options_reach_the_export(run: Path) -> None:
    shown = export(run, "--min-margin", 2, "--round", 2)
    assert "2 rows" in shown.out
    assert "  left out: 1 pair: a pair whose margin is below the least wanted is left out\n" in shown.out
    assert "1 row (trl) of round 1 (people)" in export(run, "--round", 1).out


@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_every_format_there_and_back(format: str, run: Path, tmp_path: Path) -> None:
    out = "out.json" if EXPORT_FORMATS[format].as_list else "out.jsonl"
    assert export(run, format=format, out=out).code == 0
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(run / "config.yaml", other)
    first = rlhf("judgements", "import", other, run / out)
    assert first.code == 0, first.err
    assert first.out.startswith(f"format: {format}; ")
    assert "round 1 (import " in first.out
    second = rlhf("judgements", "import", other, run / out)
    assert "\n0 judgements by 0 judges, 0 new tasks" in second.out
    assert len(rlhf("judgements", "rounds", other).out.splitlines()) == 1
    assert rlhf("judgements", "export", other, "-f", "trl", "-o", tmp_path / "again.jsonl").code == 0


def test_an_import_into_a_round_that_is_there(run: Path, tmp_path: Path) -> None:
    export(run, "--round", 2, format="label-studio", out="x.json")
    rows = json.loads((run / "x.json").read_text())
    for row in rows:
        row["annotations"] = [a | {"completed_by": 7} for a in row["annotations"][:1]]
    (run / "x.json").write_text(json.dumps(rows))
    shown = rlhf("judgements", "import", run, run / "x.json", "--round", 2)
    assert "4 judgements by 1 judge, 0 new tasks" in shown.out
    assert "round 2 (simulated): 12 judgements by 3 judges, 4 tasks" in shown.out


def test_pseudonyms_are_the_same_in_every_export_of_a_run(run: Path) -> None:
    names = []
    for number in (1, 2):
        export(run, "--round", 2, format="full", out=f"{number}.jsonl")
        names.append(
            {json.loads(line)["judgement"]["by"] for line in (run / f"{number}.jsonl").read_text().splitlines()}
        )
    assert names[0] == names[1]
    assert len(names[0]) == 2
    assert (run / "judgements.salt").stat().st_mode & 0o077 == 0


def test_an_export_is_written_again_but_nothing_else_is_overwritten(run: Path) -> None:
    assert export(run).code == export(run).code == 0
    (run / "mine.jsonl").write_text("mine")
    refused = export(run, out="mine.jsonl")
    assert refused.code == 2
    assert "no manifest beside it says that it is an export" in refused.err
    assert (run / "mine.jsonl").read_text() == "mine"


def test_what_is_refused_and_how(run: Path, tmp_path: Path) -> None:
    cases: list[tuple[list[Any], int, str]] = [
        (["export", tmp_path, "-f", "trl", "-o", run / "o.jsonl"], 2, "not a run folder"),
        (["export", run, "-f", "csv", "-o", run / "o.jsonl"], 2, "formats: full, trl, trl-implicit"),
        (["export", run, "-f", "trl", "-o", run / "o.csv"], 2, "the name ends in '.csv'"),
        (["export", run, "-f", "trl", "-o", run / "no" / "o.jsonl"], 2, "mkdir -p"),
        (["export", run, "-f", "full", "-o", run / "o.jsonl", "--min-margin", 1], 2, "full holds single judgements"),
        (["export", run, "-f", "trl", "-o", run / "o.jsonl", "--min-margin", "nan"], 2, "--min-margin is nan"),
        (["export", run, "-f", "trl", "-o", run / "o.jsonl", "--round", 9], 2, "there is no round 9"),
        (["export", run, "-f", "trl", "-o", run / "o.jsonl", "--min-margin", 9], 1, "3 pairs: a pair whose margin"),
        (["import", run, run / "missing.jsonl"], 1, "there is no such file"),
        (["import", run, run], 1, "this is a folder"),
        (["import", run, run / "config.yaml"], 1, "no known kind of data file"),
    ]
    for arguments, code, said in cases:
        shown = rlhf("judgements", *arguments)
        assert (shown.code, shown.out) == (code, ""), arguments
        assert said in shown.err, arguments
    assert not (run / "o.jsonl").exists()


def test_a_run_without_a_store_says_what_to_do(run: Path) -> None:
    (run / "judgements.db").unlink()
    for command in (["rounds", run], ["export", run, "-f", "trl", "-o", run / "o.jsonl"]):
        shown = rlhf("judgements", *command)
        assert shown.code == 2
        assert f"rlhf judgements import {run} FILE" in shown.err
    assert not (run / "judgements.db").exists()


def test_a_file_with_bad_rows_changes_nothing(run: Path) -> None:
    (run / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a"}\n')
    before = rlhf("judgements", "rounds", run).out
    shown = rlhf("judgements", "import", run, run / "bad.jsonl")
    assert shown.code == 1
    assert f"{run}/bad.jsonl:2: missing column: chosen, rejected" in shown.err
    assert rlhf("judgements", "rounds", run).out == before


@pytest.mark.slow
def test_as_a_program_and_help_loads_nothing_heavy(run: Path) -> None:
    shown = program("judgements", "export", run, "--format", "hh", "--out", run / "hh.jsonl")
    assert shown.code == 0, shown.err
    assert "3 rows (hh)" in shown.out
    for command in ("rounds", "export", "import"):
        assert program("judgements", command, "--help").code == 0


def test_suffixes_are_those_that_can_be_read(run: Path) -> None:
    for suffix in SUFFIXES:
        assert export(run, out=f"x{suffix}").code == 0
        assert rlhf("judgements", "import", run, run / f"x{suffix}").code == 0


def test_a_list_is_not_written_into_a_file_of_lines(run: Path) -> None:
    refused = rlhf("judgements", "export", run, "--format", "label-studio", "--out", run / "out.jsonl")
    assert refused.code == 2
    assert "name it FILE.json" in refused.err
    assert not (run / "out.jsonl").exists()
