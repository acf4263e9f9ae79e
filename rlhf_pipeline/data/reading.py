"""The one reader: a source's rows to prompts, demonstrations or preferences, with everything unusable named at once."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlhf_pipeline.data.files import read_rows
from rlhf_pipeline.data.formats import FORMATS, Exchange, Format, RowProblem, detect
from rlhf_pipeline.data.opening import RawRow
from rlhf_pipeline.data.sources import SourceConfig
from rlhf_pipeline.errors import DataError
from rlhf_pipeline.records import Candidates, Demonstration, Message, Messages, Preference, Prompt

POCKET = "pocket"
_POCKET_DEMONSTRATIONS = 1500
_POCKET_PROMPTS = 1000
_NAMED_ROWS = 20

T = TypeVar("T", Prompt, Demonstration, Preference, Candidates)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """What a source gave, and what became of every row."""

    records: list[T]
    what: str
    """prompts, demonstrations, preferences or responses."""
    source: str
    format: str
    """The format's name, detected or configured."""
    rows: int
    """Rows read."""
    dropped: dict[str, int]
    """Rows without a record, by reason."""
    duplicates: int
    """Records equal to an earlier one: merged for prompts, kept for everything else."""
    report: Path | None = None
    """The file that names every unusable row; null when there is none, or no file was wanted."""

    def summary(self) -> str:
        """One line for the terminal."""
        parts = [f"{len(self.records):,} {self.what} from {self.rows:,} rows of {self.source} (format {self.format})"]
        if self.dropped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
            parts.append(f"left out {sum(self.dropped.values()):,}: {reasons}")
        if self.report:
            parts.append(f"{self.report.name} in this stage's folder names each unusable row")
        if self.duplicates:
            parts.append(f"{self.duplicates:,} repeats {'merged' if self.what == 'prompts' else 'kept'}")
        return "; ".join(parts)


def read_prompts(
    source: SourceConfig, *, system: str | None = None, seed: int = 0, report: Path | None = None
) -> Loaded[Prompt]:
    """The distinct prompts of any source, in order of their first appearance.

    ``system`` is given to conversations that have none, ``seed`` makes the generated ``pocket`` prompts, and ``report``
    is the file that gets every unusable row.

    Raises:
        DataError: naming all unusable rows (unless they are to be dropped), or why there is no record at all.
    """
    if source.path == POCKET:
        from rlhf_pipeline.pocket.grammar import prompts

        made = prompts(source.limit or _POCKET_PROMPTS, seed)
        return _generated("prompts", source, [Prompt(_with_system(prompt.messages, system)) for prompt in made])

    def convert(exchange: Exchange) -> list[Prompt]:
        messages = exchange.messages
        if messages[-1].role != "user":
            raise RowProblem("prompt does not end with the user", f"its last message is the {messages[-1].role}'s")
        ends = [i for i, message in enumerate(messages) if message.role == "assistant"] if source.turns == "all" else []
        return [Prompt(messages[:end]) for end in (*ends, len(messages))]

    return _read("prompts", source, convert, system, report)


def read_demonstrations(
    source: SourceConfig, *, system: str | None = None, seed: int = 0, report: Path | None = None
) -> Loaded[Demonstration]:
    """The demonstrations of a source; of preferences, the chosen side. Arguments and errors as :func:`read_prompts`."""
    if source.path == POCKET:
        from rlhf_pipeline.pocket.grammar import demonstrations

        made = demonstrations(source.limit or _POCKET_DEMONSTRATIONS, seed)
        given = [replace(one, prompt=Prompt(_with_system(one.prompt.messages, system))) for one in made]
        return _generated("demonstrations", source, given)

    def convert(exchange: Exchange) -> list[Demonstration]:
        _check_responses(exchange.responses[:1])
        # What follows the last assistant turn cannot be learnt from, and is not looked at.
        messages = (*exchange.messages, *(Message("assistant", text) for text in exchange.responses[:1]))
        ends = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if not ends:
            raise RowProblem("no response", "the conversation has no assistant turn")
        if source.turns == "last":
            ends = ends[-1:]
        return [Demonstration(Prompt(messages[:end]), messages[end].content) for end in ends]

    return _read("demonstrations", source, convert, system, report)


