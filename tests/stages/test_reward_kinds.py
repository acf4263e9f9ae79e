"""Reward models of every kind through the real stage: encoders, ensembles, weight averages, the head first."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from rlhf_pipeline import models
from rlhf_pipeline.errors import IncompatibleArtifact
from rlhf_pipeline.logprobs import pad_sequences
from rlhf_pipeline.metrics import read_metrics
from rlhf_pipeline.reward_models import Ensemble, Scorer, Spec, load_reward_model
from rlhf_pipeline.roles import Roles
from rlhf_pipeline.rollout import Rollout
from rlhf_pipeline.tokenization import load_tokenizer
from stages import ppo_start, reward
from tests import stage_jobs, tiny_models
from tests.stage_jobs import Interrupted, job, metrics_lines
from tests.stages import tiny_run

FAST = {"max_steps": 3, "batch_size": 4, "warmup": 0.0, "learning_rate": 1e-2, "max_length": 120, "log_every": 1}
PAIRS = stage_jobs.preferences(6)
SHOWN = [(one.prompt.messages, text) for one in PAIRS for text in (one.chosen, one.rejected)]


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    return tiny_models.make("llama", tmp_path / "base")


def inputs(model: Any, folder: Path) -> dict[str, Any]:
    tiny_run.make_adapter(model, folder / "sft", 1)
    return {
        "sft": SimpleNamespace(folder=folder / "sft"),
        "collect": stage_jobs.write_preferences(folder / "collect", stage_jobs.preferences(32)),
    }


def score(folder: Path) -> list[float]:
    """Of the pairs above, by a reward model on a model of its own."""
    return Scorer.on_own_model(folder, device="cpu").score([m for m, _ in SHOWN], [text for _, text in SHOWN])


@pytest.mark.parametrize(("kind", "lora"), [("bert", None), ("bert", {"rank": 2}), ("distilbert", {"rank": 2})])
def test_an_encoder_learns_and_is_saved_whole(kind, lora, llama, tmp_path):
    encoder = tiny_models.make_encoder(tmp_path / "encoder", kind=kind)
    slower = {"max_steps": 10, "learning_rate": 3e-3} if lora is None else {}
    config = reward.Config(**{**FAST, **slower}, lora=lora, model=encoder.model_dump())
    made = job(config, llama, tmp_path / "reward", inputs=inputs(llama, tmp_path))
    metrics = reward.run(made)
    assert metrics["score_drift_after_loading"] <= 1e-6
    lines = metrics_lines(made.folder)
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=0.01)
    assert lines[-1]["loss"] < lines[0]["loss"]
    spec = Spec.read(made.folder)
    assert spec is not None
    assert (spec.own_model, spec.limit) == (True, 120)
    scores = score(made.folder)
    assert len({round(one, 5) for one in scores}) > 6
    if lora:  # what the checkpoint of pre-training lacks is random: it must be in the file
        saved = " ".join(load_file(made.folder / "adapter" / "adapter_model.safetensors"))
        for part in ("classifier", "pooler" if kind == "bert" else "pre_classifier"):
            assert part in saved
        return
    plain = AutoModelForSequenceClassification.from_pretrained(made.folder / "model")
    text = Scorer.on_own_model(made.folder, device="cpu").text
    with torch.no_grad():
        expected = [plain(torch.tensor([text.encode(*one)])).logits.item() for one in SHOWN]
    assert scores == pytest.approx(expected, abs=1e-6)


def test_a_decoder_of_its_own_and_other_weights_under_its_name(llama, tmp_path):
    own = tiny_models.make("gpt2", tmp_path / "own")
    config = reward.Config(**FAST, model=own.model_dump())
    made = job(config, llama, tmp_path / "reward", inputs=inputs(llama, tmp_path))
    assert reward.run(made)["score_drift_after_loading"] <= 1e-6
    before = score(made.folder)
    assert len(set(before)) > 3
    tiny_models.make("gpt2", tmp_path / "own", seed=1)
    with pytest.raises(IncompatibleArtifact, match="not those that it was made with"):
        score(made.folder)


def test_ppo_and_evaluation_score_text_by_an_encoder(llama, tmp_path):
    encoder = tiny_models.make_encoder(tmp_path / "encoder")
    config = reward.Config(**FAST, model=encoder.model_dump())
    made = job(config, llama, tmp_path / "reward", inputs=inputs(llama, tmp_path))
    reward.run(made)
    chat = load_tokenizer(llama)
    prompts = [chat.encode_prompt(messages) for messages, _ in SHOWN]
    responses = [chat.encode_response(messages, text) for messages, text in SHOWN]
    conversations = {tuple(ids): messages for ids, (messages, _) in zip(prompts, SHOWN, strict=True)}
    rollout = rollout_of(chat, prompts, responses)
    roles = Roles(models.load_causal_lm(llama, device="cpu"))
    ppo_job: Any = SimpleNamespace(inputs={"reward": made}, device="cpu", say=made.say, settings=made.settings)
    scorer = ppo_start._learnt_scorers(ppo_job, roles, chat, conversations, rules_apart=False)["reward_model"]
    assert "reward" not in roles
    assert scorer(rollout, []).tolist() == pytest.approx(score(made.folder), abs=1e-6)


def rollout_of(chat: Any, prompts: Any, responses: Any) -> Rollout:
    packed = pad_sequences(prompts, responses, pad_id=chat.pad_id)
    ended, drawn = torch.ones(len(prompts), dtype=torch.bool), torch.zeros(packed.response_mask.shape)
    return Rollout(prompts, responses, ended, packed.response_mask, drawn, chat.pad_id)


@pytest.mark.parametrize("rule", ["min", "mean_minus_std"])
def test_an_ensemble_scores_alike_everywhere(rule, llama, tmp_path):
    ensemble = {"members": 3, "score": rule, "bootstrap": rule == "min"}
    made = job(reward.Config(**FAST, ensemble=ensemble), llama, tmp_path / "reward", inputs=inputs(llama, tmp_path))
    metrics = reward.run(made)
    assert metrics["score_drift_after_loading"] <= 1e-6
    loaded = load_reward_model(llama, made.folder, device="cpu")
    assert isinstance(loaded, Ensemble)
    chat = load_tokenizer(llama)
    rows = [chat.encode(messages, text) for messages, text in SHOWN]
    members = torch.tensor(loaded.member_scores(rows))
    level = members - torch.tensor(loaded.combination.offsets)[:, None]
    expected = level.min(0).values if rule == "min" else level.mean(0) - level.std(0)
    assert loaded.score(rows) == pytest.approx(expected.tolist(), abs=1e-6)
    assert level.std(0).min() > 1e-4, "the members differ"
    assert len(json.loads((made.folder / "evaluation.json").read_text())["ensemble"]["accuracies"]) == 3
    assert not list(made.folder.rglob("checkpoints"))
    assert read_metrics(made.folder / "metrics.jsonl")

    roles = Roles(models.load_causal_lm(llama, device="cpu"))
    ppo_job: Any = SimpleNamespace(inputs={"reward": made}, device="cpu", say=made.say, settings=made.settings)
    scorer = ppo_start._learnt_scorers(ppo_job, roles, chat, {}, rules_apart=False)["reward_model"]
    prompts = [chat.encode_prompt(messages) for messages, _ in SHOWN]
    rollout = rollout_of(chat, prompts, [chat.encode_response(messages, text) for messages, text in SHOWN])
    assert scorer(rollout, [list(range(12))]).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    ppo_start._add_value(roles, SimpleNamespace(critic=SimpleNamespace(on="adapter")))  # type: ignore[arg-type]
    assert torch.equal(
        roles.named_parameters("value")["head.weight"], roles.named_parameters("reward_0")["head.weight"]
    )


def test_finished_members_are_kept_when_another_is_interrupted(llama, tmp_path, monkeypatch):
    given = inputs(llama, tmp_path)
    config = reward.Config(**FAST, ensemble={"members": 2})
    expected = reward.run(whole := job(config, llama, tmp_path / "whole", inputs=given))
    learn, calls = reward.reward_learn.learn, []

    def learn_and_fail(*arguments: Any) -> Any:
        calls.append(arguments[3])
        if len(calls) == 3:
            raise Interrupted
        return learn(*arguments)

    def fail_to_say_so(path: Path, _: str) -> None:
        assert path.name == "trained.json"
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(reward.reward_learn, "learn", learn_and_fail)
        with patch.context() as at_the_end:
            at_the_end.setattr(reward.reward_learn, "write_atomically", fail_to_say_so)
            with pytest.raises(Interrupted):
                reward.run(job(config, llama, tmp_path / "resumed", inputs=given))
        with pytest.raises(Interrupted):
            reward.run(job(config, llama, tmp_path / "resumed", inputs=given))
        resumed = job(config, llama, tmp_path / "resumed", inputs=given)
        found = reward.run(resumed)
    assert found == {**expected, "resumed_at": found["resumed_at"]}
    assert found["resumed_at"] == expected["steps"], "the first member went on from its last checkpoint"
    assert [path.name for path in calls] == ["0", "0", "1", "1"]
    for number in "01":
        name = f"members/{number}/adapter/adapter_model.safetensors"
        one, other = load_file(whole.folder / name), load_file(resumed.folder / name)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_weight_average_is_one_adapter(llama, tmp_path):
    config = reward.Config(**FAST, ensemble={"members": 2, "score": "weight_average"})
    made = job(config, llama, tmp_path / "reward", inputs=inputs(llama, tmp_path))
    assert reward.run(made)["score_drift_after_loading"] == 0
    assert not (made.folder / "members").exists()
    rank = json.loads((made.folder / "adapter" / "adapter_config.json").read_text())["r"]
    assert rank == 4, "the sum of theirs"
    roles = Roles(models.load_causal_lm(llama, device="cpu"))
    roles.add("reward", folder=made.folder / "adapter")


def test_the_head_first(llama, tmp_path):
    given = inputs(llama, tmp_path)
    made = job(reward.Config(**{**FAST, "head_first": 30}), llama, tmp_path / "reward", inputs=given)
    reward.run(made)
    assert any(line.startswith("the head first") for line in made.said)
    assert metrics_lines(made.folder)[0]["loss"] < 0.68, "a head of zeros begins at 0.6931"


def test_a_learning_curve(llama, tmp_path, monkeypatch):
    evaluation = {"learning_curve": [0.5, 1.0]}
    made = job(reward.Config(**FAST, evaluation=evaluation), llama, tmp_path / "reward", inputs=inputs(llama, tmp_path))

    def stop(path: Path, _: str) -> None:
        assert path.name == "accuracy.json"
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(reward.reward_learn, "write_atomically", stop)
        with pytest.raises(Interrupted):
            reward.run(made)
    assert not list(made.folder.rglob("accuracy.json")), "the note is whole or not there"
    metrics = reward.run(made)
    curve = json.loads((made.folder / "evaluation.json").read_text())["learning_curve"]
    assert [point["pairs"] for point in curve["points"]] == [
        round(metrics["rows"]["train"] / 2),
        metrics["rows"]["train"],
    ]
    assert curve["points"][-1]["accuracy"] == metrics["accuracy"]
    assert [one["pairs"] for one in curve["forecast"]][-1] == 4 * metrics["rows"]["train"]
    assert any("twice as many judgements" in line for line in made.said)


def test_mistakes_in_the_configuration():
    def refused(**values):
        with pytest.raises(ValueError, match="1 validation error") as caught:
            reward.Config(**values)
        return str(caught.value)

    assert "needs lora" in refused(lora=None, ensemble={"members": 2})
    assert "above 0 and up to 1" in refused(evaluation={"learning_curve": [2]})
    assert "only rules.learn: true" in refused(evaluation={"stop_on": ["rules"]})
    for loss in ({"tie": 0.5}, {"kind": "plackett_luce", "labels": "soft"}, {"kind": "plackett_luce", "margins": True}):
        assert "kind: " in refused(loss=loss)
    assert "members is 1" in refused(ensemble={"score": "min"})
    assert "members is 1" in refused(ensemble={"bootstrap": True})
    assert "score is min" in refused(ensemble={"members": 2, "score": "min", "k": 2})
    reward.Config(ensemble={"members": 2, "score": "mean_minus_std", "k": 2, "bootstrap": True})
