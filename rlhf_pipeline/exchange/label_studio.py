"""Label Studio: a JSON list of tasks with annotations, and the labelling configuration that shows and reads them.

Responses are ``answer1``, ``answer2`` …, in canonical order: Label Studio shows every judge the same side first, so the
order in which a response was shown is not carried. A tie and "none is good" are a choice beside the comparison, places
in a ranking are numbers (equal ones are a tie). An adjudication is marked as ground truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import quoteattr

from rlhf_pipeline.data.formats import RowProblem
from rlhf_pipeline.exchange import fields
from rlhf_pipeline.exchange.controls import (
    NONE,
    STRENGTHS,
    Answers,
    answers_of,
    is_question,
    response_name,
    skip_of,
    verdict_of,
)
from rlhf_pipeline.exchange.full import form_of
from rlhf_pipeline.exchange.judged import JudgedRound, JudgedTask, Verdict, canonical, comparable
from rlhf_pipeline.exchange.pseudonyms import number_of
from rlhf_pipeline.records import Message, Messages, Prompt
from rlhf_pipeline.store.records import Form, NewResponse, NewTask

_TYPES = {
    "strength": "rating",
    "probability": "number",
    "margin": "number",
    "preference": "choices",
    "flags": "choices",
    "rules": "choices",
    "rating": "rating",
    "rank": "number",
    "comment": "textarea",
    "correction": "textarea",
}
_TAGS = {"choices": "Choices", "rating": "Rating", "number": "Number", "textarea": "TextArea"}


def write(judged: JudgedRound, tasks: Sequence[tuple[JudgedTask, Sequence[Verdict]]]) -> list[dict[str, Any]]:
    """Label Studio's import form; ``tasks`` are those to write with the judgements that are to go along."""
    width = max((len(task.responses) for task, _ in tasks), default=2)
    compares = _compares(judged.form, width)
    rows = []
    annotation_id = 0
    for number, (task, verdicts) in enumerate(tasks, start=1):
        annotations = []
        for verdict in verdicts:
            annotation_id += 1
            annotations.append(_annotation(annotation_id, verdict, judged.form, compares))
        rows.append({"id": number, "data": _data(task, judged.form, width), "annotations": annotations})
        rows[-1]["predictions"] = []
    return rows


def config(form: Form, width: int) -> str:
    """The labelling configuration for tasks of up to ``width`` responses, in Label Studio's XML."""
    lines = ["<View>", '  <Header value="Conversation"/>', '  <Text name="prompt" value="$prompt"/>']
    if compares := _compares(form, width):
        lines.append('  <Pairwise name="comparison" toName="answer1,answer2"/>')
    for n in range(1, width + 1):
        lines += [f'  <Header value="Response {n}"/>', f'  <Text name="answer{n}" value="$answer{n}"/>']
        if form.kind == "ranking":
            lines.append(f'  <Number name="rank_{n}" toName="answer{n}" min="1" max="{width}"/>')
        if form.rules:
            lines += _choices(f"rules_{n}", f"answer{n}", _options("rule", form.rules), multiple=True)
        for index, attribute in enumerate(form.attributes, start=1):
            lines.append(f"  <Header value={quoteattr(attribute.name)}/>")
            lines.append(f'  <Rating name="rating_{index}_{n}" toName="answer{n}" maxRating="{attribute.points}"/>')
        if form.correction:
            lines.append(f'  <TextArea name="correction_{n}" toName="answer{n}" maxSubmissions="1"/>')
    named = (
        [] if compares or form.kind == "ranking" else [(response_name(p), f"Response {p + 1}") for p in range(width)]
    )
    rest = [("tie", "Tie"), ("all_bad", "None is good")]
    lines += _choices("preference", "prompt", [*named, *rest])
    lines.append(f'  <Rating name="strength" toName="prompt" maxRating="{STRENGTHS}"/>')
    lines += [f'  <Number name="{name}" toName="prompt"/>' for name in ("probability", "margin")]
    if form.flags:
        lines += _choices("flags", "prompt", _options("flag", form.flags), multiple=True)
    lines.append('  <TextArea name="comment" toName="prompt" maxSubmissions="1"/>')
    return "\n".join([*lines, "</View>", ""])


