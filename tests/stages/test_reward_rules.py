"""Rules through the real stages: learnt beside preferences, saved, loaded, scored, and used by PPO."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf_pipeline import models
from rlhf_pipeline.errors import ConfigError, DataError, TrainingError
from rlhf_pipeline.logprobs import pad_sequences
from rlhf_pipeline.records import RuledResponse, RuleVotes, write_jsonl
from rlhf_pipeline.reward_models import Scorer, load_reward_model
from rlhf_pipeline.roles import Roles
from rlhf_pipeline.rollout import Rollout
from rlhf_pipeline.rule_models import RuleModel, WithRules
from rlhf_pipeline.tokenization import load_tokenizer
from stages import ppo, ppo_start, reward
from tests import stage_jobs, tiny_models
from tests.stage_jobs import Interrupted, job
from tests.stages import tiny_run

FAST = {
    "max_steps": 20,
    "epochs": 9,
    "lora": {"rank": 2},
    "batch_size": 8,
    "warmup": 0.0,
    "learning_rate": 1e-2,
    "max_length": 120,
    "log_every": 1,
}
RUDE, SHORT, RARE = "Do not be rude.", "Say more than one thing.", "Do not sing."
LEARN = {"learn": True, "weight": 2.0, "least": 5}
PAIRS = stage_jobs.preferences(40)
SHOWN = [(one.prompt.messages, text) for one in PAIRS[:6] for text in (one.chosen, one.rejected)]


def ruled() -> list[RuledResponse]:
    """Every response once; of every third nobody said whether it is short, and nobody ever sang."""
    records = []
    for number, one in enumerate(PAIRS):
        for text in (one.chosen, one.rejected):
            rules: dict[str, RuleVotes | None] = {RUDE: RuleVotes(float("Go away" in text), 2), RARE: RuleVotes(0.0, 2)}
            short = RuleVotes(float(len(text.split()) < 6), 1)
            records.append(RuledResponse(one.prompt, text, rules | {SHORT: short if number % 3 else None}))
    return records


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_models.make("llama", tmp_path_factory.mktemp("llama") / "base")


def inputs(model: Any, folder: Path) -> dict[str, Any]:
    tiny_run.make_adapter(model, folder / "sft", 1)
    collected = stage_jobs.write_preferences(folder / "collect", PAIRS)
    write_jsonl(folder / "collect" / "rules.jsonl", (one.to_json() for one in ruled()))
    return {"sft": SimpleNamespace(folder=folder / "sft"), "collect": collected}


@pytest.fixture(scope="module")
def finished(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """The stage with rules learnt: its job and its metrics."""
    folder = tmp_path_factory.mktemp("finished")
    made = job(reward.Config(**FAST, rules=LEARN), llama, folder / "reward", inputs=inputs(llama, folder))
    return made, reward.run(made)


def test_rules_are_learnt_saved_and_measured(llama, finished):
    made, metrics = finished
    assert metrics["score_drift_after_loading"] <= 1e-6
    head = load_file(made.folder / "rules" / "adapter" / "adapter_model.safetensors")[models.SCORE_KEY]
    assert head.shape[0] == 2, "the rule that nobody broke has no output"
    assert not list(made.folder.rglob("rules/checkpoints"))
    found = json.loads((made.folder / "evaluation.json").read_text())
    assert [row["rule"] for row in found["rules"]] == [RUDE, SHORT]
    assert found["rules"][0]["responses"] == 2 * metrics["pairs"] == 2 * found["combined_accuracy"]["pairs"]
    assert any("'Do not sing.' is not learnt" in warning for warning in metrics["warnings"])
    assert any("0 and kept in" in line and "reward.rules.least asks for 5" in line for line in made.said)


def test_preferences_are_learnt_as_without_rules(llama, finished):
    made, metrics = finished
    plain = job(reward.Config(**FAST), llama, made.folder.parent / "plain", inputs=made.inputs)
    alone = reward.run(plain)
    assert [metrics[name] for name in ("accuracy", "loss")] == [alone[name] for name in ("accuracy", "loss")]
    name = "adapter_model.safetensors"
    assert (made.folder / "adapter" / name).read_bytes() == (plain.folder / "adapter" / name).read_bytes()
    ppo_job: Any = SimpleNamespace(inputs={"reward": plain}, device="cpu", say=made.say, settings=made.settings)
    roles = Roles(models.load_causal_lm(llama, device="cpu"))
    with pytest.raises(ConfigError, match="has learnt no rules"):
        ppo_start._learnt_scorers(ppo_job, roles, load_tokenizer(llama), {}, rules_apart=True)


def test_a_score_is_explained_by_the_preference_and_the_rules(llama, finished):
    loaded = load_reward_model(llama, finished[0].folder, device="cpu")
    assert isinstance(loaded, WithRules)
    chat = load_tokenizer(llama)
    scorer = Scorer(chat, loaded)
    explained = scorer.explain([m for m, _ in SHOWN], [t for _, t in SHOWN])
    alone = loaded.preference.score([chat.encode(*one) for one in SHOWN])
    assert [one.preference for one in explained] == pytest.approx(alone, abs=1e-6)
    for one in explained:
        penalty = 2.0 * loaded.rules.part.spread * sum(one.broken.values()) / 2
        assert one.score == pytest.approx(one.preference - penalty, abs=1e-6)
    assert scorer.score([m for m, _ in SHOWN], [t for _, t in SHOWN]) == [one.score for one in explained]
    rude = [one.broken[RUDE] for one in explained]
    sides: dict[bool, list[float]] = {True: [], False: []}
    for (_, text), probability in zip(SHOWN, rude, strict=True):
        sides["Go away" in text].append(probability)
    assert sum(sides[True]) > sum(sides[False]) + 1, "of six each"


def test_ppo_scores_by_the_combined_reward_or_by_both_apart(llama, finished):
    made, _ = finished
    loaded = load_reward_model(llama, made.folder, device="cpu")
    assert isinstance(loaded, WithRules)
    chat = load_tokenizer(llama)
    prompts = [chat.encode_prompt(messages) for messages, _ in SHOWN]
    responses = [chat.encode_response(messages, text) for messages, text in SHOWN]
    sequences = [chat.encode(*one) for one in SHOWN]
    packed = pad_sequences(prompts, responses, pad_id=chat.pad_id)
    ended, drawn = torch.ones(len(prompts), dtype=torch.bool), torch.zeros(packed.response_mask.shape)
    rollout = Rollout(prompts, responses, ended, packed.response_mask, drawn, chat.pad_id)
    groups = [[3, 1, 0, 2], [11, 10, 9, 8, 7], [4, 5, 6]]
    given: Any = {"reward": made, "sft": made.inputs["sft"]}
    for sources in ([], [{"source": "rules", "weight": 0.5}, {"source": "reward_model"}]):
        config = ppo.Config(rewards=sources)
        ppo_job: Any = SimpleNamespace(inputs=given, device="cpu", say=made.say, settings=made.settings, config=config)
        roles, scoring = ppo_start.make_roles(ppo_job, chat, {})
        assert {"reward", "rules", "reference"} <= set(roles.names(trainable=False))
        if not sources:
            scores, _ = scoring(rollout, groups)
            assert scores.tolist() == pytest.approx(loaded.score(sequences), abs=1e-5)
            continue
        scoring.settle(rollout, groups)
        total, means = scoring(rollout, groups)
        rules, alone = torch.tensor(loaded.rules.score(sequences)), torch.tensor(loaded.preference.score(sequences))
        expected = sum(w * (x - x.mean()) / x.std(unbiased=False) for w, x in ((0.5, rules), (1.0, alone)))
        assert total.tolist() == pytest.approx(expected.tolist(), abs=1e-4)  # type: ignore[union-attr]
        assert means["rules"] == pytest.approx(rules.mean().item(), abs=1e-5)


@pytest.mark.slow
def test_an_encoder_and_an_ensemble_learn_rules_too(llama, tmp_path):
    encoder = tiny_models.make_encoder(tmp_path / "encoder")
    given = inputs(llama, tmp_path)
    config = reward.Config(**FAST, model=encoder.model_dump(), rules=LEARN)
    made = job(config, llama, tmp_path / "bert", inputs=given)
    assert reward.run(made)["score_drift_after_loading"] <= 1e-6
    explained = Scorer.on_own_model(made.folder, device="cpu").explain([m for m, _ in SHOWN], [t for _, t in SHOWN])
    assert {tuple(one.broken) for one in explained} == {(RUDE, SHORT)}
    assert len({round(one.broken[RUDE], 6) for one in explained}) > 3
    config = reward.Config(**FAST, ensemble={"members": 2, "score": "min"}, rules=LEARN)
    made = job(config, llama, tmp_path / "several", inputs=given)
    assert reward.run(made)["score_drift_after_loading"] <= 1e-6
    loaded = load_reward_model(llama, made.folder, device="cpu")
    assert isinstance(loaded, WithRules)
    assert isinstance(loaded.rules, RuleModel)
    chat = load_tokenizer(llama)
    score, preference, broken = loaded.parts([chat.encode(*one) for one in SHOWN])
    assert torch.allclose(score, preference - 2.0 * loaded.rules.part.spread * broken.mean(-1))
    assert (score < preference).all()


def test_a_finished_rule_model_is_kept_when_the_rest_is_interrupted(llama, finished, tmp_path, monkeypatch):
    given, expected = finished[0].inputs, finished[1]
    config = reward.Config(**FAST, rules=LEARN)

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise Interrupted

    made = job(config, llama, tmp_path / "reward", inputs=given)
    with monkeypatch.context() as patch:
        patch.setattr(reward.reward_rules, "write_atomically", stop)
        with pytest.raises(Interrupted):
            reward.run(made)
    assert not (made.folder / "rules" / "trained.json").exists(), "the note is whole or not there"
    with monkeypatch.context() as patch:
        patch.setattr(reward.reward_learn, "learn", stop)
        with pytest.raises(Interrupted):
            reward.run(made)
    before = (made.folder / "rules" / "trained.json").stat().st_mtime_ns
    assert reward.run(made) == expected
    assert (made.folder / "rules" / "trained.json").stat().st_mtime_ns == before


def test_what_cannot_be_learnt_is_said_and_can_end_the_chain(llama, tmp_path):
    with pytest.raises(ValueError, match="rules is a second adapter on the base, so it needs lora"):
        reward.Config(lora=None, rules={"learn": True})
    given = inputs(llama, tmp_path)
    config = reward.Config(**FAST, rules={**LEARN, "least": 100})
    with pytest.raises(DataError, match="none of the rules can be learnt") as caught:
        reward.run(job(config, llama, tmp_path / "few", inputs=given))
    assert f"{RARE}: of" in str(caught.value)
    found = {"pairs": 0, "test_sets": [], "warnings": [{"gate": "rules", "sentence": "a rule is not learnt"}]}
    config = reward.Config(**FAST, rules=LEARN, evaluation={"stop_on": ["rules"]})
    (gate := job(config, llama, tmp_path / "gate", inputs=given)).folder.mkdir(exist_ok=True)
    with pytest.raises(TrainingError, match="is not learnt"):
        reward.reward_check.report(gate, found)
    (tmp_path / "collect" / "rules.jsonl").unlink()
    with pytest.raises(DataError, match="asked about no rule"):
        reward.run(job(config, llama, tmp_path / "none", inputs=given))
