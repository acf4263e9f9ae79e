"""More than who won: rows by hand, losses held to those of pairs, and the trainer that learns from them."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_pipeline.comparison_trainer import (
    PAIR_COLUMNS,
    ComparisonLoss,
    _Collator,
    comparison_rows,
    tie_parameter,
    tie_share,
)
from rlhf_pipeline.encoding import EncodedPair
from rlhf_pipeline.preference_losses import bradley_terry_loss, davidson_loss, plackett_luce_loss, rao_kupper_loss
from rlhf_pipeline.records import Message, Preference, Prompt

PROMPT = Prompt((Message("user", "Why?"),))
A, B, C = [11], [12, 13], [14]


def record(**more) -> Preference:
    return Preference(PROMPT, "x", "y", **more)


RANKING = [  # A before B and C, which are even
    (EncodedPair([1], A, B), record(meta={"task": "t"}, weight=1 / 3, margin=2.0)),
    (EncodedPair([1], A, C), record(meta={"task": "t"}, weight=1 / 3)),
    (EncodedPair([1], B, C), record(meta={"task": "t"}, weight=1 / 3, probability=0.5, tie=True)),
]
SINGLE = (EncodedPair([2], C, A), record(probability=0.75, meta={"votes": {"chosen": 2, "rejected": 0, "tie": 2}}))


def rows(soft: bool = False, margins: bool = False):
    members = [*RANKING, SINGLE]
    return comparison_rows([pair for pair, _ in members], [one for _, one in members], soft=soft, margins=margins)


def test_rows_by_hand() -> None:
    ranking, single = rows(margins=True)
    assert ranking["responses"] == [[1, 11], [1, 12, 13], [1, 14]], "each response once"
    assert ranking["places"] == [0, 1, 1]
    assert list(zip(ranking["first"], ranking["second"], strict=True)) == [(0, 1), (0, 2), (1, 2)]
    assert ranking["probability"] == [1.0, 1.0, 0.5]
    assert ranking["tie"] == [0.0, 0.0, 1.0]
    assert ranking["margin"] == [2.0, 0.0, 0.0]
    assert (single["probability"], single["tie"]) == ([1.0], [0.0])
    [_, soft] = rows(soft=True)
    assert (soft["probability"], soft["tie"]) == ([0.75], [0.5]), "two of four said tie"
    assert tie_share(record(tie=True, probability=0.5)) == 1


def scores_of(batch, values):
    mask = batch["mask"].bool()
    return torch.zeros(mask.shape).masked_scatter(mask, torch.tensor(values))


def test_every_loss_is_that_of_its_pairs_or_rankings() -> None:
    batch = _Collator(0)(rows(soft=True))
    assert batch["input_ids"].shape == (5, 3)
    assert batch["attention_mask"].sum() == 2 + 3 + 2 + 2 + 2
    scores = scores_of(batch, [0.3, -0.2, 0.5, 1.0, 0.4])
    chosen, rejected = torch.tensor([0.3, 0.3, -0.2, 1.0]), torch.tensor([-0.2, 0.5, 0.5, 0.4])
    said = {"probability": torch.tensor([1.0, 1.0, 0.5, 0.75])}
    tie, weight = torch.tensor([0.0, 0.0, 1.0, 0.5]), torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0])
    pairwise = {
        "bradley_terry": bradley_terry_loss(chosen, rejected, **said),
        "rao_kupper": rao_kupper_loss(chosen, rejected, threshold=0.6, tie=tie, **said),
        "davidson": davidson_loss(chosen, rejected, prevalence=0.6, tie=tie, **said),
    }
    for kind, losses in pairwise.items():
        found = ComparisonLoss(kind, 0.6, 0.0, mean_weight=1.0)(scores, batch)
        assert found == pytest.approx(((losses * weight).sum() / 2).item(), abs=1e-6)
    listwise = plackett_luce_loss(scores, batch["places"], batch["mask"], prevalence=0.6).sum()
    found = ComparisonLoss("plackett_luce", 0.6, 0.0, mean_weight=1.0)(scores, batch)
    assert found == pytest.approx((listwise / 2).item(), abs=1e-6)
    centred = ComparisonLoss("bradley_terry", None, 0.1, mean_weight=1.0)(scores, batch)
    penalty = 0.1 * ((chosen + rejected) ** 2 * weight).sum() / 2
    assert centred == pytest.approx(((pairwise["bradley_terry"] * weight).sum() / 2 + penalty).item(), abs=1e-6)


def test_weights_change_no_learning_rate_and_batches_add_up() -> None:
    both = rows()
    heavy = [{**row, "weight": [10 * one for one in row["weight"]]} for row in both]
    values = [0.3, -0.2, 0.5, 1.0, 0.4]
    light, weighty = _Collator(0)(both), _Collator(0)(heavy)
    one = ComparisonLoss("bradley_terry", None, 0.0, mean_weight=1.0)(scores_of(light, values), light)
    other = ComparisonLoss("bradley_terry", None, 0.0, mean_weight=10.0)(scores_of(weighty, values), weighty)
    assert one == pytest.approx(other.item())
    halves = []
    for row, part in ((both[0], values[:3]), (both[1], values[3:])):
        batch = _Collator(0)([row])
        halves.append(ComparisonLoss("bradley_terry", None, 0.0, mean_weight=1.0)(scores_of(batch, part), batch).item())
    assert one == pytest.approx(sum(halves) / 2)


def test_tie_parameters_give_the_share_between_equals() -> None:
    eta, nu = tie_parameter("rao_kupper", 0.3), tie_parameter("davidson", 0.3)
    assert eta is not None
    assert nu is not None
    assert math.tanh(eta / 2) == pytest.approx(0.3)
    assert nu / (2 + nu) == pytest.approx(0.3)
    assert tie_parameter("plackett_luce", 0.0) is None
    assert set(PAIR_COLUMNS) < set(rows()[0])
