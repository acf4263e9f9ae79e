"""Rollouts: minibatches, scores, the scale, and that each role is asked about the right tokens."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlhf_pipeline import length_groups
from rlhf_pipeline.config import LoraSection
from rlhf_pipeline.errors import TrainingError
from rlhf_pipeline.generation import Sampled
from rlhf_pipeline.logprobs import last_hidden, response_hidden, response_logprobs
from rlhf_pipeline.roles import Roles
from rlhf_pipeline.rollout import (
    Experience,
    Rollout,
    ScoreScale,
    adapter_scores,
    derived_seed,
    largest_difference,
    measure,
    normalise_head,
    prompt_order,
    sample,
)
from tests.rlhf_pipeline.test_generation import tiny

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12], [3, 4]]
SAMPLED = [Sampled([3, 2], True), Sampled([20, 21, 22], False), Sampled([2], True), Sampled([30, 31, 9], True)]
ROLLOUT = Rollout.of(PROMPTS, SAMPLED, pad_id=0, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def roles() -> Roles:
    torch.manual_seed(0)
    made = Roles(tiny("llama"))
    for name in ("reference", "policy", "reward", "value"):
        made.add(name, lora=LoraSection(rank=2))
        if name in ("reward", "value"):
            made.set_head(name, torch.randn(1, 32), 0.5)
        with torch.no_grad():
            for parameter in made.parameters(name):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def test_masks_come_from_lengths() -> None:
    assert ROLLOUT.response_mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]]
    assert ROLLOUT.ended.tolist() == [True, False, True, True]
    written = Rollout.of([[1]], [Sampled([7, 0, 0], True)], pad_id=0, device=torch.device("cpu"))
    assert written.response_mask.tolist() == [[1, 1, 1]], "the pad id is a token like others where it was sampled"
    assert ROLLOUT.ending_with(33).responses == [[3, 33], [20, 21, 22], [33], [30, 31, 33]]  # truncated ones stay


def test_minibatches_hold_every_row_once() -> None:
    count = 11
    rollout = Rollout.of(PROMPTS * 3, SAMPLED * 3, pad_id=0, device=torch.device("cpu"))
    minibatches = rollout.minibatches(5, 14, seed=1)
    assert sorted(i for m in minibatches for rows in m for i in rows) == list(range(count + 1))
    assert sorted(sum(map(len, m)) for m in minibatches) == [2, 2, 2, 3, 3]
    for rows in (rows for m in minibatches for rows in m):
        lengths = [len(rollout.prompts[i]) + len(rollout.responses[i]) for i in rows]
        assert len(rows) == 1 or max(lengths) * len(rows) <= 14
    assert rollout.minibatches(5, 14, seed=1) == minibatches != rollout.minibatches(5, 14, seed=2)


def test_micro_batches_are_divided_where_that_saves_more_than_a_pass_costs() -> None:
    sampled = [Sampled([9] * length, True) for length in (9, 1, 8, 2)]
    rollout = Rollout.of([[5]] * 4, sampled, pad_id=0, device=torch.device("cpu"))
    [whole] = rollout.minibatches(1, 100, seed=1)
    assert whole == [[0, 2, 3, 1]]
    # of 2, 3 | 9, 10 tokens the cut saves 2 × 7
    assert replace(rollout, pass_cost=15).minibatches(1, 100, seed=1) == [[[1, 3, 2, 0]]]
    assert replace(rollout, pass_cost=14).minibatches(1, 100, seed=1) == [[[1, 3], [2, 0]]]


def test_a_sampled_rollout_knows_what_a_pass_costs(roles: Roles, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = SimpleNamespace(stop_ids=frozenset({33}), pad_id=0)
    ways = {"max_new_tokens": 2, "temperature": 1.0, "batch_size": 4, "seed": 0}
    assert sample(roles, "policy", PROMPTS, chat, **ways).pass_cost is None, "the model is small"
    monkeypatch.setattr(length_groups, "_SMALL", 0)
    assert sample(roles, "policy", PROMPTS, chat, **ways).pass_cost == length_groups._TOKENS


def test_each_role_is_asked_about_its_tokens(roles: Roles) -> None:
    groups = [[3, 1], [0], [2]]
    measured, scores = measure(roles, ROLLOUT, groups, temperature=0.8), adapter_scores(roles, ROLLOUT, groups)
    for row in range(4):
        alone, width = ROLLOUT.sequences([row]), len(SAMPLED[row].ids)
        with torch.no_grad():
            with roles.use("policy") as model:
                policy = response_logprobs(model, alone, temperature=0.8)[0]
            with roles.use("reference") as model:
                reference = response_logprobs(model, alone, temperature=0.8)[0]
            with roles.use("value") as model:
                values = roles.head("value", response_hidden(model, alone))
            with roles.use("reward") as model:
                score = roles.head("reward", last_hidden(model, alone))
        assert torch.allclose(measured.logprobs[row, :width], policy, atol=1e-5)
        assert torch.allclose(measured.ref_logprobs[row, :width], reference, atol=1e-5)
        assert torch.allclose(measured.values[row, :width], values, atol=1e-5)
        assert torch.allclose(scores[row], score[0], atol=1e-5)
        for part in (measured.logprobs, measured.ref_logprobs, measured.values, measured.entropy):
            assert (part[row, width:] == 0).all()
    assert not torch.allclose(measured.logprobs, measured.ref_logprobs)
    assert largest_difference(roles, "policy", "policy", PROMPTS, pad_id=0) == 0
    assert largest_difference(roles, "policy", "reference", PROMPTS, pad_id=0) > 1e-3


def test_a_micro_batch_is_cut_to_its_rows(roles: Roles) -> None:
    measured = measure(roles, ROLLOUT, [[0, 1, 2, 3]], temperature=1.0)
    numbers = torch.arange(12.0).reshape(4, 3)
    batch = Experience(ROLLOUT, measured, numbers, numbers + 100).batch([2, 0])
    assert batch.sequences.response_mask.tolist() == [[1, 0], [1, 1]]
    assert batch.advantages.tolist() == [[6, 7], [0, 1]]
    assert torch.equal(batch.logprobs, measured.logprobs[[2, 0], :2])
    values, returns = batch.critic
    assert returns.tolist() == [[106, 107], [100, 101]]
    assert torch.equal(values, measured.values[[2, 0], :2])


def test_the_scale_of_scores() -> None:
    scale = ScoreScale.of(torch.tensor([1.0, 3.0, 5.0, 7.0]))
    assert (scale.mean, scale.std) == (4, pytest.approx(5**0.5))
    ended = torch.tensor([True, False, True])
    scores = ScoreScale(4.0, 2.0).apply(torch.tensor([6.0, 6.0, 400.0]), ended, clip=10, missing_eos_penalty=1.5)
    assert scores.tolist() == [1, -0.5, 10]
    for flat in (torch.full((9,), 3.7), torch.tensor([1.0, float("nan")]), torch.tensor([1e6, 1e6 + 0.05])):
        with pytest.raises(TrainingError, match="nothing to learn"):
            ScoreScale.of(flat)


def test_a_copied_head_speaks_in_normalised_scores() -> None:
    made, hidden = Roles(tiny("llama")), torch.randn(5, 32)
    for name, weight in (("value", torch.randn(1, 32)), ("fresh", torch.zeros(1, 32))):
        made.add(name, lora=LoraSection(rank=2))
        made.set_head(name, weight)
    before = made.head("value", hidden)
    for name in ("value", "fresh"):
        normalise_head(made, name, ScoreScale(3.0, 2.0))
    assert torch.allclose(made.head("value", hidden), (before - 3) / 2, atol=1e-6)
    assert torch.equal(made.head("fresh", hidden), torch.zeros(5))


def test_every_prompt_comes_once_in_a_pass() -> None:
    stream = prompt_order(7, 0, 21, seed=3)
    for start in (0, 7, 14):
        assert sorted(stream[start : start + 7]) == list(range(7))
    assert stream[:7] != stream[7:14]
    assert prompt_order(7, 5, 9, seed=3) == stream[5:14]  # wherever one starts
    assert prompt_order(7, 0, 21, seed=4) != stream


def test_derived_seeds_differ() -> None:
    seeds = {derived_seed(*parts) for parts in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, 0), ("0", 0)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(0, "a") == derived_seed(0, "a")
