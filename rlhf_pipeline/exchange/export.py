"""A round → a file of one format, its manifest, and what a tool needs beside it.

The manifest says what was found, which rules were applied and how much each removed, and what the format cannot carry.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rlhf_pipeline
from rlhf_pipeline.errors import UsageError
from rlhf_pipeline.exchange import argilla, full, label_studio, training
from rlhf_pipeline.exchange.judged import JudgedRound, JudgedTask, Verdict, current
from rlhf_pipeline.exchange.rules import Ledger, Terms, is_plain

Tasks = list[tuple[JudgedTask, list[Verdict]]]


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """A format that can be written.

    Args:
        as_list: one JSON list, instead of a row a line.
        lacks: what it cannot carry.
        for_training: made of decided pairs or responses, instead of single judgements.
    """

    name: str
    as_list: bool
    lacks: tuple[str, ...]
    for_training: bool = False


_OF_TRAINING = (
    "who judged, and what each said: the majority's decision is left",
    "ties, skips, tasks without judgements",
    "rankings: their pairs are left",
    "rules broken, ratings, flags, comments",
    "times, order shown, revisions, versions, metadata, samplers",
)
_OF_TOOLS = (
    "the order in which responses were shown",
    "revisions, versions of form and guidelines, times but what is named",
    "questions with known answers, repeats, training",
)
EXPORT_FORMATS: Mapping[str, ExportFormat] = {
    known.name: known
    for known in (
        ExportFormat("full", False, ("the judges' names: pseudonyms stand for them", "tasks without judgements")),
        ExportFormat("trl", False, (*_OF_TRAINING, "the degree of a preference but as margin"), True),
        ExportFormat("trl-implicit", False, (*_OF_TRAINING, "the degree of a preference but as margin"), True),
        ExportFormat("kto", False, (*_OF_TRAINING, "which response was compared with which", "margins"), True),
        ExportFormat(
            "hh", False, (*_OF_TRAINING, "margins", "system messages", "white space at the ends of turns"), True
        ),
        ExportFormat("openai", False, (*_OF_TRAINING, "margins"), True),
        ExportFormat(
            "argilla", True, (*_OF_TOOLS, "skips", "adjudications as such", "margins and probabilities", "all times")
        ),
        ExportFormat(
            "argilla-flat", False, (*_OF_TOOLS, "adjudications as such", "margins and probabilities", "all times")
        ),
        ExportFormat("label-studio", True, (*_OF_TOOLS, "pseudonyms but as numbers")),
    )
}
"""Every format by name."""


@dataclass(frozen=True, slots=True)
class Export:
    """A file's content, its manifest, and by suffix what is to lie beside it."""

    content: bytes
    manifest: dict[str, Any]
    beside: Mapping[str, bytes]


def export(judged: JudgedRound, format: str, terms: Terms | None = None, *, salt_digest: str = "") -> Export:
    """Write a round in a format, in memory.

    Raises:
        UsageError: there is no such format, or it cannot take this round's form.
    """
    known, terms = find_format(format), terms or Terms()
    ledger = Ledger()
    beside: dict[str, bytes] = {}
    if known.for_training:
        rows = training.WRITERS[format](judged, ledger, terms)
    elif format == "full":
        rows = full.write(judged)
    else:
        rows = _for_tool(judged, format, ledger, beside)
    content = _encoded(rows, as_list=known.as_list)
    people = {verdict.by for task in judged.tasks for verdict in task.verdicts}
    manifest = {
        "format": format,
        "made_by": f"rlhf-pipeline {rlhf_pipeline.__version__}",
        "rows": len(rows),
        "sha256": hashlib.sha256(content).hexdigest(),
        "round": {
            "name": judged.name,
            "source_digest": judged.source_digest,
            "overlap": judged.overlap,
            "form_digest": judged.form.digest,
            "form": judged.form.to_json(),
        },
        "found": {
            "tasks": len(judged.tasks),
            "tasks_without_judgements": sum(not task.verdicts for task in judged.tasks),
            "judgements": sum(len(task.verdicts) for task in judged.tasks),
            "people": len(people),
        },
        "pseudonyms": salt_digest,
        "terms": terms.to_json() if known.for_training else {},
        "rules": ledger.to_json(),
        "not_carried": list(known.lacks),
    }
    return Export(content, manifest, beside)


