"""Align the policy by PPO: it starts as the SFT policy and learns what the reward model scores highly.

Reads the SFT policy, the reward model and the prompts; writes ``adapter/`` (the policy), ``metrics.jsonl`` (a line per
iteration), ``held_out.jsonl`` (a line per scoring on held-out prompts) and, where one was raised, ``alarms.json``. One
frozen base serves the four roles policy, reference, reward and value; only a reward model without LoRA is a model
beside it. With ``estimator: rloo`` or ``grpo`` several responses to a prompt are compared with each other, and there is
no value. Interrupted, it goes on from its last checkpoint with the very numbers of an uninterrupted run.

    rlhf run CONFIG ppo
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rlhf_pipeline.config import NO_EFFECT, LoraSection, Section
from stages import ppo_progress, ppo_start
from stages.job import Job
from stages.ppo_held_out import HeldOut
from stages.ppo_learn import learn

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from rlhf_pipeline.rewards import Scoring
    from rlhf_pipeline.roles import Roles
    from rlhf_pipeline.rollout import Experience, Rollout
    from rlhf_pipeline.tokenization import ChatTokenizer

SCALE_RESPONSES = 64  # at least so many of the SFT policy's responses settle what 0 and 1 mean as a normalised score


class Reward(Section):
    """A source of scores."""

    source: str = Field("reward_model", min_length=1)
    """``reward_model`` is that of the reward stage, less what breaks rules where it knows some; ``rules`` is minus the
    mean probability that a rule is broken, and beside it ``reward_model`` is the preference alone; otherwise a Python
    file, e.g. ``rewards/short.py``."""
    function: str = Field("score", min_length=1)
    """In a Python file: ``function(prompts, responses) -> scores``; prompts are lists of messages, responses texts."""
    weight: float = 1.0
    """With several sources: of this one's score, counted in its standard deviations; below zero it is a penalty."""

    @field_validator("weight")
    @classmethod
    def _counts(cls, weight: float) -> float:
        if weight == 0:
            raise ValueError("a weight of 0 leaves the source out; take it away")
        return weight

    @property
    def file(self) -> str | None:
        """The Python file, where it is one."""
        return None if self.source in ("reward_model", "rules") else self.source


class Critic(Section):
    """The value role, which ``estimator: gae`` trains beside the policy; the other estimators have none."""

    on: Literal["adapter", "policy_trunk", "reward_features"] = "adapter"
    """What values are read from. ``adapter``: an adapter of their own, which starts as the reward model's.
    ``policy_trunk``: the policy's hidden states, so that one pass serves both and the value's loss trains the policy's
    adapter too. ``reward_features``: those of the frozen reward adapter, kept for all passes over an iteration."""
    vf_coef: float = Field(0.1, gt=0)
    """With ``on: policy_trunk``: the weight of the value's loss beside the policy's."""
    learning_rate: float = Field(5e-5, gt=0)
    """Of the value's adapter and head; falls linearly to zero."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token; below 1 the optimum is no longer that of the KL-penalised score."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's λ: 1 trusts the rewards alone (unbiased, noisy), lower trusts the values more."""
    cliprange_value: float = Field(0.2, gt=0)
    """How far a value may move in one iteration, in standard deviations of the score."""
    whiten: bool = True
    """Advantages get mean 0 and variance 1 over each iteration's tokens."""


class Stop(Section):
    """When training ends before its last iteration, and which iteration's policy is the result."""

    every: int | None = Field(10, ge=1)
    """Iterations between scorings of held-out responses (and one after the last); null does without."""
    prompts: int = Field(64, ge=2)
    """How many held-out prompts are answered for a scoring."""
    judge: str = Field("rewards", min_length=1)
    """Whose mean is to be highest: ``rewards`` is what is trained on, less the price of KL; ``gold`` the gold judge of
    the built-in prompts; else a Python file with ``score(prompts, responses)`` that training does not see."""
    kl_budget: float | None = Field(None, gt=0)
    """KL per response in nats; where it is passed training ends, and no policy beyond it is kept. Null: no limit."""
    patience: int | None = Field(None, ge=1)
    """Training ends after so many scorings without a better one; null goes on to the last iteration."""
    keep: Literal["best", "last"] = "best"
    """The policy that is the result: that of the best scoring, or the last one whatever its score."""

    @model_validator(mode="after")
    def _scorings_are_made(self) -> Stop:
        if self.every is None and self.patience is not None:
            raise ValueError("patience counts scorings, of which every: null makes none")
        return self

    @property
    def judge_file(self) -> str | None:
        """The Python file that judges, where it is one."""
        return None if self.judge in ("rewards", "gold") else self.judge

    @property
    def criterion(self) -> str:
        """The number of a scoring that is to be highest."""
        return {"rewards": "objective", "gold": "gold"}.get(self.judge, "judge")