def _compares(form: Form, width: int) -> bool:
    return form.kind == "pair" and width == 2


def _options(kind: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    return [*((f"{kind}_{n}", text) for n, text in enumerate(texts, start=1)), (NONE, "None of these")]


def _choices(name: str, to: str, options: Sequence[tuple[str, str]], *, multiple: bool = False) -> list[str]:
    kind = "multiple" if multiple else "single"
    inner = [f"    <Choice alias={quoteattr(key)} value={quoteattr(text)}/>" for key, text in options]
    return [f'  <Choices name="{name}" toName="{to}" choice="{kind}">', *inner, "  </Choices>"]


def _data(task: JudgedTask, form: Form, width: int) -> dict[str, Any]:
    answers = {f"answer{n}": "" for n in range(1, width + 1)}
    answers |= {f"answer{n}": response.text for n, response in enumerate(task.responses, start=1)}
    return {
        "prompt": prompt_text(task.prompt.messages),
        **answers,
        "messages": [message.to_json() for message in task.prompt.messages],
        "responses": [{"finish": r.finish, "sampler_digest": r.sampler_digest} for r in task.responses],
        "meta": dict(task.meta),
        "form": form.to_json(),
    }


def prompt_text(messages: Messages) -> str:
    """A conversation as one text; a single question is just that."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def _annotation(number: int, verdict: Verdict, form: Form, compares: bool) -> dict[str, Any]:
    results = [
        {"id": f"{number}-{name}", "from_name": name, "to_name": to, "type": kind, "value": {key: value}}
        for name, to, kind, key, value in _results(answers_of(verdict, form), compares)
    ]
    row: dict[str, Any] = {
        "id": number,
        "completed_by": number_of(verdict.by),
        "was_cancelled": verdict.choice == "skip",
        "ground_truth": verdict.purpose == "adjudicate",
        "result": results,
    }
    if verdict.active_ms is not None:
        row["lead_time"] = verdict.active_ms / 1000
    if verdict.received_at is not None:
        moment = datetime.fromtimestamp(verdict.received_at / 1000, UTC)
        row["created_at"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return row


def _results(answers: Answers, compares: bool) -> list[tuple[str, str, str, str, Any]]:
    """``(from_name, to_name, type, key, value)`` of each answer."""
    found: list[tuple[str, str, str, str, Any]] = []
    for name, value in answers.items():
        kind, number = name.split("_")[0], name.rsplit("_", 1)[-1]
        to = f"answer{number}" if "_" in name else "prompt"
        if name == "ranking":
            for rank, group in enumerate(value, start=1):
                for n in (response.removeprefix("response_") for response in group):
                    found.append((f"rank_{n}", f"answer{n}", "number", "number", rank))
        elif name == "preference" and compares and value.startswith("response_"):
            side = "left" if value == response_name(0) else "right"
            found.append(("comparison", "answer1,answer2", "pairwise", "selected", side))
        else:
            shape = _TYPES[kind]
            key = "text" if shape == "textarea" else shape
            wraps = shape in ("textarea", "choices") and not isinstance(value, list)
            found.append((name, to, shape, key, [value] if wraps else value))
    return found


# Reading


def read(row: Mapping[str, Any]) -> tuple[JudgedTask, Form, list[str]]:
    """One task with its annotations, the form it was judged under, and the controls that mean nothing here."""
    data = fields.mapping(row.get("data"), "data")
    form = form_of(data["form"], "data.form") if "form" in data else Form(all_bad=True, comment=True)
    if "messages" in data:
        messages = fields.conversation(data["messages"], "data.messages")
    else:
        messages = (Message("user", fields.text(data.get("prompt"), "data.prompt")),)
    task, texts = _task(data, messages)
    order = canonical(task, texts)
    unknown: list[str] = []
    verdicts = []
    for index, item in enumerate(fields.sequence(row.get("annotations", []), "annotations"), start=1):
        annotation = fields.mapping(item, f"annotations[{index}]")
        verdicts.append(_verdict(annotation, form, order, f"annotations[{index}]", unknown))
    meta = fields.json_object(data.get("meta", {}), "data.meta")
    return JudgedTask(task.prompt, task.canonical(), tuple(verdicts), meta), form, unknown


def _task(data: Mapping[str, Any], messages: Messages) -> tuple[NewTask, list[str]]:
    known = data.get("responses")
    count = 2
    while f"answer{count + 1}" in data:
        count += 1
    details: Sequence[Any] = [{}] * count if known is None else fields.sequence(known, "data.responses")
    responses = []
    for n, item in enumerate(details, start=1):
        given = fields.mapping(item, f"data.responses[{n}]")
        finish = fields.optional(fields.one_of, given.get("finish"), f"data.responses[{n}].finish", ("eos", "length"))
        sampler = fields.word(given.get("sampler_digest", ""), f"data.responses[{n}].sampler_digest")
        responses.append(NewResponse(fields.text(data.get(f"answer{n}"), f"data.answer{n}"), finish, sampler))
    return comparable(Prompt(messages), responses), [response.text for response in responses]


def _verdict(row: Mapping[str, Any], form: Form, order: list[int], at: str, unknown: list[str]) -> Verdict:
    by = row.get("completed_by")
    if isinstance(by, Mapping):
        by = by.get("id")
    lead_time = fields.optional(fields.number, row.get("lead_time"), f"{at}.lead_time", 0, 1e9)
    blank = Verdict(
        by="" if by is None else str(fields.whole(by, f"{at}.completed_by")),
        choice="skip",
        purpose="adjudicate" if row.get("ground_truth") is True else "judge",
        received_at=_moment(row.get("created_at"), f"{at}.created_at"),
        active_ms=None if lead_time is None else round(lead_time * 1000),
    )
    answers: Answers = {}
    ranks: dict[str, int] = {}
    for index, item in enumerate(fields.sequence(row.get("result"), f"{at}.result"), start=1):
        result = fields.mapping(item, f"{at}.result[{index}]")
        _read_result(result, f"{at}.result[{index}]", answers, ranks)
    if ranks:
        by_rank: dict[int, list[str]] = {}
        for name, rank in sorted(ranks.items(), key=lambda item: item[1]):
            by_rank.setdefault(rank, []).append(name)
        answers["ranking"] = list(by_rank.values())
    known = {name: value for name, value in answers.items() if is_question(name, form, len(order))}
    unknown += [name for name in answers if name not in known]
    if row.get("was_cancelled") is True:
        return skip_of(known, form, blank)
    return verdict_of(known, form, order, blank)


def _read_result(result: Mapping[str, Any], at: str, answers: Answers, ranks: dict[str, int]) -> None:
    name = fields.text(result.get("from_name"), f"{at}.from_name")
    shape = fields.text(result.get("type"), f"{at}.type")
    value = fields.mapping(result.get("value"), f"{at}.value")
    if shape == "pairwise":
        side = fields.one_of(value.get("selected"), f"{at}.value.selected", ("left", "right"))
        answers["preference"] = response_name(0 if side == "left" else 1)
    elif shape == "number" and name.startswith("rank_"):
        ranks[f"response_{name.removeprefix('rank_')}"] = fields.whole(value.get("number"), f"{at}.value.number", 1)
    elif shape in ("number", "rating"):
        answers[name] = value.get(shape)
    elif shape == "choices":
        chosen = fields.texts(value.get("choices"), f"{at}.value.choices")
        answers[name] = chosen[0] if name == "preference" and len(chosen) == 1 else list(chosen)
    elif shape == "textarea":
        said = value.get("text")
        answers[name] = said if isinstance(said, str) else "\n".join(fields.texts(said, f"{at}.value.text"))
    else:
        answers[name] = value


def _moment(value: Any, at: str) -> int | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(fields.text(value, at))
    except ValueError:
        raise RowProblem("not a time", f"{at} is {value!r:.40}, wanted YYYY-MM-DDTHH:MM:SSZ") from None
    stamp = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    return fields.whole(stamp, at, 0, fields.LATEST)
