"""What scores responses in PPO: a reward model, Python functions of the user's, or a weighted sum of several."""

from __future__ import annotations

import importlib.util
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_pipeline import processes
from rlhf_pipeline.errors import ConfigError, TrainingError
from rlhf_pipeline.generation import Sampled
from rlhf_pipeline.rollout import Rollout, Scorer, ScoreScale

Function = Callable[[list[list[dict[str, str]]], list[str]], Sequence[float]]
"""``(prompts, responses) -> scores``: conversations as ``[{"role", "content"}, …]``, texts; higher is better."""


def load_function(path: Path, name: str, *, where: str = "ppo.rewards") -> Function:
    """A function of a Python file, which runs as part of this program; ``where`` is the setting that names it.

    Raises:
        ConfigError: there is no such file or function, or the file cannot be run.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", where=where, advice="give the path of a Python file")
    spec = importlib.util.spec_from_file_location(f"rlhf_reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file", where=where, advice="its name ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path} cannot be run: {told(error, path)}", where=where, advice="mend the file") from None
    function = getattr(module, name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        has = f"it has {', '.join(there)}" if there else "it has no function"
        raise ConfigError(f"{path} has no function {name}", where=where, advice=f"{has}; set its function to one")
    return function


def function_scorer(
    function: Function,
    path: Path,
    *,
    messages: Callable[[Sequence[int]], list[dict[str, str]]],
    text: Callable[[Sequence[int]], str],
) -> Scorer:
    """A scorer that asks a function once for a whole rollout, in the first process alone.

    Args:
        path: of its file, for errors.
        messages: a prompt's conversation by its ids.
        text: a response by its ids.
    """

    def score(rollout: Rollout, _: Sequence[Sequence[int]]) -> Tensor:
        scores = ask(rollout) if processes.is_first() else [0.0] * len(rollout.prompts)
        told = torch.tensor(scores, dtype=torch.float32, device=rollout.response_mask.device)
        processes.copy_from_first([told])
        return told

    def ask(rollout: Rollout) -> list[float]:
        prompts, responses = [messages(ids) for ids in rollout.prompts], [text(ids) for ids in rollout.responses]
        try:
            scores = [float(one) for one in function(prompts, responses)]
        except (Exception, SystemExit) as error:
            raise TrainingError(
                f"the reward function failed: {told(error, path)}",
                where=str(path),
                advice="mend it and run again: it goes on from the last checkpoint",
            ) from error
        wrong = next((i for i, one in enumerate(scores) if not math.isfinite(one)), None)
        if len(scores) != len(responses) or wrong is not None:
            found = f"{len(scores)} scores"
            if wrong is not None:
                found = f"the score {scores[wrong]} at place {wrong}"
            raise TrainingError(
                f"the reward function gave {found}; wanted is a finite number for each of {len(responses)} responses",
                where=str(path),
            )
        return scores

    return score


@dataclass
class Scoring:
    """One source in its own unit, or the weighted sum of several, each in its standard deviations.

    The scale of each source is settled once, on responses of the SFT policy, and frozen: a scale that moved would move
    the weights.

    Args:
        sources: name → weight and scorer.
    """

    sources: Mapping[str, tuple[float, Scorer]]
    scales: dict[str, ScoreScale] = field(default_factory=dict)

    def settle(self, rollout: Rollout, groups: Sequence[Sequence[int]]) -> None:
        """Fix the scales on these responses.

        Raises:
            TrainingError: a source gives all of them the same score.
        """
        if len(self.sources) > 1:
            self.scales = {name: ScoreScale.of(score(rollout, groups)) for name, (_, score) in self.sources.items()}

    def unit_of(self, name: str, total: ScoreScale) -> ScoreScale:
        """How one source's own unit reads in the normalised sum; ``total`` is the scale of the sum."""
        if name not in self.scales:
            return total
        own = self.scales[name]
        return ScoreScale(own.mean, own.std * total.std / self.sources[name][0])

    def __call__(self, rollout: Rollout, groups: Sequence[Sequence[int]]) -> tuple[Tensor, dict[str, float]]:
        """The scores, ``(batch,)``, and with several sources the mean of each in its own unit."""
        raw = {name: score(rollout, groups) for name, (_, score) in self.sources.items()}
        if len(raw) == 1:
            [only] = raw.values()
            return only, {}
        total = torch.zeros_like(next(iter(raw.values())))
        for name, scores in raw.items():
            total = total + self.sources[name][0] * (scores - self.scales[name].mean) / self.scales[name].std
        return total, {name: scores.mean().item() for name, scores in raw.items()}


_WHOLE = 2**30  # tokens: as one micro-batch


@dataclass(frozen=True)
class Probe:
    """Responses whose scores must stay what they were: a reward model that moves while it is learnt from is none."""

    rollout: Rollout
    scores: Tensor
    """``(batch,)``, as they were at the start."""

    @staticmethod
    def of(rollout: Rollout, score: Scorer, number: int = 2) -> Probe:
        """The first responses of a rollout."""
        few = rollout.first(number)
        return Probe(few, score(few, few.minibatches(1, _WHOLE, 0)[0]))

    def drift(self, score: Scorer) -> float:
        """The largest change of a score since the start: 0 where nothing is wrong."""
        now = score(self.rollout, self.rollout.minibatches(1, _WHOLE, 0)[0])
        return (now - self.scores).abs().max().item()

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        one = self.rollout
        ids = {"prompts": one.prompts, "responses": one.responses, "pad_id": one.pad_id}
        return {**ids, "ended": one.ended.tolist(), "scores": self.scores}

    @staticmethod
    def from_state(state: Mapping[str, Any], *, device: torch.device) -> Probe:
        """What :meth:`state` gave."""
        sampled = [Sampled(*one) for one in zip(state["responses"], state["ended"], strict=True)]
        rollout = Rollout.of(state["prompts"], sampled, pad_id=state["pad_id"], device=device)
        return Probe(rollout, state["scores"].to(device))


def told(error: Exception | SystemExit, path: Path) -> str:
    """What was raised, with the line of the user's file."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    first = (str(error).splitlines() or [""])[0]
    return (f"line {lines[-1]}: " if lines else "") + f"{type(error).__name__}: {first}"