class Config(Section):
    """Proximal policy optimisation against the reward model, with a KL penalty to the SFT policy."""

    estimator: Literal["gae", "rloo", "grpo"] = "gae"
    """Where advantages come from: ``gae`` learns a value for every token; ``rloo`` takes a response against the mean of
    the others to its prompt, which needs no value; ``grpo`` also divides by their standard deviation."""
    samples_per_prompt: int = Field(1, ge=1)
    """Responses to each prompt of an iteration; ``rloo`` and ``grpo`` need at least 2. Raising it makes their baseline
    less noisy and leaves fewer prompts in an iteration."""

    rewards: list[Reward] = Field(default_factory=list)
    """What is learnt to please; empty is the reward stage's model. Several are added up, each in its standard
    deviations: ``[{source: reward_model}, {source: rewards/short.py, function: score, weight: 0.3}]``."""
    iterations: int = Field(100, ge=1)
    """How many times responses are sampled and learnt from."""
    rollout_batch: int = Field(128, ge=1)
    """Responses sampled in one iteration; raising it makes every step less noisy."""
    num_ppo_epochs: int = Field(2, ge=1)
    """Passes over each iteration's responses."""
    num_minibatches: int = Field(2, ge=1)
    """Optimiser steps in one pass."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Prompt and response tokens in one forward pass; lower it when memory runs out: results stay the same."""
    gradient_checkpointing: Annotated[bool, NO_EFFECT] = False
    """Recompute activations in the backward pass: less memory, about a third more time, the same weights."""
    generation_batch: int = Field(128, ge=1)
    """Responses sampled at the same time; lower it when memory runs out: only rounding changes."""
    max_prompt_length: int = Field(1024, ge=1)
    """Longer prompts (in tokens) are left out and counted."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens after which a response is cut off."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits, in sampling and in every log-probability; above 1 explores more."""
    learning_rate: float = Field(1e-5, gt=0)
    """Of the policy's adapter; falls linearly to zero."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient's norm is clipped to this, for policy and value apart."""
    kl_coef: float = Field(0.05, ge=0)
    """Price of a nat of KL to the SFT policy, in standard deviations of the score; raising it keeps it closer."""
    adaptive_kl: float | None = Field(None, gt=0)
    """KL per response in nats that ``kl_coef`` is steered towards; null keeps the coefficient fixed."""
    target_kl: float = Field(0.02, gt=0)
    """KL per token between two iterations' policies; at 1.5 times this an iteration's passes stop."""
    cliprange: float = Field(0.2, gt=0, lt=1)
    """Beyond 1 ± this the probability ratio earns nothing more."""
    reward_clip: float = Field(10.0, gt=0)
    """Normalised scores are cut to ± this."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Taken from the normalised score of a response that was cut off."""
    save_every: Annotated[int, NO_EFFECT] = Field(10, ge=1)
    """Iterations between checkpoints, from which an interrupted stage resumes; changes no result."""
    critic: Critic = Field(default_factory=Critic)
    """The value role of ``estimator: gae``."""
    stop: Stop = Field(default_factory=Stop)
    """Held-out scoring: when to stop, and which policy to keep."""
    lora: LoraSection = Field(default_factory=LoraSection)
    """The adapters' shape where SFT (or the reward model) was trained without LoRA; otherwise theirs is kept."""

    @model_validator(mode="after")
    def _batches_can_be_made(self) -> Config:
        if self.num_minibatches > self.rollout_batch:
            raise ValueError(f"num_minibatches ({self.num_minibatches}) exceeds rollout_batch ({self.rollout_batch})")
        if self.rollout_batch % self.samples_per_prompt:
            raise ValueError(
                f"rollout_batch ({self.rollout_batch}) is not a multiple of samples_per_prompt "
                f"({self.samples_per_prompt})"
            )
        if len({(one.source, one.function) for one in self.rewards}) < len(self.rewards):
            raise ValueError("rewards names one source twice; give it one weight")
        if self.estimator != "gae" and self.samples_per_prompt < 2:
            raise ValueError(
                f"estimator: {self.estimator} compares the responses to one prompt; samples_per_prompt: 4, say"
            )
        return self


