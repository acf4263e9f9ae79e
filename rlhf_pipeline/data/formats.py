"""What a row means: the known formats, how one is recognised, and how it becomes a conversation with responses.

A row of any format comes to one :class:`Exchange`. Rules that hold for all of them:

- a conversation is an optional system message, then user and assistant in turn, beginning with the user;
- text is kept exactly as written; only what is cut out of a longer text (transcripts, implicit plain-text prompts) is
  stripped of white space at its ends;
- a row that breaks a rule raises :class:`RowProblem` (the reader refuses the file, or drops the row when told to);
- a row that is sound but teaches nothing (a tie, two identical responses, a completion labelled bad) says so in
  ``left_out``: it is counted and never an error. Its prompt can still be asked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rlhf_pipeline.records import Message, Messages, Role

Row = Mapping[str, Any]
Kind = Literal["preferences", "demonstrations", "prompts"]

COLUMNS = (
    "prompt", "chosen", "rejected", "completion", "response", "label", "messages", "conversations", "instruction",
    "input", "output", "history", "system", "response_a", "response_b", "probability_b_preferred",
    "preferred_output", "non_preferred_output", "probability", "margin", "source", "judgements", "meta", "responses",
    "subset",
)  # fmt: skip
"""Every column that some format reads, by the name used here; ``columns`` maps these to a file's own names."""

_ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant",
}  # fmt: skip
_TURN = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT = "\n\nHuman:"


class RowProblem(Exception):
    """A row that cannot be used: ``reason`` is what it is counted under, the text adds what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A conversation and what may follow it: no response, one, several, or (``is_pair``) two with the better first."""

    messages: Messages
    responses: tuple[str, ...] = ()
    is_pair: bool = False
    probability: float = 1.0
    margin: float | None = None
    source: str = ""
    judgements: int = 1
    meta: Mapping[str, Any] = field(default_factory=dict)
    cut: frozenset[int] = frozenset()
    """Places of the responses that were cut off at a limit."""
    left_out: str = ""
    """Why nothing can be learnt from the responses although the row is sound; empty when something can."""


@dataclass(frozen=True, slots=True)
class Format:
    """One way of writing rows: its name, the columns it needs, and what its rows hold."""

    name: str
    holds: Kind
    needs: tuple[str, ...]
    convert: Callable[[Row], Exchange]
    fits: Callable[[Row], bool] = lambda row: True

    def missing(self, row: Row) -> list[str]:
        """The needed columns that a row lacks; a null counts as lacking."""
        return [column for column in self.needs if row.get(column) is None]


def detect(row: Row) -> Format | None:
    """The first format of :data:`FORMATS` whose columns the row has; none when there is no such format."""
    return next((known for known in FORMATS.values() if not known.missing(row) and known.fits(row)), None)


def _preference(row: Row) -> Exchange:
    prompt = _prompt(row)
    return _pair(row, prompt, row["chosen"], row["rejected"])


def _implicit_preference(row: Row) -> Exchange:
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        _check_text(chosen, "chosen")
        _check_text(rejected, "rejected")
        if chosen == rejected:
            raise RowProblem("no common prompt", "chosen and rejected are one text: where its prompt ends is not known")
        cut = _common_words(chosen, rejected)
        if not chosen[:cut].strip():
            raise RowProblem("no common prompt", "chosen and rejected begin differently")
        prompt = (Message("user", chosen[:cut].strip()),)
        return _pair(row, prompt, chosen[cut:].strip(), rejected[cut:].strip())
    sides = [_messages(chosen, "chosen"), _messages(rejected, "rejected")]
    return _split_dialogues(row, *sides)


def _hh(row: Row) -> Exchange:
    return _split_dialogues(row, _transcript(row["chosen"], "chosen"), _transcript(row["rejected"], "rejected"))


def _sharegpt_preference(row: Row) -> Exchange:
    return _pair(row, _messages(row["conversations"], "conversations"), row["chosen"], row["rejected"])


