"""Alarms of a PPO run: which number, under what condition, what is the likely cause, and what to do.

The table below is all there is to them. A condition looks at the rows of ``metrics.jsonl`` up to now, newest last, and
at nothing else: a resumed run that reads the rows again knows what it knew. Thresholds are those of the named sources;
the others are set so that the healthy demo raises none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_pipeline.artifacts import write_atomically

FILE = "alarms.json"
Rows = Sequence[Mapping[str, Any]]
Condition = Callable[[Rows], bool]


@dataclass(frozen=True)
class Alarm:
    """One row of the table: ``stops`` ends the run."""

    name: str
    metric: str
    fires: Condition
    seen: str
    cause: str
    advice: str
    stops: bool = False


@dataclass
class Raised:
    """An alarm that has fired: in which iterations first and last, how often, and the metric's value at first."""

    name: str
    seen: str
    cause: str
    advice: str
    first: int
    last: int
    times: int
    value: float | None
    stops: bool

    def sentence(self) -> str:
        """What a person reads."""
        value = "no number" if self.value is None else f"{self.value:.3g}"
        return f"iteration {self.first}: {self.seen} ({value}). Likely: {self.cause}. {self.advice}."


def above(metric: str, limit: float, times: int = 1) -> Condition:
    """The metric was above ``limit`` in each of the last ``times`` rows; a row without it counts as not."""
    return lambda rows: _all(rows, metric, times, lambda value: value > limit)


def below(metric: str, limit: float, times: int = 1) -> Condition:
    """The same, below."""
    return lambda rows: _all(rows, metric, times, lambda value: value < limit)


def fallen(metric: str, share: float, times: int = 1) -> Condition:
    """The metric was below this share of what it was in the first row, in each of the last ``times``."""
    return lambda rows: _all(rows, metric, times, lambda value: value < share * _first(rows, metric))


def grown(metric: str, factor: float, times: int = 1) -> Condition:
    """The metric was above so many times what it was in the first row, in each of the last ``times``."""
    return lambda rows: _all(rows, metric, times, lambda value: value > factor * _first(rows, metric))


def no_number(*metrics: str) -> Condition:
    """One of the metrics is there and is no finite number (null, in a file)."""
    return lambda rows: any(name in rows[-1] and _value(rows[-1], name) is None for name in metrics)


def at_first(condition: Condition) -> Condition:
    """Looked at in the first row alone."""
    return lambda rows: len(rows) == 1 and condition(rows)


def every(*conditions: Condition) -> Condition:
    """All of them."""
    return lambda rows: all(condition(rows) for condition in conditions)


def some(*conditions: Condition) -> Condition:
    """One of them at least."""
    return lambda rows: any(condition(rows) for condition in conditions)


def far_from_0(metric: str, limit: float, errors: float) -> Condition:
    """The metric, a mean, is further from 0 than ``limit`` and than so many of its standard errors.

    A single value's deviation counts as 1, and responses to one prompt as one value, for they may be alike.
    """

    def condition(rows: Rows) -> bool:
        prompts = _value(rows[-1], "response/prompts") or math.inf
        return _all(rows, metric, 1, lambda value: abs(value) > max(limit, errors / math.sqrt(prompts)))

    return condition


def rises(metric: str, by: float, over: int) -> Condition:
    """The mean of the last ``over / 4`` of ``over`` rows is more than ``by`` above that of the first ``over / 4``."""

    def condition(rows: Rows) -> bool:
        values = [value for row in rows[-over:] if (value := _value(row, metric)) is not None]
        part = over // 4
        return len(values) == over and math.fsum(values[-part:]) - math.fsum(values[:part]) > by * part

    return condition


def unless(condition: Condition) -> Condition:
    """It does not hold."""
    return lambda rows: not condition(rows)


_LEARNING_RATE = "lower ppo.learning_rate (a tenth of it is a good next try)"

