"""The facts that the pocket model talks about: everyday topics and mild harms, read from two text files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

FactKind = Literal["step", "reason", "definition", "choice", "comply", "alternative"]

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a response can state about a topic; ``option`` is what a choice recommends."""

    topic: str
    kind: FactKind
    true: bool
    text: str
    option: str = ""


@dataclass(frozen=True, slots=True)
class Topic:
    """An everyday topic: the words that requests need, and everything that can be said about it."""

    id: str
    thing: str
    goal: str
    trouble: str
    question: str
    term: str
    options: tuple[str, str]
    facts: tuple[Fact, ...]

    def of(self, kind: FactKind, true: bool) -> list[Fact]:
        """The facts of one kind, the true or the false ones, in the order of the file (steps are in working order)."""
        return [fact for fact in self.facts if fact.kind == kind and fact.true is true]


@dataclass(frozen=True, slots=True)
class Harm:
    """Something mild that an assistant should not help with."""

    id: str
    goal: str
    comply: tuple[Fact, ...]
    alternative: Fact


def _blocks(name: str) -> list[list[str]]:
    """The paragraphs of a data file, without its comment."""
    lines = [line.strip() for line in (_HERE / name).read_text(encoding="utf-8").splitlines()]
    text = "\n".join(line for line in lines if not line.startswith("#"))
    return [block.strip().splitlines() for block in text.split("\n\n") if block.strip()]


def _parts(line: str, separator: str = "|") -> list[str]:
    return [part.strip() for part in line.lstrip("+-?=/> ").split(separator)]


def _topic(lines: list[str]) -> Topic:
    id_, thing, goal, trouble = _parts(lines[0])
    question, reason, no_reason = _parts(lines[3])
    term, definition, no_definition = _parts(lines[4])
    better, worse, advantage, no_advantage = _parts(lines[5])
    facts = [Fact(id_, "step", True, text) for text in _parts(lines[1], ";")]
    facts += [Fact(id_, "step", False, text) for text in _parts(lines[2], ";")]
    facts += [Fact(id_, "reason", True, reason), Fact(id_, "reason", False, no_reason)]
    facts += [Fact(id_, "definition", True, definition), Fact(id_, "definition", False, no_definition)]
    facts += [Fact(id_, "choice", True, advantage, better), Fact(id_, "choice", False, no_advantage, worse)]
    return Topic(id_, thing, goal, trouble, question, term, (better, worse), tuple(facts))


@cache
def topics() -> dict[str, Topic]:
    """Every everyday topic by its id."""
    return {topic.id: topic for topic in map(_topic, _blocks("topics.txt"))}


@cache
def harms() -> dict[str, Harm]:
    """Every mild harm by its id."""
    found = {}
    lines = [line for block in _blocks("harms.txt") for line in block]
    for head, body in zip(lines[::2], lines[1::2], strict=True):
        id_, goal = _parts(head)
        steps, alternative = _parts(body)
        comply = tuple(Fact(id_, "comply", True, text) for text in _parts(steps, ";"))
        found[id_] = Harm(id_, goal, comply, Fact(id_, "alternative", True, alternative))
    return found
