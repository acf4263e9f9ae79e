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


def learn(
    config: Config,
    roles: Roles,
    optimizer: torch.optim.Optimizer,
    experience: Experience,
    plan: list[list[list[list[int]]]],
) -> dict[str, float]:
    """The passes over one iteration's responses; each minibatch is a step of policy and value."""
    import torch

    from rlhf_pipeline import processes

    mask = experience.rollout.response_mask
    trained = roles.names(trainable=True)
    sums = dict.fromkeys(("policy", "policy_clipped", "old_kl", "value", "value_clipped", "tokens"), 0.0)
    ratio_check: float | None = None
    for minibatch in (minibatch for epoch in plan for minibatch in epoch):
        batches = [experience.batch(rows) for rows in minibatch]
        here = sum(int(batch.sequences.response_mask.sum()) for batch in batches)
        tokens = round(processes.add_up_numbers({"tokens": here})["tokens"])
        optimizer.zero_grad(set_to_none=True)
        step, ratio_error = _policy_backward(config, roles, batches, tokens)
        step, ratio_error = processes.add_up_numbers(step), processes.largest(ratio_error)
        if ratio_check is None:
            ratio_check = ratio_error
            ppo_start.require_unit_ratio(ratio_error, roles)
        elif step["old_kl"] / tokens > _EARLY_STOP * config.target_kl:
            break
        if "value" in roles and config.critic.on != "policy_trunk":
            step |= processes.add_up_numbers(_value_backward(config, roles, batches, tokens))
        processes.add_up_gradients(parameter for name in trained for parameter in roles.parameters(name))
        for name in trained:
            norm = torch.nn.utils.clip_grad_norm_(roles.parameters(name), config.max_grad_norm).item()
            if not math.isfinite(norm):
                advice = "lower ppo.learning_rate and ppo.critic.learning_rate, or use model.dtype=float32"
                raise TrainingError(f"the {name}'s gradient is not finite", advice=advice)
        optimizer.step()
        sums = {key: total + step.get(key, tokens) for key, total in sums.items()}
    critic = {"ppo/loss/value": "value", "ppo/val/clipfrac": "value_clipped"} if "value" in roles else {}
    return {
        "ppo/loss/policy": sums["policy"] / sums["tokens"],
        "ppo/policy/approxkl": sums["old_kl"] / sums["tokens"],
        "ppo/policy/clipfrac": sums["policy_clipped"] / sums["tokens"],
        **{name: sums[key] / sums["tokens"] for name, key in critic.items()},
        "ppo/ratio_check": ratio_check or 0.0,
        "ppo/passes": sums["tokens"] / mask.sum().item(),
    }


def _policy_backward(config: Config, roles: Roles, batches: list[Batch], tokens: int) -> tuple[dict[str, float], float]:
    """Gradients of the policy over one minibatch, whose micro-batches add up; sums over tokens, and max |ratio - 1|.

    A value that is read from the policy's trunk learns in the same pass.
    """
    from rlhf_pipeline.logprobs import response_states, token_logprobs
    from rlhf_pipeline.losses import ppo_policy_loss

    sums, ratio_error = dict.fromkeys(("policy", "policy_clipped", "old_kl"), 0.0), 0.0
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
            sums["policy_clipped"] += result.clipped.item()
            sums["old_kl"] += result.old_kl.item()
            ratio_error = max(ratio_error, result.largest_ratio_error.item())
    return sums, ratio_error


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