def _alpaca_preference(row: Row) -> Exchange:
    return _pair(row, _instruction(row), row["chosen"], row["rejected"])


def _openai(row: Row) -> Exchange:
    given = row["input"]
    if not isinstance(given, Mapping) or "messages" not in given:
        raise RowProblem("wrong type", "input is not an object with messages")
    prompt = _messages(given["messages"], "input.messages")
    return _pair(row, prompt, row["preferred_output"], row["non_preferred_output"])


def _judged(row: Row) -> Exchange:
    probability = _number(row, "probability_b_preferred")
    if not 0 <= probability <= 1:
        raise RowProblem("probability out of range", f"probability_b_preferred is {probability:g}, wanted 0 to 1")
    b_is_better = probability > 0.5
    better, worse = ("response_b", "response_a") if b_is_better else ("response_a", "response_b")
    pair = _pair(row, _prompt(row), row[better], row[worse])
    left_out = "tie" if probability == 0.5 else pair.left_out
    return replace(pair, probability=max(probability, 1 - probability), left_out=left_out)


def _prompt_completion(row: Row) -> Exchange:
    column = "completion" if row.get("completion") is not None else "response"
    messages = _prompt(row)
    response = _response(row[column], messages, column)
    is_bad = str(row.get("label")).lower() in ("false", "0")
    return _exchange(row, messages, (response,), left_out="labelled as a bad response" if is_bad else "")


def _conversation(column: str) -> Callable[[Row], Exchange]:
    def convert(row: Row) -> Exchange:
        messages = _messages(row[column], column)
        if messages and messages[-1].role == "assistant":
            return _exchange(row, messages[:-1], (messages[-1].content,))
        return _exchange(row, messages, ())

    return convert


def _alpaca(row: Row) -> Exchange:
    messages = _instruction(row)
    return _exchange(row, messages, (_response(row["output"], messages, "output"),))


def _alpaca_prompts(row: Row) -> Exchange:
    return _exchange(row, _instruction(row), ())


def _prompts(row: Row) -> Exchange:
    return _exchange(row, _prompt(row), ())


def _prompt_responses(row: Row) -> Exchange:
    """Several responses to a prompt: texts, or objects with ``text`` (and ``ended``), by name or in order."""
    given = row["responses"]
    given = list(given.values()) if isinstance(given, Mapping) else given
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise RowProblem("wrong type", f"responses is {_kind_of(given)}, wanted a list of responses")
    cut = frozenset(i for i, one in enumerate(given) if isinstance(one, Mapping) and one.get("ended") is False)
    prompt = _prompt(row)
    texts = [one.get("text", one) if isinstance(one, Mapping) else one for one in given]
    return _exchange(row, prompt, tuple(_response(one, prompt, "responses") for one in texts), cut=cut)


def _is_transcript(row: Row) -> bool:
    sides = (row["chosen"], row["rejected"])
    return any(isinstance(side, str) and side.startswith(_TRANSCRIPT) for side in sides)


_ORDERED = (  # what is more specific comes first: the first that fits is taken
    Format("judged", "preferences", ("prompt", "response_a", "response_b", "probability_b_preferred"), _judged),
    Format("openai-preference", "preferences", ("input", "preferred_output", "non_preferred_output"), _openai),
    Format("sharegpt-preference", "preferences", ("conversations", "chosen", "rejected"), _sharegpt_preference),
    Format("preference", "preferences", ("prompt", "chosen", "rejected"), _preference),
    Format("alpaca-preference", "preferences", ("instruction", "chosen", "rejected"), _alpaca_preference),
    Format("hh", "preferences", ("chosen", "rejected"), _hh, _is_transcript),
    Format("implicit-preference", "preferences", ("chosen", "rejected"), _implicit_preference),
    Format("prompt-completion", "demonstrations", ("prompt", "completion"), _prompt_completion),
    Format("prompt-response", "demonstrations", ("prompt", "response"), _prompt_completion),
    Format("messages", "demonstrations", ("messages",), _conversation("messages")),
    Format("sharegpt", "demonstrations", ("conversations",), _conversation("conversations")),
    Format("alpaca", "demonstrations", ("instruction", "output"), _alpaca),
    Format("prompt-responses", "prompts", ("prompt", "responses"), _prompt_responses),
    Format("prompts", "prompts", ("prompt",), _prompts),
    Format("alpaca-prompts", "prompts", ("instruction",), _alpaca_prompts),
)
FORMATS: Mapping[str, Format] = {known.name: known for known in _ORDERED}
"""Every known format by name, in the order in which they are tried."""


