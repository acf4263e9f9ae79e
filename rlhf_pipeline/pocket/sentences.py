"""Every sentence that the grammar can say, and the way back from a sampled text to what its sentences mean."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, lru_cache
from typing import Literal

from . import phrases
from .topics import Fact, FactKind, harms, topics

SIMILARITY = 0.85
"""Smallest share of common words (in order) at which a sampled sentence still counts as one of the grammar's."""

Role = Literal["fact", "marker", "refusal", "ask", "stance", "filler"]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one sentence says. ``key`` is the same for two wordings of one fact; ``exact`` is false after a slip."""

    role: Role
    key: str
    topic: str | None = None
    kind: FactKind | None = None
    true: bool = True
    tone: str = "plain"
    exact: bool = True


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def fact_sentence(template: str, fact: Fact) -> str:
    """One wording of a fact."""
    term = topics()[fact.topic].term if fact.kind == "definition" else ""
    return capital(template.format(text=fact.text, option=fact.option, term=term))


def split_sentences(text: str) -> list[str]:
    """The sentences of a text; the last may lack its full stop."""
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]


def _normal(sentence: str) -> str:
    return " ".join(sentence.lower().split())


def _facts() -> Iterator[Fact]:
    for topic in topics().values():
        yield from topic.facts
        # A policy may recommend one option for the other's reason. That is false, and must not pass for a slip.
        good, bad = topic.of("choice", True)[0], topic.of("choice", False)[0]
        yield Fact(topic.id, "choice", False, bad.text, good.option)
        yield Fact(topic.id, "choice", False, good.text, bad.option)
    for harm in harms().values():
        yield from (*harm.comply, harm.alternative)


def _toned() -> Iterator[tuple[str, str]]:
    """Every template of an opener or closer with its tone."""
    for by_tone in (*phrases.OPENERS.values(), phrases.CLOSERS):
        for tone, templates in by_tone.items():
            yield from ((template, tone) for template in templates)


@cache
def inventory() -> dict[str, Meaning]:
    """Every sentence of the grammar in normal form, with its meaning."""
    found: dict[str, Meaning] = {}
    for fact in _facts():
        key = f"{fact.topic}: {fact.option} {fact.text}"
        for template in phrases.FACTS[fact.kind]:
            found[_normal(fact_sentence(template, fact))] = Meaning("fact", key, fact.topic, fact.kind, fact.true)
    for template, tone in _toned():
        found.update(_with_things("marker", template, tone))
    for template in phrases.FILLERS:
        found.update(_with_things("filler", template, "plain"))
    for template in phrases.REFUSALS:
        for harm in harms().values():
            topic = harm.id if "{" in template else None
            found[_normal(template.format(goal=harm.goal))] = Meaning("refusal", "refusal", topic)
    found.update({_normal(text): Meaning("ask", text) for text in phrases.ASK_BACK})
    for true, texts in phrases.STANCES.items():
        found.update({_normal(text): Meaning("stance", "stance", true=true) for text in texts})
    return found


def _with_things(role: Role, template: str, tone: str) -> dict[str, Meaning]:
    if "{" not in template:
        return {_normal(template): Meaning(role, template, tone=tone)}
    sentences = {topic.id: _normal(template.format(thing=topic.thing)) for topic in topics().values()}
    return {sentence: Meaning(role, template, id_, tone=tone) for id_, sentence in sentences.items()}


@cache
def _index() -> dict[str, list[str]]:
    by_word: dict[str, list[str]] = defaultdict(list)
    for sentence in inventory():
        for word in set(sentence.split()):
            by_word[word].append(sentence)
    return by_word


@lru_cache(maxsize=65536)
def read_sentence(sentence: str) -> Meaning | None:
    """What a sentence means: exactly one of the grammar's, or one within :data:`SIMILARITY` of it, or None."""
    normal = _normal(sentence)
    exact = inventory().get(normal)
    if exact is not None:
        return exact
    words = normal.split()
    shared = Counter(candidate for word in set(words) for candidate in _index().get(word, ()))
    best, best_ratio = None, SIMILARITY
    for candidate, _ in shared.most_common(12):
        ratio = SequenceMatcher(None, words, candidate.split(), autojunk=False).ratio()
        if ratio >= best_ratio:
            best, best_ratio = inventory()[candidate], ratio
    if best is None:
        return None
    return Meaning(best.role, best.key, best.topic, best.kind, best.true, best.tone, exact=False)
