"""Where PPO stands beside its weights: what was settled at its start, and what moves; kept in checkpoints to the bit.

There is no generator's state among it: every draw has a seed of its own, made of the run's seed, its purpose and the
iteration's number, so that the place in the prompts is the number of iterations done.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_pipeline.errors import ModelError, TrainingError
from stages import ppo_start
from stages.job import Job
from stages.ppo_held_out import Best

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from rlhf_pipeline.alarms import Watch
    from rlhf_pipeline.rewards import Probe, Scoring
    from rlhf_pipeline.roles import Roles
    from rlhf_pipeline.rollout import Rollout, ScoreScale
    from stages.ppo import Config

_KL_HORIZON = 10_000  # responses in which adaptive_kl can change the coefficient by a fifth (Ziegler et al. 2019)
LAST_GOOD = "last_good"
"""The folder beside a stopped run's checkpoints that holds its last good policy."""


@dataclass
class Progress:
    """How many iterations are done, and all that the next one depends on but weights and optimiser."""

    done: int
    kl_coef: float
    scale: ScoreScale
    """What 0 and 1 mean as a normalised score."""
    probe: Probe | None
    """Responses whose scores by the reward model must stay; null where no reward model scores."""
    best: Best | None = None
    """The best policy on held-out prompts so far."""

    def after_iteration(self, config: Config, kl: float) -> None:
        """Count it, and steer the price of KL by what it was, in nats per response, where it is to be steered."""
        from rlhf_pipeline.advantages import next_kl_coef

        self.done += 1
        if (target := config.adaptive_kl) is not None:
            episodes = config.rollout_batch
            self.kl_coef = next_kl_coef(self.kl_coef, kl, target=target, horizon=_KL_HORIZON, episodes=episodes)


def start(job: Job, roles: Roles, score: Scoring, rollout: Rollout) -> Progress:
    """Settle on the SFT policy's responses what a score of 0 and 1 is, and let the value speak in such scores."""
    from rlhf_pipeline import rollout as rollouts
    from rlhf_pipeline.rewards import Probe

    groups = rollout.minibatches(1, job.config.micro_batch_tokens, 0)[0]
    score.settle(rollout, groups)
    scale = rollouts.ScoreScale.of(score(rollout, groups)[0])
    if "value" in roles:
        rollouts.normalise_head(roles, "value", score.unit_of("reward_model", scale))
    model = score.sources.get("reward_model")
    return Progress(0, job.config.kl_coef, scale, Probe.of(rollout, model[1]) if model else None)


def resume(job: Job, roles: Roles, score: Scoring, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Take everything from the newest whole checkpoint; null where there is none."""
    from rlhf_pipeline.checkpoints import load_checkpoint
    from rlhf_pipeline.rewards import Probe
    from rlhf_pipeline.rollout import ScoreScale

    checkpoint = load_checkpoint(job.folder / "checkpoints")
    if checkpoint is None:
        return None
    state = checkpoint.state
    for name in roles.names(trainable=True):
        roles.load_state(name, state[name])
    optimizer.load_state_dict(state["optimizer"])
    score.scales = {name: ScoreScale(*parts) for name, parts in state["scales"].items()}
    job.say(f"resumed after iteration {checkpoint.step} of {job.config.iterations}{checkpoint.remark()}")
    probe = None if state["probe"] is None else Probe.from_state(state["probe"], device=roles.base.device)
    best = None if state["best"] is None else Best(**state["best"])
    return Progress(checkpoint.step, state["kl_coef"], ScoreScale(*state["scale"]), probe, best)


def save(
    job: Job,
    roles: Roles,
    score: Scoring,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    frozen: Mapping[str | None, str],
) -> None:
    """Write a checkpoint, once base, reference and reward are seen to be what they were."""
    from rlhf_pipeline.checkpoints import save_checkpoint

    ppo_start.require_unmoved(roles, frozen)
    trained = {name: roles.state(name) for name in roles.names(trainable=True)}
    state = {
        **trained,
        "optimizer": optimizer.state_dict(),
        "kl_coef": progress.kl_coef,
        "scale": (progress.scale.mean, progress.scale.std),
        "scales": {name: (one.mean, one.std) for name, one in score.scales.items()},
        "probe": progress.probe and progress.probe.state(),
        "best": progress.best and vars(progress.best),
    }
    save_checkpoint(job.folder / "checkpoints", progress.done, state)


def sound(job: Job, watch: Watch, row: Mapping[str, Any]) -> None:
    """Say what is new among the alarms, and keep it for ``rlhf status`` and the report: the first process alone.

    Raises:
        TrainingError: one of them stops the run.
    """
    new = watch.see(row) if job.first else []
    if not new:
        return
    watch.save(job.folder)
    for one in new:
        job.say(f"alarm, {one.name}: {one.sentence()}")
    for one in new:
        if one.stops:
            raise TrainingError(f"{one.seen}; likely {one.cause}", advice=one.advice)


@contextlib.contextmanager
def keeping_the_last_good(job: Job, roles: Roles) -> Iterator[None]:
    """Where training goes wrong, write the policy of the last checkpoint as an adapter and say where it is.

    A checkpoint is written only after an iteration in which nothing was wrong.
    """
    from rlhf_pipeline.checkpoints import load_checkpoint

    folder = job.folder / LAST_GOOD
    if job.first:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    except (TrainingError, ModelError) as error:
        checkpoint = load_checkpoint(job.folder / "checkpoints")
        kept = "there was no checkpoint yet (ppo.save_every)"
        if checkpoint is not None:
            if job.first:
                roles.load_state("policy", checkpoint.state["policy"])
                roles.save("policy", folder / "adapter", model_name=job.settings.model.name)
            kept = f"the policy after iteration {checkpoint.step}, the last good one, is kept in {folder / 'adapter'}"
        advice = "; ".join(part for part in (error.advice, kept) if part)
        raise TrainingError(error.what, where=error.where, details=error.details, advice=advice) from error