def read_preferences(
    source: SourceConfig, *, system: str | None = None, report: Path | None = None
) -> Loaded[Preference]:
    """The preferences of a source. Arguments and errors as :func:`read_prompts`."""
    if source.path == POCKET:
        raise DataError(
            "pocket has prompts and demonstrations, but no preferences: those are made by judging",
            where="data.preferences",
            advice="leave it out, and let the chain collect them",
        )
    if source.turns != "last":
        raise DataError(
            "turns: all has no meaning for preferences: a judgement is about the last turn",
            where=source.path,
            advice="remove turns",
        )

    def convert(exchange: Exchange) -> list[Preference]:
        _check_responses(exchange.responses)
        chosen, rejected = exchange.responses
        details = (exchange.probability, exchange.margin, exchange.source, exchange.judgements, exchange.meta)
        return [Preference(Prompt(exchange.messages), chosen, rejected, *details)]

    return _read("preferences", source, convert, system, report)


def read_candidates(
    source: SourceConfig, *, system: str | None = None, report: Path | None = None
) -> Loaded[Candidates]:
    """Everything of a source that can be scored: single responses, pairs, several responses to a prompt; ties and
    bad responses too. Arguments and errors as :func:`read_prompts`; a conversation's last assistant turn is scored."""
    if source.path == POCKET:
        raise DataError("pocket has no responses to score", where=source.path, advice="give a file")

    def convert(exchange: Exchange) -> list[Candidates]:
        if not exchange.responses:
            raise RowProblem("no response", "there is nothing to score")
        _check_responses(exchange.responses)
        return [Candidates(Prompt(exchange.messages), exchange.responses, exchange.is_pair, exchange.cut)]

    return _read("responses", source, convert, system, report)


def _check_responses(responses: Sequence[str]) -> None:
    if any(not response.strip() for response in responses):
        names = ("chosen", "rejected") if len(responses) == 2 else ("response",)
        empty = [name for name, response in zip(names, responses, strict=True) if not response.strip()]
        raise RowProblem("empty response", " and ".join(empty))


def _generated(what: str, source: SourceConfig, records: list[T]) -> Loaded[T]:
    given = {"format": source.format != "auto", "columns": bool(source.columns), "turns": source.turns != "last"}
    given |= {name: getattr(source, name) is not None for name in ("split", "subset", "revision")}
    if any(given.values()):
        names = ", ".join(name for name, is_given in given.items() if is_given)
        raise DataError(f"{names} cannot be set for the generated pocket data", where=source.path, advice="remove it")
    return _loaded(what, source, POCKET, records, len(records), Counter())


def _with_system(messages: Messages, system: str | None) -> Messages:
    if system is None or messages[0].role == "system":
        return messages
    return (Message("system", system), *messages)


def _read(
    what: str,
    source: SourceConfig,
    convert: Callable[[Exchange], list[T]],
    system: str | None,
    report: Path | None,
) -> Loaded[T]:
    rows = deque(_rename(row, source) for row in read_rows(source))
    total = len(rows)
    known = _choose_format(rows, source, what)
    records: list[T] = []
    bad: list[tuple[str, RowProblem]] = []
    left_out: Counter[str] = Counter()
    while rows:  # from the front, so that a row is freed once its record is made
        row = rows.popleft()
        try:
            exchange = _exchange_of(row, known)
            if exchange.left_out and what not in ("prompts", "responses"):
                left_out[exchange.left_out] += 1
                continue
            records += convert(replace(exchange, messages=_with_system(exchange.messages, system)))
        except RowProblem as problem:
            bad.append((row.where, problem))
    if bad:
        _report(source, bad, total, report)
        left_out.update(problem.reason for _, problem in bad)
    if not records or known is None:
        named = f"each row is named in {report}" if bad and report else "with on_bad_rows: error each row is named"
        raise DataError(
            f"none of the {total} rows could be used",
            where=source.path,
            details=[f"{count} {reason}" for reason, count in left_out.most_common()],
            advice=f"{named}; name your columns with columns: where they differ",
        )
    return _loaded(what, source, known.name, records, total, left_out, report if bad else None)


def _loaded(
    what: str,
    source: SourceConfig,
    format: str,
    records: list[T],
    rows: int,
    dropped: Counter[str],
    report: Path | None = None,
) -> Loaded[T]:
    distinct: dict[Hashable, T] = {}
    for record in records:
        distinct.setdefault(_key(record), record)
    duplicates = len(records) - len(distinct)
    if what == "prompts":
        records = list(distinct.values())
    return Loaded(records, what, source.path, format, rows, dict(dropped.most_common()), duplicates, report)