def write(made: Export, out: Path) -> list[Path]:
    """Write the file, ``FILE.manifest.json`` and what belongs beside them; each appears whole or not at all."""
    manifest = {"file": out.name, **made.manifest, "beside": [out.name + suffix for suffix in made.beside]}
    contents = {out: made.content} | {out.with_name(out.name + s): content for s, content in made.beside.items()}
    contents[out.with_name(out.name + ".manifest.json")] = _json(manifest, indent=2) + b"\n"
    for path, content in contents.items():
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    return list(contents)


def find_format(name: str) -> ExportFormat:
    """The format of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in EXPORT_FORMATS:
        raise UsageError(f"there is no format {name!r}", advice=f"formats: {', '.join(EXPORT_FORMATS)}")
    return EXPORT_FORMATS[name]


def _for_tool(judged: JudgedRound, format: str, ledger: Ledger, beside: dict[str, bytes]) -> list[dict[str, Any]]:
    tasks = _judged_tasks(judged, ledger, skips=format != "argilla", once=format != "label-studio")
    width = max((len(task.responses) for task, _ in tasks), default=2)
    if format == "label-studio":
        beside[".config.xml"] = label_studio.config(judged.form, width).encode()
        return label_studio.write(judged, tasks)
    beside[".settings.json"] = _json(argilla.settings(judged.form, width, judged.overlap), indent=2) + b"\n"
    writers: Mapping[str, Callable[[JudgedRound, Tasks], list[dict[str, Any]]]] = {
        "argilla": argilla.write,
        "argilla-flat": argilla.write_flat,
    }
    return writers[format](judged, tasks)


def _judged_tasks(judged: JudgedRound, ledger: Ledger, *, skips: bool, once: bool) -> Tasks:
    """The tasks that a tool is given, with the judgements that are to go along."""
    ledger.apply("superseded", "purpose", "unjudged", "text", "remark")
    ledger.apply(*([] if skips else ["skip"]), *(["twice"] if once else []))
    tasks: Tasks = []
    for task in judged.tasks:
        standing = current(task.verdicts)
        ledger.remove("superseded", len(task.verdicts) - len(standing))
        real = [v for v in standing if v.purpose in ("judge", "adjudicate")]
        ledger.remove("purpose", len(standing) - len(real))
        if not real and (task.gold is not None or task.retired or standing):
            ledger.remove("unjudged")
            continue
        if not is_plain(*(m.content for m in task.prompt.messages), *(r.text for r in task.responses)):
            ledger.remove("text")
            continue
        kept = [v for v in real if is_plain(v.comment or "", v.correction or "", v.by)]
        ledger.remove("remark", len(real) - len(kept))
        said = [v for v in kept if skips or v.choice != "skip"]
        last = list({v.by: v for v in said}.values()) if once else said
        for rule, removed in (("skip", len(kept) - len(said)), ("twice", len(said) - len(last))):
            if removed:
                ledger.remove(rule, removed)
        tasks.append((task, last))
    return tasks


def _encoded(rows: Sequence[Mapping[str, Any]], *, as_list: bool) -> bytes:
    lines = [_json(row) for row in rows]
    if as_list:
        return b"[\n" + b",\n".join(lines) + b"\n]\n"
    return b"".join(line + b"\n" for line in lines)


def _json(value: Any, indent: int | None = None) -> bytes:
    """JSON in UTF-8; where a text holds half a surrogate pair, which UTF-8 cannot, in escapes."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent).encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent).encode()