def sources(config: Config) -> list[Reward]:
    """What scores responses."""
    return config.rewards or [Reward()]


def run(job: Job) -> dict[str, Any]:
    """Sample, score, learn; again and again."""
    import torch

    from rlhf_pipeline import processes
    from rlhf_pipeline import rollout as rollouts
    from rlhf_pipeline.alarms import Watch
    from rlhf_pipeline.metrics import COSTS, MetricsWriter, Phases, read_metrics, require_finite
    from rlhf_pipeline.tokenization import load_tokenizer
    from rlhf_pipeline.tracking import tracker

    config: Config = job.config
    torch.manual_seed(job.seed)
    chat = load_tokenizer(job.settings.model)
    prompts = ppo_start.encoded_prompts(job, chat)
    roles, score = ppo_start.make_roles(job, chat, prompts.conversations)
    ppo_start.require_equal_start(roles, prompts.train, chat)
    trunk = ppo_start.shared_trunk(job, roles)
    frozen = {name: roles.fingerprint(name) for name in (None, *roles.names(trainable=False))}
    sample = _sampler(job, roles, chat, prompts.train)
    optimizer = _optimizer(config, roles)
    progress = ppo_progress.resume(job, roles, score, optimizer)
    if progress is None:
        number = max(config.rollout_batch, SCALE_RESPONSES)
        progress = ppo_progress.start(job, roles, score, sample("reference", 0, number, "scale"))
    scale = progress.scale
    job.say(f"scores of the SFT policy: mean {scale.mean:.3f}, standard deviation {scale.std:.3f}")

    metrics, row = job.folder / "metrics.jsonl", dict[str, Any]()
    writer, phase = MetricsWriter(metrics if job.first else None, progress.done), Phases(job.device)
    processes.wait()
    watch = Watch(read_metrics(metrics))
    tracking = job.settings.run.tracking if job.first else "none"
    tracked = tracker(tracking, f"{job.run_folder.name}/ppo", job.folder / "tracking")
    held_out, over = HeldOut(job, chat, roles, score, prompts), None
    good = ppo_progress.keeping_the_last_good(job, roles)
    with good, job.track("iterations", config.iterations) as advance, tracked as report:
        advance(progress.done)
        held_out.begin(progress, report)
        for iteration in range(progress.done, config.iterations):
            with phase("rollout"):
                number = config.rollout_batch // config.samples_per_prompt
                rollout = sample("policy", iteration * number, number, "rollout", config.samples_per_prompt)
            with phase("score"):
                seeds = (rollouts.derived_seed(job.seed, iteration, epoch) for epoch in range(config.num_ppo_epochs))
                plan = [rollout.minibatches(config.num_minibatches, config.micro_batch_tokens, seed) for seed in seeds]
                groups = [rows for minibatch in plan[0] for rows in minibatch]
                rollout = rollout if trunk is None else rollout.keeping(trunk, groups)
                experience, row = _experience(config, roles, score, progress, rollout, groups)
            with phase("train"):
                remaining = 1 - iteration / config.iterations
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * remaining
                row |= learn(config, roles, optimizer, experience, plan)
            row = {"step": iteration + 1, **row, "learning_rate": config.learning_rate * remaining}
            row |= phase.row(rollout.tokens(passes=row["ppo/passes"]))
            progress.after_iteration(config, row["objective/kl"])
            writer.write(row)
            report(row)
            ppo_progress.sound(job, watch, row)
            if over := held_out.after(progress, row, report):
                break
            if progress.done % config.save_every == 0 and progress.done < config.iterations:
                ppo_progress.save(job, roles, score, optimizer, progress, frozen)
                job.say(_summary(row, config.iterations))
            advance(1)
    writer.close()
    ppo_start.require_unmoved(roles, frozen)
    kept = held_out.keep(progress, over)
    moved = rollouts.largest_difference(roles, "policy", "reference", prompts.train[:8], pad_id=chat.pad_id)
    require_finite(moved, "the largest log-ratio of policy and SFT")
    if job.first:
        roles.save("policy", job.folder / "adapter", model_name=job.settings.model.name)
    job.say(_summary(row, config.iterations))
    numbers = {key: value for key, value in row.items() if not key.startswith(COSTS)}
    return {**numbers, **kept, "alarms": [one.sentence() for one in watch.raised.values()]}


