"""Argilla 2: records as ``records.to_list()`` gives them, nested (a JSON list) or flattened (JSON lines), and settings.

The conversation is a chat field, each response a text field. Argilla's SDK keeps the order of a ranking and drops equal
ranks, so ties are a label question of their own: ``1>2=3`` says that the second and the third in order are tied. Only
the flattened form has the status of an answer, so only it has skips (``discarded``), and only of it drafts are left out
when it is read: what comes from Argilla is best exported flattened.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from rlhf_pipeline.data.formats import RowProblem
from rlhf_pipeline.errors import UsageError
from rlhf_pipeline.exchange import fields
from rlhf_pipeline.exchange.controls import NONE, STRENGTHS, answers_of, is_question, response_name, skip_of, verdict_of
from rlhf_pipeline.exchange.full import form_of
from rlhf_pipeline.exchange.judged import JudgedRound, JudgedTask, Verdict, canonical, comparable
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store.records import Form, NewResponse

HIGHEST_RATING = 10
WIDEST_RANKING = 9  # 256 patterns of ties; Argilla takes 500 labels
_RESPONSE = re.compile(r"response_[1-9][0-9]*")
_MAIN = "preference"
_RANKED = "ranked"
_SKIPPED = ".skipped"  # no question has such a name
_SUFFIXES = (".responses", ".responses.users", ".responses.status")
_NOT_ASKED = ("probability", "margin")  # Argilla has no question for a number
_COUNTS = {"submitted": True, "discarded": True, "draft": False, None: True}


def write(judged: JudgedRound, tasks: Sequence[tuple[JudgedTask, Sequence[Verdict]]]) -> list[dict[str, Any]]:
    """The nested form; skips must not be among the judgements."""
    return [_record(judged, task, verdicts) for task, verdicts in tasks]


def write_flat(judged: JudgedRound, tasks: Sequence[tuple[JudgedTask, Sequence[Verdict]]]) -> list[dict[str, Any]]:
    """The flattened form: one column for each field, each piece of metadata and each question's answers."""
    rows = []
    for task, verdicts in tasks:
        record = _record(judged, task, verdicts)
        row = {name: record[name] for name in ("id", "status", "_server_id")} | record["fields"] | record["metadata"]
        skipped = [user_id(v.by) for v in verdicts if v.choice == "skip"]
        answers = {
            question: [
                (a["value"], a["user_id"], "discarded" if a["user_id"] in skipped else "submitted") for a in said
            ]
            for question, said in record["responses"].items()
        }
        if skipped:
            answers[_MAIN] = answers.get(_MAIN, []) + [(None, by, "discarded") for by in skipped]
        for question, given in answers.items():
            for suffix, column in zip(_SUFFIXES, zip(*given, strict=True), strict=True):
                row[f"{question}{suffix}"] = list(column)
        rows.append(row)
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in columns} for row in rows]


def settings(form: Form, width: int, overlap: int) -> dict[str, Any]:
    """The settings of a data set for these records, as ``rg.Settings.from_json`` reads them.

    Raises:
        UsageError: an attribute has more points than Argilla's scale, or there are too many responses.
    """
    if form.kind == "ranking" and width > WIDEST_RANKING:
        raise UsageError(
            f"a task has {width} responses to put in order, with ties Argilla takes up to {WIDEST_RANKING}",
            advice="export to another format, e.g. --format label-studio",
        )
    for attribute in form.attributes:
        if attribute.points > HIGHEST_RATING:
            raise UsageError(
                f"{attribute.name} is rated from 1 to {attribute.points}, Argilla's scale ends at {HIGHEST_RATING}",
                advice="export to another format, e.g. --format label-studio",
            )
    named = {response_name(place): f"Response {place + 1}" for place in range(width)}
    choices = {_RANKED: "See the ranking"} if form.kind == "ranking" else dict(named)
    choices |= {"tie": "All are as good", "all_bad": "None is good"}
    questions = [_question(_MAIN, "label_selection", "Which is better?", _options(choices), required=True)]
    if form.kind == "ranking":
        patterns = _patterns(width)
        questions.append(_question("ranking", "ranking", "The order, best first", _options(named)))
        questions.append(_question("ties", "label_selection", "Tied in that order", _options(dict.fromkeys(patterns))))
    else:
        questions.append(_question("strength", "rating", "How much better?", _points(STRENGTHS)))
    for n in range(1, width + 1):
        if form.rules:
            title = f"Rules that response {n} breaks"
            questions.append(_question(f"rules_{n}", "multi_label_selection", title, _several("rule", form.rules)))
        for index, attribute in enumerate(form.attributes, start=1):
            title = f"{attribute.name} of response {n}"
            questions.append(_question(f"rating_{index}_{n}", "rating", title, _points(attribute.points)))
        if form.correction:
            questions.append(_question(f"correction_{n}", "text", f"Response {n} as it ought to be"))
    if form.flags:
        title = "Is something wrong with it?"
        questions.append(_question("flags", "multi_label_selection", title, _several("flag", form.flags)))
    questions.append(_question("comment", "text", "Comment"))
    chat = {"name": "prompt", "title": "Conversation", "required": True, "settings": {"type": "chat"}}
    texts = [
        {"name": name, "title": title, "required": place < 2, "settings": {"type": "text"}}
        for place, (name, title) in enumerate(named.items())
    ]
    return {
        "guidelines": None,
        "fields": [chat, *texts],
        "questions": questions,
        "metadata": [],
        "vectors": [],
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": overlap},
        "mapping": None,
    }


