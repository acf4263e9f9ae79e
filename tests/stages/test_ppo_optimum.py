"""The engine reaches the optimum of what it says that it optimises; ``benchmarks/ppo_optimum.py`` has more seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.known_optimum import train


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["gae", "rloo"])
def test_it_converges_to_the_known_optimum(estimator: str, tmp_path: Path) -> None:
    found = train(estimator, 0, tmp_path, iterations=36)
    assert found.before > 0.3
    assert found.after < 0.05
    assert found.gap < 0.05
    assert found.above < 1e-3
    assert found.ratio_error < 1e-5
