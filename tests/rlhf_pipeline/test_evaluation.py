"""Counts and intervals by hand; the sentence says "real" exactly when the interval leaves out one half."""

from __future__ import annotations

import pytest

from rlhf_pipeline.evaluation import (
    Comparison,
    Lengths,
    Mean,
    compare,
    comparisons_needed,
    length_warning,
    lengths,
    mean,
    overoptimisation_warning,
    verdict,
)


def test_compare_counts_by_prompt() -> None:
    assert compare([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 5.0, -1.0]) == Comparison(wins=2, losses=1, ties=1)


def test_what_cannot_be_read_loses_to_what_can() -> None:
    assert compare([None, -9.0, None], [-9.0, None, None]) == Comparison(wins=1, losses=1, ties=1)


def test_compare_is_antisymmetric() -> None:
    ours, theirs = [0.3, None, 0.5, 0.5], [0.1, 0.2, 0.9, 0.5]
    forward, backward = compare(ours, theirs), compare(theirs, ours)
    assert (forward.wins, forward.losses, forward.ties) == (backward.losses, backward.wins, backward.ties)


def test_rounding_is_a_tie() -> None:
    assert compare([1.0], [1.0 + 1e-7]).ties == 1
    assert compare([1.0], [1.0 + 1e-3]).losses == 1


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        compare([1.0], [1.0, 2.0])


def test_win_rate_and_interval() -> None:
    result = Comparison(wins=8, losses=2, ties=5)
    assert result.win_rate == 0.8
    # Wilson for 8 of 10, as tabulated: 0.4902 to 0.9433. One half is inside: ten comparisons do not show it.
    assert result.interval == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert not result.is_real
    assert Comparison(80, 20, 0).is_real
    assert Comparison(20, 80, 0).is_real


def test_nothing_decided() -> None:
    nothing = Comparison(0, 0, 3)
    assert nothing.win_rate is None
    assert not nothing.is_real
    assert verdict("b", "a", nothing) == "b and a cannot be told apart: no comparison was decided; 3 ties."


@pytest.mark.parametrize("win_rate", [0.51, 0.6, 0.25, 1.0])
def test_comparisons_needed_is_where_the_interval_leaves_one_half(win_rate: float) -> None:
    needed = comparisons_needed(win_rate)
    assert needed is not None

    def real(n: int) -> bool:
        low, high = _wilson(win_rate, n)
        return not low <= 0.5 <= high

    assert real(needed)
    assert not real(needed - 1)


def _wilson(p: float, n: int) -> tuple[float, float]:
    """An independent way to the interval: the roots of (p - x)² n = z² x (1 - x)."""
    z2 = 1.959964**2
    a, b, c = n + z2, -(2 * n * p + z2), n * p * p
    root = (b * b - 4 * a * c) ** 0.5
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def test_one_half_is_never_enough() -> None:
    assert comparisons_needed(0.5) is None
    assert "it takes about" not in verdict("b", "a", Comparison(5, 5, 0))


def test_mean_and_error() -> None:
    # 1, 2, 3, 4: s² = 5/3, standard error √(5/12) = 0.6455
    assert mean([1.0, None, 2.0, 3.0, 4.0]) == Mean(2.5, pytest.approx(0.645497, abs=1e-6))
    assert mean([7.0]) == Mean(7.0, None)
    assert mean([None]) is None


def test_lengths() -> None:
    assert lengths([10, 20, 30, 40], [True, True, False, True]) == Lengths(mean=25.0, p95=40.0, ended=0.75)
    assert lengths(list(range(1, 101)), [True] * 100).p95 == 95.0


def test_verdicts() -> None:
    assert verdict("dpo", "sft", Comparison(160, 40, 1)) == (
        "dpo beats sft: it wins 160 of 200 decided comparisons (80.0 %, 95 % interval 73.9 to 85.0 %; 1 tie). "
        "The difference is real."
    )
    assert verdict("base", "sft", Comparison(0, 50, 0)).startswith("base loses to sft: it wins 0 of 50")
    unclear = verdict("ppo", "sft", Comparison(11, 9, 0))
    assert unclear.startswith("ppo and sft cannot be told apart")
    assert "At this win rate it takes about 385 decided comparisons to tell." in unclear  # 1.959964² / 0.1² = 384.1


def test_length_warning() -> None:
    short, long = Lengths(20, 40, 1.0), Lengths(30, 60, 1.0)
    assert length_warning("b", "a", short, short) is None
    assert "1.5 times as long" in (length_warning("b", "a", long, short) or "")
    assert "ends 80.0 %" in (length_warning("b", "a", Lengths(20, 40, 0.8), short) or "")


def test_overoptimisation_warning() -> None:
    def warn(score: tuple[float, float], gold: tuple[float, float], error: float | None) -> str | None:
        means = [(Mean(a, error), Mean(b, error)) for a, b in (score, gold)]
        return overoptimisation_warning("b", "a", *means)

    assert warn((2.0, 1.0), (1.0, 0.5), 0.01) is None  # both rose
    assert warn((0.5, 1.0), (0.2, 0.5), 0.01) is None  # both fell
    warning = "b is over-optimised: the reward model scores it +1.00 against a, the gold judge -0.30."
    assert warn((2.0, 1.0), (0.2, 0.5), 0.1) == warning  # 0.30 > 2 √2 · 0.1 = 0.283
    assert warn((2.0, 1.0), (0.2, 0.5), 0.11) is None  # 2 √2 · 0.11 = 0.311
    assert warn((2.0, 1.0), (0.2, 0.5), None) == warning
