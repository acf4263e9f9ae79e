"""The formats that trainers read: TRL's pairs (prompt explicit or implicit), KTO, transcripts (HH), OpenAI's pairs.

Written from the projections of :mod:`rlhf_pipeline.exchange.projection`; read by :mod:`rlhf_pipeline.data.formats`,
which knows all of them (and more) already. A row that is read is one judgement by "import"; where a pair stands again,
that is another's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_pipeline.data.formats import FORMATS, Exchange, Format, RowProblem
from rlhf_pipeline.data.opening import RawRow
from rlhf_pipeline.exchange import fields
from rlhf_pipeline.exchange.judged import MOST_RESPONSES, JudgedRound, JudgedTask, Verdict, canonical
from rlhf_pipeline.exchange.projection import Pair, labelled_of, pairs_of
from rlhf_pipeline.exchange.rules import Ledger, Terms, is_plain
from rlhf_pipeline.records import Message, Messages, Prompt
from rlhf_pipeline.store.records import NewResponse, NewTask

Rows = list[dict[str, Any]]
_MARK = re.compile(r"\n\n(Human|Assistant):")


def trl(judged: JudgedRound, ledger: Ledger, terms: Terms) -> Rows:
    """``{"prompt", "chosen", "rejected"}`` as conversations, with ``margin`` where judges gave any."""
    return [
        {
            "prompt": _messages(pair.prompt.messages),
            "chosen": _messages([Message("assistant", pair.chosen)]),
            "rejected": _messages([Message("assistant", pair.rejected)]),
            **more,
        }
        for pair, more in _with_extras(_plain_pairs(judged, ledger, terms))
    ]


def trl_implicit(judged: JudgedRound, ledger: Ledger, terms: Terms) -> Rows:
    """``{"chosen", "rejected"}`` as whole conversations, with ``margin`` where judges gave any."""
    return [
        {
            "chosen": _messages([*pair.prompt.messages, Message("assistant", pair.chosen)]),
            "rejected": _messages([*pair.prompt.messages, Message("assistant", pair.rejected)]),
            **more,
        }
        for pair, more in _with_extras(_plain_pairs(judged, ledger, terms))
    ]


def openai(judged: JudgedRound, ledger: Ledger, terms: Terms) -> Rows:
    """OpenAI's preference fine-tuning; it refuses columns that it does not know, so there are no others."""
    return [
        {
            "input": {"messages": _messages(pair.prompt.messages), "tools": [], "parallel_tool_calls": True},
            "preferred_output": _messages([Message("assistant", pair.chosen)]),
            "non_preferred_output": _messages([Message("assistant", pair.rejected)]),
        }
        for pair in _plain_pairs(judged, ledger, terms)
    ]


def kto(judged: JudgedRound, ledger: Ledger, terms: Terms) -> Rows:
    """``{"prompt", "completion", "label"}``: single responses, good or bad."""
    ledger.apply("text")
    rows = []
    for item in labelled_of(judged, ledger, terms):
        if not is_plain(item.response, *(m.content for m in item.prompt.messages)):
            ledger.remove("text")
            continue
        completion = _messages([Message("assistant", item.response)])
        rows.append({"prompt": _messages(item.prompt.messages), "completion": completion, "label": item.good})
    return rows


def hh(judged: JudgedRound, ledger: Ledger, terms: Terms) -> Rows:
    """Two transcripts with ``\\n\\nHuman:`` and ``\\n\\nAssistant:``, the same up to the last answer."""
    ledger.apply("system", "speaker", "turns")
    rows = []
    for pair in _plain_pairs(judged, ledger, terms):
        messages = pair.prompt.messages
        texts = [*(m.content for m in messages), pair.chosen, pair.rejected]
        if messages[0].role == "system":
            ledger.remove("system")
        elif any(_MARK.search(text) for text in texts):
            ledger.remove("speaker")
        elif any(m.role != ("user", "assistant")[i % 2] for i, m in enumerate(messages)) or len(messages) % 2 == 0:
            ledger.remove("turns")
        else:
            prompt = "".join(f"\n\n{'Human' if m.role == 'user' else 'Assistant'}: {m.content}" for m in messages)
            sides = (("chosen", pair.chosen), ("rejected", pair.rejected))
            rows.append({side: f"{prompt}\n\nAssistant: {text}" for side, text in sides})
    return rows


def _plain_pairs(judged: JudgedRound, ledger: Ledger, terms: Terms) -> list[Pair]:
    ledger.apply("text")
    pairs = pairs_of(judged, ledger, terms)
    plain = [p for p in pairs if is_plain(p.chosen, p.rejected, *(m.content for m in p.prompt.messages))]
    ledger.remove("text", len(pairs) - len(plain))
    return plain


def _with_extras(pairs: Sequence[Pair]) -> list[tuple[Pair, dict[str, Any]]]:
    """The columns beside the pair: the same in every row, as a table needs; no margin is a margin of 0 in the loss."""
    with_margin = any(pair.margin is not None for pair in pairs)
    return [
        (
            pair,
            ({"margin": pair.margin or 0.0} if with_margin else {})
            | {"probability": pair.probability, "weight": pair.weight}
            | {"judgements": pair.judgements, "source": pair.source},
        )
        for pair in pairs
    ]


def _messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [message.to_json() for message in messages]


# Reading


