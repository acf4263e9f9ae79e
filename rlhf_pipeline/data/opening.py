"""Opening a data file: unpacked, recognised as text, in numbered lines; and what a row is before it is understood."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from rlhf_pipeline.data.formats import RowProblem
from rlhf_pipeline.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".txt", ".parquet")
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_MAGIC = (
    (b"PAR1", "is a Parquet file", "name it .parquet"),
    (b"PK\x03\x04", "is a zip archive or an office document", "unpack it, or export it as .csv"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "unpack it, or compress it with gzip"),
    (b"\xff\xfe", "is UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "is UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the data", "fetch the data: git lfs pull"),
)


class RawRow(NamedTuple):
    """One row as it stands in its file, or why it cannot be read; ``where`` is file:line (file:row for Parquet)."""

    where: str
    values: dict[str, Any] | RowProblem


def suffix_of(path: Path) -> str | None:
    """The suffix that says how a file is written, gzip put aside; none when it is not a data file."""
    suffix = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    return suffix.lower() if suffix.lower() in SUFFIXES else None


def _open(path: Path) -> IO[bytes]:
    """The file's text as bytes, unpacked where it is gzip, after a look at its beginning."""
    with path.open("rb") as raw:
        packed = raw.read(2) == _GZIP
    if path.suffix.lower() == ".gz" and not packed and path.stat().st_size:
        raise DataError("the name ends in .gz, but it is not gzip data", where=str(path), advice="rename or pack it")
    opened = gzip.open if packed else open
    with opened(path, "rb") as start:
        head = start.read(4096)
    for magic, what, advice in _MAGIC:
        if head.startswith(magic):
            raise DataError(what, where=str(path), advice=advice)
    if b"\0" in head:
        raise DataError(
            f"a binary file (NUL byte at {head.index(0)}), wanted text",
            where=str(path),
            advice="is it the right file? Its name has to end as what it is, e.g. .parquet",
        )
    return cast(IO[bytes], opened(path, "rb"))


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines with their ends. Only a line feed ends a line: U+2028 and the like may stand in any text."""
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            yield number, line.removeprefix(_BOM) if number == 1 else line


def decode(path: Path, number: int, line: bytes) -> str:
    """A line's text; raises DataError, naming the line, when it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 (byte {line[error.start]:#04x} at {error.start + 1})",
            where=f"{path}:{number}",
            advice="convert it, e.g. iconv -f WINDOWS-1252 -t UTF-8",
        ) from None
