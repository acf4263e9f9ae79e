"""The PPO stage: what it writes, resuming to the bit, and its own checks."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from rlhf_pipeline import models
from rlhf_pipeline.config import LoraSection, ModelConfig
from rlhf_pipeline.data import DataConfig
from rlhf_pipeline.errors import ConfigError, DataError, TrainingError
from rlhf_pipeline.metrics import COSTS, read_metrics
from rlhf_pipeline.reward_models import load_reward_model
from rlhf_pipeline.rewards import Scoring
from rlhf_pipeline.roles import Roles
from stages import ppo
from stages.job import Job
from tests import tiny_models

SMALL: dict[str, Any] = {
    "iterations": 4, "rollout_batch": 8, "num_ppo_epochs": 2, "num_minibatches": 2, "micro_batch_tokens": 120,
    "max_new_tokens": 6, "save_every": 1, "learning_rate": 1e-3, "critic": {"learning_rate": 1e-3},
    "target_kl": 10.0,
}  # fmt: skip
NAMES = {
    "objective/kl", "objective/kl_k3", "objective/kl_p95", "objective/kl_k3_p95", "objective/kl_per_token",
    "objective/entropy", "objective/scores", "objective/scores_std", "objective/scores_normalised",
    "objective/scores_normalised_std", "objective/rlhf_reward", "objective/kl_coef", "learning_rate",
    "ppo/policy/approxkl", "ppo/policy/clipfrac", "ppo/policy/clipfrac_low", "ppo/policy/clipfrac_high",
    "ppo/policy/ratio", "ppo/policy/ratio_max", "ppo/policy/ratio_min", "ppo/policy/grad_norm",
    "ppo/policy/without_gradient", "ppo/loss/policy", "ppo/loss/value", "ppo/val/clipfrac", "ppo/val/grad_norm",
    "ppo/val/without_gradient", "ppo/val/explained_variance", "ppo/ratio_check", "ppo/passes", "ppo/stopped_early",
    "rollout/logprob_gap", "rollout/logprob_gap_k3", "rollout/prob_gap_max", "advantages/mean", "advantages/std",
    "advantages/positive", "advantages/tokens", "response/length", "response/length_p95", "response/ended",
    "response/truncated", "response/distinct_2", "response/duplicates", "response/score_length_correlation",
    "reward/drift",
    *(f"{cost}/{phase}" for cost in ("seconds", "tokens_per_second", "memory")
      for phase in ("rollout", "score", "train")),
}  # fmt: skip


def make_inputs(
    folder: Path,
    family: str = "llama",
    *,
    full_sft: bool = False,
    full_reward: bool = False,
    top_layers: int | None = None,
) -> ModelConfig:
    """A tiny base with an SFT policy, a reward model and prompts, as earlier stages would leave them."""
    model = tiny_models.make(family, folder / "base")
    roles = Roles(models.load_causal_lm(model, device="cpu"))
    torch.manual_seed(1)
    for name in ("sft", "reward"):
        roles.add(name, lora=LoraSection(rank=4, alpha=8, top_layers=top_layers))
        with torch.no_grad():
            for parameter in roles.parameters(name):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    if full_sft:
        models.save_full(models.load_causal_lm(model, device="cpu"), folder / "sft" / "model")
    else:
        roles.save("sft", folder / "sft" / "adapter")
    if full_reward:
        classifier = models.load_classifier(model, device="cpu")
        classifier.score.weight.data.normal_()
        models.save_full(classifier, folder / "reward" / "model")
    else:
        roles.save("reward", folder / "reward" / "adapter")
        path = folder / "reward" / "adapter" / "adapter_model.safetensors"
        save_file({**load_file(path), models.SCORE_KEY: torch.randn(1, 32)}, path)
    rows = [{"prompt": [{"role": "user", "content": f"Why is {word}?"}]} for word in "abcdefghijklmnopqrstuvwxyz"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return model


def make_job(folder: Path, model: ModelConfig, name: str = "ppo", **changes: Any) -> Job:
    settings = SimpleNamespace(
        model=model,
        data=DataConfig(prompts={"path": str(folder / "prompts.jsonl")}, held_out=0.2),
        run=SimpleNamespace(seed=0, tracking="none"),
    )
    (folder / name).mkdir(exist_ok=True)
    inputs = {stage: SimpleNamespace(folder=folder / stage) for stage in ("sft", "reward")}
    config = ppo.Config(**{**SMALL, **changes})
    return Job(config, settings, folder / name, inputs, folder, 0, "cpu")  # type: ignore[arg-type]


def result(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return load_file(folder / "adapter" / "adapter_model.safetensors"), [
        {key: value for key, value in row.items() if not key.startswith(COSTS)} for row in rows
    ]


def assert_same(one: Path, other: Path) -> None:
    (tensors, rows), (others, other_rows) = result(one), result(other)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[key], others[key]) for key in tensors)
    assert rows == other_rows


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_learns(family: str, tmp_path: Path) -> None:
    model = make_inputs(tmp_path, family)
    metrics = ppo.run(make_job(tmp_path, model, iterations=2))
    rows = read_metrics(tmp_path / "ppo" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert not NAMES - rows[0].keys()
    assert all(value is not None and math.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["objective/kl"] == 0
    assert rows[1]["objective/kl_k3"] > 0
    assert max(row["ppo/ratio_check"] for row in rows) < 1e-5
    assert max(row["rollout/logprob_gap"] for row in rows) < 1e-5
    assert all(row["ppo/policy/without_gradient"] == row["ppo/val/without_gradient"] == 0 for row in rows)
    assert all(row["reward/drift"] == 0 for row in rows)
    assert all(row["ppo/policy/grad_norm"] > 0 < row["ppo/val/grad_norm"] for row in rows)
    assert metrics["step"] == 2
    policy = PeftModel.from_pretrained(models.load_causal_lm(model, device="cpu"), tmp_path / "ppo" / "adapter")
    started, ended = load_file(tmp_path / "sft" / "adapter" / "adapter_model.safetensors"), result(tmp_path / "ppo")[0]
    assert started.keys() == ended.keys()
    assert all(not torch.equal(started[key], ended[key]) for key in started)
    assert policy.peft_config["default"].base_model_name_or_path == model.name


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_without_a_critic(estimator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of responses to one prompt, no value role; interrupted, it ends the same."""
    from rlhf_pipeline import rollout as rollouts

    model = make_inputs(tmp_path)
    sampled: list[list[list[int]]] = []

    def sample(roles: Roles, role: str, prompts: list[list[int]], *arguments: Any, **options: Any) -> rollouts.Rollout:
        assert roles.names(trainable=True) == ["policy"]
        sampled.append(prompts)
        return original(roles, role, prompts, *arguments, **options)

    original = rollouts.sample
    monkeypatch.setattr(rollouts, "sample", sample)
    ppo.run(make_job(tmp_path, model, "whole", estimator=estimator, samples_per_prompt=4, stop={"every": None}))
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert not [key for key in rows[0] if "val" in key]
    assert rows[-1]["objective/kl_k3"] > 0
    for prompts in sampled[1:]:  # the first one settles the scale
        assert len(prompts) == 8
        assert prompts[:4] == prompts[:1] * 4 != prompts[4:] == prompts[4:5] * 4

    learn, calls = ppo.learn, itertools.count(1)

    def learn_and_fail(*arguments: Any) -> dict[str, float]:
        learnt = learn(*arguments)
        if next(calls) == 3:
            raise KeyboardInterrupt
        return learnt

    monkeypatch.setattr(ppo, "learn", learn_and_fail)
    job = make_job(tmp_path, model, estimator=estimator, samples_per_prompt=4, stop={"every": None})
    with pytest.raises(KeyboardInterrupt):
        ppo.run(job)
    ppo.run(job)
    assert_same(tmp_path / "whole", tmp_path / "ppo")


