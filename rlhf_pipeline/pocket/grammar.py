"""The corpus of the pocket model: prompts, demonstrations and dialogues in any number, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from ..records import Demonstration, Message, Messages, Prompt
from . import phrases
from .requests import Kind, Request, render, says_no_wrong, write_opening
from .responses import Attributes, Content, Tone, write_response
from .topics import Topic, topics

K = TypeVar("K")

KIND_WEIGHTS: dict[Kind, float] = {
    "how": 0.20,
    "why": 0.12,
    "what": 0.10,
    "choose": 0.12,
    "cheer": 0.08,
    "complain": 0.08,
    "thank": 0.05,
    "harm": 0.11,
    "nonsense": 0.04,
    "follow_up": 0.10,
}


@dataclass(frozen=True, slots=True)
class Mixture:
    """How often a speaker's responses have each attribute; all are probabilities."""

    content: dict[Content, float]
    tone: dict[Tone, float]
    long: float
    refuses: float
    rambles: float
    heeds_wish: float
    """Probability of the wished length when a person wished for one."""

    def draw(self, rng: random.Random, request: Request) -> Attributes:
        """Attributes of one response to a request; combinations that make no sense are mended."""
        content = rng.choices(list(self.content), list(self.content.values()))[0]
        tone = rng.choices(list(self.tone), list(self.tone.values()))[0]
        wished = {"short": 1 - self.heeds_wish, "long": self.heeds_wish}.get(request.wish, self.long)
        long, refuses, rambles = rng.random() < wished, rng.random() < self.refuses, rng.random() < self.rambles
        if request.kind == "harm":
            return Attributes("off_topic" if content == "off_topic" else "right", tone, long, refuses, rambles)
        if request.kind == "nonsense":
            return Attributes("right" if content == "right" else "off_topic", tone, long, False, rambles)
        if content == "empty":
            return Attributes("empty", tone, False, True, rambles)
        if content == "beside" and request.asked is None:
            content = "right"
        return Attributes(content, tone, long, False, rambles)

    def styled(self, style: str) -> Mixture:
        """This mixture, given a style of :data:`STYLES` nine times in ten."""
        match style:
            case "knows":
                return replace(self, content=_mostly(self.content, "right", 0.9))
            case "errs":
                fooled: dict[Content, float] = {
                    "wrong": 0.7,
                    "right": 0.08,
                    "beside": 0.05,
                    "off_topic": 0.13,
                    "empty": 0.04,
                }
                return replace(self, content=fooled)
            case "warm" | "plain" | "rude":
                return replace(self, tone=_mostly(self.tone, style, 0.9))
            case "concise" | "talks":
                return replace(self, rambles=0.8 if style == "talks" else 0.02)
            case _:
                return replace(self, refuses=0.93 if style == "safe" else 0.07)


def _mostly(weights: dict[K, float], chosen: K, share: float) -> dict[K, float]:
    """Weights in which one choice has a share, and the others keep their proportions."""
    rest = sum(weight for name, weight in weights.items() if name != chosen)
    return {n: share if n == chosen else weight * (1 - share) / rest for n, weight in weights.items()}


CROWD = Mixture(
    content={"right": 0.46, "wrong": 0.32, "beside": 0.06, "off_topic": 0.13, "empty": 0.03},
    tone={"warm": 0.27, "plain": 0.46, "rude": 0.27},
    long=0.5,
    refuses=0.35,
    rambles=0.16,
    heeds_wish=0.6,
)
"""Everybody who speaks in the text that the base model learns from."""

STYLES: tuple[dict[str, float], ...] = (
    {"knows": 0.5, "errs": 0.5},
    {"warm": 0.3, "plain": 0.4, "rude": 0.3},
    {"concise": 0.8, "talks": 0.2},
    {"safe": 0.4, "unsafe": 0.6},
)
"""What sets the speakers of the corpus apart, and how many are of each sort."""

ASSISTANT = Mixture(
    content={"right": 0.63, "wrong": 0.25, "beside": 0.03, "off_topic": 0.07, "empty": 0.02},
    tone={"warm": 0.35, "plain": 0.50, "rude": 0.15},
    long=0.5,
    refuses=0.55,
    rambles=0.09,
    heeds_wish=0.75,
)
"""The demonstrations: a decent assistant with much left to learn from people."""


def prompts(n: int, seed: int) -> list[Prompt]:
    """``n`` different prompts of every kind; fewer prompts of the same seed are the first of these."""
    return [prompt for prompt, _ in _asked(n, random.Random(f"prompts {seed}"))]


def demonstrations(n: int, seed: int) -> list[Demonstration]:
    """``n`` different prompts, each with the response of a decent but imperfect assistant."""
    rng = random.Random(f"demonstrations {seed}")
    asked = _asked(n, random.Random(f"prompts {seed}"))
    return [
        Demonstration(prompt, write_response(rng, request, ASSISTANT.draw(rng, request))) for prompt, request in asked
    ]


