"""The programs that measure reward models: one runs at toy size, and what the other computes is worked by hand."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import reward_ensembles, reward_real_data
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
        "--runs",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", ["reward_real_data.py", str(data), *given, "--out", str(out)])
    reward_real_data.main()
    lines = [line.split(" | ") for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("| pairs |")]
    assert [line[1] for line in lines] == ["decoder", "encoder"] * 2
    accuracies, speeds = lines[:2], lines[2:]
    assert [line[2] for line in accuracies] == ["12", "12"], "six of each half"
    assert [line[2] for line in speeds] == ["32", "16"], "two halves, two steps or one, eight pairs each"
    assert all(float(cell) >= 1 for line in speeds for cell in line[8:10]), "padding adds tokens"


def test_differences_are_of_the_same_pairs() -> None:
    def arm(*differences: float) -> reward_real_data.Arm:
        pairs = [reward_real_data.ScoredPair(one, 0.0, 1, 1) for one in differences]
        return reward_real_data.Arm(pairs)

    # right: 1, 1, 0, ½ against 0, 1, 0, 1: +1, 0, 0, -½
    mean, half = reward_real_data.difference(arm(1, 2, -1, 0), arm(-1, 1, -1, 3))
    assert mean == pytest.approx(12.5)
    assert half == pytest.approx(1.96 * 100 * math.sqrt((0.875**2 + 2 * 0.125**2 + 0.625**2) / 3) / 2)


def curve(*points: tuple[float, float, float]) -> list[dict[str, float]]:
    return [dict(zip(("kl", "proxy", "gold"), point, strict=True)) | {"step": i} for i, point in enumerate(points)]


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
    assert reward_ensembles.interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.30 / math.sqrt(3)))


def test_gold_is_counted_in_deviations_of_the_first_responses() -> None:
    rows = [
        {"step": step, "responses": 25, "kl": 0.0, "score": score, "gold": gold, "gold_se": 0.4}
        for step, score, gold in ((0, 0.5, 7.0), (4, 1.5, 9.0))
    ]
    assert [row["gold"] for row in reward_ensembles.normalised(rows)] == [0.0, pytest.approx(1.0)]
    assert [row["proxy"] for row in reward_ensembles.normalised(rows)] == [0.0, 1.0]


def test_disagreement_that_tells_every_error() -> None:
    right, wrong = np.array([[3.0], [3.5]]), np.array([[-4.0], [2.0]])
    members = np.concatenate([right.repeat(30, 1), wrong.repeat(10, 1)], 1)
    for name in reward_ensembles.PREDICTORS:  # means are 3.25 and -1, deviations 0.35 and 4.2
        assert reward_ensembles.area([members, members], reward_ensembles.PREDICTORS[name]) == (1.0, 1.0, 1.0)
    same = np.concatenate([right.repeat(30, 1), -right.repeat(10, 1)], 1)
    assert reward_ensembles.area([same], reward_ensembles.PREDICTORS["standard deviation"]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("ensemble", reward_ensembles.ARMS.values())
def test_the_chain_of_the_ensembles_is_one_that_loads(ensemble: str, tmp_path: Path) -> None:
    values = {**reward_ensembles.CHAIN, "run.folder": tmp_path, "reward.ensemble": ensemble}
    chain = settings.load(ROOT / "configs" / "demo.yaml", [f"{key}={value}" for key, value in values.items()])
    assert chain.reward.ensemble.score in ("mean", "min")
