"""Our own export: nothing lost in a file, strict reading of one, and the manifest beside it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_pipeline.errors import DataError, UsageError
from rlhf_pipeline.exchange import Verdict, export, find_format, read_file, write
from rlhf_pipeline.exchange.full import RECORD
from rlhf_pipeline.store.records import Form, Gold
from tests.rlhf_pipeline.exchange.judged_rounds import ANN, BOB, EVERYTHING, a_round, asked, task, there_and_back

ALL = Verdict(
    ANN,
    "response",
    0,
    strength=2,
    probability=0.75,
    margin=2.0,
    rules={0: (), 1: ("is rude",)},
    ratings={0: {"helpful": 5}, 1: {"helpful": 1}},
    flags=("personal data",),
    comment="\ud800 \0 سلام \u2028",
    corrected=1,
    correction=" better\n",
    purpose="repeat",
    shown=(1, 0),
    late=True,
    shown_at=1,
    decided_at=2,
    received_at=3,
    active_ms=4,
    wall_ms=5,
    keys_used=False,
    revision=2,
    form_digest="f" * 16,
    guideline_version=3,
    app_version="7",
    identity="1" * 32,
    supersedes="2" * 32,
)
WITHDRAWN = Verdict(BOB, "withdrawn", identity="3" * 32, revision=2, supersedes="4" * 32)
RANKED = Verdict(BOB, "ranking", ranking=((0,), (1,)), identity="5" * 32)
NASTY = task(
    ALL, WITHDRAWN, RANKED, prompt=asked("a\0b \ud800", "\n\nHuman: x", "  "), texts=("\u202e<script>", " \udfff"),
    meta={"k": {"n": [1, None]}}, gold=Gold("response", 1, "because"), priority=-1.5,
)  # fmt: skip


def test_every_field_of_a_judgement_is_tried() -> None:
    blank = Verdict("", "skip")
    same = [name for name in Verdict.__dataclass_fields__ if getattr(ALL, name) == getattr(blank, name)]
    assert same == ["ranking"]


def test_nothing_is_lost(tmp_path: Path) -> None:
    assert there_and_back(tmp_path, a_round(NASTY), "full") == [NASTY]


def test_a_line_for_each_judgement(tmp_path: Path) -> None:
    made = export(a_round(NASTY, task()), "full")
    rows = [json.loads(line) for line in made.content.decode("ascii").splitlines()]
    assert [row["judgement"]["by"] for row in rows] == [ANN, BOB, BOB]
    assert {row["record"] for row in rows} == {RECORD}
    first = rows[0]
    assert first["task"]["digest"] == NASTY.new.digest
    assert first["round"]["form"] == EVERYTHING.to_json()
    assert first["round"]["form_digest"] == EVERYTHING.digest
    assert made.manifest["found"] == {"tasks": 2, "tasks_without_judgements": 1, "judgements": 3, "people": 2}


def test_readable_text_stays_readable() -> None:
    plain = Verdict(ANN, "response", 0, identity="1" * 32)
    for format in ("full", "trl"):
        assert "چرا" in export(a_round(task(plain, prompt=asked("چرا"))), format).content.decode()


def test_rounds_of_one_file_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    other = replace(a_round(task(RANKED)), name="simulated")
    path.write_bytes(export(a_round(NASTY), "full").content + export(other, "full").content)
    first, second = read_file(path).rounds
    assert (first.name, second.name) == ("import people", "import simulated")
    assert first.source_digest != second.source_digest
    assert first.form == EVERYTHING


Change = Callable[[dict[str, Any]], Any]
BAD: list[tuple[Change, str]] = [
    (lambda r: r.update(record="rlhf-judgement/2"), "record is 'rlhf-judgement/2', wanted 'rlhf-judgement/1'"),
    (lambda r: r.pop("round"), "round is missing, wanted an object"),
    (lambda r: r["round"].update(overlap=0), "round.overlap is 0, wanted 1 to 2147483647"),
    (lambda r: r["round"].update(source_digest="a\0b"), "round.source_digest is 'a\\x00b'"),
    (lambda r: r["round"]["form"].update(rules=3), "round.form.rules is a number, wanted a list"),
    (lambda r: r["round"]["form"].update(tie="no"), "round.form.tie is text, wanted true or false"),
    (lambda r: r["round"]["form"].update(colour=1), "not a form: round.form asks what this program does not: colour"),
    (lambda r: r["round"]["form"]["attributes"][0].update(points=10**9), "attributes[1].points is 1000000000"),
    (lambda r: r["task"].update(meta={"a": float("nan")}), "not JSON: task.meta holds NaN or Infinity"),
    (lambda r: r["task"].update(priority=float("inf")), "task.priority is inf, wanted a number"),
    (lambda r: r["judgement"].update(received_at=10**300), "judgement.received_at is 1000000000"),
    (lambda r: r["judgement"].update(wall_ms=-1), "judgement.wall_ms is -1, wanted 0 to"),
    (lambda r: r["judgement"].update(app_version="9" * 41), "wanted at most 40 ASCII characters"),
    (lambda r: r["judgement"].update(guideline_version=2**40), "judgement.guideline_version is 1099511627776"),
    (lambda r: r["round"]["form"].update(kind="best"), "round.form.kind is 'best', wanted one of pair, ranking"),
    (lambda r: r["task"].update(prompt=[]), "task.prompt is empty"),
    (lambda r: r["task"]["prompt"][0].update(content="other"), "task.digest is not that of this prompt"),
    (lambda r: r["task"]["prompt"][0].update(role="robot"), "task.prompt[1].role is 'robot'"),
    (lambda r: r["task"]["responses"].reverse(), "not in the order in which they were exported"),
    (lambda r: r["task"]["responses"].pop(), "a task has 1 responses"),
    (lambda r: r["task"]["responses"][0].update(text=None), "task.responses[1].text is missing, wanted text"),
    (lambda r: r["task"]["responses"][0].update(finish="stop"), "finish is 'stop', wanted one of eos, length"),
    (lambda r: r["task"]["gold"].update(response=None), "task.gold.choice is 'response', response is None"),
    (lambda r: r["judgement"].update(choice="maybe"), "judgement.choice is 'maybe'"),
    (lambda r: r["judgement"].update(response=2), "judgement.response is 2, wanted 0 to 1"),
    (lambda r: r["judgement"].update(response=None), "choice is 'response', response is None"),
    (lambda r: r["judgement"].update(ranking=[[0], [1]]), "but there is a ranking"),
    (lambda r: r["judgement"].update(choice="ranking", response=None, ranking=[[0]]), "each of 2 responses once"),
    (lambda r: r["judgement"].update(choice="ranking", response=None, ranking=[[0], [], [1]]), "2 responses once"),
    (lambda r: r["judgement"].update(strength=4), "judgement.strength is 4, wanted 1 to 3"),
    (lambda r: r["judgement"].update(probability=0.4), "judgement.probability is 0.4, wanted 0.5 to 1"),
    (lambda r: r["judgement"].update(margin=True), "judgement.margin is True, wanted a number"),
    (lambda r: r["judgement"].update(rules=[[]]), "judgement.rules is for 1 responses, the task has 2"),
    (lambda r: r["judgement"].update(ratings=[{"helpful": 0}, {}]), "judgement.ratings[1].helpful is 0"),
    (lambda r: r["judgement"].update(correction=None), "corrected and correction go together"),
    (lambda r: r["judgement"].update(purpose="fun"), "judgement.purpose is 'fun'"),
    (lambda r: r["judgement"].update(shown=[0]), "judgement.shown names 1 of 2 responses"),
    (lambda r: r["judgement"].update(shown=[0, 0]), "a response stands twice"),
    (lambda r: r["judgement"].update(received_at=1.5), "judgement.received_at is 1.5, wanted a whole number"),
    (lambda r: r["judgement"].update(identity="x"), "wanted 32 hex digits"),
    (lambda r: r["judgement"].update(identity="g" * 32), "wanted 32 hex digits"),
    (lambda r: r["judgement"].update(supersedes="1" * 31), "judgement.supersedes is"),
    (lambda r: r["judgement"].update(by=" "), "not a name"),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_a_line_that_was_changed_is_refused_with_the_reason(change: Change, said: str, tmp_path: Path) -> None:
    sound = json.loads(export(a_round(NASTY), "full").content.splitlines()[0])
    broken = copy.deepcopy(sound)
    change(broken)
    path = tmp_path / "judgements.jsonl"
    path.write_text(json.dumps(sound) + "\n" + json.dumps(broken) + "\n")
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert said in str(caught.value)
    assert "judgements.jsonl" in caught.value.details[0]


def test_questions_that_came_later_may_be_missing_in_a_form(tmp_path: Path) -> None:
    row = json.loads(export(a_round(NASTY), "full").content.splitlines()[0])
    row["round"]["form"] = {"kind": "pair", "comment": True}
    path = tmp_path / "judgements.jsonl"
    path.write_text(json.dumps(row))
    assert read_file(path).rounds[0].form == Form(comment=True)


def test_the_manifest_vouches_for_the_file(tmp_path: Path) -> None:
    made = export(a_round(task(ALL, replace(ALL, by=BOB, purpose="judge", identity="6" * 32))), "trl", salt_digest="s")
    paths = write(made, tmp_path / "pairs.jsonl")
    assert [p.name for p in paths] == ["pairs.jsonl", "pairs.jsonl.manifest.json"]
    manifest = json.loads(paths[1].read_text())
    assert manifest["file"] == "pairs.jsonl"
    assert manifest["rows"] == 2 == len(paths[0].read_text().splitlines())
    assert manifest["sha256"] == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    assert manifest["pseudonyms"] == "s"
    assert {k: manifest["rules"][1][k] for k in ("rule", "removed")} == {"rule": "purpose", "removed": 1}
    assert all(rule["because"] and rule["of"] for rule in manifest["rules"])
    assert manifest["not_carried"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)


def test_the_same_round_is_the_same_file() -> None:
    assert export(a_round(NASTY), "full") == export(a_round(NASTY), "full")


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no format 'csv'(.|\n)*full, trl, trl-implicit"):
        find_format("csv")
