"""Files to rows: JSON lines, JSON, CSV, text and Parquet, plain or gzip, folders of them, and hub data sets.

What spoils a whole file (nothing in it, binary, cut-off gzip, no permission …) is raised at once. What spoils one row
is kept with its line, so that the reader can name all such rows together.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rlhf_pipeline.data.formats import RowProblem
from rlhf_pipeline.data.json_rows import json_rows
from rlhf_pipeline.data.opening import RawRow, decode, numbered_lines, suffix_of
from rlhf_pipeline.data.sources import SourceConfig
from rlhf_pipeline.errors import DataError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_LONGEST_CELL = 2**31 - 1


def read_rows(source: SourceConfig) -> Iterator[RawRow]:
    """The rows of a file, a folder or a hub data set, in order, at most ``source.limit``.

    Raises:
        DataError: when the source, or a whole file of it, cannot be read.
    """
    path = Path(source.path).expanduser()
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", where=source.path) from None
    if not exists and _may_be_hub_id(source.path):
        rows = _hub_rows(source)
    else:
        _refuse_hub_settings(source)
        if not exists:
            raise DataError("there is no such file, folder or hub data set", where=source.path, advice=_near(path))
        files = _files_in(path) if is_folder else [path]
        rows = chain.from_iterable(_file_rows(file) for file in files)
    return islice(rows, source.limit)


def _refuse_hub_settings(source: SourceConfig) -> None:
    given = [name for name in ("split", "subset", "revision") if getattr(source, name) is not None]
    if given:
        raise DataError(
            f"{', '.join(given)} can only be set for a hub data set, and this is a local path",
            where=source.path,
            advice="remove the setting, or give the path of the file that holds that part",
        )


def _may_be_hub_id(path: str) -> bool:
    """``owner/name`` is a hub id unless a local folder ``owner`` exists or the name ends like a data file."""
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).parent.is_dir() and suffix_of(Path(path)) is None


def _near(path: Path) -> str:
    folder = path.parent
    try:
        names = sorted(p.name for p in folder.iterdir())
    except OSError:
        return f"the folder {folder} is missing too, or cannot be read"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(str(folder / name) for name in near)}?"
    return f"the folder {folder} holds: {', '.join(names[:10]) or 'nothing'}"


def _files_in(folder: Path) -> list[Path]:
    try:
        found = sorted(p for p in folder.rglob("*") if p.is_file())
    except OSError as error:
        raise DataError(f"cannot be listed: {error.strerror}", where=str(folder)) from None
    visible = [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    files = [p for p in visible if suffix_of(p)]
    if not files:
        names = ", ".join(str(p.relative_to(folder)) for p in visible[:10]) or "nothing"
        raise DataError(
            f"the folder holds no data file, found: {names}",
            where=str(folder),
            advice=f"wanted files ending in {', '.join(_READERS)}, or .gz of these",
        )
    return files


def _file_rows(path: Path) -> Iterator[RawRow]:
    """The rows of one file; raises when it has none."""
    kind = suffix_of(path)
    if not path.is_file():
        raise DataError("neither a file nor a folder", where=str(path))
    if kind is None:
        raise DataError(
            f"the name ends in {path.suffix or 'no suffix'!r}, which is no known kind of data file",
            where=str(path),
            advice=f"wanted {', '.join(_READERS)}, or .gz of these",
        )
    empty = True
    try:
        for row in _READERS[kind](path):
            empty = False
            yield row
    except PermissionError:
        raise DataError("no permission to read it", where=str(path), advice=f"chmod +r {path}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"the gzip data is damaged or cut off ({error})", where=str(path), advice="fetch or make the file again"
        ) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    if empty:
        raise DataError("the file is empty: it holds no rows", where=str(path), advice="fetch or make the file again")


def _csv_rows(path: Path) -> Iterator[RawRow]:
    csv.field_size_limit(_LONGEST_CELL)  # the default refuses a response of more than 131,072 characters
    reader = csv.reader((decode(path, number, line) for number, line in numbered_lines(path)), strict=True)
    records = _csv_records(path, reader)
    _, header = next(records, (0, []))
    if not header:
        return
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise DataError(f"the columns are not separated by commas: {header[0][:80]!r}", where=f"{path}:1")
    if len(set(header)) < len(header):
        raise DataError(f"a column stands twice in {', '.join(header)}", where=f"{path}:1")
    for number, cells in records:
        where = f"{path}:{number}"
        if len(cells) == len(header):
            yield RawRow(where, dict(zip(header, map(_cell, cells), strict=True)))
        else:
            found = f"found {len(cells)}, the header has {len(header)}"
            yield RawRow(where, RowProblem("wrong number of cells", found))


def _csv_records(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, each with the line on which it begins."""
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"broken CSV: {error}", where=f"{path}:{number}") from None
        if cells is None:
            return
        if cells:
            yield number, cells


def _cell(text: str) -> Any:
    """A cell that holds a JSON list of objects (messages) is that list; any other cell is text."""
    if not text.startswith("[{"):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value


def _text_rows(path: Path) -> Iterator[RawRow]:
    for number, line in numbered_lines(path):
        prompt = decode(path, number, line).strip()
        if prompt:
            yield RawRow(f"{path}:{number}", {"prompt": prompt})


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    if path.suffix.lower() == ".gz":
        raise DataError("Parquet is compressed already", where=str(path), advice="unpack it: gunzip")
    if not path.stat().st_size:
        return
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            batches = (batch.to_pylist() for batch in table.iter_batches(1000))
            for number, row in enumerate(chain.from_iterable(batches), start=1):
                yield RawRow(f"{path}:{number}", row)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        what = f"not a sound Parquet file: {str(error).splitlines()[0]}"
        raise DataError(what, where=str(path), advice="make the file again, or give it its real suffix") from None


def _hub_rows(source: SourceConfig) -> Iterator[RawRow]:
    import datasets

    split = source.split or "train"
    try:
        table = datasets.load_dataset(source.path, source.subset, split=split, revision=source.revision)
    except Exception as error:  # the library raises its own, the hub's, urllib's and OS errors
        raise DataError(
            f"neither a local path, nor could it be loaded from the hub ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0][:200]})",
            where=source.path,
            advice="check the id, split and subset, and the network; or download the files and give their folder",
        ) from None
    for number, row in enumerate(table, start=1):
        yield RawRow(f"{source.path}[{split}]:{number}", dict(row))


_READERS: Mapping[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": json_rows,
    ".json": json_rows,
    ".csv": _csv_rows,
    ".txt": _text_rows,
    ".parquet": _parquet_rows,
}
