"""PPO's passes: what leaves the gradient as it is, how many steps are made, and what they may move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_pipeline.advantages import gae, whiten
from rlhf_pipeline.config import LoraSection
from rlhf_pipeline.errors import TrainingError
from rlhf_pipeline.generation import Sampled
from rlhf_pipeline.roles import Roles
from rlhf_pipeline.rollout import Experience, Rollout, measure
from stages import ppo
from stages.ppo_learn import learn
from tests.rlhf_pipeline.test_generation import tiny

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [3, 4], [5, 6, 7], [31]]
SAMPLED = [
    Sampled([3, 2], True), Sampled([20, 21, 22, 23, 24], False), Sampled([2], True), Sampled([30, 31, 9], True),
    Sampled([33, 3, 2, 2], True), Sampled([7], False),
]  # fmt: skip
WHOLE = [[[0, 1, 2, 3, 4, 5]]]
TRAINED = ("policy", "value")


def four(dtype: torch.dtype = torch.float32) -> Roles:
    roles, generator = Roles(tiny("llama").to(dtype)), torch.Generator().manual_seed(1)
    for name in ("reference", "policy", "reward", "value"):
        roles.add(name, lora=LoraSection(rank=2, dropout=0.3), trainable=name in TRAINED)
        if name in ("reward", "value"):
            roles.set_head(name, torch.randn(1, 32, generator=generator) / 6, 0.5)
        with torch.no_grad():
            for parameter in roles.parameters(name):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return roles


def experience(roles: Roles, rows: Sequence[int] = range(6), *, pad_id: int = 0) -> Experience:
    """These responses, measured, with returns from made-up scores."""
    prompts, sampled = [PROMPTS[i] for i in rows], [SAMPLED[i] for i in rows]
    rollout = Rollout.of(prompts, sampled, pad_id=pad_id, device=torch.device("cpu"))
    measured = measure(roles, rollout, [[i] for i in range(len(rows))], temperature=1.0)
    rewards = torch.zeros_like(measured.logprobs)
    for place, row in enumerate(rows):
        rewards[place, len(SAMPLED[row].ids) - 1] = [1.0, -2.0, 0.5, 3.0, -1.0, 0.0][row]
    mask = rollout.response_mask
    advantages, returns = gae(rewards, measured.values, mask, gamma=1.0, lam=0.95)
    return Experience(rollout, measured, whiten(advantages, mask), returns)


@torch.no_grad()
def move(roles: Roles) -> None:
    """The policy is no longer the one that was measured."""
    generator = torch.Generator().manual_seed(5)
    for parameter in roles.parameters("policy"):
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)


def still(roles: Roles) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for name in TRAINED for p in roles.parameters(name)], lr=0.0)


def config(**changes: Any) -> ppo.Config:
    values: dict[str, Any] = {"max_grad_norm": 1e9, "target_kl": 1e9, "critic": {"cliprange_value": 1e9}}
    return ppo.Config(**{**values, **changes})


def gradients(roles: Roles, made: Experience, plan: list[list[list[list[int]]]]) -> dict[str, Tensor]:
    """Of policy and value after the passes: with one minibatch, what an optimiser would get."""
    learn(config(), roles, still(roles), made, plan)
    return {name: torch.cat([p.grad.double().flatten() for p in roles.parameters(name)]) for name in TRAINED}


SAME: dict[str, tuple[list[list[list[list[int]]]], dict[str, Any]]] = {
    "a micro-batch for each response": ([[[[i] for i in range(6)]]], {}),
    "micro-batches of unlike token counts": ([[[[1], [0, 2, 3, 4, 5]]]], {}),
    "another order": ([WHOLE], {"rows": [4, 2, 0, 5, 1, 3]}),
    "other pads": ([WHOLE], {"pad_id": 33}),
    "every response twice": ([[[[*range(12)]]]], {"rows": [*range(6), *range(6)]}),
}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)], ids=str
)
def test_the_gradient_knows_neither_batches_nor_order_nor_pads(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = four(dtype)
    experiences = {what: experience(roles, **made) for what, (_, made) in SAME.items()}
    first = experience(roles)
    monkeypatch.setattr("stages.ppo_start.require_unit_ratio", lambda *_: None)
    move(roles)
    whole = gradients(roles, first, [WHOLE])
    for what, (plan, _) in SAME.items():
        other = gradients(roles, experiences[what], plan)
        for name in TRAINED:
            # The value's head is float32 whatever the base.
            limit = max(tolerance, 1e-6) if name == "value" else tolerance
            assert (other[name] - whole[name]).norm() <= limit * whole[name].norm(), (what, name)
    assert all(gradient.norm() > 0.01 for gradient in whole.values())


def test_every_minibatch_is_a_step_and_nothing_else_moves() -> None:
    roles, steps = four(), []
    optimizer = torch.optim.AdamW([p for name in TRAINED for p in roles.parameters(name)], lr=1e-3)
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    before = {name: roles.fingerprint(name) for name in (None, "reference", "reward", *TRAINED)}
    plan = [[[[0], [1]], [[2, 3]], [[4, 5]]], [[[1, 5]], [[0, 4]], [[2], [3]]]]
    learnt = learn(config(), roles, optimizer, experience(roles), plan)
    assert len(steps) == 6
    assert learnt["ppo/passes"] == 2
    assert {name for name, was in before.items() if roles.fingerprint(name) != was} == set(TRAINED)


def test_the_gradient_is_clipped_for_policy_and_value_apart() -> None:
    roles, norms = four(), []

    def watch(*_: Any) -> None:
        norms.append([torch.cat([p.grad.flatten() for p in roles.parameters(name)]).norm().item() for name in TRAINED])

    made = experience(roles)
    limits = [1e9]
    for limit in limits:
        optimizer = still(roles)
        optimizer.register_step_post_hook(watch)
        learn(config(max_grad_norm=limit), roles, optimizer, made, [WHOLE])
        if limit == 1e9:
            limits += [(norms[0][0] * norms[0][1]) ** 0.5, 1e-3]
    free, some, both = norms
    assert abs(free[0] / free[1] - 1) > 0.01, "so that the middle limit clips one of the two"
    assert some == pytest.approx([min(one, limits[1]) for one in free], rel=1e-4)
    assert both == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_numbers_are_means_over_tokens_and_not_over_pads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked out for each token; TRL 1.12 took these over pads too."""
    roles = four()
    made = experience(roles)
    mask = made.rollout.response_mask.bool()
    learnt = learn(config(), roles, still(roles), made, [WHOLE])
    assert learnt["ppo/loss/policy"] == pytest.approx(-made.advantages[mask].mean().item(), abs=1e-6)
    residuals = (made.measured.values - made.returns)[mask]
    assert learnt["ppo/loss/value"] == pytest.approx(residuals.square().mean().item() / 2, rel=1e-5)
    assert learnt["ppo/policy/approxkl"] == pytest.approx(0, abs=1e-10)
    assert learnt["ppo/ratio_check"] < 1e-6

    old = made.measured.logprobs
    move(roles)
    new = measure(roles, made.rollout, WHOLE[0], temperature=1.0).logprobs
    log_ratio, advantages = (new - old)[mask].double(), made.advantages[mask].double()
    monkeypatch.setattr("stages.ppo_start.require_unit_ratio", lambda *_: None)
    learnt = learn(config(cliprange=0.01), roles, still(roles), made, [WHOLE])
    assert learnt["ppo/policy/approxkl"] == pytest.approx((log_ratio.expm1() - log_ratio).mean().item(), rel=1e-3)
    near = log_ratio.exp().clamp(0.99, 1.01)
    clipped = (-advantages * near > -advantages * log_ratio.exp()).double().mean().item()
    assert 0 < learnt["ppo/policy/clipfrac"] == pytest.approx(clipped)


def test_a_policy_that_is_not_the_one_that_was_scored_is_refused() -> None:
    roles = four()
    made = experience(roles)
    move(roles)
    with pytest.raises(TrainingError, match="first probability ratio"):
        learn(config(), roles, still(roles), made, [WHOLE])


def test_passes_stop_at_the_kl_limit_before_the_step_that_exceeds_it() -> None:
    roles, steps = four(), []
    optimizer = torch.optim.SGD([p for name in TRAINED for p in roles.parameters(name)], lr=1.0)
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    learnt = learn(config(target_kl=1e-7), roles, optimizer, experience(roles), [WHOLE] * 3)
    assert len(steps) == 1
    assert learnt["ppo/passes"] == 1


def test_a_gradient_that_is_not_finite_stops_the_run() -> None:
    roles = four()
    made = experience(roles)
    made.advantages[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="the policy's gradient is not finite"):
        learn(config(), roles, still(roles), made, [WHOLE])
