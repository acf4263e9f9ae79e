"""Votes of planted raters, EM's fixed point by finite differences, and crowd-kit's likelihood as the oracle."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pandas
import pytest
from crowdkit.aggregation import NoisyBradleyTerry
from scipy.optimize import minimize

from rlhf_pipeline.vote_models import PRIOR_RIGHT, PairVote, VoteModel, dawid_skene_pairs, noisy_bradley_terry

SKILLS = {"ann": 0.95, "bob": 0.8, "cem": 0.6, "contrary": 0.15}
"""How often each names the better response; besides them there is "lefty", who says left nine times of ten."""


def planted(seed: int, *, items: int = 300, each: int = 3) -> tuple[list[PairVote], dict[tuple[str, str], bool]]:
    """Pairs that ``each`` of five people judge, and whether the first is better."""
    lot = random.Random(seed)
    votes, truth = [], {}
    for item in range(items):
        pair = f"a{item}", f"b{item}"
        truth[pair] = lot.random() < 0.5
        for name in lot.sample([*SKILLS, "lefty"], each):
            first_is_left = lot.random() < 0.5
            if name == "lefty":
                says_first = (lot.random() < 0.9) == first_is_left
            else:
                says_first = (lot.random() < SKILLS[name]) == truth[pair]
            votes.append(PairVote(*pair, name, float(says_first), first_is_left))
    return votes, truth


def right_share(model: VoteModel, truth: dict[tuple[str, str], bool]) -> float:
    return sum((model.probability[pair] > 0.5) == first for pair, first in truth.items()) / len(truth)


def majority(votes: list[PairVote], truth: dict[tuple[str, str], bool]) -> float:
    shares = {pair: [v.share for v in votes if (v.first, v.second) == pair] for pair in truth}
    return sum((sum(s) / len(s) > 0.5) == truth[pair] for pair, s in shares.items()) / len(truth)


def test_dawid_skene_finds_who_is_right_who_is_contrary_and_who_likes_the_left() -> None:
    votes, truth = planted(0)
    model = dawid_skene_pairs(votes)
    for name, skill in SKILLS.items():
        assert model.raters[name].reliability == pytest.approx(skill, abs=0.08), name
        assert model.raters[name].left == pytest.approx(0.5, abs=0.08), name
    assert model.raters["lefty"].reliability == pytest.approx(0.5, abs=0.08)
    assert model.raters["lefty"].left == pytest.approx(0.9, abs=0.05)
    assert sum(rater.votes for rater in model.raters.values()) == len(votes)
    assert right_share(model, truth) > majority(votes, truth) + 0.1
    sure = [pair for pair, p in model.probability.items() if max(p, 1 - p) > 0.9]
    assert len(sure) > 100
    assert sum((model.probability[pair] > 0.5) == truth[pair] for pair in sure) / len(sure) > 0.9  # calibrated


def test_one_vote_each_by_hand() -> None:
    """One rater, one pair: with the prior's 2 : 1, EM settles where T = π_ll / (π_ll + π_rl) by the equations."""
    [p] = dawid_skene_pairs([PairVote("x", "y", "ann", 1.0, True)]).probability.values()
    t = 1.0
    for _ in range(200):
        hit, miss = (t + PRIOR_RIGHT[0]) / (t + sum(PRIOR_RIGHT)), (1 - t + PRIOR_RIGHT[1]) / (1 - t + sum(PRIOR_RIGHT))
        t = hit / (hit + miss)
    assert p == pytest.approx(t, abs=1e-5)
    [tie] = dawid_skene_pairs([PairVote("x", "y", "ann", 0.5, True)]).probability.values()
    assert tie == pytest.approx(0.5)


def test_what_is_known_measures_the_raters() -> None:
    """Two who always contradict each other: alone nobody can say who is right; known answers tell."""
    votes = [
        PairVote(f"a{i}", f"b{i}", name, share, bool(i % 2))
        for i in range(20)
        for name, share in (("x", 1.0), ("y", 0.0))
    ]
    assert dawid_skene_pairs(votes).probability["a9", "b9"] == pytest.approx(0.5)
    told = dawid_skene_pairs(votes, known={(f"a{i}", f"b{i}"): 0.0 for i in range(5)} | {("not", "asked"): 1.0})
    assert told.probability["a9", "b9"] < 0.1
    assert told.probability["a0", "b0"] == 0.0
    assert told.raters["y"].reliability > 0.8 > 0.2 > told.raters["x"].reliability
    assert ("not", "asked") not in told.probability


