"""Reward functions and weighted sums, by hand; what does not work says where and why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_pipeline.errors import ConfigError, TrainingError
from rlhf_pipeline.generation import Sampled
from rlhf_pipeline.rewards import Probe, Scoring, function_scorer, load_function
from rlhf_pipeline.rollout import Rollout, ScoreScale

PROMPTS = [[1], [2], [3]]
ROLLOUT = Rollout.of(PROMPTS, [Sampled([7, 0], True), Sampled([8], False), Sampled([9, 9, 0], True)], pad_id=0,
                     device=torch.device("cpu"))  # fmt: skip
GROUPS = [[0, 1, 2]]


def scorer(*scores: float):
    return lambda rollout, groups: torch.tensor(scores)


def test_one_source_is_taken_as_it_is() -> None:
    scoring = Scoring({"only": (0.1, scorer(1.0, 5.0, 3.0))})
    scoring.settle(ROLLOUT, GROUPS)
    total, by_source = scoring(ROLLOUT, GROUPS)
    assert (total.tolist(), by_source) == ([1, 5, 3], {})
    assert scoring.unit_of("only", ScoreScale(2.0, 4.0)) == ScoreScale(2.0, 4.0)


def test_several_are_added_up_in_their_standard_deviations() -> None:
    scoring = Scoring({"a": (2.0, scorer(1.0, 2.0, 3.0)), "b": (-1.0, scorer(0.0, 0.0, 30.0))})
    scoring.settle(ROLLOUT, GROUPS)
    total, by_source = scoring(ROLLOUT, GROUPS)
    a, b = math.sqrt(2 / 3), math.sqrt(200)  # standard deviations of 1, 2, 3 and of 0, 0, 30
    assert total.tolist() == pytest.approx([-2 / a + 10 / b, 10 / b, 2 / a - 20 / b])
    assert by_source == {"a": 2.0, "b": 10.0}


def test_the_scale_is_frozen() -> None:
    now = [1.0, 2.0, 3.0]
    sources = {"a": (1.0, lambda *_: torch.tensor(now)), "b": (1.0, scorer(1.0, 2.0, 3.0))}
    scoring = Scoring(sources)
    scoring.settle(ROLLOUT, GROUPS)
    before = scoring(ROLLOUT, GROUPS)[0]
    now[:] = [101.0, 102.0, 103.0]
    assert torch.allclose(scoring(ROLLOUT, GROUPS)[0] - before, torch.tensor(100 / math.sqrt(2 / 3)))


def test_a_source_in_units_of_the_normalised_sum() -> None:
    """A head that says ``s`` in its own unit adds ``weight (s - mean) / std / total.std`` to the normalised score."""
    scoring = Scoring({"a": (2.0, scorer(1.0, 2.0, 3.0)), "b": (1.0, scorer(0.0, 1.0, 0.0))})
    scoring.settle(ROLLOUT, GROUPS)
    scale, own = scoring.unit_of("a", ScoreScale(0.0, 5.0)), scoring.scales["a"]
    assert (7.0 - scale.mean) / scale.std == pytest.approx(2.0 * (7.0 - own.mean) / own.std / 5.0)


def test_a_function_gets_conversations_and_texts(tmp_path: Path) -> None:
    seen = []

    def score(prompts, responses):
        seen.append((prompts, responses))
        return [1, True, 2.5]

    asked = function_scorer(
        score, tmp_path / "mine.py", messages=lambda ids: [{"role": "user", "content": str(ids)}], text=str
    )
    assert asked(ROLLOUT, GROUPS).tolist() == [1, 1, 2.5]
    prompts = [[{"role": "user", "content": text}] for text in ("[1]", "[2]", "[3]")]
    assert seen == [(prompts, ["[7, 0]", "[8]", "[9, 9, 0]"])]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, 2.0], "gave 2 scores; wanted is a finite number for each of 3 responses"),
        ([1.0, math.inf, 2.0], "gave the score inf at place 1"),
        (None, "failed: TypeError"),
        (["much", 1, 2], "failed: ValueError: could not convert string"),
    ],
)
def test_what_a_function_may_not_give(scores, message, tmp_path: Path) -> None:
    asked = function_scorer(lambda *_: scores, tmp_path / "mine.py", messages=list, text=str)
    with pytest.raises(TrainingError, match=message) as error:
        asked(ROLLOUT, GROUPS)
    assert str(tmp_path / "mine.py") in str(error.value)


def test_files_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load_function(tmp_path / "absent.py", "score")
    (tmp_path / "torn.py").write_text("def score(:\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be run: line 1: invalid syntax"):
        load_function(tmp_path / "torn.py", "score")
    (tmp_path / "needy.py").write_text("\nimport nothing_of_this_name\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be run: line 2: ModuleNotFoundError"):
        load_function(tmp_path / "needy.py", "score")
    (tmp_path / "empty.py").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has no function score\n.*it has no function"):
        load_function(tmp_path / "empty.py", "score")


def test_a_probe_sees_a_scorer_that_moves() -> None:
    def score(rollout: Rollout, groups: Any) -> torch.Tensor:
        assert sorted(row for rows in groups for row in rows) == list(range(len(rollout.prompts)))
        return torch.tensor([float(sum(ids)) for ids in rollout.responses])

    probe = Probe.of(ROLLOUT, score, number=2)
    assert probe.rollout.responses == ROLLOUT.responses[:2]
    assert probe.drift(score) == 0
    again = Probe.from_state(probe.state(), device=torch.device("cpu"))
    assert (again.rollout.prompts, again.rollout.ended.tolist()) == (ROLLOUT.prompts[:2], [True, False])
    assert again.drift(lambda rollout, groups: score(rollout, groups) + torch.tensor([0.0, -0.25])) == 0.25