def _key(record: Prompt | Demonstration | Preference | Candidates) -> Hashable:
    """What makes two records the same; how sure the judges were does not."""
    return (record.prompt, record.chosen, record.rejected) if isinstance(record, Preference) else record


def _rename(row: RawRow, source: SourceConfig) -> RawRow:
    """Give the file's columns our names. A column that already has the name makes way for the one configured."""
    if not source.columns or isinstance(row.values, RowProblem):
        return row
    values = {name: value for name, value in row.values.items() if name not in source.columns}
    values |= {ours: row.values[theirs] for ours, theirs in source.columns.items() if theirs in row.values}
    return RawRow(row.where, values)


def _choose_format(rows: Iterable[RawRow], source: SourceConfig, what: str) -> Format | None:
    """The format of the rows, once it is sure that it holds what is wanted; none when no row can be read at all."""
    readable = [(row.where, row.values) for row in rows if not isinstance(row.values, RowProblem)]
    if not readable:
        return None
    known = _format_of(readable, source)
    if what == "responses":
        return known  # each row says whether it has one
    if known.holds != what and (what == "preferences" or known.holds == "prompts"):
        kinds = {what, "preferences"}
        raise DataError(
            f"the rows are in the format {known.name}, which holds {known.holds}; wanted {what}",
            where=source.path,
            advice=f"formats that hold {what}: {', '.join(f.name for f in FORMATS.values() if f.holds in kinds)}; "
            "name your columns with columns: where they are called otherwise",
        )
    return known


def _format_of(readable: Sequence[tuple[str, dict[str, Any]]], source: SourceConfig) -> Format:
    """The configured format, or the one that most rows are in; refuses a mixture and a format that no row is in."""
    columns = Counter(name for _, values in readable for name, value in values.items() if value is not None)
    if source.format != "auto":
        known = FORMATS[source.format]
        if absent := [name for name in known.needs if name not in columns]:
            raise _no_columns(source, f"the format {known.name} needs the column {', '.join(absent)}", list(columns))
        return known
    found: dict[str, list[str]] = {}
    for where, values in readable:
        if (fitting := detect(values)) is not None:
            found.setdefault(fitting.name, []).append(where)
    if not found:
        raise _no_columns(source, "no known format has these columns", list(columns))
    best = FORMATS[max(found, key=lambda name: len(found[name]))]
    # A row with fewer of the same columns lacks something; one with others belongs to another format.
    mixed = [name for name in found if name != best.name and not set(FORMATS[name].needs) < set(best.needs)]
    if mixed:
        raise DataError(
            f"rows of {1 + len(mixed)} formats in one source",
            where=source.path,
            details=[_places(name, found[name]) for name in (best.name, *mixed)],
            advice="put each format into a source of its own, or say with format: which one all rows are in",
        )
    return best


def _places(name: str, places: list[str]) -> str:
    more = " …" if len(places) > 5 else ""
    return f"{name}: {len(places):,} row{'s' if len(places) > 1 else ''}, {', '.join(places[:5])}{more}"


def _no_columns(source: SourceConfig, what: str, columns: list[str]) -> DataError:
    known = [f"{known.name}: {', '.join(known.needs)}" for known in FORMATS.values()]
    return DataError(
        f"{what}; found the columns: {', '.join(columns) or 'none'}",
        where=source.path,
        details=known if source.format == "auto" else [],
        advice="name your columns with columns:, e.g. columns: {prompt: question, completion: answer}",
    )


def _exchange_of(row: RawRow, known: Format | None) -> Exchange:
    if isinstance(row.values, RowProblem):
        raise row.values
    assert known is not None, "a format is chosen as soon as one row can be read"
    if missing := known.missing(row.values):
        raise RowProblem("missing column", ", ".join(missing))
    return known.convert(row.values)


def _report(source: SourceConfig, bad: list[tuple[str, RowProblem]], total: int, report: Path | None) -> None:
    """Write every unusable row to ``report``, and refuse the source unless such rows are to be dropped."""
    lines = [f"{where}: {problem}" for where, problem in bad]
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
    if source.on_bad_rows == "drop":
        return
    details = lines[:_NAMED_ROWS]
    if len(lines) > _NAMED_ROWS:
        details.append(f"… and {len(lines) - _NAMED_ROWS:,} more" + (f", all in {report}" if report else ""))
    raise DataError(
        f"{len(lines):,} of {total:,} rows cannot be used",
        where=source.path,
        details=details,
        advice="mend them, or leave such rows out with on_bad_rows: drop",
    )