def corpus(n: int, seed: int) -> list[Messages]:
    """``n`` dialogues of one to three exchanges for pre-training, with good and bad answers widely mixed.

    A speaker keeps to a style, and may have been told to by a system message; and what people say next depends on the
    answer before: they complain about what was wrong with it, thank for what was right, or ask whether it is true.
    That is how the base model learns what sets answers apart, which training on preferences then builds on.
    """
    rng = random.Random(f"corpus {seed}")
    return [_dialogue(rng) for _ in range(n)]


def _asked(n: int, rng: random.Random) -> list[tuple[Prompt, Request]]:
    found: dict[str, tuple[Prompt, Request]] = {}
    while len(found) < n:
        request, messages = _conversation(rng)
        prompt = Prompt(messages)
        found.setdefault(prompt.id, (prompt, request))
    return list(found.values())


def _conversation(rng: random.Random) -> tuple[Request, Messages]:
    """A first turn, or for a follow-up one exchange (seldom two) and the next turn."""
    kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    if kind != "follow_up":
        request, text = write_opening(rng, kind)
        return request, (Message("user", text),)
    request, text = write_opening(rng, rng.choice(_TALKED_ABOUT))
    messages: Messages = (Message("user", text),)
    for _ in range(rng.choice((1, 1, 1, 2))):
        attributes = ASSISTANT.draw(rng, request)
        answer = write_response(rng, request, attributes)
        request, text = _next_turn(rng, request, attributes, answer)
        messages += (Message("assistant", answer), Message("user", text))
    return request, messages


_TALKED_ABOUT: tuple[Kind, ...] = ("how", "how", "why", "what", "choose", "cheer", "complain")


def _dialogue(rng: random.Random) -> Messages:
    """Up to three exchanges with one speaker, who keeps to a style and may have been told to; often a last remark."""
    speaker, told = _speaker(rng)
    kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    request, text = write_opening(rng, rng.choice(_TALKED_ABOUT) if kind == "follow_up" else kind)
    messages: Messages = (Message("system", told),) if told else ()
    exchanges = 1 if request.topic not in topics() else rng.choices((1, 2, 3), (0.6, 0.3, 0.1))[0]
    for exchange in range(exchanges):
        attributes = speaker.draw(rng, request)
        answer = write_response(rng, request, attributes)
        messages += (Message("user", text), Message("assistant", answer))
        if exchange + 1 < exchanges:
            request, text = _next_turn(rng, request, attributes, answer)
    return (*messages, Message("user", _remark(request, attributes))) if rng.random() < 0.8 else messages


def _speaker(rng: random.Random) -> tuple[Mixture, str]:
    """A speaker with some styles of :data:`STYLES`, and the system message that says so, if any."""
    speaker, told = CROWD, []
    tells = rng.random() < 0.5
    if tells and rng.random() < 0.1:
        for style in ("knows", "warm", "concise", "safe"):
            speaker = speaker.styled(style)
        return speaker, phrases.HELPFUL
    for group in STYLES:
        if rng.random() < 0.6:
            style = rng.choices(list(group), list(group.values()))[0]
            speaker = speaker.styled(style)
            if tells:
                told.append(rng.choice(phrases.SYSTEM[style]))
    return speaker, " ".join(told)


def _remark(request: Request, attributes: Attributes) -> str:
    """What an attentive person says of an answer."""
    content: str = attributes.content
    if request.kind == "harm" and content == "right":
        content = "refuses" if attributes.refuses else "complies"
    said = [phrases.REMARKS[content], phrases.REMARKS[attributes.tone]]
    return " ".join([*said, phrases.REMARKS["rambles"]] if attributes.rambles else said)


def _next_turn(rng: random.Random, before: Request, attributes: Attributes, answer: str) -> tuple[Request, str]:
    """What the person says after an answer: a reaction to it, or a follow-up with or without naming the topic."""
    topic = topics()[before.topic]
    turn: Callable[..., tuple[Request, str]] = rng.choices((_reaction, _named, _bare), (0.35, 0.25, 0.4))[0]
    return turn(rng, topic, attributes, answer)


def _reaction(rng: random.Random, topic: Topic, attributes: Attributes, answer: str) -> tuple[Request, str]:
    faults: list[str] = [name for name in (attributes.tone, attributes.content) if name in phrases.REACTIONS]
    if attributes.rambles:
        faults.append("rambles")
    if attributes.content in ("beside", "empty"):
        faults.append("off_topic")
    reaction = rng.choice(faults) if faults else "happy"
    kind: Kind = "complain" if faults else "thank"
    return Request(kind, kind, topic.id), rng.choice(phrases.REACTIONS[reaction])


def _named(rng: random.Random, topic: Topic, attributes: Attributes, answer: str) -> tuple[Request, str]:
    form = rng.choice(list(phrases.FOLLOW_UPS))
    return Request("follow_up", form, topic.id), render(rng, rng.choice(phrases.FOLLOW_UPS[form]), topic)


def _bare(rng: random.Random, topic: Topic, attributes: Attributes, answer: str) -> tuple[Request, str]:
    form = rng.choice(("next", "sure", "sure", "again"))
    earlier_right = says_no_wrong(answer, topic.id) if form == "sure" else None
    return Request("follow_up", form, topic.id, earlier_right=earlier_right), rng.choice(phrases.BARE_FOLLOW_UPS[form])
