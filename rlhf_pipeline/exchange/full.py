"""Our own export: one line per judgement, with everything that the store knows about it but the judge's name.

Superseded and withdrawn judgements, skips, gold questions, repeats and training are all there and marked. Responses are
named by their place in ``task.responses``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlhf_pipeline.data.formats import RowProblem
from rlhf_pipeline.data.opening import RawRow
from rlhf_pipeline.exchange import fields
from rlhf_pipeline.exchange.judged import JudgedRound, JudgedTask, Verdict, comparable, response_digests
from rlhf_pipeline.records import Prompt
from rlhf_pipeline.store.records import Attribute, Form, Gold, NewResponse, Purpose

RECORD = "rlhf-judgement/1"
"""What each line says that it is, with the version of this format."""

_CHOICES = ("response", "tie", "all_bad", "ranking", "skip", "withdrawn")
_ASKED = ("strength", "tie", "all_bad", "correction", "comment")
_TIMES = ("shown_at", "decided_at", "received_at", "active_ms", "wall_ms")


def write(judged: JudgedRound) -> list[dict[str, Any]]:
    """One row per judgement, the tasks in order, the judgements of each oldest first."""
    terms = {
        "name": judged.name,
        "source_digest": judged.source_digest,
        "overlap": judged.overlap,
        "form_digest": judged.form.digest,
        "form": judged.form.to_json(),
    }
    return [
        {"record": RECORD, "judgement": _said(verdict, len(task.responses)), "task": _task(task), "round": terms}
        for task in judged.tasks
        for verdict in task.verdicts
    ]


def _task(task: JudgedTask) -> dict[str, Any]:
    gold = task.gold
    return {
        "digest": task.new.digest,
        "prompt_digest": task.prompt.id,
        "prompt": [message.to_json() for message in task.prompt.messages],
        "responses": [
            {"digest": digest, "text": r.text, "finish": r.finish, "sampler_digest": r.sampler_digest}
            for digest, r in zip(response_digests(task), task.responses, strict=True)
        ],
        "meta": dict(task.meta),
        "priority": task.priority,
        "gold": gold and {"choice": gold.choice, "response": gold.response_id, "explanation": gold.explanation},
    }


def _said(verdict: Verdict, responses: int) -> dict[str, Any]:
    row = {
        name: getattr(verdict, name) for name in Verdict.__dataclass_fields__ if name not in ("by", "rules", "ratings")
    }
    return {
        "by": verdict.by,
        **row,
        "ranking": verdict.ranking and [list(group) for group in verdict.ranking],
        "rules": [list(verdict.rules.get(place, ())) for place in range(responses)] if verdict.rules else None,
        "ratings": [dict(verdict.ratings.get(place, {})) for place in range(responses)] if verdict.ratings else None,
        "flags": list(verdict.flags),
        "shown": list(verdict.shown),
    }


def read(rows: Sequence[RawRow]) -> tuple[list[JudgedRound], list[tuple[str, RowProblem]]]:
    """The rounds in a file of this form, and the rows that cannot be used."""
    bad: list[tuple[str, RowProblem]] = []
    rounds: dict[tuple[str, str, str], JudgedRound] = {}
    tasks: dict[tuple[str, str, str], dict[str, JudgedTask]] = defaultdict(dict)
    verdicts: dict[tuple[str, str, str], dict[str, list[Verdict]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        try:
            if isinstance(row.values, RowProblem):
                raise row.values
            judged, task, verdict = _row(row.values)
        except RowProblem as problem:
            bad.append((row.where, problem))
            continue
        key = (judged.name, judged.source_digest, judged.form.digest)
        rounds.setdefault(key, judged)
        tasks[key].setdefault(task.new.digest, task)
        verdicts[key][task.new.digest].append(verdict)
    return [_filled(rounds[key], tasks[key], verdicts[key]) for key in rounds], bad


def _filled(judged: JudgedRound, tasks: Mapping[str, JudgedTask], verdicts: Mapping[str, list[Verdict]]) -> JudgedRound:
    filled = tuple(
        JudgedTask(t.prompt, t.responses, tuple(verdicts[digest]), t.meta, t.gold, t.priority)
        for digest, t in tasks.items()
    )
    return JudgedRound(judged.name, judged.source_digest, judged.form, filled, judged.overlap)


def _row(row: Mapping[str, Any]) -> tuple[JudgedRound, JudgedTask, Verdict]:
    if row.get("record") != RECORD:
        raise RowProblem("unknown record", f"record is {row.get('record')!r:.60}, wanted {RECORD!r}")
    terms = fields.mapping(row.get("round"), "round")
    judged = JudgedRound(
        name=fields.text(terms.get("name"), "round.name"),
        source_digest=fields.word(terms.get("source_digest"), "round.source_digest"),
        form=form_of(terms.get("form"), "round.form"),
        tasks=(),
        overlap=fields.whole(terms.get("overlap"), "round.overlap", 1),
    )
    task = _read_task(fields.mapping(row.get("task"), "task"))
    return judged, task, _read_verdict(fields.mapping(row.get("judgement"), "judgement"), len(task.responses))


def form_of(value: Any, at: str) -> Form:
    """A form as :meth:`Form.to_json` writes it."""
    row = fields.mapping(value, at)
    if unknown := set(row) - set(Form.__dataclass_fields__):
        raise RowProblem("not a form", f"{at} asks what this program does not: {', '.join(sorted(unknown))}")
    usual = Form()
    return Form(
        kind=fields.one_of(row.get("kind", usual.kind), f"{at}.kind", ("pair", "ranking")),
        rules=fields.texts(row.get("rules", []), f"{at}.rules"),
        flags=fields.texts(row.get("flags", []), f"{at}.flags"),
        attributes=tuple(
            _attribute(fields.mapping(item, f"{at}.attributes[{index}]"), f"{at}.attributes[{index}]")
            for index, item in enumerate(fields.sequence(row.get("attributes", []), f"{at}.attributes"), start=1)
        ),
        **{name: fields.flag(row.get(name, getattr(usual, name)), f"{at}.{name}") for name in _ASKED},
    )


def _attribute(row: Mapping[str, Any], at: str) -> Attribute:
    return Attribute(
        name=fields.text(row.get("name"), f"{at}.name"),
        low=fields.text(row.get("low", ""), f"{at}.low"),
        high=fields.text(row.get("high", ""), f"{at}.high"),
        points=fields.whole(row.get("points", 5), f"{at}.points", 1, 100),
    )


def _read_task(row: Mapping[str, Any]) -> JudgedTask:
    prompt = Prompt(fields.conversation(row.get("prompt"), "task.prompt"))
    responses = []
    for index, item in enumerate(fields.sequence(row.get("responses"), "task.responses"), start=1):
        given, at = fields.mapping(item, f"task.responses[{index}]"), f"task.responses[{index}]"
        finish: Literal["eos", "length"] | None = fields.optional(
            fields.one_of, given.get("finish"), f"{at}.finish", ("eos", "length")
        )
        sampler = fields.word(given.get("sampler_digest", ""), f"{at}.sampler_digest")
        responses.append(NewResponse(fields.text(given.get("text"), f"{at}.text"), finish, sampler))
    task = comparable(prompt, responses)
    if row.get("digest") != task.digest:
        raise RowProblem("changed text", "task.digest is not that of this prompt and these responses")
    if tuple(responses) != task.canonical():
        raise RowProblem("changed order", "task.responses are not in the order in which they were exported")
    gold = fields.optional(fields.mapping, row.get("gold"), "task.gold")
    return JudgedTask(
        prompt=prompt,
        responses=tuple(responses),
        verdicts=(),
        meta=fields.json_object(row.get("meta", {}), "task.meta"),
        gold=None if gold is None else _read_gold(gold, len(responses)),
        priority=fields.number(row.get("priority", 0.0), "task.priority"),
    )


def _read_gold(row: Mapping[str, Any], responses: int) -> Gold:
    choice = fields.one_of(row.get("choice"), "task.gold.choice", ("response", "tie", "all_bad"))
    place = fields.optional(fields.whole, row.get("response"), "task.gold.response", 0, responses - 1)
    if (choice == "response") != (place is not None):
        raise RowProblem("not an answer", f"task.gold.choice is {choice!r}, response is {place}")
    return Gold(
        choice=choice,
        response_id=place,
        explanation=fields.text(row.get("explanation", ""), "task.gold.explanation"),
    )


def _read_verdict(row: Mapping[str, Any], responses: int) -> Verdict:
    def at(name: str) -> tuple[Any, str]:
        return row.get(name), f"judgement.{name}"

    choice = fields.one_of(*at("choice"), _CHOICES)
    response = fields.optional(fields.whole, *at("response"), 0, responses - 1)
    if (choice == "response") != (response is not None):
        raise RowProblem("not a judgement", f"choice is {choice!r}, response is {response}")
    correction = fields.optional(fields.text, *at("correction"))
    corrected = fields.optional(fields.whole, *at("corrected"), 0, responses - 1)
    if (correction is None) != (corrected is None):
        raise RowProblem("not a judgement", "corrected and correction go together")
    times: dict[str, Any] = {name: fields.optional(fields.whole, *at(name), 0, fields.LATEST) for name in _TIMES}
    shown = fields.places(row.get("shown", []), "judgement.shown", responses)
    if shown and len(shown) < responses:
        raise RowProblem("not a judgement", f"judgement.shown names {len(shown)} of {responses} responses")
    return Verdict(
        by=fields.text(*at("by")),
        choice=choice,
        response=response,
        ranking=_read_ranking(row.get("ranking"), choice, responses),
        strength=fields.optional(fields.whole, *at("strength"), 1, 3),
        probability=fields.optional(fields.number, *at("probability"), 0.5, 1.0),
        margin=fields.optional(fields.number, *at("margin")),
        rules=_by_place(row.get("rules"), "judgement.rules", responses, fields.texts),
        ratings=_by_place(row.get("ratings"), "judgement.ratings", responses, _points),
        flags=fields.texts(row.get("flags", []), "judgement.flags"),
        comment=fields.optional(fields.text, *at("comment")),
        corrected=corrected,
        correction=correction,
        purpose=fields.one_of(*at("purpose"), Purpose),
        shown=shown,
        late=fields.flag(row.get("late", False), "judgement.late"),
        keys_used=fields.optional(fields.flag, *at("keys_used")),
        revision=fields.whole(row.get("revision", 1), "judgement.revision", 1),
        form_digest=fields.word(row.get("form_digest", ""), "judgement.form_digest", 16),
        guideline_version=fields.optional(fields.whole, *at("guideline_version"), 1),
        app_version=fields.word(row.get("app_version", ""), "judgement.app_version", 40),
        identity=_identity(*at("identity")),
        supersedes=fields.optional(_identity, *at("supersedes")),
        **times,
    )


def _read_ranking(value: Any, choice: str, responses: int) -> tuple[tuple[int, ...], ...] | None:
    at = "judgement.ranking"
    if (choice == "ranking") != (value is not None):
        raise RowProblem("not a judgement", f"choice is {choice!r}, but there is {'a' if value else 'no'} ranking")
    if value is None:
        return None
    groups = [fields.places(group, f"{at}[{i}]", responses) for i, group in enumerate(fields.sequence(value, at), 1)]
    if sorted(place for group in groups for place in group) != list(range(responses)) or not all(groups):
        raise RowProblem("not a ranking", f"{at} is {value!r:.60}, wanted each of {responses} responses once")
    return tuple(tuple(sorted(group)) for group in groups)


def _by_place(value: Any, at: str, responses: int, read_one: Any) -> dict[int, Any]:
    if value is None:
        return {}
    found = fields.sequence(value, at)
    if len(found) != responses:
        raise RowProblem("wrong number", f"{at} is for {len(found)} responses, the task has {responses}")
    return {place: read_one(item, f"{at}[{place + 1}]") for place, item in enumerate(found)}


def _points(value: Any, at: str) -> dict[str, int]:
    return {name: fields.whole(points, f"{at}.{name}", 1) for name, points in fields.mapping(value, at).items()}


def _identity(value: Any, at: str) -> str:
    found = fields.text(value, at)
    if len(found) != 32 or set(found) - set("0123456789abcdef"):
        raise RowProblem("wrong type", f"{at} is {found!r:.40}, wanted 32 hex digits")
    return found
