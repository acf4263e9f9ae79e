"""Are these preferences any good? What can be said of them before anything is trained on them.

Texts that differ in case and spacing alone are the same here. Pairs that functions or a reward model labelled are
counted apart: every other number is of what people (or whoever judged) said.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_pipeline.agreement import Estimate, krippendorff_alpha, raw_agreement
from rlhf_pipeline.records import Preference, Prompt
from rlhf_pipeline.reliability import Proportion, length_bias, position_bias

MOST_EXAMPLES = 5
_Pair = tuple[str, str, str]
"""Prompt and two responses, as they are compared."""


@dataclass(frozen=True, slots=True)
class PreferenceReport:
    """What is known of a set of preferences.

    Args:
        judged: pairs that judges decided, corrections included.
        ties: pairs that they found even.
        corrections: pairs of a corrected response and its original.
        weak: pairs that functions or a reward model labelled, by source; they enter no other number.
        prompts: different ones of what was judged.
        effective: the number of comparisons of equal weight that would say as much: Kish's ``(Σ w)² / Σ w²`` with
            ``w = weight (2 probability - 1)`` (Kish, Survey Sampling, 1965, section 11.7).
        duplicates: records beyond the first of the same two responses to the same prompt.
        contradictions: pairs of responses that were decided both ways.
        cycles: sets of responses to one prompt in which every one is better than every other by some chain of
            decisions (A over B over C over A); contradictions are left out first.
        in_cycles: decisions among the responses of one such set.
        longer_wins: how often the longer response was chosen; longer ones may be better.
        first_shown_wins: how often the response shown first was chosen; sides are shuffled, so 0.5 is no bias.
        agreement: share of two people's judgements of one pair that say the same (a tie is an answer).
        alpha: Krippendorff's alpha of the same: 0 is chance, 1 is perfect.
        held_out: prompts that are held out.
        leaks: of those, how many are on the training side too but for case, spacing and punctuation.
        leaked: examples of them.
    """

    judged: int
    ties: int
    corrections: int
    weak: Mapping[str, int]
    prompts: int
    effective: float
    duplicates: int
    contradictions: int
    cycles: int
    in_cycles: int
    longer_wins: Proportion
    first_shown_wins: Proportion
    agreement: Estimate
    alpha: Estimate
    held_out: int
    leaks: int
    leaked: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def sentences(self) -> list[str]:
        """What somebody should know before training on them, most general first."""
        said = [
            f"{self.judged:,} decided pairs of {self.prompts:,} prompts count as {self.effective:,.0f} of equal weight"
        ]
        if self.agreement.value is not None:
            said.append(f"two people say the same of {_interval(self.agreement)} of the pairs that both judged")
        if self.alpha.value is not None:
            said.append(f"agreement beyond chance (Krippendorff's α) is {_interval(self.alpha, percent=False)}")
        if self.duplicates:
            said.append(f"{_count(self.duplicates, 'pair stands', 'pairs stand')} more than once")
        if self.contradictions:
            said.append(f"{_count(self.contradictions, 'pair was', 'pairs were')} decided both ways")
        if self.cycles:
            sets = _count(self.cycles, "set of responses has", "sets of responses have")
            said.append(f"{sets} no best one: {self.in_cycles:,} decisions go round in circles")
        if self.longer_wins.excludes(0.5):
            longer = self.longer_wins.value is not None and self.longer_wins.value > 0.5
            said.append(f"the {'longer' if longer else 'shorter'} response wins: longer in {_share(self.longer_wins)}")
        if self.first_shown_wins.excludes(0.5):
            said.append(f"one side is liked: what was shown first won {_share(self.first_shown_wins)}")
        if self.leaks:
            said.append(
                f"{self.leaks:,} of {self.held_out:,} held-out prompts are on the training side too but for "
                f"punctuation, e.g. {self.leaked[0]!r}"
            )
        for source, number in self.weak.items():
            said.append(f"{_count(number, 'pair was', 'pairs were')} labelled by no judge ({source})")
        return said


def preference_report(
    preferences: Sequence[Preference], *, is_held_out: Callable[[Prompt], bool] = lambda _: False
) -> PreferenceReport:
    """Look through preferences of one or many sources.

    Args:
        is_held_out: the rule by which prompts are split.
    """
    judged = [p for p in preferences if not p.weak]
    decided = [p for p in judged if not p.tie]
    alike = Counter(tuple(sorted(_pair(p)[1:])) + _pair(p)[:1] for p in judged)
    ways = Counter(_pair(p) for p in decided)
    both = {pair for pair in ways if (pair[0], pair[2], pair[1]) in ways}
    cycles, in_cycles = _cycles(pair for pair in ways if pair not in both)
    votes = [p for p in judged if p.meta.get("judgements")]
    ratings = {
        n: {vote["who"]: _label(vote, p.chosen < p.rejected) for vote in p.meta["judgements"]}
        for n, p in enumerate(votes)
    }
    groups = {n: p.prompt.id for n, p in enumerate(votes)}
    held_out, leaked = _leaks({p.prompt for p in preferences}, is_held_out)
    return PreferenceReport(
        judged=len(decided),
        ties=len(judged) - len(decided),
        corrections=sum(bool(p.meta.get("correction")) for p in judged),
        weak=dict(Counter(p.source for p in preferences if p.weak)),
        prompts=len({p.prompt.id for p in judged}),
        effective=effective_number(p.weight * (2 * p.probability - 1) for p in decided),
        duplicates=sum(alike.values()) - len(alike),
        contradictions=len(both) // 2,
        cycles=cycles,
        in_cycles=in_cycles,
        longer_wins=length_bias((len(p.chosen), len(p.rejected)) for p in decided),
        first_shown_wins=position_bias(
            (0, 1) if vote["says"] == vote["shown_first"] else (1, 0)
            for p in votes
            for vote in p.meta["judgements"]
            if vote["says"] in ("chosen", "rejected")
        ),
        agreement=raw_agreement(ratings, groups=groups),
        alpha=krippendorff_alpha(ratings, groups=groups),
        held_out=held_out,
        leaks=len(leaked),
        leaked=tuple(leaked[:MOST_EXAMPLES]),
    )


def effective_number(weights: Iterable[float]) -> float:
    """Kish's ``(Σ w)² / Σ w²``; 0 without a weight above zero."""
    given = list(weights)
    squares = sum(w * w for w in given)
    return sum(given) ** 2 / squares if squares > 0 else 0.0


