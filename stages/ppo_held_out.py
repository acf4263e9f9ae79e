"""PPO on prompts that it does not learn from: how good the policy has become, when to stop, and which one is the best.

Every scoring draws with the same random numbers, so that two of them differ by their policies alone. Written to
``held_out.jsonl``, a line per scoring; the first one, at step 0, is of the SFT policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_pipeline import evaluation
from rlhf_pipeline.errors import ConfigError, TrainingError
from stages import ppo_start, prompts
from stages.job import Job

if TYPE_CHECKING:
    import torch

    from rlhf_pipeline.rewards import Scoring
    from rlhf_pipeline.roles import Roles
    from rlhf_pipeline.rollout import Rollout
    from rlhf_pipeline.tokenization import ChatTokenizer
    from stages.ppo_progress import Progress
    from stages.ppo_start import Prompts

FILE = "held_out.jsonl"


@dataclass
class Best:
    """The best policy so far: after which iteration, its value and tensors, and how many scorings ago that was."""

    step: int
    value: float
    policy: dict[str, torch.Tensor]
    ago: int = 0


class HeldOut:
    """Scores the policy now and then, and remembers the best one within the KL budget."""

    def __init__(self, job: Job, chat: ChatTokenizer, roles: Roles, score: Scoring, given: Prompts) -> None:
        from rlhf_pipeline.metrics import MetricsWriter

        self._job, self._chat, self._roles, self._score, self._given = job, chat, roles, score, given
        self._stop = job.config.stop
        self._judge = None
        if self._stop.judge == "gold" and not prompts.has_gold_judge(job):
            raise ConfigError(
                "the gold judge reads responses to the built-in prompts only",
                where="ppo.stop.judge",
                advice="ppo.stop.judge: rewards, or a Python file",
            )
        if self._stop.judge_file is not None:
            self._judge = ppo_start.python_function(self._stop.judge_file, "score", chat, given.conversations)
        self._writer: MetricsWriter | None = None

    def begin(self, progress: Progress, report: Callable[[Mapping[str, Any]], None]) -> None:
        """Open the file at the place of the checkpoint; measure the SFT policy where there was none."""
        from rlhf_pipeline.metrics import MetricsWriter

        if self._stop.every is None or not self._given.held_out:
            return
        self._writer = MetricsWriter(self._job.folder / FILE if self._job.first else None, progress.done or -1)
        if progress.done == 0:
            self._measure(progress, report)

    def after(
        self, progress: Progress, row: Mapping[str, Any], report: Callable[[Mapping[str, Any]], None]
    ) -> str | None:
        """Score where it is time to; the reason to stop after this iteration, if there is one."""
        stop, last = self._stop, progress.done == self._job.config.iterations
        budget = stop.kl_budget
        if budget is not None and row["objective/kl"] > budget:
            return f"KL to the SFT policy is {row['objective/kl']:.2f} nats a response, the budget {budget:g}"
        if self._writer is None or stop.every is None or not (last or progress.done % stop.every == 0):
            return None
        found = self._measure(progress, report)
        value = -math.inf if found[stop.criterion] is None else found[stop.criterion]
        if budget is not None and found["kl"] > budget:
            return f"KL to the SFT policy is {found['kl']:.2f} nats a held-out response, the budget {budget:g}"
        if progress.best is None or value > progress.best.value:
            policy = {name: tensor.cpu().clone() for name, tensor in self._roles.state("policy").items()}
            progress.best = Best(progress.done, value, policy)
        else:
            progress.best.ago += 1
            if stop.patience is not None and progress.best.ago >= stop.patience:
                return (
                    f"{progress.best.ago} held-out scorings were no better than that of iteration {progress.best.step}"
                )
        return None

    def keep(self, progress: Progress, why: str | None) -> dict[str, Any]:
        """Let the policy be the one that is to be kept, and say which; what the manifest holds of it.

        Raises:
            TrainingError: the budget was passed before any policy within it was scored.
        """
        if why is not None:
            self._job.say(f"stopped after iteration {progress.done}: {why}")
        best, step = progress.best, progress.done
        if self._writer is not None:
            self._writer.close()
        if self._writer is not None and self._stop.keep == "best":
            if best is None:
                raise TrainingError(
                    f"{why}, and no policy within it was scored",
                    advice="lower ppo.stop.every or ppo.learning_rate, or raise ppo.stop.kl_budget",
                )
            step = best.step
            self._roles.load_state("policy", best.policy)
            self._job.say(
                f"the policy of iteration {step} is the result: held-out {self._stop.criterion} {best.value:.3f}"
            )
        return {"kept_iteration": step, "stopped": why}

    def _measure(self, progress: Progress, report: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        """The numbers of one scoring, each a mean over responses with its standard error in ``…_se``; ``gold`` over the
        share ``read`` of them, those that the gold judge can read."""
        import torch

        from rlhf_pipeline import rollout as rollouts

        config, given = self._job.config, self._given
        rollout = rollouts.sample(
            self._roles,
            "policy",
            given.held_out,
            self._chat,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            batch_size=config.generation_batch,
            seed=rollouts.derived_seed(self._job.seed, "held out"),
        )
        groups = rollout.minibatches(1, config.micro_batch_tokens, 0)[0]
        with torch.no_grad():
            kl = rollouts.log_ratios(self._roles, rollout, groups, temperature=config.temperature)
            raw = self._score(rollout, groups)[0]
        scores = progress.scale.apply(
            raw, rollout.ended, clip=config.reward_clip, missing_eos_penalty=config.missing_eos_penalty
        )
        columns: dict[str, list[float | None]] = {
            "kl": kl.tolist(),
            "score": ((raw - progress.scale.mean) / progress.scale.std).tolist(),
            "objective": (scores - config.kl_coef * kl).tolist(),
        }
        if prompts.has_gold_judge(self._job):
            columns["gold"] = self._gold(rollout)
        if self._judge is not None:
            columns["judge"] = self._judge(rollout, groups).tolist()
        row: dict[str, Any] = {"step": progress.done, "responses": len(rollout.responses)}
        for name, values in columns.items():
            mean = evaluation.mean(values)
            row[name], row[f"{name}_se"] = (mean.value, mean.error) if mean else (None, None)
        lengths = evaluation.lengths([len(ids) for ids in rollout.responses], rollout.ended.tolist())
        row |= {"length": lengths.mean, "ended": lengths.ended}
        if "gold" in columns:
            row["read"] = sum(value is not None for value in columns["gold"]) / len(rollout.responses)
        assert self._writer is not None
        self._writer.write(row)
        report({"step": progress.done, **{f"held_out/{key}": value for key, value in row.items() if key != "step"}})
        return row

    def _gold(self, rollout: Rollout) -> list[float | None]:
        from rlhf_pipeline.pocket.judge import gold

        texts = map(self._chat.decode_response, rollout.responses)
        asked = [self._given.conversations[tuple(ids)] for ids in rollout.prompts]
        return [gold(*one) for one in zip(asked, texts, rollout.ended.tolist(), strict=True)]