def user_id(pseudonym: str) -> str:
    """A pseudonym as the UUID that Argilla wants; one that is a UUID stays what it is."""
    try:
        return str(uuid.UUID(pseudonym))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, pseudonym))


def _question(
    name: str, kind: str, title: str, options: list[dict[str, Any]] | None = None, *, required: bool = False
) -> dict[str, Any]:
    with_options = {} if options is None else {"options": options}
    return {"name": name, "title": title, "required": required, "settings": {"type": kind, **with_options}}


def _options(texts: Mapping[str, str | None]) -> list[dict[str, Any]]:
    return [{"value": value, "text": text or value} for value, text in texts.items()]


def _several(kind: str, texts: Sequence[str]) -> list[dict[str, Any]]:
    return _options({f"{kind}_{n}": text for n, text in enumerate(texts, start=1)} | {NONE: "None of these"})


def _points(highest: int) -> list[dict[str, Any]]:
    return [{"value": value} for value in range(1, highest + 1)]


def _patterns(width: int) -> list[str]:
    """Every way in which neighbours in an order may be tied: ``1>2>3``, ``1>2=3`` …"""
    return [_pattern(signs) for signs in product(">=", repeat=width - 1)]


def _pattern(signs: Iterable[str]) -> str:
    return "1" + "".join(f"{sign}{n}" for n, sign in enumerate(signs, start=2))


