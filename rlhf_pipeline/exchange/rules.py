"""What an export leaves out: the rules by name, and how much each of them removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rlhf_pipeline.aggregate import Counting

RULES: Mapping[str, tuple[str, str]] = {
    # name: (what is counted, the rule)
    "superseded": ("judgements", "a judgement that its author revised or took back does not count"),
    "purpose": ("judgements", "questions with known answers, repeated ones and those of the training do not count"),
    "skip": ("judgements", "a skip is no judgement"),
    "adjudicated": ("judgements", "where an admin has decided a task, only that decision counts"),
    "late": ("judgements", "one that came after its place was given to somebody else does not count"),
    "flagged": ("judgements", "a task that somebody flagged is left out"),
    "corrections": ("corrections", "a corrected response is not made a pair"),
    "unchanged": ("corrections", "a correction that changes nothing is no correction"),
    "tie": ("pairs", "a tie has no better response"),
    "all_bad": ("pairs", "where none is good, none is better"),
    "even": ("pairs", "judges who disagree half and half have decided nothing"),
    "middle": ("responses", "the middle of a ranking is neither good nor bad"),
    "divided": ("responses", "a response that as many judges find good as bad has no label"),
    "no_margin": ("pairs", "a pair of which nobody said how much better one is has no margin to compare"),
    "min_margin": ("pairs", "a pair whose margin is below the least wanted is left out"),
    "min_probability": ("pairs", "a pair on which fewer agree than wanted is left out"),
    "unjudged": (
        "tasks",
        "a task of which only known answers were asked, or that is retired, is not sent to be judged",
    ),
    "twice": ("judgements", "where an admin decided a task that they had judged, the decision counts"),
    "remark": ("judgements", "a remark or correction with half a surrogate pair or a NUL character cannot be read"),
    "text": ("rows", "half a surrogate pair or a NUL character cannot be read by the format's consumers"),
    "system": ("rows", "transcripts have no place for a system message"),
    "speaker": ("rows", "a text with a line that reads like the next speaker's name cannot be told from a turn"),
    "turns": ("rows", "a conversation whose turns do not alternate cannot be written as a transcript"),
}


class Ledger:
    """Counts what each rule of an export removed; a rule that removed nothing is listed all the same."""

    def __init__(self) -> None:
        self._removed: Counter[str] = Counter()

    def apply(self, *rules: str) -> None:
        """These rules hold, whether or not they meet anything."""
        for rule in rules:
            self.remove(rule, 0)

    def remove(self, rule: str, number: int = 1) -> None:
        """Count what a rule removed."""
        assert rule in RULES, rule
        self._removed[rule] += number

    def removed(self, rule: str) -> int:
        """How much a rule removed so far."""
        return self._removed[rule]

    def to_json(self) -> list[dict[str, Any]]:
        """One object for each rule that was applied, in the order in which they are applied."""
        return [
            {"rule": name, "removed": self._removed[name], "of": of, "because": text}
            for name, (of, text) in RULES.items()
            if name in self._removed
        ]


@dataclass(frozen=True, slots=True)
class Terms:
    """What the person who exports may choose.

    Args:
        min_margin: pairs whose mean margin is below it are left out; None keeps all, those without a margin too.
        min_probability: pairs whose chosen side has a smaller share of the votes are left out (0.5 to 1).
        corrections: whether a corrected response becomes a pair (correction better than original) and, for KTO, a row.
        drop_flagged: whether a task that anybody flagged is left out.
        votes: how votes are counted, and which of them: as for training on the round itself.
    """

    min_margin: float | None = None
    min_probability: float = 0.5
    corrections: bool = True
    drop_flagged: bool = False
    votes: Counting = field(default_factory=Counting)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def is_plain(*texts: str) -> bool:
    """Whether every reader can take these texts: no NUL, no half of a surrogate pair."""
    return not any("\0" in text or any("\ud800" <= c <= "\udfff" for c in text) for text in texts)
