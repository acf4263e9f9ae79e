"""Every kind of file gives the same rows with their lines; every kind of broken file one clear error."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_pipeline.data import SourceConfig
from rlhf_pipeline.data.files import read_rows
from rlhf_pipeline.data.formats import RowProblem
from rlhf_pipeline.errors import DataError

ROWS = [
    {"prompt": 'Say "hi"\r\nplease', "completion": "hi,\u2028 there\x85"},
    {"prompt": "", "completion": "[{not json"},
    {"prompt": "1", "completion": "é" * 140_000},  # longer than the csv module's own limit
]


def rows_of(path: Path | str, **settings: Any) -> list[Any]:
    return [row.values for row in read_rows(SourceConfig(path=str(path), **settings))]


def places(path: Path) -> list[str]:
    return [row.where.removeprefix(str(path)) for row in read_rows(SourceConfig(path=str(path)))]


def refusal(path: Path | str, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path, **settings)
    assert str(path) in str(caught.value)
    return str(caught.value)


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def as_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def json_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "a.jsonl": lambda path: write(path, json_lines(ROWS)),
    "crlf.jsonl": lambda path: write(path, json_lines(ROWS).replace("\n", "\r\n")),
    "bom.jsonl": lambda path: write(path, "\ufeff" + json_lines(ROWS)),
    "blank.jsonl": lambda path: write(path, "\n  \n" + json_lines(ROWS).replace("\n", "\n\n")),
    "packed.jsonl.gz": lambda path: write(path, json_lines(ROWS)),
    "packed-unnamed.jsonl": lambda path: write(path, gzip.compress(json_lines(ROWS).encode())),
    "lines.json": lambda path: write(path, json_lines(ROWS)),
    "list.json": lambda path: write(path, json.dumps(ROWS)),
    "list.jsonl": lambda path: write(path, json.dumps(ROWS)),
    "indented.json": lambda path: write(path, "\ufeff\n" + json.dumps(ROWS, indent=2, ensure_ascii=False) + "\n"),
    "data.json": lambda path: write(path, json.dumps({"version": 1, "data": ROWS})),
    "data-indented.json.gz": lambda path: write(path, json.dumps({"data": ROWS}, indent=1)),
    "a.csv": lambda path: as_csv(path, ROWS),
    "bom.csv": lambda path: write(path, "\ufeff" + as_csv(path, ROWS).read_bytes().decode()),
    "packed.csv.gz": lambda path: write(path, as_csv(path.with_name("x.csv"), ROWS).read_bytes()),
    "a.parquet": lambda path: as_parquet(path, ROWS),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    assert rows_of(WRITERS[name](tmp_path / name)) == ROWS


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    assert places(write(tmp_path / "a.jsonl", '\n{"prompt": "a"}\n\n{"prompt": "b\u2028"}\n{"prompt": "c"}')) == [
        ":2",
        ":4",
        ":5",
    ]
    indented = write(tmp_path / "a.json", '\n[\n {"prompt": "a"},\n\n {\n"prompt": "b"}, {"prompt": "c"}\n]\n')
    assert places(indented) == [":3", ":5", ":6"]
    assert places(write(tmp_path / "b.json", '{"data": [{}, {}]}')) == [": data[1]", ": data[2]"]
    assert places(write(tmp_path / "a.csv", 'prompt,n\n"two\nlines",1\n\nx,2\n')) == [":2", ":5"]
    assert places(as_parquet(tmp_path / "a.parquet", [{"prompt": "a"}, {"prompt": "b"}])) == [":1", ":2"]


def test_a_text_file_holds_a_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt.gz", "\ufeffWhy?\r\n\n  How\u2028so? \n")
    assert rows_of(path) == [{"prompt": "Why?"}, {"prompt": "How\u2028so?"}]


def test_messages_in_a_csv_cell_or_parquet_column(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = as_csv(tmp_path / "a.csv", [{"messages": json.dumps(messages), "note": "[{x"}])
    assert rows_of(path) == [{"messages": messages, "note": "[{x"}]
    assert rows_of(as_parquet(tmp_path / "a.parquet", [{"messages": messages}])) == [{"messages": messages}]


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".cache").mkdir()
    write(tmp_path / "b.jsonl", '{"prompt": "2"}')
    write(tmp_path / "a.json", '[{"prompt": "1"}]')
    write(tmp_path / "deep" / "c.txt.gz", "3")
    write(tmp_path / ".cache" / "x.jsonl", "no")
    write(tmp_path / "README.md", "no")
    assert [row["prompt"] for row in rows_of(tmp_path)] == ["1", "2", "3"]
    assert [row["prompt"] for row in rows_of(tmp_path, limit=2)] == ["1", "2"]


def test_rows_after_the_limit_are_not_looked_at(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "a.jsonl", '{"prompt": "a"}\n{"prompt"'), limit=1) == [{"prompt": "a"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "a"', "broken JSON: Expecting ',' delimiter at column 15"),
        (b'{"prompt": "a', "broken JSON: Unterminated string starting at column 12"),
        (b'{"prompt": "a"} {"prompt": "b"}', "broken JSON: something follows the object at column 16"),
        (b'{"prompt": "a\tb"}', "broken JSON: Invalid control character"),
        (b'{"prompt": "a", "prompt": "b"}', "a key stands twice: 'prompt'"),
        (b'{"prompt": [{"role": "user", "role": "x"}]}', "a key stands twice: 'role'"),
        (b'{"n": ' + b"9" * 5000 + b"}", "broken JSON: Exceeds the limit"),
        (b'{"n": ' + b"[" * 100_000, "broken JSON: maximum recursion depth"),
        (b'"prompt"', 'not an object: found "prompt"'),
        (b'{"prompt": "caf\xe9"}', "not UTF-8: byte 0xe9 at 16"),
        (b'{"prompt": "a\0"}', "broken JSON"),
    ],
)
def test_a_broken_line_is_kept_with_its_reason(line: bytes, reason: str, tmp_path: Path) -> None:
    filler = b"".join(b'{"prompt": "%d"}\n' % i for i in range(400))
    found = list(read_rows(SourceConfig(path=str(write(tmp_path / "a.jsonl", filler + line + b'\n{"prompt": "z"}')))))
    assert len(found) == 402
    problem = found[400].values
    assert isinstance(problem, RowProblem)
    assert str(problem).startswith(reason)
    assert found[400].where.endswith("a.jsonl:401")
    assert found[401].values == {"prompt": "z"}


def test_a_key_given_twice_in_a_list_is_that_row_s_problem(tmp_path: Path) -> None:
    found = rows_of(write(tmp_path / "a.json", '[{"p": 1, "p": 2}, {"p": 1}]'))
    assert isinstance(found[0], RowProblem)
    assert found[1] == {"p": 1}


def test_csv_rows_with_too_many_or_few_cells(tmp_path: Path) -> None:
    found = rows_of(write(tmp_path / "a.csv", "prompt,completion\na,b\na\na,b,c\n"))
    assert found[0] == {"prompt": "a", "completion": "b"}
    assert [str(row) for row in found[1:]] == [
        "wrong number of cells: found 1, the header has 2",
        "wrong number of cells: found 3, the header has 2",
    ]


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.jsonl", b"", "the file is empty"),
    "empty gzip name": ("a.jsonl.gz", b"", "the file is empty"),
    "blank": ("a.json", b" \n\n", "the file is empty"),
    "bom alone": ("a.jsonl", b"\xef\xbb\xbf\n", "the file is empty"),
    "empty list": ("a.json", b"[]", "the file is empty"),
    "header alone": ("a.csv", b"prompt,completion\n", "the file is empty"),
    "empty parquet": ("a.parquet", b"", "the file is empty"),
    "blank text": ("a.txt", b"\n", "the file is empty"),
    "binary": ("a.jsonl", bytes(range(256)) * 20, "a binary file (NUL byte at 0)"),
    "packed binary": ("a.jsonl.gz", gzip.compress(b"abc\0" * 2000), "a binary file (NUL byte at 3)"),
    "not gzip": ("a.jsonl.gz", b'{"prompt": "a"}', "it is not gzip data"),
    "cut-off gzip": ("a.jsonl.gz", gzip.compress(os.urandom(9000).hex().encode())[:-2000], "damaged or cut off"),
    "damaged gzip": ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9)[:-8] + b"12345678", "damaged or cut off"),
    "parquet by another name": ("a.jsonl", b"PAR1xxxx", "is a Parquet file"),
    "spreadsheet": ("a.csv", b"PK\x03\x04xxxx", "zip archive or an office document"),
    "UTF-16": ("a.csv", "prompt\na\n".encode("utf-16"), "UTF-16"),
    "LFS pointer": ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "not Parquet": ("a.parquet", b"not parquet at all", "not a sound Parquet file"),
    "packed Parquet": ("a.parquet.gz", gzip.compress(b"x"), "Parquet is compressed already"),
    "unclosed list": ("a.json", b'[\n{"p": 1},\n{"p": 2}\n', "a.json:3: broken JSON: the list is not closed"),
    "no comma in list": ("a.json", b'[\n{"p": 1}\n{"p": 2}]', "a.json:3: broken JSON: wanted , or ]"),
    "broken element": ("a.json", b'[\n{"p": 1},\n{"p": }]', "a.json:3: broken JSON: Expecting value"),
    "after the list": ("a.json", b"[{}]\n\nx", "a.json:3: broken JSON: something follows the list"),
    "an object": (
        "a.json",
        b'{\n"rows": []\n}',
        'an object with rows; wanted a row a line, a list of rows, or {"data"',
    ),
    "broken object": ("a.json", b'{\n"data": [,]\n}', "a.json:2: broken JSON"),
    "list not UTF-8": ("a.json", b'[\n{"p": "\xe9"}]', "a.json:2: not UTF-8 (byte 0xe9)"),
    "CSV not UTF-8": ("a.csv", b"prompt\na\ncaf\xe9\n", "a.csv:3: not UTF-8 (byte 0xe9 at 4)"),
    "text not UTF-8": ("a.txt", b"a\ncaf\xe9\n", "a.txt:2: not UTF-8"),
    "semicolons": ("a.csv", b"prompt;completion\na;b\n", "not separated by commas"),
    "column twice": ("a.csv", b"prompt,prompt\na,b\n", "a column stands twice"),
    "unclosed quote": ("a.csv", b'prompt,n\na,1\n"b,2\nc,3\n', "a.csv:3: broken CSV: unexpected end of data"),
    "text after a quote": ("a.csv", b'prompt,n\n"b"x,2\n', "a.csv:2: broken CSV"),
    "another kind": ("a.xlsx", b"x", "the name ends in '.xlsx', which is no known kind of data file"),
}


@pytest.mark.parametrize(("name", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_clear_error(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert message in refusal(path)


def test_a_missing_path_names_near_ones(tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", "x")
    assert f"did you mean {tmp_path / 'prompts.jsonl'}?" in refusal(tmp_path / "promts.jsonl")
    assert "holds: prompts.jsonl" in refusal(tmp_path / "zzz.parquet")
    assert "is missing too" in refusal(tmp_path / "nowhere" / "a.jsonl")
    assert "cannot be opened: File name too long" in refusal(tmp_path / ("x" * 300))


def test_a_folder_without_data_and_a_device(tmp_path: Path) -> None:
    write(tmp_path / "README.md", "x")
    assert "the folder holds no data file, found: README.md" in refusal(tmp_path)
    assert "neither a file nor a folder" in refusal("/dev/null")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", '{"prompt": "a"}')
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything

        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", refuse)
    assert "no permission to read it" in refusal(path)


def test_hub_settings_make_no_sense_for_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"prompt": "a"}')
    assert "split, revision can only be set for a hub data set" in refusal(path, split="test", revision="main")


class TestHub:
    def test_rows_of_a_hub_data_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        asked: list[Any] = []

        def load(*given: Any, **named: Any) -> datasets.Dataset:
            asked.append((given, named))
            return datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}])

        monkeypatch.setattr(datasets, "load_dataset", load)
        source = SourceConfig(path="owner/name", split="test", subset="en", revision="v1", limit=2)
        assert [row.where for row in read_rows(source)] == ["owner/name[test]:1", "owner/name[test]:2"]
        assert asked == [(("owner/name", "en"), {"split": "test", "revision": "v1"})]
        assert rows_of("owner/name")[0] == {"prompt": "a"}
        assert asked[1][1]["split"] == "train"

    def test_a_hub_that_cannot_be_reached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        def load(*_: Any, **__: Any) -> None:
            raise ConnectionError("Couldn't reach 'owner/name' on the Hub\nmore")

        monkeypatch.setattr(datasets, "load_dataset", load)
        text = refusal("owner/name")
        assert "neither a local path, nor could it be loaded from the hub (ConnectionError: Couldn't reach" in text
        assert "download the files and give their folder" in text

    def test_what_looks_like_a_file_is_not_sought_on_the_hub(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data").mkdir()
        for path in ("owner/name.jsonl", "data/prompts", "./owner/name", "name"):
            assert "there is no such file, folder or hub data set" in refusal(path)
