"""PPO's passes over one iteration's responses: each minibatch is an optimiser step of policy and value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rlhf_pipeline.errors import TrainingError
from stages import ppo_start

if TYPE_CHECKING:
    import torch

    from rlhf_pipeline.losses import ValueLoss
    from rlhf_pipeline.roles import Roles
    from rlhf_pipeline.rollout import Batch, Experience
    from stages.ppo import Config

_EARLY_STOP = 1.5  # times target_kl, as in OpenAI's Spinning Up
_PER_TOKEN = {
    "ppo/loss/policy": "policy", "ppo/policy/approxkl": "old_kl", "ppo/policy/ratio": "ratio",
    "ppo/policy/clipfrac_low": "clipped_low", "ppo/policy/clipfrac_high": "clipped_high",
    "ppo/loss/value": "value", "ppo/val/clipfrac": "value_clipped",
}  # fmt: skip
"""Means over tokens: their names, and those of the sums of a step."""


def learn(
    config: Config,
    roles: Roles,
    optimizer: torch.optim.Optimizer,
    experience: Experience,
    plan: list[list[list[list[int]]]],
) -> dict[str, float]:
    """The passes over one iteration's responses; each minibatch is a step of policy and value.

    ``without_gradient`` counts a role's tensors that no step gave a gradient; gradient norms are those before clipping.
    """
    import torch

    from rlhf_pipeline import processes

    mask = experience.rollout.response_mask
    trained = roles.names(trainable=True)
    parameters = {name: roles.parameters(name) for name in trained}
    without_gradient = {name: set(range(len(parameters[name]))) for name in trained}
    steps: list[dict[str, float]] = []
    for minibatch in (minibatch for epoch in plan for minibatch in epoch):
        batches = [experience.batch(rows) for rows in minibatch]
        here = sum(int(batch.sequences.response_mask.sum()) for batch in batches)
        tokens = round(processes.add_up_numbers({"tokens": here})["tokens"])
        optimizer.zero_grad(set_to_none=True)
        sums, extremes = _policy_backward(config, roles, batches, tokens)
        step = {"tokens": float(tokens), **processes.add_up_numbers(sums)}
        step |= {name: processes.largest(number) for name, number in extremes.items()}
        if not steps:
            ppo_start.require_unit_ratio(step["ratio_error"], roles)
        elif step["old_kl"] / tokens > _EARLY_STOP * config.target_kl:
            break
        if "value" in roles and config.critic.on != "policy_trunk":
            step |= processes.add_up_numbers(_value_backward(config, roles, batches, tokens))
        for name in trained:
            without_gradient[name] &= {i for i, one in enumerate(parameters[name]) if one.grad is None}
        processes.add_up_gradients(parameter for name in trained for parameter in parameters[name])
        for name in trained:
            norm = torch.nn.utils.clip_grad_norm_(parameters[name], config.max_grad_norm).item()
            if not math.isfinite(norm):
                advice = "lower ppo.learning_rate and ppo.critic.learning_rate, or use model.dtype=float32"
                raise TrainingError(f"the {name}'s gradient is not finite", advice=advice)
            step[f"{name}_norm"] = norm
        optimizer.step()
        steps.append(step)
    done = sum(step["tokens"] for step in steps)
    row = {
        **{name: sum(step[key] for step in steps) / done for name, key in _PER_TOKEN.items() if key in steps[0]},
        "ppo/policy/ratio_max": max(step["largest_ratio"] for step in steps),
        "ppo/policy/ratio_min": -max(step["minus_smallest_ratio"] for step in steps),
        "ppo/policy/clipfrac": sum(step["clipped_low"] + step["clipped_high"] for step in steps) / done,
        "ppo/ratio_check": steps[0]["ratio_error"],
        "ppo/passes": done / mask.sum().item(),
        "ppo/stopped_early": float(len(steps) < sum(map(len, plan))),
    }
    for name, place in (("policy", "ppo/policy"), ("value", "ppo/val")):
        if name in trained:
            row[f"{place}/grad_norm"] = sum(step[f"{name}_norm"] for step in steps) / len(steps)
            row[f"{place}/without_gradient"] = float(len(without_gradient[name]))
    return row


def _policy_backward(
    config: Config, roles: Roles, batches: list[Batch], tokens: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Gradients of the policy over one minibatch, whose micro-batches add up; sums over tokens, and extreme ratios.

    A value that is read from the policy's trunk learns in the same pass.
    """
    from rlhf_pipeline.logprobs import response_states, token_logprobs
    from rlhf_pipeline.losses import ppo_policy_loss

    sums = dict.fromkeys(("policy", "clipped_low", "clipped_high", "old_kl", "ratio"), 0.0)
    extremes = {"ratio_error": 0.0, "largest_ratio": -math.inf, "minus_smallest_ratio": -math.inf}
    shared = "value" in roles and config.critic.on == "policy_trunk"
    sums |= dict.fromkeys(("value", "value_clipped"), 0.0) if shared else {}
    with roles.use("policy") as model:
        for batch in batches:
            sequences = batch.sequences
            states, logits = response_states(model, sequences)
            chosen = token_logprobs(logits, sequences.ids[sequences.places()], config.temperature)
            result = ppo_policy_loss(
                sequences.dense(chosen),
                batch.logprobs,
                batch.advantages,
                sequences.response_mask,
                cliprange=config.cliprange,
                token_count=tokens,
            )
            loss = result.loss
            if shared:
                value = _value_loss(config, roles, batch, states, tokens)
                loss = loss + config.critic.vf_coef * value.loss
                sums["value"] += value.loss.item() * tokens
                sums["value_clipped"] += value.clipped.item()
            loss.backward()  # type: ignore[no-untyped-call]
            sums["policy"] += result.loss.item() * tokens
            sums["clipped_low"] += result.clipped_low.item()
            sums["clipped_high"] += result.clipped_high.item()
            sums["old_kl"] += result.old_kl.item()
            sums["ratio"] += result.ratio.item()
            found = (result.largest_ratio_error, result.largest_ratio, -result.smallest_ratio)
            extremes = {name: max(extremes[name], one.item()) for name, one in zip(extremes, found, strict=True)}
    return sums, extremes


def _value_backward(config: Config, roles: Roles, batches: list[Batch], tokens: int) -> dict[str, float]:
    """Gradients of the value over one minibatch, of its adapter where it has one; sums over tokens."""
    from rlhf_pipeline.logprobs import response_hidden

    sums = dict.fromkeys(("value", "value_clipped"), 0.0)
    with roles.use("value") as model:
        for batch in batches:
            states = response_hidden(model, batch.sequences) if batch.features is None else batch.features
            result = _value_loss(config, roles, batch, states, tokens)
            result.loss.backward()  # type: ignore[no-untyped-call]
            sums["value"] += result.loss.item() * tokens
            sums["value_clipped"] += result.clipped.item()
    return sums


def _value_loss(config: Config, roles: Roles, batch: Batch, states: torch.Tensor, tokens: int) -> ValueLoss:
    """Of the values that the head reads from these states, ``(tokens, hidden)``."""
    from rlhf_pipeline.losses import ppo_value_loss

    assert batch.critic is not None
    old_values, returns = batch.critic
    return ppo_value_loss(
        batch.sequences.dense(roles.head("value", states)),
        old_values,
        returns,
        batch.sequences.response_mask,
        cliprange_value=config.critic.cliprange_value,
        token_count=tokens,
    )
