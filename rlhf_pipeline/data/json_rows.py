"""JSON to rows, each with its line: a row a line, a list of rows, or ``{"data": [rows]}``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from rlhf_pipeline.data.formats import RowProblem
from rlhf_pipeline.data.opening import RawRow, numbered_lines, suffix_of
from rlhf_pipeline.errors import DataError

_BLANK = re.compile(r"[ \t\r\n]*")


class _Json:
    """JSON decoding that notices keys given twice, which the standard decoder lets the last one win."""

    def __init__(self) -> None:
        self._doubled: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            seen: set[str] = set()
            self._doubled += [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
        return values

    def parse(self, text: str, start: int = 0) -> tuple[Any, int]:
        """The value at ``start`` and where it ends; raises ValueError or RecursionError."""
        self._doubled.clear()
        return self._decoder.raw_decode(text, start)

    def row(self, value: Any) -> dict[str, Any] | RowProblem:
        """The value just parsed as a row."""
        if self._doubled:
            return RowProblem("a key stands twice", repr(self._doubled[0]))
        if not isinstance(value, dict):
            return RowProblem("not an object", f"found {json.dumps(value)[:40]}")
        return value


def json_rows(path: Path) -> Iterator[RawRow]:
    """JSON lines, a JSON list, or an object whose ``data`` is a list; a .json file may hold any, a .jsonl file too."""
    lines = numbered_lines(path)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    lines = chain([first], lines)
    if _is_document(path, first[1]):
        yield from _document_rows(path, first[0], b"".join(line for _, line in lines))
        return
    decoder = _Json()
    for number, line in lines:
        if line.strip():
            yield RawRow(f"{path}:{number}", _json_line(decoder, line))


def _is_document(path: Path, first_line: bytes) -> bool:
    start = first_line.strip()
    if start.startswith(b"[") or start == b"{":
        return True
    if suffix_of(path) != ".json":
        return False
    try:
        value = json.loads(start)
    except (ValueError, RecursionError):
        return True
    return isinstance(value, dict) and isinstance(value.get("data"), list)


def _json_line(decoder: _Json, line: bytes) -> dict[str, Any] | RowProblem:
    try:
        text = line.decode().strip()
        value, end = decoder.parse(text)
    except UnicodeDecodeError as error:
        return RowProblem("not UTF-8", f"byte {line[error.start]:#04x} at {error.start + 1}")
    except json.JSONDecodeError as error:
        return RowProblem("broken JSON", f"{error.msg.removesuffix(' at')} at column {error.pos + 1}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return RowProblem("broken JSON", str(error).split(";")[0])
    if end < len(text):
        return RowProblem("broken JSON", f"something follows the object at column {end + 1}")
    return decoder.row(value)


def _document_rows(path: Path, first_line: int, content: bytes) -> Iterator[RawRow]:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        number = first_line + content.count(b"\n", 0, error.start)
        raise DataError(
            f"not UTF-8 (byte {content[error.start]:#04x})",
            where=f"{path}:{number}",
            advice="convert it, e.g. iconv -f WINDOWS-1252 -t UTF-8",
        ) from None
    text = text.strip()
    if text.startswith("["):
        yield from _list_rows(path, first_line, text)
        return
    decoder = _Json()
    try:
        value, end = decoder.parse(text)
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON: {error.msg}", where=f"{path}:{first_line + error.lineno - 1}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"broken JSON: {error}", where=str(path)) from None
    document = decoder.row(value)
    rows = document.get("data") if isinstance(document, dict) else None
    if not isinstance(rows, list) or end < len(text):
        found = document if isinstance(document, RowProblem) else f"an object with {', '.join(document) or 'nothing'}"
        raise DataError(f'{found}; wanted a row a line, a list of rows, or {{"data": [rows]}}', where=str(path))
    for number, row in enumerate(rows, start=1):
        yield RawRow(f"{path}: data[{number}]", decoder.row(row))


def _list_rows(path: Path, line: int, text: str) -> Iterator[RawRow]:
    """The elements of a JSON list that begins on ``line``, each with its line."""
    decoder = _Json()
    counted = 0

    def skip(position: int) -> int:
        match = _BLANK.match(text, position)
        return match.end() if match else position

    def broken(what: str, position: int) -> DataError:
        return DataError(f"broken JSON: {what}", where=f"{path}:{line + text.count(chr(10), counted, position)}")

    position = skip(1)
    while not text.startswith("]", position):
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.parse(text, position)
        except json.JSONDecodeError as error:
            raise broken(error.msg, error.pos) from None
        except (ValueError, RecursionError) as error:
            raise broken(str(error).split(";")[0], position) from None
        yield RawRow(f"{path}:{line}", decoder.row(value))
        position = skip(position)
        if text.startswith(",", position):
            position = skip(position + 1)
        elif not text.startswith("]", position):
            raise broken("the list is not closed" if position >= len(text) else "wanted , or ]", position)
    if position + 1 < len(text):
        raise broken("something follows the list", skip(position + 1))
