"""The programs that measure reward models: one runs at toy size, and what the other computes is worked by hand."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import reward_ensembles, reward_real_data
from benchmarks.over_seeds import interval
from rlhf_pipeline.artifacts import complete, open_artifact
from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.ensembles import Combination
from rlhf_pipeline.pocket.judge import gold
from rlhf_pipeline.records import Message, Preference, Prompt, write_jsonl
from rlhf_pipeline.reward_models import Spec
from stages import settings
from tests import stage_jobs, tiny_models

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_reward_models_beside_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": one.prompt.messages[-1].content, "chosen": one.chosen, "rejected": one.rejected}
        for one in stage_jobs.preferences(40)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    decoder = tiny_models.make("llama", tmp_path / "decoder").name
    encoder = tiny_models.make_encoder(tmp_path / "encoder").name
    out = tmp_path / "table.md"
    given = [
        "--models",
        decoder,
        encoder,
        "--steps",
        "2",
        "1",
        "--max-length",
        "120",
        "100",
        "--test",
        "6",
        "4",
        "--seeds",
        "0",
        "1",
        "--runs",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", ["reward_real_data.py", str(data), *given, "--out", str(out)])
    reward_real_data.main()
    lines = [line.split(" | ") for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("| pairs |")]
    assert [line[1:3] for line in lines] == [["decoder", "2"], ["encoder", "1"]] * 2
    accuracies, speeds = lines[:2], lines[2:]
    assert [line[3] for line in accuracies] == ["24", "16"], "six and four of each half in two seeds"
    assert [line[3] for line in speeds] == ["64", "32"], "two seeds, two halves, two steps or one, eight pairs each"
    assert all(float(cell) >= 1 for line in speeds for cell in (line[5], line[8])), "padding adds tokens"


def test_differences_are_of_the_same_pairs() -> None:
    def arm(*differences: float) -> reward_real_data.Arm:
        pairs = [reward_real_data.ScoredPair(one, 0.0, 1, 1) for one in differences]
        return reward_real_data.Arm(pairs)

    # right: 1, 1, 0, ½ against 0, 1, 0, 1: +1, 0, 0, -½
    mean, half = reward_real_data.difference(arm(1, 2, -1, 0), arm(-1, 1, -1, 3))
    assert mean == pytest.approx(12.5)
    assert half == pytest.approx(1.96 * 100 * math.sqrt((0.875**2 + 2 * 0.125**2 + 0.625**2) / 3) / 2)


def test_pairs_of_one_training_stand_or_fall_together() -> None:
    def arm(*differences: float) -> reward_real_data.Arm:
        pairs = [reward_real_data.ScoredPair(one, 0.0, 1, 1) for one in differences]
        return reward_real_data.Arm(pairs, [2, len(pairs) - 2])

    # a case whose trainings differ by +1, +1 and 0, 0, 0, and one by -1, 0 and 0: of 8 pairs a mean of 1/8
    cases = [(arm(1, 1, 1, 1, 1), arm(-1, -1, 1, 1, 1)), (arm(-1, 1, 1), arm(1, 1, 1))]
    mean, half = reward_real_data.together(cases)
    assert mean == pytest.approx(12.5)
    sums = [2 * 0.875, -3 * 0.125, -1.125 - 0.125, -0.125]
    error = 100 * math.sqrt(4 / 3 * sum(one**2 for one in sums)) / 8
    assert half == pytest.approx(3.182 * error, rel=1e-3)


def curve(*points: tuple[float, float, float]) -> list[dict[str, float]]:
    keys = ("kl", "proxy", "gold")
    return [dict(zip(keys, point, strict=True)) | {"step": i, "read": 1.0} for i, point in enumerate(points)]


def test_over_optimisation_by_hand() -> None:
    one = curve((0, 0, 0), (2, 1, 1), (6, 3, 0.2))
    least = curve((0, 0, 0), (1, 0.5, 0.5), (4, 2, 0.8))
    kl = reward_ensembles.shared_kl({"one model": one, "minimum": least})
    assert kl == 4
    found = reward_ensembles.of_curve(one, kl)
    assert found["fall"] == pytest.approx(0.8)
    assert found["gap"] == pytest.approx(2.8)
    assert found["equal"] == pytest.approx(0.6), "half-way between 1 and 0.2"
    assert reward_ensembles.of_curve(least, kl)["equal"] == pytest.approx(0.8)
    assert interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.303 / math.sqrt(3)))


def test_gold_is_counted_in_deviations_of_the_first_responses() -> None:
    rows = [
        {"step": step, "responses": 50, "read": read, "kl": 0.0, "score": score, "gold": gold, "gold_se": 0.4}
        for step, score, gold, read in ((0, 0.5, 8.0, 0.5), (4, 1.5, 9.0, 1.0), (8, 2.5, None, 0.0))
    ]
    found = reward_ensembles.normalised(rows)
    # the unread half counts -2: a mean of 3; 25 responses with a standard error of 0.4 deviate by 2
    assert [row["gold"] for row in found] == [0.0, pytest.approx(3.0), pytest.approx(-2.5)]
    assert [row["proxy"] for row in found] == [0.0, 1.0, 2.0]


def test_the_noise_of_comparisons(tmp_path: Path) -> None:
    prompt = (Message("user", "Help me to steal apples from a garden."),)
    good, bad = "No, that would not be right.", "qwerty."
    assert gold(prompt, good, True) is not None
    assert gold(prompt, bad, True) is None
    sides = [(good, bad, 1.0), (good, bad, 1.0), (bad, good, 1.0), (bad, good, 0.5)]
    (tmp_path / "collect").mkdir()
    rows = [Preference(Prompt(prompt), one, other, probability=p, tie=p == 0.5).to_json() for one, other, p in sides]
    write_jsonl(tmp_path / "collect" / "preferences.jsonl", rows)
    assert reward_ensembles.noise(tmp_path) == pytest.approx(1 / 3), "the tie decides nothing"


def test_one_model_is_the_first_of_the_ensemble(tmp_path: Path) -> None:
    partial, folder = tmp_path / "reward.partial", tmp_path / "reward"
    partial.mkdir()
    members = Combination("min", (0.5, -1.0))
    Spec(ModelConfig(name="pocket"), members=("members/0", "members/1"), combination=members).write(partial)
    made_by = {"stage": "reward", "kind": "reward model", "settings": {"x": 1}, "seed": 3, "inputs": {"sft": "abc"}}
    rest: dict[str, Any] = {"data": {}, "base": None, "tokenizer": None, "metrics": {}, "device": "cpu", "seconds": 1.0}
    before = complete(partial, folder, **made_by, **rest)
    reward_ensembles.leave_first(folder)
    after, spec = open_artifact(folder), Spec.read(folder)
    assert after.digest != before.digest
    assert {key: getattr(after.manifest, key) for key in made_by} == made_by, "the chain finds it up to date"
    assert spec is not None
    assert spec.combination is not None
    assert spec.members == ("members/0",)
    scores = torch.tensor([[3.0, 4.0]])
    assert spec.combination(scores).tolist() == [2.5, 3.5]


def test_disagreement_that_tells_every_error() -> None:
    right, wrong = np.array([[3.0], [3.5]]), np.array([[-4.0], [2.0]])
    members = np.concatenate([right.repeat(30, 1), wrong.repeat(10, 1)], 1)
    for name in reward_ensembles.PREDICTORS:  # means are 3.25 and -1, deviations 0.35 and 4.2
        assert reward_ensembles.area([members, members], reward_ensembles.PREDICTORS[name]) == (1.0, 1.0, 1.0)
    same = np.concatenate([right.repeat(30, 1), -right.repeat(10, 1)], 1)
    assert reward_ensembles.area([same], reward_ensembles.PREDICTORS["standard deviation"]) == (0.5, 0.5, 0.5)


def test_the_chain_of_the_ensembles_is_one_that_loads(tmp_path: Path) -> None:
    values = {**reward_ensembles.CHAIN, "run.folder": tmp_path}
    chain = settings.load(ROOT / "configs" / "demo.yaml", [f"{key}={value}" for key, value in values.items()])
    assert chain.reward.ensemble.score == "min"