def _record(judged: JudgedRound, task: JudgedTask, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    responses: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for verdict in verdicts:
        for question, value in answers_of(verdict, judged.form).items():
            by = user_id(verdict.by)
            if question == "ranking":
                responses[_MAIN].append({"value": _RANKED, "user_id": by})
                responses["ties"].append({"value": _ties(value), "user_id": by})
                value = [name for group in value for name in group]
            if question not in _NOT_ASKED:
                responses[question].append({"value": value, "user_id": by})
    done = sum(verdict.choice != "skip" for verdict in verdicts) >= judged.overlap
    details = [{"finish": r.finish, "sampler_digest": r.sampler_digest} for r in task.responses]
    return {
        "id": task.new.digest,
        "fields": {"prompt": [message.to_json() for message in task.prompt.messages]}
        | {response_name(place): response.text for place, response in enumerate(task.responses)},
        "metadata": {
            "form": json.dumps(judged.form.to_json()),
            "sampled": json.dumps(details),
            "meta": json.dumps(dict(task.meta)),
        },
        "suggestions": {},
        "responses": dict(responses),
        "vectors": {},
        "status": "completed" if done else "pending",
        "_server_id": None,
    }


def _ties(groups: Sequence[Sequence[str]]) -> str:
    signs = [sign for group in groups for sign in (">", *"=" * (len(group) - 1))]
    return _pattern(signs[1:])


# Reading


def is_flat(row: Mapping[str, Any]) -> bool:
    """Whether a row is of the flattened form."""
    is_argilla = "_server_id" in row or any(name.endswith(_SUFFIXES[0]) for name in row)
    return is_argilla and "response_1" in row and "response_2" in row


def read(row: Mapping[str, Any]) -> tuple[JudgedTask, Form, list[str]]:
    """One record of either form, the form it was judged under, and the questions that mean nothing here."""
    said, about, metadata = _flat_parts(row) if is_flat(row) else _nested_parts(row)
    if not isinstance(metadata.get("sampled"), str):
        metadata = {}  # not written here: columns that are called like ours are others
    form = form_of(_loaded(metadata["form"], "form"), "form") if metadata.get("form") else Form(all_bad=True)
    prompt = about.get("prompt")
    messages = (Message("user", prompt),) if isinstance(prompt, str) else fields.conversation(prompt, "prompt")
    names = sorted((n for n in about if _RESPONSE.fullmatch(n) and about[n] is not None), key=lambda n: int(n[9:]))
    texts = [fields.text(about[name], name) for name in names]
    if names != [response_name(place) for place in range(len(names))]:
        raise RowProblem("missing field", f"found {', '.join(names)}, wanted response_1, response_2 and so on")
    details = fields.sequence(_loaded(metadata["sampled"], "sampled") if metadata.get("sampled") else [], "sampled")
    if len(details) != len(texts):  # made elsewhere, or responses were added there
        details = [{}] * len(texts)
    made = [
        NewResponse(
            text,
            fields.optional(fields.one_of, fields.mapping(one, "sampled").get("finish"), "finish", ("eos", "length")),
            fields.word(one.get("sampler_digest", ""), "sampler_digest"),
        )
        for text, one in zip(texts, details, strict=True)
    ]
    meta = fields.json_object(_loaded(metadata["meta"], "meta"), "meta") if metadata.get("meta") else {}
    task = comparable(Prompt(messages), made)
    order = canonical(task, texts)
    unknown: set[str] = set()
    verdicts = [_verdict(by, answers, form, order, unknown) for by, answers in said.items()]
    return JudgedTask(task.prompt, task.canonical(), tuple(verdicts), meta), form, sorted(unknown)


def _loaded(value: Any, at: str) -> Any:
    try:
        return json.loads(fields.text(value, at))
    except (ValueError, RecursionError):
        raise RowProblem("broken JSON", f"the metadata {at} is {value!r:.40}") from None


Said = dict[str, dict[str, Any]]


def _nested_parts(row: Mapping[str, Any]) -> tuple[Said, Mapping[str, Any], Mapping[str, Any]]:
    said: Said = defaultdict(dict)
    for question, answers in fields.mapping(row.get("responses"), "responses").items():
        for index, item in enumerate(fields.sequence(answers, f"responses.{question}"), start=1):
            at = f"responses.{question}[{index}]"
            answer = fields.mapping(item, at)
            said[fields.text(answer.get("user_id"), f"{at}.user_id")][question] = answer.get("value")
    about = fields.mapping(row.get("fields"), "fields")
    return said, about, fields.mapping(row.get("metadata") or {}, "metadata")


def _flat_parts(row: Mapping[str, Any]) -> tuple[Said, Mapping[str, Any], Mapping[str, Any]]:
    said: Said = defaultdict(dict)
    for name in row:
        if not name.endswith(_SUFFIXES[0]) or row[name] is None:
            continue
        question = name.removesuffix(_SUFFIXES[0])
        values = fields.sequence(row[name], name)
        users = fields.texts(row.get(name + ".users"), name + ".users")
        states = fields.sequence(row.get(name + ".status") or [None] * len(values), name + ".status")
        if not len(values) == len(users) == len(states):
            raise RowProblem(
                "wrong number", f"{name} has {len(values)} values, {len(users)} users, {len(states)} states"
            )
        for value, by, state in zip(values, users, states, strict=True):
            if _COUNTS[fields.one_of(state, name + ".status", _COUNTS)]:
                said[by] |= {question: value} | ({_SKIPPED: True} if state == "discarded" else {})
    return said, row, row


def _verdict(by: str, said: Mapping[str, Any], form: Form, order: list[int], unknown: set[str]) -> Verdict:
    answers = {name: value for name, value in said.items() if value is not None}
    blank = Verdict(by, "skip")
    if answers.pop(_SKIPPED, False) or not answers:
        return skip_of({name: value for name, value in answers.items() if name in ("flags", "comment")}, form, blank)
    if "ranking" in answers:
        answers["ranking"] = _groups(answers["ranking"], answers.pop("ties", None))
    known = {name: value for name, value in answers.items() if is_question(name, form, len(order))}
    unknown |= set(answers) - set(known)
    if known.get(_MAIN) == _RANKED and "ranking" not in known:
        raise RowProblem("no ranking", f"{by} says to see the ranking, and there is none")
    return verdict_of(known, form, order, blank)


def _groups(ranking: Any, ties: Any) -> list[list[str]]:
    """Response names in order, or with their ranks as Argilla's server keeps them, and what is tied → groups."""
    items = fields.sequence(ranking, "ranking")
    if any(isinstance(item, Mapping) and item.get("rank") is not None for item in items):
        by_rank: dict[int, list[str]] = defaultdict(list)
        for item in items:
            row = fields.mapping(item, "ranking")
            by_rank[fields.whole(row.get("rank"), "ranking.rank", 1)].append(fields.text(row.get("value"), "ranking"))
        return [names for _, names in sorted(by_rank.items())]
    names = [fields.text(item.get("value") if isinstance(item, Mapping) else item, "ranking") for item in items]
    if ties is None:
        return [[name] for name in names]
    signs = re.findall("[>=]", fields.text(ties, "ties"))
    if len(signs) != len(names) - 1 or ties != _pattern(signs):
        raise RowProblem("unknown value", f"ties is {ties!r:.40}, wanted e.g. {_pattern('>' * (len(names) - 1))}")
    groups: list[list[str]] = []
    for sign, name in zip((">", *signs), names, strict=True):
        if sign == ">":
            groups.append([name])
        else:
            groups[-1].append(name)
    return groups
