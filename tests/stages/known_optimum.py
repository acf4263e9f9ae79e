"""PPO where the optimum is known: two prompts, five words and a stop, at most two tokens, a score for each response.

Every response can be counted, so the policy that PPO should reach is π_ref exp(score / β) / Z, and the highest mean
score at every KL is known. Only what surrounds the engine is replaced: tokenizer, prompts, reward model.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_pipeline.config import LoraSection, ModelConfig
from rlhf_pipeline.logprobs import pad_sequences, response_logprobs
from rlhf_pipeline.metrics import read_metrics
from rlhf_pipeline.rewards import Scoring
from rlhf_pipeline.roles import Roles
from rlhf_pipeline.rollout import Rollout, ScoreScale
from stages import ppo, ppo_start
from tests.stages.test_ppo import make_job

WORDS, STOP, KL_COEF = 6, 0, 1.0
PROMPTS = [[1, 2], [3, 4, 5]]
RESPONSES = [[STOP], *([a, b] for a in range(1, WORDS) for b in range(WORDS))]


@dataclass(frozen=True)
class Outcome:
    """How near the policy has come, the worse of the two prompts."""

    before: float
    """Total variation between reference and optimum."""
    after: float
    """The same of the trained policy."""
    gap: float
    """Share of the optimum's gain in E[score] - β KL that is missing."""
    above: float
    """The largest excess of E[score] over the highest possible one at its KL, in every tenth iteration."""
    ratio_error: float
    """max |ratio - 1| before the first step of any iteration."""


def train(estimator: str, seed: int, folder: Path, iterations: int = 100) -> Outcome:
    """Iterations of the stage with 256 responses each."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.1,
    )  # fmt: skip
    roles, lora = Roles(LlamaForCausalLM(config).eval()), LoraSection(rank=8, alpha=16)
    roles.add("reference", lora=lora)
    roles.add("policy", copy_of="reference", trainable=True)
    if estimator == "gae":
        roles.add("value", lora=lora, trainable=True)
        roles.set_head("value", torch.zeros(1, 32))
    scores = torch.randn(len(PROMPTS), len(RESPONSES))

    def score(rollout: Rollout, _: Any) -> Tensor:
        pairs = zip(rollout.prompts, rollout.responses, strict=True)
        return torch.stack([scores[PROMPTS.index(prompt), RESPONSES.index(response)] for prompt, response in pairs])

    job = make_job(
        folder, ModelConfig(name="toy"), iterations=iterations, rollout_batch=256, kl_coef=KL_COEF,
        missing_eos_penalty=0.0, max_new_tokens=2, learning_rate=5e-3, critic={"learning_rate": 5e-3},
        save_every=1000, estimator=estimator, micro_batch_tokens=4096, generation_batch=256,
        samples_per_prompt=1 if estimator == "gae" else 4,
    )  # fmt: skip
    path, learn = [log_policy(roles)], ppo.learn

    def learn_and_look(*arguments: Any, **options: Any) -> dict[str, float]:
        learnt = learn(*arguments, **options)
        path.append(log_policy(roles))
        return learnt

    chat = SimpleNamespace(stop_ids=frozenset({STOP}), end_id=STOP, pad_id=1)
    with ExitStack() as stack:
        for target, replacement in {
            "rlhf_pipeline.tokenization.load_tokenizer": lambda _: chat,
            "stages.ppo_start.encoded_prompts": lambda *_: ppo_start.Prompts(PROMPTS, [], {}),
            "stages.ppo_start.make_roles": lambda *_: (roles, Scoring({"table": (1.0, score)})),
            "rlhf_pipeline.rollout.ScoreScale.of": lambda _: ScoreScale(0.0, 1.0),
            "stages.ppo.learn": learn_and_look,
        }.items():
            stack.enter_context(patch(target, replacement))
        ppo.run(dataclasses.replace(job, seed=seed))
    rows = read_metrics(job.folder / "metrics.jsonl")
    return _judged(path, scores.double(), max(row["ppo/ratio_check"] for row in rows))


@torch.no_grad()
def log_policy(roles: Roles) -> Tensor:
    """Log-probability of every response to every prompt, ``(prompts, responses)``, as the engine sees it."""
    with roles.use("policy") as model:
        packed = [pad_sequences([prompt] * len(RESPONSES), RESPONSES, pad_id=1) for prompt in PROMPTS]
        sums = torch.stack([response_logprobs(model, one).double().sum(1) for one in packed])
    assert (sums.logsumexp(1).abs() < 1e-5).all(), "the responses are all that there are"
    return sums


def _judged(path: list[Tensor], scores: Tensor, ratio_error: float) -> Outcome:
    ref, last = path[0], path[-1]

    def best(beta: float) -> Tensor:
        return torch.log_softmax(ref + scores / beta, 1)

    def distance(policy: Tensor) -> float:
        return 0.5 * (policy.exp() - best(KL_COEF).exp()).abs().sum(1).max().item()

    def kl(policy: Tensor) -> float:
        return (policy.exp() * (policy - ref)).sum(1).mean().item()

    def value(policy: Tensor) -> float:
        return (policy.exp() * scores).sum(1).mean().item()

    def excess(policy: Tensor) -> float:
        """Over the frontier, which is the optimum of that β which has the policy's KL."""
        low, high = 1e-3, 1e6
        for _ in range(80):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if kl(best(middle)) > kl(policy) else (low, middle)
        return value(policy) - value(best(high))

    objectives = [value(policy) - KL_COEF * kl(policy) for policy in (ref, last, best(KL_COEF))]
    gap = (objectives[2] - objectives[1]) / (objectives[2] - objectives[0])
    return Outcome(distance(ref), distance(last), gap, max(map(excess, path[::10])), ratio_error)
