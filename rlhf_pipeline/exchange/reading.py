"""A file of judgements of any known format → rounds of tasks and verdicts; everything unusable is named at once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_pipeline.data.files import read_rows
from rlhf_pipeline.data.formats import FORMATS, RowProblem, detect
from rlhf_pipeline.data.opening import RawRow
from rlhf_pipeline.data.sources import SourceConfig
from rlhf_pipeline.errors import DataError, StoreError
from rlhf_pipeline.exchange import argilla, full, label_studio
from rlhf_pipeline.exchange.judged import JudgedRound, JudgedTask, Verdict
from rlhf_pipeline.exchange.training import READ_AS, importer, read_labelled, read_pairs
from rlhf_pipeline.store.people import clean_name
from rlhf_pipeline.store.records import Form

_NAMED_ROWS = 20
_TOOLS: Mapping[str, Callable[[Mapping[str, Any]], tuple[JudgedTask, Form, list[str]]]] = {
    "argilla": argilla.read,
    "argilla-flat": argilla.read,
    "label-studio": label_studio.read,
}
_PAIRS = {name: FORMATS[theirs] for name, theirs in READ_AS.items()} | {
    known.name: known
    for known in FORMATS.values()
    if known.holds == "preferences" and known.name not in READ_AS.values()
}
IMPORT_FORMATS = ("full", *_TOOLS, "kto", *_PAIRS)
"""Every format that can be read: those that are written, and every other that holds preferences."""

Bad = list[tuple[str, RowProblem]]


@dataclass(frozen=True, slots=True)
class ReadFile:
    """What a file holds: its format, its rounds, and what was sound but could not be used, by reason."""

    format: str
    rows: int
    rounds: list[JudgedRound]
    left_out: dict[str, int]


def read_file(path: Path, format: str | None = None) -> ReadFile:
    """Read a file of judgements; its format is recognised by its first sound row where it is not given.

    Raises:
        DataError: the file, or rows of it, cannot be used (all of them are named), or it holds no judgement.
    """
    if path.is_dir():
        raise DataError("this is a folder", where=str(path), advice="give the path of a file of judgements")
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), advice="give the path of a file of judgements")
    rows = list(read_rows(SourceConfig(path=str(path))))
    name = format or _detected(path, rows)
    if name not in IMPORT_FORMATS:
        raise DataError(
            f"{name} is no format of judgements", where=str(path), advice=f"formats: {', '.join(IMPORT_FORMATS)}"
        )
    left_out: Counter[str] = Counter()
    if name == "full":
        rounds, bad = full.read(rows)
        bad += [(str(path), problem) for judged in rounds for problem in _bad_names(judged)]
        rounds = [
            replace(
                judged,
                name=_import_name(judged.name),
                source_digest=_digest([judged.name, judged.source_digest, judged.form.digest]),
            )
            for judged in rounds
        ]
    elif name in _TOOLS:
        judged_tasks, bad = _read_tool(rows, name, left_out)
        rounds = _rounds(path, rows, judged_tasks)
    else:
        read = read_labelled(rows) if name == "kto" else read_pairs(rows, _PAIRS[name])
        bad = read.bad
        left_out.update({reason: count for reason, count in read.left_out.items() if count})
        rounds = _rounds(path, rows, [(task, Form()) for task in read.tasks])
    if bad:
        raise _refusal(path, name, bad, len(rows))
    if not any(judged.tasks for judged in rounds):
        raise DataError(
            f"none of the {len(rows):,} rows holds a judgement (read as {name})",
            where=str(path),
            details=[f"{count:,} {reason}" for reason, count in left_out.most_common()],
            advice="say with --format how the rows are written, if it was taken for another format",
        )
    return ReadFile(name, len(rows), rounds, dict(left_out.most_common()))


def _detected(path: Path, rows: Sequence[RawRow]) -> str:
    sound = [row for row in rows if not isinstance(row.values, RowProblem)]
    for row in sound:
        assert not isinstance(row.values, RowProblem)
        if (name := _format_of(row.values)) is not None:
            return name
    if not sound:
        bad = [(row.where, row.values) for row in rows if isinstance(row.values, RowProblem)]
        raise _refusal(path, "none", bad, len(rows))
    assert not isinstance(sound[0].values, RowProblem)
    raise DataError(
        f"the format is not known; found the columns: {', '.join(sound[0].values) or 'none'}",
        where=sound[0].where,
        advice=f"wanted judgements in one of: {', '.join(IMPORT_FORMATS)}; say which with --format",
    )


def _format_of(row: Mapping[str, Any]) -> str | None:
    if "record" in row and "judgement" in row:
        return "full"
    if isinstance(row.get("data"), Mapping) and "annotations" in row:
        return "label-studio"
    if isinstance(row.get("fields"), Mapping) and "responses" in row:
        return "argilla"
    if argilla.is_flat(row):
        return "argilla-flat"
    if row.get("label") is not None and row.get("completion") is not None and row.get("prompt") is not None:
        return "kto"
    known = detect(row)
    if known is None or known.holds != "preferences":
        return None
    return next((name for name, theirs in READ_AS.items() if theirs == known.name), known.name)


def _read_tool(rows: Sequence[RawRow], name: str, left_out: Counter[str]) -> tuple[list[tuple[JudgedTask, Form]], Bad]:
    tasks: dict[tuple[str, str], tuple[JudgedTask, Form]] = {}
    bad: Bad = []
    for row in rows:
        try:
            if isinstance(row.values, RowProblem):
                raise row.values
            task, form, unknown = _TOOLS[name](row.values)
            task = _named(task, left_out)
        except RowProblem as problem:
            bad.append((row.where, problem))
            continue
        left_out.update(f"answers to {question}, which this program does not ask" for question in unknown)
        key = (form.digest, task.new.digest)
        if key in tasks:
            bad.append((row.where, RowProblem("a task stands twice", "the same prompt and responses, under one form")))
        tasks[key] = (task, form)
    return list(tasks.values()), bad


def _named(task: JudgedTask, left_out: Counter[str]) -> JudgedTask:
    """Every judge by a name that a store takes; of several judgements by one, the last."""
    last: dict[tuple[str, str], Verdict] = {}
    anonymous = 0
    for verdict in task.verdicts:
        by = verdict.by
        if not by:
            by, anonymous = importer(anonymous), anonymous + 1
        by = _clean(by)
        left_out["judgements that their judge made anew"] += (by, verdict.purpose) in last
        last[by, verdict.purpose] = replace(verdict, by=by)
    if not left_out["judgements that their judge made anew"]:
        del left_out["judgements that their judge made anew"]
    return replace(task, verdicts=tuple(last.values()))


def _clean(name: str) -> str:
    try:
        return clean_name(name)
    except StoreError as error:
        raise RowProblem("not a name", f"{name!r:.40}: {error.what}") from None


def _bad_names(judged: JudgedRound) -> list[RowProblem]:
    problems = []
    for by in {verdict.by for task in judged.tasks for verdict in task.verdicts}:
        try:
            _clean(by)
        except RowProblem as problem:
            problems.append(problem)
    return problems


def _widened(form: Form, task: JudgedTask) -> Form:
    """A form under which all that was said of a task can be said."""
    choices = {verdict.choice for verdict in task.verdicts}
    return replace(
        form,
        kind="ranking" if "ranking" in choices else form.kind,
        tie=form.tie or "tie" in choices,
        all_bad=form.all_bad or "all_bad" in choices,
        strength=form.strength or any(verdict.strength is not None for verdict in task.verdicts),
        correction=form.correction or any(verdict.correction is not None for verdict in task.verdicts),
        comment=form.comment or any(verdict.comment is not None for verdict in task.verdicts),
    )


def _rounds(path: Path, rows: Sequence[RawRow], tasks: Sequence[tuple[JudgedTask, Form]]) -> list[JudgedRound]:
    """One round for each form in a file; the same rows are the same rounds, whatever the file is called."""
    digest = _digest([row.values for row in rows])
    forms: dict[Hashable, Form] = {}
    groups: dict[Hashable, list[JudgedTask]] = defaultdict(list)
    for task, given in tasks:
        own = _widened(given, task)
        asked = (own.kind, own.rules, own.attributes, own.flags)
        forms[asked] = _widened(forms.get(asked, own), task)
        groups[asked].append(task)
    return [
        JudgedRound(_import_name(path.name), f"{digest}-{number}", forms[asked], tuple(groups[asked]))
        for number, asked in enumerate(forms, start=1)
    ]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _import_name(name: str) -> str:
    shown = "".join(c if c.isprintable() and not "\ud800" <= c <= "\udfff" else "?" for c in name)
    return (shown if shown.startswith("import ") else f"import {shown}")[:200]


def _refusal(path: Path, name: str, bad: Bad, total: int) -> DataError:
    details = [f"{where}: {problem}" for where, problem in bad[:_NAMED_ROWS]]
    if len(bad) > _NAMED_ROWS:
        details.append(f"… and {len(bad) - _NAMED_ROWS:,} more")
    return DataError(
        f"{len(bad):,} of {total:,} rows cannot be used (read as {name}); nothing was imported",
        where=str(path),
        details=details,
        advice="mend them, or take them out of the file; --format says how the rows are written",
    )
