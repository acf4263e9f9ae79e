"""Simulated annotators: people of known skill and bias, who judge by the gold score with noise.

Each sees a difference ``d`` between response A (shown on the left) and response B:

    d = skill x (gold_a - gold_b) + length_bias x (length_a - length_b) / 10 + position_bias

and answers by the ordered logistic model (Rao and Kupper 1967, "Ties in paired-comparison experiments"):

    P(a) = sigmoid(d - tie_width)        P(b) = sigmoid(-d - tie_width)        P(tie) = what is left

With probability ``lapse`` the answer is "a" or "b" by the toss of a coin. A tie between two responses whose gold
scores are both below ``bad_below`` is reported as "both_bad".
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

Choice = Literal["a", "b", "tie", "both_bad"]

UNREADABLE = -2.0
"""The gold score that annotators go by for a response that the judge cannot read: worse than any that it can."""


RULE_POINTS = 2.0
"""Points of gold score that a broken rule is as plain to see as: the expert errs once in 400, the steady once in 21."""


@dataclass(frozen=True, slots=True)
class SimulatedAnnotator:
    """One simulated person; see the module's docstring for the model."""

    name: str
    skill: float
    """Nats per point of gold score: 0 guesses, 3 hardly errs, negative prefers the worse response."""
    position_bias: float = 0.0
    """Nats in favour of the response on the left; negative favours the right."""
    length_bias: float = 0.0
    """Nats in favour of a response that is ten words longer."""
    tie_width: float = 0.2
    """Nats of difference within which a tie is as likely as a choice; 0 never ties."""
    lapse: float = 0.0
    """Probability of answering without looking, 0 to 1."""
    bad_below: float = 3.0
    """Gold score under which a response is bad."""

    def probabilities(
        self, gold_a: float | None, gold_b: float | None, length_a: int, length_b: int
    ) -> dict[Choice, float]:
        """The probability of each answer; lengths are in words, A is on the left. They sum to one."""
        score_a = UNREADABLE if gold_a is None else gold_a
        score_b = UNREADABLE if gold_b is None else gold_b
        difference = self.skill * (score_a - score_b) + self.length_bias * (length_a - length_b) / 10
        difference += self.position_bias
        first, second = _sigmoid(difference - self.tie_width), _sigmoid(-difference - self.tie_width)
        tie = (1 - self.lapse) * max(0.0, 1 - first - second)
        bad = max(score_a, score_b) < self.bad_below
        return {
            "a": (1 - self.lapse) * first + self.lapse / 2,
            "b": (1 - self.lapse) * second + self.lapse / 2,
            "tie": 0.0 if bad else tie,
            "both_bad": tie if bad else 0.0,
        }

    def judge(
        self, rng: random.Random, gold_a: float | None, gold_b: float | None, length_a: int, length_b: int
    ) -> Choice:
        """One judgement of a pair; draws exactly one number from ``rng``."""
        chances = self.probabilities(gold_a, gold_b, length_a, length_b)
        return rng.choices(list(chances), list(chances.values()))[0]

    def says_broken(self, rng: random.Random, broken: bool) -> bool:
        """Whether this person finds that a response breaks a rule, which it does or does not.

        They see it rightly with probability sigmoid(:data:`RULE_POINTS` x skill), and toss a coin where they lapse.
        """
        right = (1 - self.lapse) * _sigmoid(RULE_POINTS * self.skill) + self.lapse / 2
        return broken if rng.random() < right else not broken


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


PANEL: dict[str, SimulatedAnnotator] = {
    annotator.name: annotator
    for annotator in (
        SimulatedAnnotator("Ada the expert", skill=3.0, tie_width=0.3),
        SimulatedAnnotator("Bruno the steady", skill=1.5),
        SimulatedAnnotator("Carla the careless", skill=0.8, lapse=0.25),
        SimulatedAnnotator("Dimitri who likes the left", skill=1.0, position_bias=1.5),
        SimulatedAnnotator("Esi who likes it long", skill=1.0, length_bias=1.0),
        SimulatedAnnotator("Finn the contrarian", skill=-1.0),
    )
}
"""People of every sort, by name; the first two are who a project would hope for."""
