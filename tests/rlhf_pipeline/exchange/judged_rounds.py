"""Rounds of judgements for the tests of the formats, and what becomes of one that is written and read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_pipeline.exchange import JudgedRound, JudgedTask, Verdict, export, read_file, write
from rlhf_pipeline.exchange.rules import Terms
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store.records import Attribute, Form, NewResponse, NewTask

ANN, BOB, EVE = "0a1b2c3d-0000-4000-8000-000000000001", "0a1b2c3d-0000-4000-8000-000000000002", "e-e"
EVERYTHING = Form(
    strength=True,
    all_bad=True,
    rules=("is rude", 'is <false> & "bold"'),
    attributes=(Attribute("helpful", "no", "very", 5), Attribute("اختصار", points=3)),
    correction=True,
    comment=True,
    flags=("personal data", "not English"),
)


def asked(*texts: str, system: str | None = None) -> Prompt:
    """A conversation in which the user has the odd turns."""
    turns = [Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
    return Prompt((*((Message("system", system),) if system else ()), *turns))


def task(
    *verdicts: Verdict, prompt: Prompt | None = None, texts: Sequence[str] = ("good", "bad"), **rest: Any
) -> JudgedTask:
    """A task whose verdicts name responses by their place in ``texts``; they are put into canonical order."""
    new = NewTask(prompt or asked("why?"), tuple(NewResponse(text) for text in texts))
    order = [r.text for r in new.canonical()]
    place = [order.index(text) for text in texts]
    return JudgedTask(new.prompt, new.canonical(), tuple(_moved(v, place) for v in verdicts), **rest)


def _moved(v: Verdict, place: list[int]) -> Verdict:
    return replace(
        v,
        response=None if v.response is None else place[v.response],
        ranking=v.ranking and tuple(tuple(sorted(place[i] for i in group)) for group in v.ranking),
        rules={place[i]: broken for i, broken in v.rules.items()},
        ratings={place[i]: points for i, points in v.ratings.items()},
        corrected=None if v.corrected is None else place[v.corrected],
        shown=tuple(place[i] for i in v.shown),
    )


def chose(text: str, task: JudgedTask) -> int:
    """The place of a text."""
    return [r.text for r in task.responses].index(text)


def a_round(*tasks: JudgedTask, form: Form = EVERYTHING, overlap: int = 1) -> JudgedRound:
    return JudgedRound("people", "d1", form, tasks, overlap)


def there_and_back(folder: Path, judged: JudgedRound, format: str, terms: Terms | None = None) -> list[JudgedTask]:
    """What is read from the file that a round is written to."""
    out = folder / f"judged.{'json' if format in ('argilla', 'label-studio') else 'jsonl'}"
    made = export(judged, format, terms)
    write(made, out)
    if made.manifest["rows"] == 0:
        return []
    read = read_file(out)
    assert read.format == format
    return [task for found in read.rounds for task in found.tasks]