ALARMS: tuple[Alarm, ...] = (
    Alarm(
        "no number", "ppo/loss/policy",
        no_number("ppo/loss/policy", "ppo/loss/value", "ppo/policy/approxkl", "objective/kl", "objective/entropy",
                  "objective/scores", "objective/rlhf_reward"),
        "a loss, a score or the KL is not a finite number", "the policy or the value has been blown up by a step",
        f"{_LEARNING_RATE}, or train in float32 (model.dtype: float32)", stops=True,
    ),
    Alarm(
        "reward model moved", "reward/drift", above("reward/drift", 1e-3),
        "the reward model scores its probe responses otherwise than at the start",
        "its adapter is being trained, or another one is active when it scores", "please report this", stops=True,
    ),
    Alarm(
        "policy lost", "objective/kl_per_token",
        every(above("objective/kl_per_token", 3.0, 2), above("objective/kl", 50.0, 2)),
        "the policy is further from the SFT policy than 3 nats a token and 50 a response",
        "the learning rate is far too high: nothing of the SFT policy is left",
        f"{_LEARNING_RATE} or raise ppo.kl_coef", stops=True,
    ),
    # trl issues 235 and 925: samples that are not the policy's own make the estimate negative.
    Alarm(
        "negative KL", "objective/kl", below("objective/kl", -0.5, 4),
        "KL to the SFT policy is negative for 4 iterations, which no distance is",
        "what is sampled is not the distribution that is scored (another temperature, top-p, a stale adapter)",
        "look at rollout/logprob_gap, and let nothing but ppo.temperature shape the samples",
    ),
    # Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training".
    Alarm(
        "sampling is not training", "rollout/logprob_gap", above("rollout/logprob_gap", 0.05),
        "decoder and training forward differ by more than 0.05 nats a token on what was sampled",
        "another temperature in one of them, a stale adapter, or a cache of other weights",
        "in bfloat16 try model.dtype: float32; in float32 please report this",
    ),
    Alarm(
        "over-optimisation", "objective/kl", above("objective/kl", 25.0, 3),
        "KL to the SFT policy is above 25 nats a response",
        "the policy has gone where the reward model was never trained (Gao et al. 2022, arXiv:2210.10760)",
        "raise ppo.kl_coef, or set ppo.stop.kl_budget (6 to 10 is usual); compare responses by hand",
    ),
    Alarm(
        "heavy tail", "objective/kl_k3",
        every(above("objective/kl_k3", 5.0, 3), lambda rows: _exceeds(rows, "objective/kl_k3", "objective/kl", 5.0)),
        "k3 is five times the KL by k1", "a few tokens carry most of the distance: the policy bets on rare tokens",
        "lower ppo.learning_rate, or ppo.cliprange",
    ),
    # TRL's page on PPO has the mean ratios; 0.1 nats is five times the default of ppo.target_kl.
    Alarm(
        "drastic step", "ppo/policy/approxkl",
        some(above("ppo/policy/ratio", 2.0), below("ppo/policy/ratio", 0.1), above("ppo/policy/approxkl", 0.1)),
        "within one iteration the policy moves by more than 0.1 nats a token, or its mean ratio leaves 0.1 to 2",
        "one step changes the policy too much", _LEARNING_RATE,
    ),
    Alarm(
        "clipped", "ppo/policy/clipfrac", above("ppo/policy/clipfrac", 0.3, 3),
        "more than 30 % of the tokens are clipped for 3 iterations", "steps are too large",
        _LEARNING_RATE,
    ),
    Alarm(
        "passes cut short", "ppo/stopped_early", above("ppo/stopped_early", 0.5, 5),
        "the passes of 5 iterations in a row were stopped at ppo.target_kl",
        "steps are too large for the passes asked for",
        f"{_LEARNING_RATE}, or ppo.num_ppo_epochs",
    ),
    Alarm(
        "not learning", "objective/kl_k3", below("objective/kl_k3", 1e-3, 20),
        "the policy is still the SFT policy after 20 iterations",
        "the learning rate is too low, or nothing is rewarded",
        "raise ppo.learning_rate; look at advantages/std and ppo/policy/grad_norm",
    ),
    Alarm(
        "no gradient", "ppo/policy/without_gradient",
        some(above("ppo/policy/without_gradient", 0.0), above("ppo/val/without_gradient", 0.0),
             below("ppo/policy/grad_norm", 1e-12, 3)),
        "trained tensors get no gradient", "the adapter that is trained is not the one that is active",
        "please report this with your configuration",
    ),
    Alarm(
        "critic broken", "ppo/val/explained_variance", below("ppo/val/explained_variance", 0.0, 20),
        "the values explain less than a constant would for 20 iterations",
        "the critic's learning rate is wrong, or its clip range is too small for the scores",
        "change ppo.critic.learning_rate, raise ppo.critic.cliprange_value, or take estimator: rloo, without a critic",
    ),
    Alarm(
        "values clipped", "ppo/val/clipfrac", above("ppo/val/clipfrac", 0.5, 5),
        "more than half of the values are clipped for 5 iterations", "the clip range is too small for the scores",
        "raise ppo.critic.cliprange_value",
    ),
    Alarm(
        "entropy collapsed", "objective/entropy", fallen("objective/entropy", 0.1, 2),
        "entropy is below a tenth of what it was", "the policy has come to say one thing",
        "raise ppo.kl_coef or lower ppo.learning_rate; look at response/duplicates",
    ),
    Alarm(
        "scores do not start at 0", "objective/scores_normalised",
        at_first(some(far_from_0("objective/scores_normalised", 1.0, errors=4.0),
                      above("objective/scores_normalised_std", 3.0),
                      every(below("objective/scores_normalised_std", 1 / 3), unless(below("response/prompts", 16.0))))),
        "the SFT policy's scores are not those that the scale was settled on",
        "training prompts of very different kinds, or another template or adapter than at the start",
        "raise ppo.rollout_batch; if that does not help, please report this",
    ),
    Alarm(
        "score without objective", "objective/rlhf_reward",
        every(rises("objective/scores_normalised", 0.5, 20), unless(rises("objective/rlhf_reward", 0.0, 20))),
        "scores rise over 20 iterations and the objective does not", "what the score gains, the KL costs",
        "lower ppo.kl_coef for more score, or stop here",
    ),
    Alarm(
        "length hacking", "response/length",
        every(grown("response/length", 1.5, 3), above("objective/scores_normalised", 0.5, 3),
              above("response/score_length_correlation", 0.3, 3)),
        "responses are half as long again as at the start, and longer ones score higher",
        "the reward likes length (Singhal et al. 2023, arXiv:2310.03716)",
        "look at the reward stage's length_baseline, take length out of the judgements, or add a reward against it",
    ),
    Alarm(
        "truncated", "response/truncated",
        every(above("response/truncated", 0.5, 3), grown("response/truncated", 2.0, 3)),
        "more than half of the responses are cut off, twice as many as at the start",
        "the policy has lost its stop token, or the reward likes length",
        "raise ppo.missing_eos_penalty, or ppo.max_new_tokens where responses need it",
    ),
    Alarm(
        "repetition", "response/distinct_2",
        some(fallen("response/distinct_2", 0.25, 3),
             every(above("response/duplicates", 0.5, 3), grown("response/duplicates", 3.0, 3))),
        "responses repeat themselves or each other", "the policy has found one thing that the reward likes",
        "raise ppo.kl_coef; look at what scores highest",
    ),
    Alarm(
        "nothing to learn", "advantages/std", below("advantages/std", 1e-3, 3),
        "advantages hardly differ, so whitening makes steps of noise",
        "all responses are worth the same, or the optimum is reached",
        "stop here, or use prompts on which responses differ",
    ),
    Alarm(
        "few tokens", "advantages/tokens", below("advantages/tokens", 64.0, 3),
        "an iteration learns from fewer than 64 tokens", "responses are very short, or too few",
        "raise ppo.rollout_batch",
    ),
)  # fmt: skip


