"""The mean over seeds, and how far it may be off."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % quantiles of Student's distribution, by the number of seeds."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; infinite for one value."""
    if len(values) < 2:
        return values[0], math.inf
    return statistics.mean(values), _STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5
