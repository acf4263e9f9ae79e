"""What PPO starts from: the prompts, one base with its roles, what scores a response, and the checks on all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_pipeline.errors import DataError, TrainingError
from stages.job import Job

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from rlhf_pipeline.roles import Roles
    from rlhf_pipeline.rollout import Rollout, Scorer
    from rlhf_pipeline.tokenization import ChatTokenizer
    from stages.ppo import Config


def encoded_prompts(job: Job, chat: ChatTokenizer) -> list[list[int]]:
    """The training prompts' ids; what is too long is counted and left out."""
    from stages.prompts import load_prompts

    limit = job.config.max_prompt_length
    encoded = [chat.encode_prompt(prompt.messages) for prompt in load_prompts(job).train]
    kept = [ids for ids in encoded if len(ids) <= limit]
    if len(kept) < len(encoded):
        job.say(f"{len(encoded) - len(kept)} of {len(encoded)} prompts have more than {limit} tokens and are left out")
    if not kept:
        raise DataError(
            f"none of the {len(encoded)} training prompts has at most {limit} tokens",
            where="ppo.max_prompt_length",
            advice="raise it",
        )
    return kept


def make_roles(job: Job, chat: ChatTokenizer) -> tuple[Roles, Scorer]:
    """The base with its roles, and what scores a rollout."""
    import torch

    from rlhf_pipeline import models
    from rlhf_pipeline.roles import Roles
    from rlhf_pipeline.rollout import adapter_scores

    config: Config = job.config
    sft, reward = job.inputs["sft"].folder, job.inputs["reward"].folder
    full_sft, full_reward = models.full_model(sft), models.full_model(reward)
    roles = Roles(models.load_causal_lm(job.settings.model, device=job.device, folder=full_sft))
    if full_sft is None:
        roles.add("reference", folder=sft / "adapter")
    else:
        roles.add("reference", lora=config.lora)  # B = 0: the SFT model itself
    roles.add("policy", copy_of="reference", trainable=True)
    if full_reward is None:
        roles.add("reward", folder=reward / "adapter")
        roles.set_head("reward", models.read_score_head(reward / "adapter"))
        if config.estimator == "gae":
            roles.add("value", copy_of="reward", trainable=True)
    else:
        if config.estimator == "gae":
            roles.add("value", lora=config.lora, trainable=True)
            roles.set_head("value", torch.zeros(1, roles.base.config.get_text_config().hidden_size))
        reward_model = models.load_reward_model(job.settings.model, reward, device=job.device)
        job.say("the reward model has all weights of its own: it is held in memory beside the base")
    if config.gradient_checkpointing:
        roles.recompute_layers()

    def score(rollout: Rollout, groups: Sequence[Sequence[int]]) -> torch.Tensor:
        judged = rollout.ending_with(chat.end_id)
        if full_reward is None:
            return adapter_scores(roles, judged, groups)
        scores = reward_model.score([[*p, *r] for p, r in zip(judged.prompts, judged.responses, strict=True)])
        return torch.tensor(scores, device=job.device)

    return roles, score


def require_unmoved(roles: Roles, frozen: Mapping[str | None, str]) -> None:
    """Base, reference and reward have the fingerprints that they had at the start.

    Raises:
        TrainingError: one has not.
    """
    moved = [name or "base" for name, fingerprint in frozen.items() if roles.fingerprint(name) != fingerprint]
    if moved:
        raise TrainingError(f"training has changed what must not change: {', '.join(moved)}")


def _tolerance(roles: Roles) -> float:
    """How far two forwards of the same weights and batch may be apart: nothing on a CPU, atomics on a GPU."""
    import torch

    return 1e-4 if roles.base.dtype in (torch.float32, torch.float64) else 5e-2


def require_equal_start(roles: Roles, prompts: list[list[int]], chat: ChatTokenizer) -> None:
    """The policy starts as the reference: KL(policy‖reference) is 0, seen on some prompts."""
    from rlhf_pipeline.rollout import largest_difference

    difference = largest_difference(roles, "policy", "reference", prompts[:8], pad_id=chat.pad_id)
    if not difference <= _tolerance(roles):
        raise TrainingError(
            f"the policy does not start as the SFT policy: log-probabilities differ by {difference:.2g}"
        )


def require_unit_ratio(error: float, roles: Roles) -> None:
    """Before the first step the policy is the one that was scored, so every probability ratio is 1."""
    if not error <= _tolerance(roles):
        raise TrainingError(
            f"the first probability ratio of an iteration differs from 1 by {error:.2g}: what was scored is not what "
            "is trained",
            advice="please report this with your configuration",
        )
