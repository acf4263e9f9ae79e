"""Numbers on disk survive a kill, and intervals are the textbook's."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_pipeline import metrics
from rlhf_pipeline.errors import TrainingError
from rlhf_pipeline.metrics import MetricsWriter, read_metrics, require_finite, wilson_interval


def test_wilson_interval_against_worked_examples() -> None:
    # Newcombe (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_interval_without_a_trial_knows_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_resume_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    for step in (1, 2, 3):
        writer.write({"step": step, "loss": float(step)})
    writer.close()
    MetricsWriter(path, resume_step=2).write({"step": 3, "loss": 9.0})
    assert [row["loss"] for row in read_metrics(path)] == [1.0, 2.0, 9.0]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    MetricsWriter(path, resume_step=5).write({"step": 2})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_non_finite_numbers_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsWriter(path).write({"step": 1, "loss": float("nan"), "kl": float("inf")})
    assert read_metrics(path) == [{"step": 1, "loss": None, "kl": None}]


@pytest.mark.parametrize("trials", [1, 2, 3, 7, 13, 300, 5000])
def test_wilson_contains_the_proportion(trials: int) -> None:
    for successes in {0, 1, trials // 2, trials}:
        low, high = wilson_interval(successes, trials)
        assert 0 <= low <= successes / trials <= high <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_measure_that_is_no_number_is_refused(value: float) -> None:
    require_finite(0.0, "the loss")
    with pytest.raises(TrainingError, match=r"the loss is -?(nan|inf)[\s\S]*learning_rate"):
        require_finite(value, "the loss")


def test_what_phases_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 20.0, 20.5])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    phase = metrics.Phases("cpu")
    for name in ("rollout", "train"):
        with phase(name):
            pass
    row = phase.row({"rollout": 100, "train": 300})
    assert {key: value for key, value in row.items() if not key.startswith("memory/")} == {
        "seconds/rollout": 2, "seconds/train": 0.5, "tokens_per_second/rollout": 50, "tokens_per_second/train": 600,
    }  # fmt: skip
    assert 0.01 < row["memory/rollout"] <= row["memory/train"] < 1000  # GiB of this very process
    assert all(key.startswith(metrics.COSTS) for key in row)
