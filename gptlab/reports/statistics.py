"""What seeds say: intervals of means and medians, and differences between groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def half_width(values: np.ndarray) -> np.ndarray:
    """Half of the 95% interval of the mean over the first axis, by Student's t; NaN, unknown, for a single value."""
    if len(values) < 2:
        return np.full(values.shape[1:], math.nan)
    return stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values, axis=0)


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of the median, by the ranks of a sign test; None, unknown, for less than six values."""
    low, high = map(float, stats.quantile_test(values, p=0.5).confidence_interval(CONFIDENCE))
    return (low, high) if math.isfinite(low + high) else None


def compare(ours: dict[int, float], theirs: dict[int, float]) -> dict[str, Any]:
    """Our mean less theirs, of losses by seed: by a paired t-test if the seeds of one, at least two, are among those of
    the other, else by Welch's.

    Where neither can be had, for want of seeds or of any spread, the difference stands alone.
    """
    shared = [seed for seed in ours if seed in theirs]
    # Two seeds that many have in common by chance are not what either was measured on.
    paired = len(shared) >= 2 and len(shared) == min(len(ours), len(theirs))
    a, b = (np.array([x[seed] for seed in (shared if paired else x)]) for x in (ours, theirs))
    found = {"difference": a.mean() - b.mean(), "difference_low": math.nan, "difference_high": math.nan, "p": math.nan}
    spread = np.std(a - b) if paired else max(np.std(a), np.std(b))
    enough = paired or min(len(a), len(b)) >= 2
    if not enough or not spread > 1e-12 * np.abs(b).max():  # NaN, or the noise of rounding
        return found | {"test": "none", "pairs": 0}
    result = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    low, high = result.confidence_interval(CONFIDENCE)
    found |= {"difference_low": float(low), "difference_high": float(high), "p": float(result.pvalue)}
    return found | {"test": "paired" if paired else "Welch", "pairs": len(shared) if paired else 0}
