"""What flows between the stages: prompts, demonstrations and preferences, and their JSONL forms."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def to_json(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


Messages = tuple[Message, ...]


def messages_from_json(items: Sequence[Mapping[str, Any]]) -> Messages:
    """Read ``[{"role", "content"}, …]`` as written by this module (already validated)."""
    return tuple(Message(cast(Role, item["role"]), item["content"]) for item in items)


def messages_digest(messages: Sequence[Message]) -> str:
    """The identity of a conversation: 16 hex digits of the sha256 of its canonical JSON."""
    text = json.dumps([[m.role, m.content] for m in messages], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for the assistant's next turn; its last message is the user's."""

    messages: Messages

    @property
    def id(self) -> str:
        """The prompt's identity; splits and joins go by it."""
        return messages_digest(self.messages)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with a response worth imitating."""

    prompt: Prompt
    response: str

    def to_json(self) -> dict[str, Any]:
        """The conversation as messages, as TRL and :mod:`rlhf_pipeline.data` read it."""
        return {
            "messages": [*(m.to_json() for m in self.prompt.messages), Message("assistant", self.response).to_json()]
        }


@dataclass(frozen=True, slots=True)
class Preference:
    """Two responses to one prompt; ``probability`` is that of ``chosen`` being the better one (0.5 to 1).

    Args:
        tie: neither is better; ``probability`` is 0.5, and which of the two is called ``chosen`` says nothing.
        weight: how much the pair counts in a loss, beside others.
        weak: labelled by functions or a reward model, not by judges; ``source`` says by which.
        chosen_cut, rejected_cut: the response was cut off at a limit, so it must not be learnt as one that ends.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    probability: float = 1.0
    margin: float | None = None
    source: str = ""
    judgements: int = 1
    meta: Mapping[str, Any] = field(default_factory=dict)
    chosen_cut: bool = False
    rejected_cut: bool = False
    weight: float = 1.0
    tie: bool = False
    weak: bool = False

    def to_json(self) -> dict[str, Any]:
        """TRL's conversational form with an explicit prompt, plus what TRL does not read."""
        return {
            "prompt": [m.to_json() for m in self.prompt.messages],
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
            "probability": self.probability,
            "tie": self.tie,
            "weight": self.weight,
            "weak": self.weak,
            "margin": self.margin,
            "source": self.source,
            "judgements": self.judgements,
            "chosen_cut": self.chosen_cut,
            "rejected_cut": self.rejected_cut,
            "prompt_id": self.prompt.id,
            "meta": dict(self.meta),
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Preference:
        """Read a row of a stage's own ``preferences.jsonl`` (files of users go through :mod:`rlhf_pipeline.data`)."""
        return Preference(
            prompt=Prompt(messages_from_json(row["prompt"])),
            chosen=row["chosen"][0]["content"],
            rejected=row["rejected"][0]["content"],
            probability=row["probability"],
            margin=row["margin"],
            source=row["source"],
            judgements=row["judgements"],
            meta=row["meta"],
            chosen_cut=row.get("chosen_cut", False),
            rejected_cut=row.get("rejected_cut", False),
            weight=row.get("weight", row["meta"].get("weight", 1.0)),
            tie=row.get("tie", False),
            weak=row.get("weak", False),
        )


@dataclass(frozen=True, slots=True)
class RuleVotes:
    """What judges said of one rule and one response.

    Args:
        broken: the probability that the response breaks the rule: the share of the judges who said so, or what a model
            of their votes makes of it.
        judgements: how many people answered.
    """

    broken: float
    judgements: int

    @property
    def verdict(self) -> Literal["broken", "kept", "divided"]:
        """What most say; "divided" where as many say one thing as the other."""
        if abs(self.broken - 0.5) < 1e-9:
            return "divided"
        return "broken" if self.broken > 0.5 else "kept"


@dataclass(frozen=True, slots=True)
class RuledResponse:
    """A response with what judges said of each rule: a row of ``rules.jsonl``.

    Args:
        rules: every rule of the round → its votes; None where nobody was asked about this response, or nobody answered.
        cut: the response was cut off at a limit.
    """

    prompt: Prompt
    response: str
    rules: Mapping[str, RuleVotes | None]
    cut: bool = False

    def to_json(self) -> dict[str, Any]:
        unanswered = {"verdict": "unanswered", "broken": None, "judgements": 0}
        return {
            "prompt": [m.to_json() for m in self.prompt.messages],
            "response": self.response,
            "rules": {
                rule: {"verdict": votes.verdict, "broken": votes.broken, "judgements": votes.judgements}
                if votes
                else dict(unanswered)
                for rule, votes in self.rules.items()
            },
            "cut": self.cut,
            "prompt_id": self.prompt.id,
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> RuledResponse:
        """Read what :meth:`to_json` wrote."""
        rules = {
            rule: None if said["broken"] is None else RuleVotes(said["broken"], said["judgements"])
            for rule, said in row["rules"].items()
        }
        return RuledResponse(Prompt(messages_from_json(row["prompt"])), row["response"], rules, row["cut"])


@dataclass(frozen=True, slots=True)
class SampledResponse:
    """One response of a policy: its text, its token ids (stop token included), and whether it ended by itself."""

    text: str
    ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True, slots=True)
class ResponseSet:
    """K responses of one policy to one prompt: a row of ``responses.jsonl``."""

    prompt: Prompt
    responses: tuple[SampledResponse, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt_id": self.prompt.id,
            "prompt": [m.to_json() for m in self.prompt.messages],
            "responses": [{"text": r.text, "ids": list(r.ids), "ended": r.ended} for r in self.responses],
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> ResponseSet:
        return ResponseSet(
            prompt=Prompt(messages_from_json(row["prompt"])),
            responses=tuple(SampledResponse(r["text"], tuple(r["ids"]), r["ended"]) for r in row["responses"]),
        )


@dataclass(frozen=True, slots=True)
class Candidates:
    """A prompt and responses to it that somebody wants scored, the chosen one first where there is one.

    ``cut``: places of the responses that were cut off at a limit.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    is_pair: bool
    cut: frozenset[int] = frozenset()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows of a file that this program wrote; the manifest's hash has vouched for it."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows to a temporary sibling, sync, rename; returns how many."""
    temporary = path.with_name(path.name + ".tmp")
    count = 0
    with temporary.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path)
    return count