@dataclass(slots=True)
class Read:
    """Tasks that were read, the rows that cannot be used, and the sound ones that say nothing, by reason."""

    tasks: list[JudgedTask] = field(default_factory=list)
    bad: list[tuple[str, RowProblem]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def read_pairs(rows: Sequence[RawRow], known: Format) -> Read:
    """Rows of any format that holds pairs → one judgement each; a pair that stands twice was judged by two."""
    read, pairs = Read(), PairTasks()
    for row in rows:
        try:
            exchange = _convert(row, known)
        except RowProblem as problem:
            read.bad.append((row.where, problem))
            continue
        texts = exchange.responses
        if len(set(texts)) < 2:
            read.left_out["identical responses"] += 1
            continue
        meta: dict[str, Any] = {"source": exchange.source} if exchange.source else {}
        meta |= {"imported": dict(exchange.meta)} if exchange.meta else {}
        try:
            fields.json_object(meta, "meta")
        except RowProblem as problem:
            read.bad.append((row.where, problem))
            continue
        margin = exchange.margin or None
        pairs.add(Prompt(exchange.messages), texts[0], texts[1], exchange.probability, margin, meta)
    read.tasks = pairs.tasks()
    return read


class PairTasks:
    """Collects pairs with a preference: a task for each pair, a judgement for each time it stands there."""

    def __init__(self) -> None:
        self._verdicts: dict[str, list[Verdict]] = defaultdict(list)
        self._tasks: dict[str, NewTask] = {}

    def add(
        self,
        prompt: Prompt,
        chosen: str,
        rejected: str,
        probability: float,
        margin: float | None,
        meta: Mapping[str, Any],
    ) -> None:
        """A pair of different texts; ``probability`` of the first being the better one, where 0.5 is a tie. Of a pair
        that stands again, ``meta`` stays what it was."""
        task = NewTask(prompt, (NewResponse(chosen), NewResponse(rejected)), meta=meta)
        self._tasks.setdefault(task.digest, task)
        said = self._verdicts[task.digest]
        by = importer(len(said))
        if probability == 0.5:
            said.append(Verdict(by, "tie"))
            return
        sure = None if probability == 1.0 else probability
        [place] = canonical(task, [chosen])
        said.append(Verdict(by, "response", place, probability=sure, margin=margin))

    def tasks(self) -> list[JudgedTask]:
        """In the order in which each pair first stood there."""
        return [
            JudgedTask(task.prompt, task.canonical(), tuple(self._verdicts[digest]), task.meta)
            for digest, task in self._tasks.items()
        ]


def importer(number: int) -> str:
    """The name under which the judgements of a file without names are kept: one for each time a pair stands in it."""
    return "import" if number == 0 else f"import {number + 1}"


def _convert(row: RawRow, known: Format) -> Exchange:
    if isinstance(row.values, RowProblem):
        raise row.values
    if missing := known.missing(row.values):
        raise RowProblem("missing column", ", ".join(missing))
    return known.convert(row.values)


def read_labelled(rows: Sequence[RawRow]) -> Read:
    """KTO's rows → one task for each prompt: its good responses stand before its bad ones, all tied among themselves.

    A response that is labelled both ways, and a prompt with one response, are left out: nothing can be compared.
    """
    read = Read()
    labels: dict[Messages, dict[str, set[bool]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        try:
            exchange = _convert(row, FORMATS["prompt-completion"])
            labels[exchange.messages][exchange.responses[0]].add(_label(row.values))
        except RowProblem as problem:
            read.bad.append((row.where, problem))
    for messages, found in labels.items():
        agreed = {text: next(iter(label)) for text, label in found.items() if len(label) == 1}
        read.left_out["responses labelled both ways"] += len(found) - len(agreed)
        if len(agreed) < 2:
            read.left_out["prompts with one response"] += len(agreed)
            continue
        if len(agreed) > MOST_RESPONSES:
            read.left_out[f"prompts with more than {MOST_RESPONSES} responses"] += 1
            continue
        task = NewTask(Prompt(messages), tuple(NewResponse(text) for text in agreed))
        places = dict(zip(agreed, canonical(task, list(agreed)), strict=True))
        good = tuple(sorted(places[text] for text, label in agreed.items() if label))
        bad = tuple(sorted(places[text] for text, label in agreed.items() if not label))
        read.tasks.append(JudgedTask(task.prompt, task.canonical(), (_sorted_out(good, bad),)))
    return read


def _sorted_out(good: tuple[int, ...], bad: tuple[int, ...]) -> Verdict:
    if not good:
        return Verdict(importer(0), "all_bad")
    if len(good) + len(bad) > 2:
        return Verdict(importer(0), "ranking", ranking=tuple(group for group in (good, bad) if group))
    return Verdict(importer(0), "response", good[0]) if bad else Verdict(importer(0), "tie")


def _label(row: Mapping[str, Any] | RowProblem) -> bool:
    label = row.get("label") if isinstance(row, Mapping) else None
    if isinstance(label, bool):
        return label
    text = str(label).strip().lower()
    if text not in ("true", "false", "1", "0"):
        raise RowProblem("no label", f"label is {str(label)[:40]!r}, wanted true or false")
    return text in ("true", "1")


WRITERS: Mapping[str, Callable[[JudgedRound, Ledger, Terms], Rows]] = {
    "trl": trl,
    "trl-implicit": trl_implicit,
    "kto": kto,
    "hh": hh,
    "openai": openai,
}
"""What writes each format."""

READ_AS: Mapping[str, str] = {
    "trl": "preference",
    "trl-implicit": "implicit-preference",
    "hh": "hh",
    "openai": "openai-preference",
}
"""Our names → the reader's."""
