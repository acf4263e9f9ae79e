"""What the pocket assistant says: a response with given attributes to a given request."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from . import phrases
from .requests import Request
from .sentences import capital, fact_sentence
from .topics import Fact, FactKind, Harm, Topic, harms, topics

Content = Literal["right", "wrong", "beside", "off_topic", "empty"]
Tone = Literal["warm", "plain", "rude"]


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is known of a response.

    ``content``: right (nothing false, and what was asked), wrong (something false), beside (true, on topic, not what
    was asked), off_topic, or empty (neither facts nor anything else to the point). For something harmful, right
    means that the response speaks of what was asked, and ``refuses`` says the rest; for nonsense, right asks back.
    ``long``: more than one statement. ``rambles``: repeats itself, or goes on and on.
    """

    content: Content
    tone: Tone
    long: bool
    refuses: bool
    rambles: bool


def write_response(rng: random.Random, request: Request, attributes: Attributes) -> str:
    """A response with these attributes; the same random state gives the same text."""
    body, thing = _body(rng, request, attributes)
    manner = request.kind if request.kind in phrases.OPENERS else "ask"
    openers, closers = _manners(rng, manner, attributes.tone)
    sentences = [*openers, *body, *closers]
    if attributes.rambles:
        sentences += _ramble(rng, sentences)
    return " ".join(capital(sentence.replace("{thing}", thing)) for sentence in sentences)


def _body(rng: random.Random, request: Request, attributes: Attributes) -> tuple[list[str], str]:
    """The sentences that state something, and the thing that openers and closers may name."""
    if request.kind == "harm":
        return _harm_body(rng, request, attributes)
    if attributes.content == "empty":
        thing = topics()[request.topic].thing if request.topic else _any_thing(rng)
        return ([rng.choice(phrases.REFUSALS[::2])] if attributes.refuses else []), thing
    if request.kind == "nonsense":
        if attributes.content == "right":
            return rng.sample(phrases.ASK_BACK, 2 if attributes.long else 1), _any_thing(rng)
        return _other_body(rng, "", attributes.long)
    if attributes.content == "off_topic":
        return _other_body(rng, request.topic, attributes.long)
    topic = topics()[request.topic]
    if attributes.content == "beside":
        others: list[FactKind] = [kind for kind in _KINDS if kind != request.asked]
        return _facts(rng, topic, rng.choice(others), True, attributes.long, avoid=request.asked), topic.thing
    right = attributes.content == "right"
    if request.form == "sure":
        return _stance_body(rng, topic, bool(request.earlier_right), right, attributes.long), topic.thing
    if request.kind == "thank" and right and not attributes.long and rng.random() < 0.6:
        return [], topic.thing
    # Whoever complains, thanks or needs cheering up gets a tip; whoever asks to hear it again gets any fact.
    tip: FactKind = rng.choice(_KINDS) if request.kind == "follow_up" else "step"
    return _facts(rng, topic, request.asked or tip, right, attributes.long), topic.thing


_KINDS: tuple[FactKind, ...] = ("step", "reason", "definition", "choice")


def _facts(
    rng: random.Random, topic: Topic, kind: FactKind, right: bool, long: bool, avoid: FactKind | None = None
) -> list[str]:
    """One fact of a kind, or in a long body several steps, or a fact and tips; unless right, at least one is false."""
    if kind == "step":
        if not long:
            return [_say(rng, rng.choice(topic.of("step", right)), phrases.STEP_ALONE)]
        steps = topic.of("step", True)[: rng.choice((2, 3, 3))]
        if not right:
            wrong = rng.sample(topic.of("step", False), rng.choice((1, 2, 2)))
            for place, fact in zip(rng.sample(range(len(steps)), len(wrong)), wrong, strict=True):
                steps[place] = fact
        slots = [phrases.STEP_FIRST, *[phrases.STEP_MIDDLE] * (len(steps) - 2), phrases.STEP_LAST]
        return [_say(rng, fact, templates) for fact, templates in zip(steps, slots, strict=True)]
    main_right = right or (long and rng.random() < 0.3)
    body = [_say(rng, rng.choice(topic.of(kind, main_right)), phrases.FACTS[kind])]
    if long:
        extra: list[FactKind] = [other for other in _KINDS if other not in (kind, avoid)]
        other = "step" if "step" in extra and rng.random() < 0.7 else rng.choice(extra)
        tip_right = right or (not main_right and rng.random() < 0.3)
        templates = phrases.STEP_TIP if other == "step" else phrases.FACTS[other]
        body.append(_say(rng, rng.choice(topic.of(other, tip_right)), templates))
    return body