class Watch:
    """Sees row after row, and says which alarms are new; each speaks once in a run.

    Args:
        rows: those of before an interruption.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._rows: list[Mapping[str, Any]] = []
        self.raised: dict[str, Raised] = {}
        for row in rows:
            self.see(row)

    def see(self, row: Mapping[str, Any]) -> list[Raised]:
        """The alarms that fire for the first time."""
        self._rows.append(row)
        new = []
        for alarm in (one for one in ALARMS if one.fires(self._rows)):
            known = self.raised.get(alarm.name)
            if known is None:
                step, value = row["step"], _value(row, alarm.metric)
                known = Raised(alarm.name, alarm.seen, alarm.cause, alarm.advice, step, step, 0, value, alarm.stops)
                self.raised[alarm.name] = known
                new.append(known)
            known.last, known.times = row["step"], known.times + 1
        return new

    def save(self, folder: Path) -> None:
        """Write ``alarms.json``, for who asks how a run is."""
        write_atomically(folder / FILE, json.dumps([asdict(one) for one in self.raised.values()], indent=1) + "\n")


def read_alarms(folder: Path) -> list[Raised]:
    """What :meth:`Watch.save` wrote; none where there is no such file, or it cannot be read."""
    try:
        return [Raised(**one) for one in json.loads((folder / FILE).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def _value(row: Mapping[str, Any], metric: str) -> float | None:
    value = row.get(metric)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _first(rows: Rows, metric: str) -> float:
    """Of the first row; nan, with which no comparison holds, where it is not there."""
    value = _value(rows[0], metric)
    return math.nan if value is None else value


def _all(rows: Rows, metric: str, times: int, holds: Callable[[float], bool]) -> bool:
    values = [_value(row, metric) for row in rows[-times:]]
    return len(values) == times and all(value is not None and holds(value) for value in values)


def _exceeds(rows: Rows, metric: str, other: str, factor: float) -> bool:
    """In the newest row one metric is above so many times the other (which counts as 1 where it is less)."""
    one, two = _value(rows[-1], metric), _value(rows[-1], other)
    return one is not None and two is not None and one > factor * max(two, 1.0)
