"""Sampling: K responses per prompt, both sides of the split, and the same result after an interruption."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel

from rlhf_pipeline import artifacts, models
from rlhf_pipeline.artifacts import Artifact
from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.data import DataConfig, make_split
from rlhf_pipeline.errors import ArtifactError, ConfigError
from rlhf_pipeline.records import ResponseSet, read_jsonl
from stages import sample
from stages.job import Job
from stages.prompts import load_prompts, split_rule
from tests import tiny_models
from tests.stages.tiny_run import finish, make_adapter


def job(folder: Path, data: DataConfig | None = None, **config: Any) -> Job:
    settings = SimpleNamespace(
        model=ModelConfig(name="pocket"),
        data=data or DataConfig(prompts={"path": "pocket", "limit": 120}, held_out=20),
        run=SimpleNamespace(seed=3),
    )
    chosen = sample.Config(**({"policy": "base", "responses": 2, "max_new_tokens": 8, "prompts": 70} | config))
    folder.mkdir(exist_ok=True)
    return Job(chosen, settings, folder, {}, folder.parent, 3, "cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    one = job(tmp_path_factory.mktemp("sample") / "whole", held_out_prompts=5)
    metrics = sample.run(one)
    return (one.folder / "responses.jsonl").read_bytes(), metrics


def test_every_prompt_has_k_responses(whole, tmp_path: Path) -> None:
    text, metrics = whole
    (tmp_path / "r.jsonl").write_bytes(text)
    rows = [ResponseSet.from_json(row) for row in read_jsonl(tmp_path / "r.jsonl")]
    assert len(rows) == metrics["prompts"] == 75
    assert metrics["responses"] == 150
    assert all(len(row.responses) == 2 for row in rows)
    assert all(0 < len(r.ids) <= 8 for row in rows for r in row.responses)
    assert metrics["ended"] == sum(r.ended for row in rows for r in row.responses) / 150


def test_held_out_prompts_are_among_them_and_known_as_such(whole, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(whole[0])
    rows = [ResponseSet.from_json(row) for row in read_jsonl(tmp_path / "r.jsonl")]
    split = split_rule(job(tmp_path / "x"))
    assert [split.is_held_out(row.prompt) for row in rows] == [False] * 70 + [True] * 5


@pytest.mark.parametrize("cut", [0.3, 0.95])
def test_interrupted_and_run_again_it_is_the_same(whole, tmp_path: Path, cut: float) -> None:
    one = job(tmp_path / "resumed", held_out_prompts=5)
    (one.folder / "responses.jsonl").write_bytes(whole[0][: int(len(whole[0]) * cut)])
    assert sample.run(one) == whole[1]
    assert (one.folder / "responses.jsonl").read_bytes() == whole[0]


def test_another_seed_draws_other_responses(whole, tmp_path: Path) -> None:
    one = job(tmp_path / "other", held_out_prompts=5)
    other = Job(one.config, one.settings, one.folder, {}, tmp_path, 4, "cpu")
    sample.run(other)
    assert (other.folder / "responses.jsonl").read_bytes() != whole[0]


def test_a_policy_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no finished policy"):
        sample.run(job(tmp_path / "p", policy=str(tmp_path)))


def run_with_ppo(folder: Path, model: ModelConfig, *, full: bool, seed: int) -> dict[str, Artifact]:
    """A run whose SFT is an adapter on the base, or a model of its own below PPO's adapter."""
    folder.mkdir()
    if full:
        other = tiny_models.make("llama", folder / "tuned", seed=seed)
        models.save_full(models.load_causal_lm(other, device="cpu"), folder / "sft.partial" / "model")
    else:
        make_adapter(model, folder / "sft.partial", seed)
    sft = finish(folder, "sft", "policy", model)
    make_adapter(model, folder / "ppo.partial", seed + 50)
    return {"sft": sft, "ppo": finish(folder, "ppo", "policy", model, sft=sft.digest)}


def loaded_for(model: ModelConfig, own: dict[str, Artifact], policy: Path) -> Any:
    settings: Any = SimpleNamespace(model=model)
    return sample.load_policy(Job(None, settings, policy, own, policy, 0, "cpu"), str(policy))


IDS = torch.tensor([[5, 6, 7, 30, 40]])


@pytest.mark.parametrize("own_full", [True, False])
@pytest.mark.parametrize("other_full", [True, False])
def test_a_policy_of_another_run_stands_on_the_weights_that_it_was_trained_on(
    tmp_path: Path, own_full: bool, other_full: bool
) -> None:
    model = tiny_models.make("llama", tmp_path / "base")
    own = run_with_ppo(tmp_path / "own", model, full=own_full, seed=1)
    other = run_with_ppo(tmp_path / "other", model, full=other_full, seed=2)
    for run in (own, other):
        policy = run["ppo"].folder
        below = models.full_model(run["sft"].folder)
        base = models.load_causal_lm(model, device="cpu", folder=below)
        expected = PeftModel.from_pretrained(base, policy / "adapter").eval()(input_ids=IDS).logits
        assert (below is None) == ((run is other and not other_full) or (run is own and not own_full))
        assert torch.equal(loaded_for(model, own, policy)(input_ids=IDS).logits, expected)
    aside = artifacts.set_aside(other["sft"].folder)
    again = loaded_for(model, own, other["ppo"].folder)(input_ids=IDS).logits
    assert torch.equal(again, expected), "it was made anew since: the one that was replaced is meant"
    shutil.rmtree(aside)
    make_adapter(model, tmp_path / "other" / "sft.partial", 9)
    finish(tmp_path / "other", "sft", "policy", model)
    with pytest.raises(ArtifactError, match=f"(?s)SFT policy that is not there.*put .* back as {tmp_path}/other/sft"):
        loaded_for(model, own, other["ppo"].folder)


def test_no_prompts_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data with prompts"):
        sample.run(job(tmp_path / "p", data=DataConfig()))


def test_a_held_out_number_is_the_same_rule_for_every_data_set(tmp_path: Path) -> None:
    one = job(tmp_path / "p")
    both = load_prompts(one)
    assert (len(both.train), len(both.held_out)) == (100, 20)
    rule = split_rule(one)
    assert all(rule.is_held_out(prompt) for prompt in both.held_out)
    assert not any(rule.is_held_out(prompt) for prompt in both.train)


def test_a_fraction_needs_no_data(tmp_path: Path) -> None:
    assert split_rule(job(tmp_path / "p", data=DataConfig(held_out=0.25))) == make_split(0.25, seed=3)


def test_progress_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    told: list[int] = []

    class Bar:
        def __enter__(self) -> Callable[[int], None]:
            return told.append

        def __exit__(self, *_: object) -> None:
            return None

    monkeypatch.setattr(Job, "track", lambda self, description, total: Bar())
    sample.run(job(tmp_path / "p", prompts=10, held_out_prompts=0))
    assert sum(told) == 10
    assert "10 training prompts and 0 held-out ones" in capsys.readouterr().out
