"""What people ask the pocket model: ten kinds of request, written and read back."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from ..records import Message, Messages
from . import phrases
from .sentences import capital, read_sentence, split_sentences
from .topics import FactKind, Topic, harms, topics

Kind = Literal["how", "why", "what", "choose", "cheer", "complain", "thank", "harm", "nonsense", "follow_up"]
Wish = Literal["", "short", "long"]
_WISHES: tuple[Wish, ...] = ("short", "long")
KINDS: tuple[Kind, ...] = (
    "how", "why", "what", "choose", "cheer", "complain", "thank", "harm", "nonsense", "follow_up"
)  # fmt: skip

ANSWERS: dict[str, FactKind] = {
    "how": "step",
    "next": "step",
    "why": "reason",
    "what": "definition",
    "choose": "choice",
}
"""The kind of fact that answers a request, by its form; every fact of the topic will do for the other forms."""


@dataclass(frozen=True, slots=True)
class Request:
    """A user's turn: ``form`` is the kind, or for a follow-up or reaction what it asks; ``topic`` may be a harm's id.

    ``wish`` is the length that the person asked for. ``earlier_right`` says for "Are you sure?" whether the answer
    before stated nothing false.
    """

    kind: Kind
    form: str
    topic: str = ""
    wish: Wish = ""
    earlier_right: bool | None = None

    @property
    def asked(self) -> FactKind | None:
        """The kind of fact that the request asks for, if it asks for one in particular."""
        return ANSWERS.get(self.form)


def _words(topic: Topic) -> dict[str, str]:
    first, second = topic.options
    return {
        "thing": topic.thing,
        "goal": topic.goal,
        "trouble": topic.trouble,
        "question": topic.question,
        "term": topic.term,
        "first": first,
        "second": second,
    }


def _swapped(words: dict[str, str]) -> dict[str, str]:
    return words | {"first": words["second"], "second": words["first"]}


def render(rng: random.Random, template: str, topic: Topic) -> str:
    """A request's text about a topic; the options of a choice stand in random order."""
    words = _words(topic)
    return capital(template.format(**(_swapped(words) if rng.random() < 0.5 else words)))


def write_opening(rng: random.Random, kind: Kind) -> tuple[Request, str]:
    """A first turn of a kind other than ``follow_up``, with its text."""
    if kind == "harm":
        harm = rng.choice(list(harms().values()))
        return Request("harm", "harm", harm.id), _greeted(rng, rng.choice(phrases.HARM_REQUESTS).format(goal=harm.goal))
    if kind == "nonsense":
        words = {slot: rng.choice(choices) for slot, choices in phrases.NONSENSE_WORDS.items()}
        return Request("nonsense", "nonsense"), capital(rng.choice(phrases.NONSENSE).format(**words))
    topic = rng.choice(list(topics().values()))
    text = _greeted(rng, render(rng, rng.choice(phrases.REQUESTS[kind]), topic))
    request = Request(kind, kind, topic.id)
    if kind in ANSWERS and rng.random() < 0.4:
        request = replace(request, wish=rng.choice(_WISHES))
        text += " " + rng.choice(phrases.WISHES[request.wish])
    return request, text


def _greeted(rng: random.Random, text: str) -> str:
    return f"{rng.choice(phrases.GREETINGS)} {text}" if rng.random() < 0.3 else text


@cache
def _known() -> dict[str, Request]:
    """Every first turn and follow-up that names its topic, without greeting and wish."""
    found: dict[str, Request] = {}
    for topic in topics().values():
        for words in (_words(topic), _swapped(_words(topic))):
            for kind, templates in phrases.REQUESTS.items():
                for template in templates:
                    found[capital(template.format(**words))] = Request(kind, kind, topic.id)  # type: ignore[arg-type]
            for form, templates in phrases.FOLLOW_UPS.items():
                for template in templates:
                    found[capital(template.format(**words))] = Request("follow_up", form, topic.id)
    for harm in harms().values():
        for template in phrases.HARM_REQUESTS:
            found[template.format(goal=harm.goal)] = Request("harm", "harm", harm.id)
    return found


@cache
def _bare() -> dict[str, Request]:
    """Every follow-up and reaction whose topic is in the turns before."""
    found = {text: Request("follow_up", form) for form, texts in phrases.BARE_FOLLOW_UPS.items() for text in texts}
    for form, texts in phrases.REACTIONS.items():
        kind: Kind = "thank" if form == "happy" else "complain"
        found.update({text: Request(kind, kind) for text in texts})
    return found


@cache
def _nonsense() -> re.Pattern[str]:
    groups = {slot: "(?:" + "|".join(map(re.escape, words)) + ")" for slot, words in phrases.NONSENSE_WORDS.items()}
    patterns = (re.sub(r"\\\{(.)\\\}", lambda m: groups[m[1]], re.escape(text)) for text in phrases.NONSENSE)
    return re.compile("|".join(patterns), re.IGNORECASE)


def read_request(messages: Sequence[Message]) -> Request | None:
    """Read the last turn of a conversation back, its topic from the turns before if need be; None if it is foreign."""
    turns: Messages = tuple(message for message in messages if message.role != "system")
    if not turns or turns[-1].role != "user":
        return None
    text, wish = _without_wish(_without_greeting(turns[-1].content.strip()))
    if text in _known():
        return replace(_known()[text], wish=wish)
    if _nonsense().fullmatch(text):
        return Request("nonsense", "nonsense")
    if text in _bare() and len(turns) >= 3:
        earlier = read_request(turns[:-2])
        if earlier is None or earlier.topic not in topics():
            return None
        bare = _bare()[text]
        earlier_right = says_no_wrong(turns[-2].content, earlier.topic) if bare.form == "sure" else None
        return replace(bare, topic=earlier.topic, earlier_right=earlier_right)
    return None


def says_no_wrong(text: str, topic: str) -> bool:
    """Whether an earlier answer stated at least one fact, and only true ones of the topic."""
    meanings = [read_sentence(sentence) for sentence in split_sentences(text)]
    facts = [meaning for meaning in meanings if meaning is not None and meaning.role == "fact"]
    return bool(facts) and all(fact.true and fact.topic == topic for fact in facts)


def _without_greeting(text: str) -> str:
    for greeting in phrases.GREETINGS:
        if text.startswith(greeting + " "):
            return text[len(greeting) + 1 :]
    return text


def _without_wish(text: str) -> tuple[str, Wish]:
    for wish in _WISHES:
        for ending in phrases.WISHES[wish]:
            if text.endswith(" " + ending):
                return text[: -len(ending) - 1], wish
    return text, ""