MODES: dict[str, dict[str, Any]] = {
    "policy_trunk": {"critic": {"on": "policy_trunk", "learning_rate": 1e-3}},
    "reward_features": {"critic": {"on": "reward_features", "learning_rate": 1e-3}},
}


@pytest.mark.parametrize("top_layers", [None, 1])
@pytest.mark.parametrize("mode", MODES)
def test_a_critic_without_an_adapter(
    mode: str, top_layers: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learns, in fewer passes; interrupted, it ends the same."""
    model = make_inputs(tmp_path, top_layers=top_layers)
    ppo.run(make_job(tmp_path, model, "whole", **MODES[mode]))
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert all(value is not None and math.isfinite(value) for row in rows for value in row.values())
    assert max(row["ppo/ratio_check"] for row in rows) < 1e-5
    assert rows[-1]["objective/kl_k3"] > 0
    learn, calls = ppo.learn, itertools.count(1)

    def learn_and_fail(config: Any, roles: Roles, *arguments: Any) -> dict[str, float]:
        assert roles.names(trainable=True) == ["policy", "value"]
        assert list(roles.named_parameters("value")) == ["head.weight", "head.bias"]
        learnt = learn(config, roles, *arguments)
        if next(calls) == 3:
            raise KeyboardInterrupt
        return learnt

    monkeypatch.setattr(ppo, "learn", learn_and_fail)
    job = make_job(tmp_path, model, **MODES[mode])
    with pytest.raises(KeyboardInterrupt):
        ppo.run(job)
    ppo.run(job)
    assert_same(tmp_path / "whole", tmp_path / "ppo")


def test_features_need_a_reward_adapter(tmp_path: Path) -> None:
    model = make_inputs(tmp_path, full_reward=True)
    with pytest.raises(ConfigError, match=r"ppo.critic.on: there is no reward adapter on the base"):
        ppo.run(make_job(tmp_path, model, critic={"on": "reward_features"}))


def test_the_lower_layers_run_once_per_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same numbers as with every layer in every pass, but for rounding."""
    model = make_inputs(tmp_path, top_layers=1)
    ppo.run(make_job(tmp_path, model, "kept"))
    assert "the lower 1 of 2 layers carry no adapter: they run once per iteration" in capsys.readouterr().out
    monkeypatch.setattr(Roles, "trunk", lambda _: None)
    ppo.run(make_job(tmp_path, model, "again"))
    for one, other in zip(result(tmp_path / "kept")[1], result(tmp_path / "again")[1], strict=True):
        for key, value in one.items():
            assert value == pytest.approx(other[key], rel=1e-3, abs=1e-5), key


REWARDS = """
def shorter(prompts, responses):
    assert all(prompt[-1]["role"] == "user" and prompt[-1]["content"].startswith("Why is") for prompt in prompts)
    return [-len(response) for response in responses]

def lost(prompts, responses):
    return [1.0] * (len(responses) - 1)

def undefined(prompts, responses):
    return [float("nan") for _ in responses]

def broken(prompts, responses):
    return [1 / 0 for _ in responses]
"""


def test_a_python_function_scores(tmp_path: Path) -> None:
    """Alone it needs no reward model; what it prefers is learnt, and an interrupted run ends the same."""
    model = make_inputs(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(REWARDS, encoding="utf-8")
    rewards = [{"source": str(file), "function": "shorter"}]
    job = make_job(tmp_path, model, rewards=rewards, iterations=30, learning_rate=1e-2, max_new_tokens=8, kl_coef=0.0)
    del job.inputs["reward"]  # type: ignore[attr-defined]
    ppo.run(job)
    rows = read_metrics(tmp_path / "ppo" / "metrics.jsonl")
    early, late = (sum(row["objective/scores"] for row in part) / 5 for part in (rows[:5], rows[-5:]))
    assert early < late
    assert "objective/scores/mine.shorter" not in rows[0]


def test_several_sources_are_added_in_their_standard_deviations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_inputs(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(REWARDS, encoding="utf-8")
    rewards = [{"weight": 2.0}, {"source": str(file), "function": "shorter", "weight": -0.5}]
    totals: list[tuple[torch.Tensor, dict[str, float]]] = []
    call = Scoring.__call__

    def watched(self: Scoring, *arguments: Any) -> tuple[torch.Tensor, dict[str, float]]:
        totals.append(call(self, *arguments))
        return totals[-1]

    monkeypatch.setattr(Scoring, "__call__", watched)
    ppo.run(make_job(tmp_path, model, "whole", rewards=rewards))
    row = read_metrics(tmp_path / "whole" / "metrics.jsonl")[0]
    assert totals[0][0].mean().item() == pytest.approx(0, abs=1e-5)  # settled on these very responses
    assert row["objective/scores"] == pytest.approx(totals[2][0].mean().item())  # after the probe's
    assert set(totals[2][1]) == {"reward_model", "mine.shorter"}
    assert row["objective/scores/mine.shorter"] == totals[2][1]["mine.shorter"] < 0

    learn, calls = ppo.learn, itertools.count(1)

    def learn_and_fail(*arguments: Any) -> dict[str, float]:
        learnt = learn(*arguments)
        if next(calls) == 3:
            raise KeyboardInterrupt
        return learnt

    monkeypatch.setattr(ppo, "learn", learn_and_fail)
    job = make_job(tmp_path, model, rewards=rewards)
    with pytest.raises(KeyboardInterrupt):
        ppo.run(job)
    ppo.run(job)
    assert_same(tmp_path / "whole", tmp_path / "ppo")


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("absent", ConfigError, "has no function absent\n.*it has shorter, lost, undefined, broken"),
        ("lost", TrainingError, r"gave 63 scores; wanted is a finite number for each of 64 responses"),
        ("undefined", TrainingError, r"gave the score nan at place 0"),
        ("broken", TrainingError, r"failed: line 13: ZeroDivisionError: division by zero"),
    ],
)
def test_reward_functions_that_do_not_work(function: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    model = make_inputs(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(REWARDS, encoding="utf-8")
    with pytest.raises(error, match=message):
        ppo.run(make_job(tmp_path, model, rewards=[{"source": str(file), "function": function}]))


@pytest.mark.parametrize(("full_sft", "full_reward"), [(True, False), (False, True), (True, True)])
def test_full_fine_tuning_before_it(full_sft: bool, full_reward: bool, tmp_path: Path) -> None:
    """A full SFT model is the base; a full reward model is a scorer of its own."""
    model = make_inputs(tmp_path, full_sft=full_sft, full_reward=full_reward)
    job = make_job(tmp_path, model, lora=LoraSection(rank=3))
    ppo.run(job)
    rows = read_metrics(tmp_path / "ppo" / "metrics.jsonl")
    assert rows[0]["objective/kl"] == 0
    assert rows[-1]["objective/kl_k3"] > 0
    rank = next(t.shape[0] for k, t in result(tmp_path / "ppo")[0].items() if "lora_A" in k)
    assert rank == (3 if full_sft else 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_full_reward_model_scores_as_it_was_trained(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is loaded beside the base that the policy changes, and what it says is what is learnt from."""
    from rlhf_pipeline import rollout as rollouts

    model = make_inputs(tmp_path, full_reward=True).model_copy(update={"dtype": dtype})
    sampled: list[rollouts.Rollout] = []

    def sample(*arguments: Any, **options: Any) -> rollouts.Rollout:
        sampled.append(rollout := original(*arguments, **options))
        return rollout

    original = rollouts.sample
    monkeypatch.setattr(rollouts, "sample", sample)
    before = {path.name: path.read_bytes() for path in (tmp_path / "reward" / "model").iterdir()}
    ppo.run(make_job(tmp_path, model, stop={"every": None}))
    assert "it is held in memory beside the base" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "reward" / "model").iterdir()} == before

    judge = load_reward_model(model, tmp_path / "reward", device="cpu")
    rows = read_metrics(tmp_path / "ppo" / "metrics.jsonl")
    for rollout, row in zip(sampled[1:], rows, strict=True):  # the first one settles the scale
        scores = judge.score([[*p, *r] for p, r in zip(rollout.prompts, rollout.responses, strict=True)])
        assert row["objective/scores"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)


def test_bfloat16(tmp_path: Path) -> None:
    model = make_inputs(tmp_path).model_copy(update={"dtype": "bfloat16"})
    ppo.run(make_job(tmp_path, model, iterations=2))
    tensors, rows = result(tmp_path / "ppo")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert max(row["ppo/ratio_check"] for row in rows) < 1e-5  # same micro-batches, same bits


def test_interrupted_anywhere_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_inputs(tmp_path)
    ppo.run(make_job(tmp_path, model, "whole", adaptive_kl=0.5))
    learn, calls = ppo.learn, itertools.count(1)

    def learn_and_fail(*arguments: Any) -> dict[str, float]:
        learnt = learn(*arguments)
        if next(calls) in (1, 3, 4):  # before any checkpoint; after the first; right after resuming
            raise KeyboardInterrupt
        return learnt

    monkeypatch.setattr(ppo, "learn", learn_and_fail)
    job = make_job(tmp_path, model, adaptive_kl=0.5)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            ppo.run(job)
    ppo.run(job)
    assert_same(tmp_path / "whole", tmp_path / "ppo")
    assert next(calls) == 8  # 1 lost, 1 kept, 2 lost, 3 more: what was done is not done again


def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_inputs(tmp_path)
    ppo.run(make_job(tmp_path, model, "whole"))
    job = make_job(tmp_path, model)
    with monkeypatch.context() as patch:
        patch.setattr(Roles, "save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ppo.run(job)
    kept = sorted(p.name for p in (job.folder / "checkpoints").iterdir())
    assert kept == ["step-000002", "step-000003"]
    state = job.folder / "checkpoints" / "step-000003" / "tensors.safetensors"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(bytes(content))
    capsys.readouterr()
    ppo.run(job)
    assert "resumed after iteration 2 of 4 (damaged and left out: step-000003)" in capsys.readouterr().out
    assert_same(tmp_path / "whole", tmp_path / "ppo")


def test_micro_batches_change_rounding_only(tmp_path: Path) -> None:
    model = make_inputs(tmp_path)
    rows = []
    for name, tokens in (("small", 1), ("large", 100_000)):
        ppo.run(make_job(tmp_path, model, name, iterations=1, micro_batch_tokens=tokens))
        rows.append(result(tmp_path / name)[1][0])
    for key, value in rows[0].items():
        assert value == pytest.approx(rows[1][key], rel=1e-3, abs=1e-5), key


def test_recomputed_layers_change_nothing(tmp_path: Path) -> None:
    model = make_inputs(tmp_path)
    for name, recompute in (("kept", False), ("recomputed", True)):
        ppo.run(make_job(tmp_path, model, name, iterations=2, gradient_checkpointing=recompute))
    assert_same(tmp_path / "kept", tmp_path / "recomputed")


def test_passes_stop_when_the_policy_has_moved_far_enough(tmp_path: Path) -> None:
    model = make_inputs(tmp_path)
    ppo.run(make_job(tmp_path, model, iterations=1, target_kl=1e-9))
    assert result(tmp_path / "ppo")[1][0]["ppo/passes"] == pytest.approx(
        0.5, abs=0.2
    )  # one of four steps of half a pass


def test_the_learning_rate_falls_to_zero(tmp_path: Path) -> None:
    model = make_inputs(tmp_path)
    ppo.run(make_job(tmp_path, model))
    assert [row["learning_rate"] for row in result(tmp_path / "ppo")[1]] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_it_notices_its_own_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_pipeline import rollout as rollouts

    model = make_inputs(tmp_path)
    measure, add = rollouts.measure, Roles.add

    def stale(*arguments: Any, **options: Any) -> rollouts.Measured:
        measured = measure(*arguments, **options)
        return dataclasses.replace(measured, logprobs=measured.logprobs - 0.01)

    def careless(self: Roles, name: str, **options: Any) -> None:
        add(self, name, **({"folder": tmp_path / "reward" / "adapter"} if name == "policy" else options))

    def greedy(roles: Roles, rollout: rollouts.Rollout, groups: Any) -> torch.Tensor:
        with torch.no_grad():
            roles.parameters("reward")[0].add_(1e-7)
        return torch.arange(float(len(rollout.prompts)))

    for place, name, wrong, message in (
        (rollouts, "measure", stale, "first probability ratio .* differs from 1 by 0.01"),
        (Roles, "add", careless, "does not start as the SFT policy"),
        (rollouts, "adapter_scores", greedy, "must not change: reward"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, wrong)
            with pytest.raises(TrainingError, match=message):
                ppo.run(make_job(tmp_path, model, name))
        assert not (tmp_path / name / "adapter").exists()


def test_scores_that_do_not_differ_are_refused(tmp_path: Path) -> None:
    model = make_inputs(tmp_path)
    path = tmp_path / "reward" / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(path), models.SCORE_KEY: torch.zeros(1, 32)}, path)
    with pytest.raises(TrainingError, match=r"standard deviation 0: there is nothing to learn"):
        ppo.run(make_job(tmp_path, model))


def test_overlong_prompts_are_counted_and_none_left_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_inputs(tmp_path)
    with (tmp_path / "prompts.jsonl").open("a", encoding="utf-8") as out:
        for i in range(10):
            out.write(json.dumps({"prompt": [{"role": "user", "content": f"{i} why " * 40}]}) + "\n")
    ppo.run(make_job(tmp_path, model, iterations=1, max_prompt_length=60))
    assert "prompts have more than 60 tokens and are left out" in capsys.readouterr().out
    with pytest.raises(
        DataError, match=r"ppo.max_prompt_length: none of the \d+ training prompts has at most 3 tokens"
    ):
        ppo.run(make_job(tmp_path, model, max_prompt_length=3))


def test_settings_that_cannot_be_met() -> None:
    with pytest.raises(ValueError, match=r"num_minibatches \(5\) exceeds rollout_batch \(4\)"):
        ppo.Config(num_minibatches=5, rollout_batch=4)
    with pytest.raises(ValueError, match=r"rollout_batch \(6\) is not a multiple of samples_per_prompt \(4\)"):
        ppo.Config(rollout_batch=6, samples_per_prompt=4)
    with pytest.raises(ValueError, match="estimator: rloo compares the responses to one prompt"):
        ppo.Config(estimator="rloo")
    with pytest.raises(ValueError, match="a weight of 0 leaves the source out"):
        ppo.Config(rewards=[{"weight": 0}])
    with pytest.raises(ValueError, match="rewards names one source twice"):
        ppo.Config(rewards=[{}, {"weight": 2}])