def components(edges: Mapping[Hashable, Iterable[Hashable]]) -> list[list[Hashable]]:
    """The strongly connected components of a directed graph (Tarjan, 1972, https://doi.org/10.1137/0201010).

    Args:
        edges: node → the nodes it points to; every node is a key.
    """
    index: dict[Hashable, int] = {}
    low: dict[Hashable, int] = {}
    open_, held, found = [], set(), []
    for root in edges:
        work = [(root, iter(edges[root]))] if root not in index else []
        while work:
            node, following = work[-1]
            if node not in index:
                index[node] = low[node] = len(index)
                open_.append(node)
                held.add(node)
            deeper = next(
                (to for to in following if to not in index or (to in held and _lower(low, node, index[to]))), None
            )
            if deeper is not None:
                work.append((deeper, iter(edges[deeper])))
                continue
            work.pop()
            if work:
                _lower(low, work[-1][0], low[node])
            if low[node] == index[node]:
                cut = open_.index(node)
                found.append(open_[cut:])
                held -= set(open_[cut:])
                del open_[cut:]
    return found


def _lower(low: dict[Hashable, int], node: Hashable, value: int) -> bool:
    """Lower a node's mark; always false, so that a search goes on."""
    low[node] = min(low[node], value)
    return False


def _cycles(pairs: Iterable[_Pair]) -> tuple[int, int]:
    """How many sets of responses go round in circles, and how many decisions are among their own."""
    edges: dict[str, dict[Hashable, set[Hashable]]] = defaultdict(lambda: defaultdict(set))
    for prompt, chosen, rejected in pairs:
        edges[prompt][chosen].add(rejected)
        edges[prompt][rejected]  # every node is a key
    rings, inside = 0, 0
    for graph in edges.values():
        for component in components(graph):
            if len(component) > 1:
                members = set(component)
                rings, inside = rings + 1, inside + sum(len(graph[node] & members) for node in component)
    return rings, inside


def _leaks(prompts: Iterable[Prompt], is_held_out: Callable[[Prompt], bool]) -> tuple[int, list[str]]:
    """How many prompts are held out, and the openings of those that the training side has but for punctuation."""
    sides: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for prompt in prompts:
        first = next((message.content for message in prompt.messages if message.role == "user"), "")
        sides[is_held_out(prompt)].append((" ".join(re.findall(r"\w+", first.casefold())), first))
    trained = {words for words, _ in sides[False] if words}
    return len(sides[True]), sorted(" ".join(text.split())[:80] for words, text in sides[True] if words in trained)


def _pair(preference: Preference) -> _Pair:
    return (
        "\n".join(_same(message.content) for message in preference.prompt.messages),
        _same(preference.chosen),
        _same(preference.rejected),
    )


def _same(text: str) -> str:
    return " ".join(text.casefold().split())


def _label(vote: Mapping[str, Any], chosen_comes_first: bool) -> str:
    """A vote without regard to which side came out as chosen, so that labels of all pairs are of one kind."""
    if vote["says"] not in ("chosen", "rejected"):
        return str(vote["says"])
    return "first" if (vote["says"] == "chosen") == chosen_comes_first else "second"


def _interval(estimate: Estimate, *, percent: bool = True) -> str:
    def show(value: float) -> str:
        return f"{value:.0%}" if percent else f"{value:.2f}"

    if estimate.value is None:
        return estimate.why
    if estimate.low is None or estimate.high is None:
        return show(estimate.value)
    return f"{show(estimate.value)} (95 %: {show(estimate.low)} to {show(estimate.high)})"


def _share(share: Proportion) -> str:
    return f"{share.hits / share.n:.0%} (95 %: {share.low:.0%} to {share.high:.0%}) of {share.n:,}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
