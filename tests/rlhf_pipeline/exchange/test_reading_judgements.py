"""Files of judgements: which format they are taken for, and what is said of those that cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rlhf_pipeline.errors import DataError
from rlhf_pipeline.exchange import EXPORT_FORMATS, IMPORT_FORMATS, Verdict, export, read_file
from tests.rlhf_pipeline.exchange.judged_rounds import ANN, a_round, asked, task


def one_of(format: str) -> bytes:
    return export(
        a_round(task(Verdict(ANN, "response", 0, identity="1" * 32), prompt=asked("a", "b", "c"))), format
    ).content


@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_every_format_is_recognised_whatever_the_file_is_called(format: str, tmp_path: Path) -> None:
    for name in ("x.json", "x.jsonl"):
        (tmp_path / name).write_bytes(one_of(format))
        assert read_file(tmp_path / name).format == format
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(one_of(format)))
    assert read_file(tmp_path / "x.jsonl.gz").format == format
    assert format in IMPORT_FORMATS


def test_the_format_that_is_named_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(one_of("trl"))
    with pytest.raises(DataError, match=r"read as openai(.|\n)*missing column: input"):
        read_file(path, "openai")
    assert read_file(path, "trl").format == "trl"


def test_the_first_sound_row_decides_and_bad_ones_before_it_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"x\n3\n" + one_of("hh"))
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert "2 of 3 rows cannot be used (read as hh)" in str(caught.value)
    assert [d.split(": ")[0] for d in caught.value.details] == [f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"x", "1 of 1 rows cannot be used"),
        (b"\x00\x01", "a binary file"),
        (b'{"prompt": "a", "completion": "b"}', "the format is not known; found the columns: prompt, completion"),
        (b'{"a": 1}', "found the columns: a"),
        (
            b'{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b", "rejected": "\\n\\nHuman: a\\n\\nAssistant: b"}',
            "1 identical",
        ),
        (b'{"prompt": "\\u0000", "chosen": "a", "rejected": "b"}', "NUL character"),
    ],
)
def test_files_that_hold_no_judgements(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_and_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_file(tmp_path / "owner" / "name")
    (tmp_path / "x.jsonl").write_bytes(one_of("trl"))
    with pytest.raises(DataError, match=r"csv is no format of judgements(.|\n)*full, argilla"):
        read_file(tmp_path / "x.jsonl", "csv")


def test_at_most_twenty_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(one_of("trl") + b"{\n" * 30)
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert len(caught.value.details) == 21
    assert caught.value.details[-1] == "… and 10 more"
    path.write_bytes(one_of("trl") + b"{\n" * 20)
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert len(caught.value.details) == 20


def test_only_judgements_can_be_read_and_each_format_under_one_name() -> None:
    assert {"judged", "sharegpt-preference", "alpaca-preference"} < set(IMPORT_FORMATS)
    assert not {"preference", "openai-preference", "alpaca", "messages", "prompts"} & set(IMPORT_FORMATS)
    assert len(set(IMPORT_FORMATS)) == len(IMPORT_FORMATS)


def test_a_round_is_named_after_its_file_whatever_that_is_called(tmp_path: Path) -> None:
    path = tmp_path / ("a\nb\u202e" + "x" * 220 + ".jsonl")
    path.write_bytes(one_of("trl"))
    [judged] = read_file(path).rounds
    assert judged.name.startswith("import a?b?xxx")
    assert len(judged.name) == 200


def test_a_task_that_stands_twice_is_named(tmp_path: Path) -> None:
    [row] = json.loads(one_of("label-studio"))
    path = tmp_path / "x.json"
    path.write_text(json.dumps([row, row]))
    with pytest.raises(DataError, match="a task stands twice"):
        read_file(path)


def test_tasks_under_different_forms_are_different_rounds(tmp_path: Path) -> None:
    pair = {"data": {"prompt": "q", "answer1": "x", "answer2": "y"}, "annotations": []}
    ranks = [
        {"from_name": f"rank_{n}", "to_name": f"answer{n}", "type": "number", "value": {"number": n}} for n in (1, 2, 3)
    ]
    three = {
        "data": {"prompt": "q", "answer1": "x", "answer2": "y", "answer3": "z"},
        "annotations": [{"result": ranks}],
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps([pair, three, pair | {"data": {**pair["data"], "prompt": "r"}}]))
    rounds = read_file(path).rounds
    assert [(r.form.kind, len(r.tasks)) for r in rounds] == [("pair", 2), ("ranking", 1)]
    assert len({r.source_digest for r in rounds}) == 2
