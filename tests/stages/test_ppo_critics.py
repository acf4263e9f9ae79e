"""PPO's passes against gradients that are computed another way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf_pipeline import rollout as rollouts
from rlhf_pipeline.roles import Roles
from stages import ppo
from stages.ppo_learn import learn
from tests.rlhf_pipeline.test_generation import tiny
from tests.rlhf_pipeline.test_roles import LORA, scramble
from tests.rlhf_pipeline.test_rollout import ROLLOUT

VF_COEF, CLIP, CLIP_VALUE = 0.3, 0.2, 0.2


def critic_of(on: str) -> Roles:
    roles = Roles(tiny("llama"))
    for seed, name in enumerate(("reference", "policy", "reward")):
        roles.add(name, lora=LORA, trainable=name == "policy")
        scramble(roles, name, seed)
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    roles.add_head("value", weight, on={"policy_trunk": "policy", "reward_features": "reward"}[on], trainable=True)
    return roles


@pytest.mark.parametrize("micro_batches", [[[0, 1, 2, 3]], [[3, 1], [0], [2]]])
@pytest.mark.parametrize("on", ["policy_trunk", "reward_features"])
def test_gradients_of_a_critic_without_an_adapter(on: str, micro_batches: list[list[int]]) -> None:
    """One plain backward pass over each row alone, with the losses written out."""
    roles = critic_of(on)
    config = ppo.Config(
        cliprange=CLIP, max_grad_norm=1e9, target_kl=1e9,
        critic={"on": on, "vf_coef": VF_COEF, "cliprange_value": CLIP_VALUE},
    )  # fmt: skip
    measured = rollouts.measure(roles, ROLLOUT, micro_batches, temperature=1.0)
    generator = torch.Generator().manual_seed(4)
    advantages, noise = (torch.randn(4, 3, generator=generator) for _ in range(2))
    assert measured.values is not None
    returns = measured.values + noise
    experience = rollouts.Experience(ROLLOUT, measured, advantages, returns)
    trained = [p for name in ("policy", "value") for p in roles.parameters(name)]
    before = [p.detach().clone() for p in trained]
    learn(config, roles, torch.optim.SGD(trained, lr=1.0), experience, [[micro_batches]])
    found = [start - p.detach() for start, p in zip(before, trained, strict=True)]

    with torch.no_grad():
        for parameter, start in zip(trained, before, strict=True):
            parameter.copy_(start)
            parameter.grad = None
    total = torch.zeros(())
    for row, (prompt, response) in enumerate(zip(ROLLOUT.prompts, ROLLOUT.responses, strict=True)):
        ids, first, count = torch.tensor([prompt + response]), len(prompt) - 1, len(response)
        with roles.use("policy") as model:
            output = model(ids, output_hidden_states=True)
        states = output.hidden_states[-1][0, first : first + count]
        if on == "reward_features":
            with roles.use("reward") as model:
                states = model(ids, output_hidden_states=True).hidden_states[-1][0, first : first + count].detach()
        logprobs = output.logits[0, first : first + count].log_softmax(-1)
        logprobs = logprobs.gather(1, torch.tensor(response)[:, None])[:, 0]
        weight, bias = roles.parameters("value")
        values = states @ weight[0] + bias
        total = total + _loss(row, count, logprobs, values, experience, 1.0 if on == "reward_features" else VF_COEF)
    (total / ROLLOUT.response_mask.sum()).backward()
    for parameter, gradient in zip(trained, found, strict=True):
        assert parameter.grad is not None
        assert (gradient - parameter.grad).abs().max() <= 1e-5 * max(1.0, parameter.grad.abs().max().item())
    assert all(p.grad is None for p in roles.parameters("reward"))


def _loss(
    row: int, count: int, logprobs: Tensor, values: Tensor, experience: rollouts.Experience, coefficient: float
) -> Tensor:
    advantages, old = experience.advantages[row, :count], experience.measured.logprobs[row, :count]
    assert experience.measured.values is not None
    assert experience.returns is not None
    before, returns = experience.measured.values[row, :count], experience.returns[row, :count]
    ratio = (logprobs - old).exp()
    policy = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP, 1 + CLIP)).sum()
    near = before + (values - before).clamp(-CLIP_VALUE, CLIP_VALUE)
    value = 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2).sum()
    return policy + coefficient * value