def test_dawid_skenes_em_ends_where_the_posterior_is_steepest_nowhere() -> None:
    """At EM's fixed point the derivative of log-likelihood plus log-prior by each probability is zero."""
    votes, _ = planted(1, items=40)
    votes = [replace(vote, share=abs(vote.share - 0.2)) for vote in votes]
    names = sorted({str(vote.rater) for vote in votes})
    model = dawid_skene_pairs(votes)

    def objective(p: dict[str, tuple[float, float]]) -> float:  # P(right | left is better), P(right | right is better)
        total = 0.0
        for _, group in itertools.groupby(votes, key=lambda vote: vote.first):
            sides = [0.0, 0.0]
            for vote in group:
                for first_better in (0, 1):
                    left_better = bool(first_better) == vote.first_is_left
                    hit = p[str(vote.rater)][0 if left_better else 1]
                    to_better = vote.share if first_better else 1 - vote.share
                    sides[first_better] += to_better * math.log(hit) + (1 - to_better) * math.log(1 - hit)
            total += math.log(sum(0.5 * math.exp(side) for side in sides))
        return total + sum(
            PRIOR_RIGHT[0] * math.log(x) + PRIOR_RIGHT[1] * math.log(1 - x) for both in p.values() for x in both
        )

    # reliability and left give both probabilities back: right = (ll + rr) / 2, left = (ll + 1 - rr) / 2
    p = {n: (r.reliability + r.left - 0.5, r.reliability - r.left + 0.5) for n in names for r in [model.raters[n]]}
    prior = objective(p) - model.log_likelihood
    assert prior == pytest.approx(
        sum(PRIOR_RIGHT[0] * math.log(x) + PRIOR_RIGHT[1] * math.log(1 - x) for both in p.values() for x in both)
    )
    for name in names:
        for side in (0, 1):
            moved = [{**p, name: tuple(x + h * (s == side) for s, x in enumerate(p[name]))} for h in (1e-4, -1e-4)]
            assert abs(objective(moved[0]) - objective(moved[1])) / 2e-4 < 0.02  # type: ignore[arg-type]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def crowd(seed: int) -> tuple[list[PairVote], pandas.DataFrame]:
    """Six items, four raters who look with 0.95 to 0.2 and else say left with 0.5 to 0.9."""
    lot = random.Random(seed)
    scores = {item: lot.gauss(0, 1.5) for item in "abcdef"}
    raters = {"p": (0.95, 0.5), "q": (0.7, 0.9), "r": (0.5, 0.2), "s": (0.2, 0.9)}
    votes, rows = [], []
    for _ in range(1500):
        left, right = lot.sample(list(scores), 2)
        name = lot.choice(list(raters))
        look, bias = raters[name]
        sees = lot.random() < look
        says_left = lot.random() < (1 / (1 + math.exp(scores[right] - scores[left])) if sees else bias)
        turned = lot.random() < 0.5
        pair = (right, left) if turned else (left, right)
        votes.append(PairVote(*pair, name, float(says_left != turned), not turned))
        rows.append((name, left, right, left if says_left else right))
    return votes, pandas.DataFrame(rows, columns=["worker", "left", "right", "label"])


def test_noisy_bradley_terry_is_as_likely_as_crowd_kits_and_finds_the_planted() -> None:
    """By crowd-kit's own likelihood, of which ours is the maximum. Crowd-kit itself stops short of it: in the gradient
    that it gives its optimiser the biases are off by one place."""
    votes, table = crowd(0)
    theirs = NoisyBradleyTerry(n_iter=500, regularization_ratio=0.0).fit(table)
    ours = noisy_bradley_terry(votes, spread=math.inf, smoothing=0.0)
    items, names = sorted(set(table.left) | set(table.right)), sorted(set(table.worker))
    data = np.array([[items.index(x) + 1 for x in row] for row in table[["left", "right", "label"]].values])
    workers = np.array([names.index(worker) for worker in table.worker])

    def by_crowd_kit(x: Any) -> float:
        x = np.array([0.0, *x])  # scores, then logits of biases and skills
        return -float(NoisyBradleyTerry._compute_log_likelihood(x, data, workers, len(items), len(names), 0.0))

    lead = {b: logit(p) for (a, b), p in ours.probability.items() if a == "a"}
    raters = [ours.raters[name] for name in names]
    scores = [0.0 if item == "a" else -lead[item] for item in items]
    found = by_crowd_kit([*scores, *(logit(r.left) for r in raters), *(logit(r.reliability) for r in raters)])
    assert found == pytest.approx(ours.log_likelihood, abs=1e-6)
    assert found > by_crowd_kit(
        [logit(p) for p in (*theirs.scores_[items], *theirs.biases_[names], *theirs.skills_[names])]
    )
    start = np.array([0.0] * (len(items) + len(names)) + [1.0] * len(names))
    best = minimize(lambda x: -by_crowd_kit(x), start, method="L-BFGS-B")
    assert found == pytest.approx(-best.fun, abs=0.01)
    for name, look in (("p", 0.95), ("q", 0.7), ("r", 0.5), ("s", 0.2)):
        assert ours.raters[name].reliability == pytest.approx(look, abs=0.15)
    assert ours.raters["s"].left == pytest.approx(0.9, abs=0.08)


def test_noisy_bradley_terry_on_pairs() -> None:
    votes, truth = planted(0)
    model = noisy_bradley_terry(votes)
    assert right_share(model, truth) > majority(votes, truth) + 0.05
    assert model.raters["ann"].reliability > model.raters["bob"].reliability > model.raters["lefty"].reliability
    assert model.raters["lefty"].left > 0.8
    [tie] = noisy_bradley_terry([PairVote("x", "y", "ann", 0.5, True)]).probability.values()
    assert tie == pytest.approx(0.5)


@pytest.mark.parametrize("fit", [dawid_skene_pairs, noisy_bradley_terry])
def test_how_pairs_are_named_and_turned_does_not_matter(fit) -> None:  # type: ignore[no-untyped-def]
    votes, _ = planted(2, items=60)
    model = fit(votes)
    turned = fit([PairVote(v.second, v.first, v.rater, 1 - v.share, not v.first_is_left) for v in votes])
    mixed = fit(random.Random(0).sample(votes, len(votes)))
    for (a, b), p in model.probability.items():
        assert turned.probability[b, a] == pytest.approx(1 - p, abs=1e-4)
        assert mixed.probability[a, b] == pytest.approx(p, abs=1e-4)
    assert fit([]) == VoteModel({}, {}, 0.0)