def _sampler(job: Job, roles: Roles, chat: ChatTokenizer, prompts: list[list[int]]) -> Callable[..., Rollout]:
    """A function that samples a role's responses to ``number`` prompts, those to one prompt side by side."""
    from rlhf_pipeline import rollout as rollouts

    config: Config = job.config

    def sample(role: str, start: int, number: int, purpose: str, samples: int = 1) -> Rollout:
        places = rollouts.prompt_order(len(prompts), start, number, job.seed)
        return rollouts.sample(
            roles,
            role,
            [prompts[i] for i in places for _ in range(samples)],
            chat,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            batch_size=config.generation_batch,
            seed=rollouts.derived_seed(job.seed, purpose, start),
        )

    return sample


def _experience(
    config: Config,
    roles: Roles,
    score: Scoring,
    progress: ppo_progress.Progress,
    rollout: Rollout,
    groups: list[list[int]],
) -> tuple[Experience, dict[str, Any]]:
    """Score the responses, and what is to be learnt from them; with the iteration's numbers before learning."""
    from rlhf_pipeline import rollout as rollouts
    from rlhf_pipeline.advantages import kl_penalised_rewards, whiten
    from rlhf_pipeline.diagnostics import describe

    scale, mask = progress.scale, rollout.response_mask
    measured = rollouts.measure(roles, rollout, groups, temperature=config.temperature)
    raw, by_source = score(rollout, groups)
    scores = scale.apply(raw, rollout.ended, clip=config.reward_clip, missing_eos_penalty=config.missing_eos_penalty)
    rewards = kl_penalised_rewards(scores, measured.logprobs, measured.ref_logprobs, mask, kl_coef=progress.kl_coef)
    advantages, returns = _advantages(config, rewards, measured.values, mask)
    row = describe(rollout, measured, raw, scale, rewards, advantages, returns)
    row |= {f"objective/scores/{name}": mean for name, mean in by_source.items()}
    row["objective/kl_coef"] = progress.kl_coef
    if progress.probe is not None:
        row["reward/drift"] = progress.probe.drift(score.sources["reward_model"][1])
    if returns is not None and config.critic.whiten:
        advantages = whiten(advantages, mask)
    return rollouts.Experience(rollout, measured, advantages, returns), row


def _optimizer(config: Config, roles: Roles) -> torch.optim.Optimizer:
    """AdamW for policy and value, each at its own rate."""
    import torch

    critic = {"value": config.critic.learning_rate} if "value" in roles else {}
    rates = {"policy": config.learning_rate, **critic}
    groups = [{"params": roles.parameters(name), "lr": rate, "initial_lr": rate} for name, rate in rates.items()]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)


def _advantages(
    config: Config, rewards: torch.Tensor, values: torch.Tensor | None, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Advantages, and the returns that the values are to learn where there is a critic; ``(batch, response_len)``."""
    from rlhf_pipeline.advantages import gae, group_normalised, leave_one_out, on_every_token

    if values is None:
        compare = {"rloo": leave_one_out, "grpo": group_normalised}[config.estimator]
        return on_every_token(compare(rewards.sum(1), config.samples_per_prompt), mask), None
    return gae(rewards, values, mask, gamma=config.critic.gamma, lam=config.critic.lam)


def _summary(row: dict[str, Any], iterations: int) -> str:
    return (
        f"iteration {row['step']} of {iterations}: score {row['objective/scores']:.2f}, "
        f"KL {row['objective/kl']:.2f}, length {row['response/length']:.0f}, "
        f"ended {row['response/ended']:.0%}"
    )
