"""The evaluate stage on a tiny random model: numbers against an independent way to them, resuming, and bad settings."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel

from rlhf_pipeline import artifacts, models
from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.data import SourceConfig
from rlhf_pipeline.errors import ConfigError
from rlhf_pipeline.records import Message, Prompt, messages_from_json, read_jsonl
from rlhf_pipeline.reward_models import load_reward_model
from rlhf_pipeline.tokenization import load_tokenizer
from stages import evaluate, evaluate_scores
from stages.job import Job
from tests import tiny_models
from tests.stages.tiny_run import finish, make_adapter

PROMPTS = 60
SMALL = {"prompts": 12, "max_new_tokens": 6, "batch_size": 5}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with policies sft, dpo and ppo and a reward model: random adapters on a random Llama."""
    folder = tmp_path_factory.mktemp("run")
    model = tiny_models.make("llama", folder / "tiny")
    prompts = [json.dumps({"prompt": f"How do I water plant number {i}?"}) for i in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("\n".join(prompts))
    for seed, (name, kind) in enumerate(
        {"sft": "policy", "reward": "reward_model", "dpo": "policy", "ppo": "policy"}.items()
    ):
        make_adapter(model, folder / f"{name}.partial", seed, classifier=kind == "reward_model")
        finish(folder, name, kind, model)
    return folder


def job_of(run_folder: Path, work: Path, inputs: str = "sft reward dpo ppo", **config: Any) -> Job:
    source = SourceConfig(path=str(run_folder / "prompts.jsonl"))
    settings = SimpleNamespace(
        model=ModelConfig(name=str(run_folder / "tiny")),
        data=SimpleNamespace(prompt_source=lambda: source, held_out=20.0, system=None),
        run=SimpleNamespace(seed=0),
    )
    work.mkdir(exist_ok=True)
    found = {name: artifacts.open_artifact(run_folder / name) for name in inputs.split()}
    section = evaluate.Config(**(SMALL | config))
    return Job(section, settings, work, found, run_folder, 0, "cpu")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    work = tmp_path_factory.mktemp("evaluate")
    return evaluate.run(job_of(run_folder, work)), work


def test_metrics_have_the_promised_shape(finished: tuple[dict[str, Any], Path]) -> None:
    returned, work = finished
    metrics = json.loads((work / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(returned))
    assert list(metrics) == ["policies", "judge", "summary"]
    assert list(metrics["policies"]) == ["base", "sft", "dpo", "ppo"]
    promised = {"win_rate", "win_rate_low", "win_rate_high", "gold", "score", "kl", "length", "ended", "prompts"}
    for name, row in metrics["policies"].items():
        assert promised <= set(row)
        assert row["prompts"] == 12
        assert row["gold"] is None  # these are not the built-in prompts
        assert (row["win_rate"] is None) == (name == "sft")
        if name != "sft":
            assert row["wins"] + row["losses"] + row["ties"] == 12
            assert row["win_rate_low"] <= row["win_rate"] <= row["win_rate_high"]
    assert metrics["judge"] == "reward_model"
    assert any("sought to please" in sentence for sentence in metrics["summary"])


def test_kl_and_score_against_the_libraries_own_way(finished: tuple[dict[str, Any], Path], run_folder: Path) -> None:
    """One unpadded forward of PEFT's own model per response."""
    metrics, work = finished
    model = ModelConfig(name=str(run_folder / "tiny"))
    chat = load_tokenizer(model)
    rows = read_jsonl(work / "responses.jsonl")
    kept = {name: read_jsonl(work / "checkpoints" / f"{name}.jsonl") for name in ("sft", "dpo")}
    nets = {n: models.load_policy(model, run_folder / n, device="cpu") for n in kept}
    reward = models.load_classifier(model, device="cpu")
    reward = PeftModel.from_pretrained(reward, run_folder / "reward" / "adapter").eval()
    ratios, scores = [], []
    for row, answer in zip(rows, kept["dpo"], strict=True):
        prompt = chat.encode_prompt(messages_from_json(row["prompt"]))
        ids = torch.tensor([prompt + answer["ids"]])
        sums = {}
        for name, net in nets.items():
            with torch.no_grad():
                logprobs = net(input_ids=ids).logits[0].log_softmax(-1)
            sums[name] = sum(logprobs[len(prompt) - 1 + t, i].item() for t, i in enumerate(answer["ids"]))
        ratios.append(sums["dpo"] - sums["sft"])
        with torch.no_grad():
            hidden = reward.base_model.model.model(input_ids=ids).last_hidden_state[0, -1]
            scores.append(reward.base_model.model.score(hidden).item())
        assert row["responses"]["dpo"]["kl"] == pytest.approx(ratios[-1], abs=1e-3)
        assert row["responses"]["dpo"]["score"] == pytest.approx(scores[-1], abs=1e-4)
    mean = sum(ratios) / 12
    error = math.sqrt(sum((r - mean) ** 2 for r in ratios) / 11 / 12)
    assert metrics["policies"]["dpo"]["kl"] == pytest.approx(mean, abs=1e-3)
    assert metrics["policies"]["dpo"]["kl_se"] == pytest.approx(error, abs=1e-3)
    assert metrics["policies"]["sft"]["kl"] == 0


def test_a_score_does_not_depend_on_which_stop_token_was_sampled(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward model has seen one of them only, at the end of every turn."""
    model = ModelConfig(name=str(run_folder / "tiny"))
    chat = load_tokenizer(model)
    (other,) = chat.stop_ids - {chat.end_id}
    reward = load_reward_model(model, run_folder / "reward", device="cpu")
    expected: list[float] = []

    def sample(job: Job, policies: Any, name: str, chat: Any, encoded: Any, advance: Any) -> Any:
        stop = chat.end_id if name == "sft" else other
        rows = [{"text": "", "ids": [20 + i, 30, stop], "ended": True} for i in range(len(encoded))]
        rows[0] = {"text": "", "ids": [20, 30, 31], "ended": False}
        expected[:] = reward.score(
            [[*p, *row["ids"][:-1], chat.end_id if row["ended"] else 31] for p, row in zip(encoded, rows, strict=True)]
        )
        return rows

    monkeypatch.setattr(evaluate, "_sample", sample)
    metrics = evaluate.run(job_of(run_folder, tmp_path, "sft reward dpo", policies=["dpo"]))
    for name in ("sft", "dpo"):
        scores = [row["score"] for row in read_jsonl(tmp_path / "checkpoints" / f"{name}.jsonl")]
        assert scores == pytest.approx(expected, abs=1e-5)
    assert metrics["policies"]["dpo"]["ties"] == 12, "the same words, however they ended"


def test_base_is_the_bare_model(finished: tuple[dict[str, Any], Path], run_folder: Path) -> None:
    from rlhf_pipeline.generation import generate

    _, work = finished
    model = ModelConfig(name=str(run_folder / "tiny"))
    chat = load_tokenizer(model)
    prompts = [chat.encode_prompt(messages_from_json(row["prompt"])) for row in read_jsonl(work / "responses.jsonl")]
    expected = generate(
        models.load_causal_lm(model, device="cpu"), prompts, stop_ids=chat.stop_ids, pad_id=chat.pad_id,
        max_new_tokens=6, seed=0,
    )  # fmt: skip
    assert [row["ids"] for row in read_jsonl(work / "checkpoints" / "base.jsonl")] == [s.ids for s in expected]


def test_policies_draw_their_own_random_numbers(run_folder: Path, tmp_path: Path) -> None:
    job = job_of(run_folder, tmp_path, "sft reward", policies=["sft", "dpo"])
    evaluate.run(dataclasses.replace(job, inputs={**job.inputs, "dpo": job.inputs["sft"]}))
    same = [read_jsonl(tmp_path / "checkpoints" / f"{name}.jsonl") for name in ("sft", "dpo")]
    assert [row["ids"] for row in same[0]] != [row["ids"] for row in same[1]]


def test_an_interrupted_try_keeps_what_was_done(
    finished: tuple[dict[str, Any], Path], run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = finished
    sampled: list[str] = []
    really_sample = evaluate._sample

    def sample(job: Job, policies: Any, name: str, *rest: Any) -> Any:
        if name == "ppo" and "ppo" not in sampled:
            sampled.append(name)
            raise KeyboardInterrupt
        sampled.append(name)
        return really_sample(job, policies, name, *rest)

    monkeypatch.setattr(evaluate, "_sample", sample)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(job_of(run_folder, tmp_path))
    assert evaluate.run(job_of(run_folder, tmp_path)) == whole
    assert sampled == ["base", "sft", "dpo", "ppo", "ppo"]


def test_greedy_has_no_kl_and_identical_policies_tie(run_folder: Path, tmp_path: Path) -> None:
    job = job_of(run_folder, tmp_path, "sft reward", temperature=0)
    job = dataclasses.replace(job, inputs={**job.inputs, "dpo": job.inputs["sft"]})
    metrics = evaluate.run(job)
    assert all(row["kl"] is None for row in metrics["policies"].values())
    row = metrics["policies"]["dpo"]
    assert (row["ties"], row["win_rate"], row["win_rate_low"]) == (12, None, None)
    assert any(s == "dpo and sft cannot be told apart: no comparison was decided; 12 ties." for s in metrics["summary"])


def test_without_a_judge_nothing_is_said_of_win_rates(run_folder: Path, tmp_path: Path, capsys: Any) -> None:
    metrics = evaluate.run(job_of(run_folder, tmp_path, "sft dpo", policies=["dpo"], prompts=99))
    assert metrics["judge"] is None
    assert list(metrics["policies"]) == ["sft", "dpo"]
    assert metrics["policies"]["dpo"]["win_rate"] is None
    assert metrics["policies"]["dpo"]["score"] is None
    assert metrics["policies"]["dpo"]["kl"] > 0
    printed = capsys.readouterr().out
    assert "20 prompts are held out, fewer than evaluate.prompts (99)" in printed
    assert "win rate vs sft (95 %)    gold   score      KL  tokens   ended" in printed


def test_a_fully_trained_sft_model_is_the_base_of_the_adapters(run_folder: Path, tmp_path: Path) -> None:
    """The DPO adapter then belongs on SFT's own weights, not on the base's."""
    other = tiny_models.make("llama", tmp_path / "other", seed=5)
    net = models.load_causal_lm(other, device="cpu")
    models.save_full(net, tmp_path / "sft.partial" / "model")
    sft = finish(tmp_path, "sft", "policy", other)
    job = job_of(run_folder, tmp_path / "work", "dpo")
    job = dataclasses.replace(job, inputs={"sft": sft, **job.inputs})
    evaluate.run(job)
    row = read_jsonl(job.folder / "checkpoints" / "dpo.jsonl")[0]
    chat = load_tokenizer(other)
    prompt = chat.encode_prompt(messages_from_json(read_jsonl(job.folder / "responses.jsonl")[0]["prompt"]))
    expected = {}
    for name, folder in {"sft_logprob": None, "logprob": run_folder / "dpo"}.items():
        policy = models.load_policy(other, folder, device="cpu")
        with torch.no_grad():
            logprobs = policy(input_ids=torch.tensor([prompt + row["ids"]])).logits[0].log_softmax(-1)
        expected[name] = sum(logprobs[len(prompt) - 1 + t, i].item() for t, i in enumerate(row["ids"]))
    assert {key: row[key] for key in expected} == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"policies": ["ppo"]}, "ppo: this run has no such policy.*choose among base, sft, dpo"),
        ({"judge": "gold"}, "built-in prompts only"),
        ({"judge": "reward_model"}, "no reward model"),
    ],
)
def test_settings_that_this_run_cannot_meet(run_folder: Path, tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + message):
        evaluate.run(job_of(run_folder, tmp_path, "sft dpo", **config))


def test_gold_is_the_judge_of_the_built_in_prompts() -> None:
    source = SimpleNamespace(path="pocket")
    job = SimpleNamespace(
        config=evaluate.Config(),
        inputs={"reward": None},
        settings=SimpleNamespace(data=SimpleNamespace(prompt_source=lambda: source)),
    )
    assert evaluate._judge(job) == "gold"  # type: ignore[arg-type]


def test_a_response_that_gold_cannot_read_counts_as_lost_and_is_said() -> None:
    def rows(token: int, golds: list[float | None]) -> evaluate.Rows:
        return [{"text": "", "ids": [token, 2], "ended": True, "gold": gold} for gold in golds]

    sft, dpo = rows(7, [5.0, 5.0, None]), rows(8, [None, 6.0, 4.0])
    entry = evaluate._measure(dpo, sft, "gold")
    assert (entry["wins"], entry["losses"], entry["gold"], entry["read"]) == (2, 1, 5.0, pytest.approx(2 / 3))


def test_the_same_words_are_a_tie_however_they_ended() -> None:
    def row(ids: list[int], score: float, ended: bool = True) -> dict[str, Any]:
        return {"text": "", "ids": ids, "ended": ended, "score": score}

    sft = [row([7, 1], 0.5), row([7, 8], 0.5, ended=False), row([7, 1], 0.5)]
    dpo = [row([7, 2], 0.5000001), row([7, 2], 0.6), row([8, 1], 0.4)]
    entry = evaluate._measure(dpo, sft, "reward_model")
    assert (entry["ties"], entry["wins"], entry["losses"]) == (1, 1, 1)


def test_how_often_each_policy_breaks_each_rule_by_hand() -> None:
    rude, other = "Do not be rude.", "Do not sing."
    rows = [
        {"broken": {rude: 0.9, other: 0.2}, "gold_broken": [rude]},
        {"broken": {rude: 0.1, other: 0.0}, "gold_broken": []},
        {"broken": {rude: 0.2, other: 0.1}, "gold_broken": None},
    ]
    shares = evaluate_scores.broken_shares(rows, (rude, other))
    assert shares[rude] == {"model": pytest.approx(0.4), "gold": 0.5}
    assert shares[other] == {"model": pytest.approx(0.1), "gold": None}, "the gold judge does not know it"
    without = evaluate_scores.broken_shares([{"broken": {rude: 0.5}}], (rude,))
    assert without[rude] == {"model": 0.5, "gold": None}
    lines = evaluate_scores.rule_table({"sft": {"rules": shares}, "ppo": {"rules": shares}})
    assert lines[0].split()[-2:] == ["sft", "ppo"]
    assert lines[1].startswith(rude)
    assert lines[1].count("40.0 % (50.0 %)") == 2
    assert "(" not in lines[2]
    assert evaluate_scores.rule_table({"sft": {}}) == []


def test_the_gold_judge_says_which_rules_are_broken() -> None:
    how = Prompt((Message("user", "How do I bake a simple loaf of bread?"),))
    texts = ["Not you again. You should knead the dough for ten minutes.", "lorem ipsum"]
    found = evaluate_scores.gold([how, how], [{"text": text, "ended": True} for text in texts])
    assert found[0]["gold_broken"] == ["Do not be rude."]
    assert found[1] == {"gold": None, "gold_broken": None}
