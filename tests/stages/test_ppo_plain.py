"""The stage against PPO written down plainly: a PEFT model for each role, one unpadded response at a time.

Two iterations of the stage must leave the policy, and report the numbers, that this gives. Responses are made up, so
that some end with either stop token, some are cut off, and their lengths differ.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from rlhf_pipeline import models
from rlhf_pipeline import rollout as rollouts
from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.generation import Sampled
from rlhf_pipeline.metrics import read_metrics
from rlhf_pipeline.roles import Roles
from rlhf_pipeline.tokenization import ChatTokenizer, load_tokenizer
from stages import ppo, ppo_progress
from tests.stages.test_ppo import make_inputs, make_job, result

SETTINGS: dict[str, Any] = {
    "iterations": 2, "rollout_batch": 8, "num_ppo_epochs": 2, "num_minibatches": 1, "micro_batch_tokens": 60,
    "temperature": 0.8, "kl_coef": 0.3, "adaptive_kl": 0.01, "cliprange": 0.005, "reward_clip": 0.8,
    "missing_eos_penalty": 0.4, "max_grad_norm": 0.02, "learning_rate": 3e-3, "target_kl": 100.0,
    "stop": {"every": None},
    "critic": {"learning_rate": 2e-3, "gamma": 0.99, "lam": 0.9, "cliprange_value": 0.02},
}  # fmt: skip
KL_HORIZON = 10
"""So short that the second iteration's price of KL is another one than the configuration's."""


class Sampler:
    """In place of sampling: made-up responses, kept with what was asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.given: list[rollouts.Rollout] = []

    def __call__(
        self, roles: Roles, role: str, prompts: list[list[int]], chat: ChatTokenizer, **options: Any
    ) -> rollouts.Rollout:
        self.asked.append({"role": role, **options})
        draw = random.Random(len(self.given))
        made = []
        for place in range(len(prompts)):
            ids = [draw.randrange(10, 300) for _ in range(draw.randrange(1, 6))]
            stop = [None, *sorted(chat.stop_ids)][place % 3]
            made.append(Sampled(ids if stop is None else [*ids, stop], stop is not None))
        self.given.append(rollouts.Rollout.of(prompts, made, pad_id=chat.pad_id, device=torch.device("cpu")))
        return self.given[-1]