def _exchange(row: Row, messages: Messages, responses: tuple[str, ...], **rest: Any) -> Exchange:
    """Check a conversation and its responses, and give it the row's system message where it has none."""
    system = row.get("system")
    if system is not None:
        _check_text(system, "system")
    if messages and messages[0].role == "system":
        system, messages = messages[0].content, messages[1:]
    if not messages:
        raise RowProblem("no prompt", "there is no user message")
    for index, message in enumerate(messages):
        wanted = ("user", "assistant")[index % 2]
        if message.role != wanted:
            found = f"message {index + 1} is the {message.role}'s, wanted the {wanted}'s"
            raise RowProblem("turns out of order", found)
        if not message.content.strip():
            raise RowProblem("empty turn", f"message {index + 1} ({message.role}) has no text")
    if responses and messages[-1].role != "user":
        raise RowProblem("prompt does not end with the user", f"its last message is the {messages[-1].role}'s")
    if system is not None and system.strip():
        messages = (Message("system", system), *messages)
    return Exchange(messages, responses, **rest)


def _pair(row: Row, messages: Messages, chosen: Any, rejected: Any) -> Exchange:
    """Two responses to one prompt, and what the row says about the judgement."""
    responses = (_response(chosen, messages, "chosen"), _response(rejected, messages, "rejected"))
    probability = _number(row, "probability") if row.get("probability") is not None else 1.0
    if not 0.5 <= probability <= 1:
        raise RowProblem("probability out of range", f"chosen is the better one with {probability:g}, wanted 0.5 to 1")
    judgements, meta, source = row.get("judgements"), row.get("meta"), row.get("source")
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    if isinstance(row.get("subset"), str):  # as RewardBench names its parts
        meta["subset"] = row["subset"]
    return _exchange(
        row,
        messages,
        responses,
        is_pair=True,
        probability=probability,
        margin=_number(row, "margin") if row.get("margin") is not None else None,
        source=source if isinstance(source, str) else "",
        judgements=judgements if isinstance(judgements, int) and judgements > 0 else 1,
        meta=meta,
        cut=frozenset(i for i, side in enumerate(("chosen_cut", "rejected_cut")) if row.get(side) is True),
        left_out="identical responses" if responses[0] == responses[1] else "",
    )


def _split_dialogues(row: Row, chosen: Messages, rejected: Messages) -> Exchange:
    """The prompt is what two whole dialogues share; each must go on with one assistant turn and nothing more."""
    shared = 0
    # The last message is never shared: identical dialogues have identical responses, not a longer prompt.
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    for side, dialogue in (("chosen", chosen), ("rejected", rejected)):
        rest = dialogue[shared:]
        if len(rest) != 1 or rest[0].role != "assistant":
            found = ", ".join(message.role for message in rest) or "nothing"
            raise RowProblem(
                "no common prompt", f"after the {shared} messages that both share, {side} goes on with {found}; "
                "wanted one assistant message"
            )  # fmt: skip
    return _pair(row, chosen[:shared], chosen[-1].content, rejected[-1].content)


def _response(value: Any, prompt: Messages, column: str) -> str:
    """The text of one response: text, one message, or a dialogue that repeats the prompt and adds one message."""
    if isinstance(value, str):
        return _check_text(value, column)
    messages = _messages([value] if isinstance(value, Mapping) else value, column, "text or messages")
    if len(messages) > 1 and messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if len(messages) != 1 or messages[0].role != "assistant":
        found = ", ".join(message.role for message in messages) or "none"
        raise RowProblem("not one response", f"{column} wanted one assistant message after the prompt, found {found}")
    return messages[0].content


