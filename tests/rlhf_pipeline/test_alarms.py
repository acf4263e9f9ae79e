"""Each alarm fires on the trouble that it is for, not just before, and none on a healthy run; each speaks once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_pipeline import diagnostics
from rlhf_pipeline.alarms import ALARMS, Watch, read_alarms
from rlhf_pipeline.rollout import ScoreScale

HEALTHY: dict[str, float] = {
    "ppo/loss/policy": 0.01, "ppo/loss/value": 0.3, "ppo/policy/approxkl": 0.005, "ppo/policy/ratio": 1.0,
    "ppo/policy/clipfrac": 0.1, "ppo/policy/grad_norm": 0.5, "ppo/policy/without_gradient": 0, "ppo/stopped_early": 0,
    "ppo/val/without_gradient": 0, "ppo/val/clipfrac": 0.1, "ppo/val/explained_variance": 0.4,
    "objective/kl": 4.0, "objective/kl_k3": 4.2, "objective/kl_per_token": 0.2, "objective/entropy": 1.2,
    "objective/scores": 1.0, "objective/scores_normalised": 0.0, "objective/scores_normalised_std": 1.0,
    "objective/rlhf_reward": 0.5, "rollout/logprob_gap": 1e-6, "reward/drift": 0.0, "advantages/std": 0.4,
    "advantages/tokens": 2000, "response/prompts": 128, "response/length": 22, "response/truncated": 0.05,
    "response/distinct_2": 0.4, "response/duplicates": 0.02, "response/score_length_correlation": 0.1,
}  # fmt: skip
# Name → how many rows it takes, and what they hold; one row fewer must not be enough.
TROUBLE: dict[str, tuple[int, dict[str, float]]] = {
    "no number": (1, {"ppo/loss/policy": math.nan}),
    "reward model moved": (1, {"reward/drift": 0.01}),
    "policy lost": (2, {"objective/kl_per_token": 3.5, "objective/kl": 60.0, "objective/kl_k3": 61.0}),
    "negative KL": (4, {"objective/kl": -0.7}),
    "sampling is not training": (1, {"rollout/logprob_gap": 0.2}),
    "over-optimisation": (3, {"objective/kl": 30.0, "objective/kl_k3": 33.0}),
    "heavy tail": (3, {"objective/kl": 0.3, "objective/kl_k3": 6.0}),
    "drastic step": (1, {"ppo/policy/ratio": 2.5}),
    "clipped": (3, {"ppo/policy/clipfrac": 0.4}),
    "passes cut short": (5, {"ppo/stopped_early": 1.0}),
    "not learning": (20, {"objective/kl_k3": 1e-4, "objective/kl": 1e-4}),
    "no gradient": (1, {"ppo/policy/without_gradient": 14.0}),
    "critic broken": (20, {"ppo/val/explained_variance": -0.4}),
    "values clipped": (5, {"ppo/val/clipfrac": 0.7}),
    "entropy collapsed": (2, {"objective/entropy": 0.1}),
    "length hacking": (
        3, {"response/length": 40.0, "objective/scores_normalised": 0.8, "response/score_length_correlation": 0.6}
    ),
    "truncated": (3, {"response/truncated": 0.6}),
    "repetition": (3, {"response/distinct_2": 0.05}),
    "nothing to learn": (3, {"advantages/std": 1e-5}),
    "few tokens": (3, {"advantages/tokens": 40}),
}  # fmt: skip


def raised(*rows: dict[str, Any]) -> list[str]:
    watch = Watch()
    return [one.name for step, row in enumerate(rows) for one in watch.see({"step": step + 1, **row})]


def test_a_healthy_run_raises_none() -> None:
    assert raised(*[HEALTHY] * 60) == []
    rising = [HEALTHY | {"objective/scores_normalised": i / 20, "objective/rlhf_reward": i / 30} for i in range(40)]
    assert raised(*rising) == []


@pytest.mark.parametrize("name", TROUBLE)
def test_it_fires_on_its_trouble_and_not_before(name: str) -> None:
    number, trouble = TROUBLE[name]
    sick = HEALTHY | trouble
    assert raised(HEALTHY, *[sick] * (number - 1)) == []
    assert raised(HEALTHY, *[sick] * number) == [name]


def test_scores_that_do_not_start_at_0() -> None:
    for key, value in (("", 1.5), ("", -1.5), ("_std", 4.0), ("_std", 0.2)):
        assert raised(HEALTHY | {f"objective/scores_normalised{key}": value}) == ["scores do not start at 0"]
    assert raised(HEALTHY, HEALTHY | {"objective/scores_normalised": 1.5}) == []


@pytest.mark.parametrize(("prompts", "limit"), [(4, 2.0), (8, 2**0.5), (16, 1.0), (1000, 1.0)])
def test_a_mean_of_a_few_scores_may_be_further_from_0(prompts: int, limit: float) -> None:
    few = HEALTHY | {"response/prompts": prompts}
    for value in (limit, -limit):
        assert raised(few | {"objective/scores_normalised": value * 0.99}) == []
        assert raised(few | {"objective/scores_normalised": value * 1.01}) == ["scores do not start at 0"]
    alike = raised(few | {"objective/scores_normalised_std": 0.1})
    assert alike == ([] if prompts < 16 else ["scores do not start at 0"])
    assert raised(few | {"objective/scores_normalised_std": 3.1}) == ["scores do not start at 0"]


def test_an_honest_start_raises_it_less_than_once_in_a_thousand() -> None:
    torch.manual_seed(0)
    for prompts in (2, 4, 16):
        alarms = 0
        for scores in torch.randn(1000, prompts):
            start = diagnostics.of_scores(scores, ScoreScale(0.0, 1.0)) | {"response/prompts": prompts}
            alarms += raised(HEALTHY | start) != []
        assert alarms <= 1


def test_a_drastic_step_is_seen_by_the_ratio_too() -> None:
    for trouble in ({"ppo/policy/ratio": 0.05}, {"ppo/policy/approxkl": 0.2}):
        assert raised(HEALTHY, HEALTHY | trouble) == ["drastic step"]


def test_scores_that_rise_without_the_objective() -> None:
    rows = [HEALTHY | {"objective/scores_normalised": i / 10} for i in range(20)]
    assert raised(*rows[:19]) == []
    assert raised(*rows) == ["score without objective"]


def test_every_alarm_is_tried_here() -> None:
    assert {one.name for one in ALARMS} == {*TROUBLE, "scores do not start at 0", "score without objective"}
    assert len({one.name for one in ALARMS}) == len(ALARMS)
    assert {one.name for one in ALARMS if one.stops} == {"no number", "reward model moved", "policy lost"}
    assert all(one.metric in HEALTHY for one in ALARMS)


def test_what_is_not_there_raises_nothing() -> None:
    assert raised(*[{"objective/kl": 1.0}] * 30) == []  # no critic, no reward model, an older file


def test_it_speaks_once_and_a_resumed_run_knows_what_it_knew(tmp_path: Path) -> None:
    sick = HEALTHY | {"rollout/logprob_gap": 0.2, "ppo/val/explained_variance": math.nan}
    rows = [{"step": step, **(sick if step in (2, 3, 5) else HEALTHY)} for step in range(1, 6)]
    whole = Watch(rows)
    [alarm] = whole.raised.values()
    assert (alarm.first, alarm.last, alarm.times, alarm.value) == (2, 5, 3, 0.2)
    assert alarm.sentence().startswith("iteration 2: decoder and training forward differ by more than 0.05 nats")
    assert "(0.2). Likely: another temperature" in alarm.sentence()
    resumed = Watch(json.loads(json.dumps(row).replace("NaN", "null")) for row in rows[:3])
    for row in rows[3:]:
        assert resumed.see(row) == []
    assert resumed.raised == whole.raised
    whole.save(tmp_path)
    assert read_alarms(tmp_path) == list(whole.raised.values())
    (tmp_path / "alarms.json").write_text("[{")
    assert read_alarms(tmp_path) == []