class Plain:
    """PPO without batches, padding, roles or any function of ours but the loading of a base."""

    def __init__(self, model: ModelConfig, folder: Path, config: ppo.Config) -> None:
        def adapted(name: str) -> Any:
            base = models.load_causal_lm(model, device="cpu")
            return PeftModel.from_pretrained(base, folder / name / "adapter", is_trainable=True).eval()

        self.config, self.end_id = config, load_tokenizer(model).end_id
        self.policy, self.reference, self.reward = adapted("sft"), adapted("sft"), adapted("reward")
        self.score_weight = models.read_score_head(folder / "reward" / "adapter")[0]
        self.kl_coef = config.kl_coef

        def trainable(module: nn.Module) -> list[nn.Parameter]:
            return [parameter for parameter in module.parameters() if parameter.requires_grad]

        self.trained, self.rates = [trainable(self.policy)], [config.learning_rate]
        self.value = None
        if config.estimator == "gae":
            self.value, self.head = adapted("reward"), nn.Linear(32, 1)
            self.trained.append(trainable(self.value) + trainable(self.head))
            self.rates.append(config.critic.learning_rate)
        groups = [{"params": parameters} for parameters in self.trained]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)

    def settle(self, rollout: rollouts.Rollout) -> None:
        scores = self.scores(rollout)
        self.mean, self.std = scores.mean(), scores.std(unbiased=False)
        if self.value is not None:
            with torch.no_grad():
                self.head.weight.copy_(self.score_weight / self.std)
                self.head.bias.copy_(-self.mean / self.std)

    def states(self, peft: Any, ids: Sequence[int]) -> Tensor:
        return peft(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]

    def logprobs(self, peft: Any, prompt: list[int], response: list[int]) -> Tensor:
        logits = peft(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits / self.config.temperature, -1)[range(len(response)), response]

    def values(self, prompt: list[int], response: list[int]) -> Tensor:
        return self.head(self.states(self.value, prompt + response)[len(prompt) - 1 : -1])[:, 0]

    @torch.no_grad()
    def scores(self, rollout: rollouts.Rollout) -> Tensor:
        """A response that ended is shown to the reward model with the end that it knows."""
        rows = zip(rollout.prompts, rollout.responses, rollout.ended.tolist(), strict=True)
        judged = [prompt + ([*ids[:-1], self.end_id] if ended else ids) for prompt, ids, ended in rows]
        return torch.stack([self.states(self.reward, ids)[-1] @ self.score_weight for ids in judged])

    def advantages(self, prompts: list[list[int]], rewards: list[Tensor], values: list[Tensor]) -> list[Tensor]:
        """One tensor for each response."""
        if self.value is None:
            totals = [one.sum().item() for one in rewards]
            out = []
            for i, prompt in enumerate(prompts):
                same = [totals[j] for j in range(len(totals)) if prompts[j] == prompt]
                mean = sum(same) / len(same)
                if self.config.estimator == "rloo":
                    others = [totals[j] for j in range(len(totals)) if prompts[j] == prompt and j != i]
                    out.append((totals[i] - sum(others) / len(others)) * torch.ones(len(rewards[i])))
                else:
                    std = (sum((x - mean) ** 2 for x in same) / len(same)) ** 0.5
                    out.append((totals[i] - mean) / (std + 1e-6) * torch.ones(len(rewards[i])))
            return out
        gamma, lam, out = self.config.critic.gamma, self.config.critic.lam, []
        for reward, value in zip(rewards, values, strict=True):
            next_value = torch.cat([value[1:], torch.zeros(1)])
            delta = reward + gamma * next_value - value
            t = range(len(delta))
            out.append(torch.stack([sum((gamma * lam) ** (k - i) * delta[k] for k in t[i:]) for i in t]))
        return out

    def iteration(self, number: int, rollout: rollouts.Rollout) -> dict[str, float]:
        config, rows = self.config, list(zip(rollout.prompts, rollout.responses, strict=True))
        with torch.no_grad():
            old = [self.logprobs(self.policy, *row) for row in rows]
            ref = [self.logprobs(self.reference, *row) for row in rows]
            old_values = [self.values(*row) for row in rows] if self.value is not None else []
        raw = self.scores(rollout)
        scores = ((raw - self.mean) / self.std).clamp(-config.reward_clip, config.reward_clip)
        scores = scores - config.missing_eos_penalty * (~rollout.ended)
        rewards = [-self.kl_coef * (new - base) for new, base in zip(old, ref, strict=True)]
        for reward, score in zip(rewards, scores, strict=True):
            reward[-1] += score
        advantages = self.advantages(rollout.prompts, rewards, old_values)
        returns = [a + v for a, v in zip(advantages, old_values, strict=True)] if old_values else []
        if self.value is not None:
            every = torch.cat(advantages)
            advantages = [(a - every.mean()) / (every.var(unbiased=False) + 1e-8).sqrt() for a in advantages]
        report = {
            "objective/kl": sum((a - b).sum().item() for a, b in zip(old, ref, strict=True)) / len(rows),
            "objective/scores": raw.mean().item(),
            "objective/rlhf_reward": torch.cat(rewards).sum().item() / len(rows),
            "objective/kl_coef": self.kl_coef,
        }
        tokens = sum(len(response) for _, response in rows)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * (1 - number / config.iterations)
        losses: list[tuple[float, ...]] = []
        for _ in range(config.num_ppo_epochs):
            self.optimizer.zero_grad()
            policy_loss, value_loss, clipped = torch.zeros(()), torch.zeros(()), 0.0
            for i, row in enumerate(rows):
                ratio = (self.logprobs(self.policy, *row) - old[i]).exp()
                near = ratio.clamp(1 - config.cliprange, 1 + config.cliprange) * advantages[i]
                plain = ratio * advantages[i]
                policy_loss = policy_loss - torch.minimum(plain, near).sum() / tokens
                clipped += (near < plain).sum().item() / tokens
                if self.value is not None:
                    limit, value = config.critic.cliprange_value, self.values(*row)
                    kept = old_values[i] + (value - old_values[i]).clamp(-limit, limit)
                    worse = torch.maximum((value - returns[i]) ** 2, (kept - returns[i]) ** 2)
                    value_loss = value_loss + 0.5 * worse.sum() / tokens
            (policy_loss + value_loss).backward()
            for parameters in self.trained:
                torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            self.optimizer.step()
            losses.append((policy_loss.item(), value_loss.item(), clipped))
        means = [sum(column) / len(losses) for column in zip(*losses, strict=True)]
        report |= {"ppo/loss/policy": means[0], "ppo/policy/clipfrac": means[2]}
        if self.value is not None:
            report["ppo/loss/value"] = means[1]
        error = min(max(report["objective/kl"] / config.adaptive_kl - 1, -0.2), 0.2)
        self.kl_coef *= 1 + error * len(rows) / KL_HORIZON
        return report


@pytest.mark.parametrize("estimator", ["gae", "rloo", "grpo"])
def test_two_iterations_are_those_of_a_plain_implementation(
    estimator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sampler = make_inputs(tmp_path), Sampler()
    monkeypatch.setattr(rollouts, "sample", sampler)
    monkeypatch.setattr(ppo, "SCALE_RESPONSES", 8)
    monkeypatch.setattr(ppo_progress, "_KL_HORIZON", KL_HORIZON)
    job = make_job(tmp_path, model, **SETTINGS, estimator=estimator, samples_per_prompt=1 if estimator == "gae" else 4)
    ppo.run(job)
    assert [asked["role"] for asked in sampler.asked] == ["reference", "policy", "policy"]
    assert {asked["temperature"] for asked in sampler.asked} == {0.8}
    assert len({asked["seed"] for asked in sampler.asked}) == 3

    plain = Plain(model, tmp_path, job.config)
    plain.settle(sampler.given[0])
    lines = read_metrics(tmp_path / "ppo" / "metrics.jsonl")
    for number, (rollout, line) in enumerate(zip(sampler.given[1:], lines, strict=True)):
        for key, value in plain.iteration(number, rollout).items():
            assert line[key] == pytest.approx(value, rel=1e-4, abs=2e-6), (number, key)
    assert abs(lines[1]["objective/kl"]) > 1e-3
    assert 0.05 < lines[1]["ppo/policy/clipfrac"] < 0.95
    saved = result(tmp_path / "ppo")[0]
    expected = {key.replace(".default", ""): value for key, value in plain.policy.named_parameters() if "lora_" in key}
    assert saved.keys() == expected.keys()
    for key, value in saved.items():
        assert (value - expected[key]).abs().max() < 2e-5, key  # the learning rate is a hundred times as large