def _say(rng: random.Random, fact: Fact, templates: tuple[str, ...]) -> str:
    return fact_sentence(rng.choice(templates), fact)


def _stance_body(rng: random.Random, topic: Topic, earlier_right: bool, right: bool, long: bool) -> list[str]:
    """The answer to "Are you sure?": it stands by what was true and takes back what was false, or the reverse."""
    stance = rng.choice(phrases.STANCES[earlier_right is right])
    return [stance, *(_facts(rng, topic, rng.choice(_KINDS), right, False) if long else [])]


def _other_body(rng: random.Random, avoid: str, long: bool) -> tuple[list[str], str]:
    other = rng.choice([topic for topic in topics().values() if topic.id != avoid])
    return _facts(rng, other, rng.choice(_KINDS), rng.random() < 0.6, long), other.thing


def _harm_body(rng: random.Random, request: Request, attributes: Attributes) -> tuple[list[str], str]:
    harm = harms()[request.topic]
    if attributes.content == "off_topic":
        harm = rng.choice([other for other in harms().values() if other.id != harm.id])
    body = _refusal(rng, harm, attributes) if attributes.refuses else _comply(rng, harm, attributes.long)
    return body, _any_thing(rng)


def _refusal(rng: random.Random, harm: Harm, attributes: Attributes) -> list[str]:
    refusal = rng.choice(phrases.REFUSALS).format(goal=harm.goal)
    better = _say(rng, harm.alternative, phrases.FACTS["alternative"])
    if attributes.long:
        return [refusal, better]
    return [better if attributes.content == "off_topic" else rng.choice((refusal, better))]


def _comply(rng: random.Random, harm: Harm, long: bool) -> list[str]:
    if not long:
        return [_say(rng, rng.choice(harm.comply), ("You should {text}.",))]
    return [_say(rng, harm.comply[0], phrases.STEP_FIRST), _say(rng, harm.comply[1], phrases.STEP_MIDDLE)]


def _manners(rng: random.Random, manner: str, tone: Tone) -> tuple[list[str], list[str]]:
    """Openers and closers of a tone: at least one of them unless plain."""
    openers, closers = phrases.OPENERS[manner][tone], phrases.CLOSERS[tone]
    if manner in ("harm", "nonsense"):
        closers = tuple(text for text in closers if "{" not in text)
    place = rng.random()
    # A cheering, apologising or thanking opener is the point of the answer, so it is never left out.
    opens = manner in ("cheer", "complain", "thank") or place < (0.25 if tone == "plain" else 0.75)
    closes = rng.random() < 0.15 if tone == "plain" else not opens or rng.random() < 0.35
    return ([rng.choice(openers)] if opens and openers else []), ([rng.choice(closers)] if closes else [])


def _ramble(rng: random.Random, sentences: list[str]) -> list[str]:
    """Three to ten sentences more: what was said already, and things that lead nowhere."""
    count = 3
    while count < 10 and rng.random() < 0.75:
        count += 1
    repeating = rng.choice((0.2, 0.5, 0.9))
    # One sentence can be repeated at once, so short answers ramble as well as long ones.
    return [rng.choice(sentences if rng.random() < repeating else phrases.FILLERS) for _ in range(count)]


def _any_thing(rng: random.Random) -> str:
    return rng.choice(list(topics().values())).thing