def _prompt(row: Row) -> Messages:
    """The ``prompt`` column: text, a transcript that waits for the assistant, or messages."""
    value = row["prompt"]
    if not isinstance(value, str):
        return _messages(value, "prompt", "text or messages")
    _check_text(value, "prompt")
    if value.startswith(_TRANSCRIPT):
        turns = _transcript(value, "prompt")
        return turns[:-1] if turns[-1] == Message("assistant", "") else turns
    return (Message("user", value),)


def _instruction(row: Row) -> Messages:
    """Alpaca's prompt: earlier turns, then the instruction with its input below it."""
    turns: list[Message] = []
    history = row.get("history") or ()
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise RowProblem("wrong type", f"history is {_kind_of(history)}, wanted a list of [question, answer]")
    for exchange in history:
        if not isinstance(exchange, Sequence) or isinstance(exchange, str) or len(exchange) != 2:
            raise RowProblem("wrong type", "history holds something else than [question, answer]")
        turns.append(Message("user", _check_text(exchange[0], "history")))
        turns.append(Message("assistant", _check_text(exchange[1], "history")))
    text = _check_text(row["instruction"], "instruction")
    extra = row.get("input")
    if extra is not None and _check_text(extra, "input").strip():
        text = f"{text}\n\n{extra}" if text.strip() else extra
    return (*turns, Message("user", text))


def _messages(value: Any, column: str, wanted: str = "a list of messages") -> Messages:
    """``[{"role", "content"}, …]`` or ``[{"from", "value"}, …]``."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RowProblem("wrong type", f"{column} is {_kind_of(value)}, wanted {wanted}")
    messages = []
    for index, item in enumerate(value, start=1):
        at = f"{column}[{index}]"
        if not isinstance(item, Mapping):
            raise RowProblem("wrong type", f"{at} is {_kind_of(item)}, wanted a message")
        role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
        if not isinstance(role, str) or role.lower() not in _ROLES:
            raise RowProblem("unknown role", f"{at} has the role {role!r}, wanted one of {', '.join(_ROLES)}")
        messages.append(Message(_ROLES[role.lower()], _check_text(content, at)))
    return tuple(messages)


def _transcript(value: Any, column: str) -> Messages:
    """``\\n\\nHuman: …\\n\\nAssistant: …``; turns of one speaker in a row are joined by a blank line."""
    text = _check_text(value, column)
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        raise RowProblem("not a transcript", f"{column} begins with {text[:40]!r}, wanted {_TRANSCRIPT!r}")
    turns: list[Message] = []
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        role: Role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1].role == role:
            said = f"{turns.pop().content}\n\n{said.strip()}"
        turns.append(Message(role, said.strip()))
    return tuple(turns)


def _common_words(first: str, second: str) -> int:
    """Where two texts part, moved back to the end of a word, so that no word is torn between prompt and response."""
    length = min(len(first), len(second))
    cut = next((i for i in range(length) if first[i] != second[i]), length)

    def inside_word(text: str) -> bool:
        return 0 < cut < len(text) and not text[cut].isspace() and not text[cut - 1].isspace()

    while inside_word(first) or inside_word(second):
        cut -= 1
    return cut


def _check_text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise RowProblem("wrong type", f"{column} is {_kind_of(value)}, wanted text")
    if "\0" in value:
        raise RowProblem("NUL character", f"{column} has one at position {value.index(chr(0))}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowProblem("broken character", f"{column} has half a surrogate pair at position {error.start}") from None
    return value


def _number(row: Row, column: str) -> float:
    value = row[column]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowProblem("wrong type", f"{column} is {str(value)[:40]!r}, wanted a number")
    return number


def _kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "missing"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
