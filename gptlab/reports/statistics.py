"""Statistics over seeds: confidence intervals of means and medians, and differences between groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
CERTAIN = 30.0  # standard errors, from where the noncentral t need not be computed, which has no such tails


def half_width(values: np.ndarray) -> np.ndarray:
    """Return half the width of the 95% interval of the mean over the first axis (Student's t); NaN for one value."""
    if len(values) < 2:
        return np.full(values.shape[1:], math.nan)
    return half_width_at(np.std(values, axis=0, ddof=1), len(values))


def half_width_at(spread: Any, count: Any) -> Any:
    """Return half the width of the 95% interval of the mean of `count` values with a standard deviation of `spread`."""
    return stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * spread / np.sqrt(count)


def pairs_needed(spread: float, difference: float, power: float = 0.8, most: int = 100_000) -> int | None:
    """Return the fewest pairs with which a paired t-test finds a true difference with a probability of `power`.

    It finds one if the 95% interval does not contain 0 and has the sign of the difference.

    Args:
        spread: the standard deviation of the differences of pairs, above 0.
        difference: their true mean, above 0.
        power: below 1.
        most: None is returned if it takes more.
    """

    def is_enough(pairs: int) -> bool:
        shift = difference * math.sqrt(pairs) / spread
        border = stats.t.ppf((1 + CONFIDENCE) / 2, pairs - 1)
        return shift > CERTAIN or bool(stats.nct.sf(border, pairs - 1, shift) >= power)

    few, enough = 1, most
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if is_enough(middle) else (middle, enough)
    return enough if is_enough(enough) else None


def prediction_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Return the interval in which one more value of the same normal distribution lies (Student's t).

    Raises:
        ValueError: there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("a prediction needs at least two values")
    spread = np.std(values, ddof=1) * math.sqrt(1 + 1 / len(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * spread)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95% interval of the median, by the ranks of a sign test; None for fewer than six values."""
    low, high = map(float, stats.quantile_test(values, p=0.5).confidence_interval(CONFIDENCE))
    return (low, high) if math.isfinite(low + high) else None


def compare_means(ours: dict[int, float], theirs: dict[int, float]) -> dict[str, Any]:
    """Compare two groups of losses by seed: the difference of their means, ours minus theirs, its interval and p.

    The test is a paired t-test if all seeds of one group, at least two, are among those of the other; otherwise
    Welch's. With too few seeds or no spread there is no test, and interval and p are NaN.
    """
    shared = [seed for seed in ours if seed in theirs]
    # Pair only if one group's seeds all pair: a few seeds shared by chance would ignore the rest.
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


def share_interval(successes: int, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share of `count` independent trials (Wilson 1927, https://doi.org/10.2307/2276774)."""
    interval = stats.binomtest(successes, count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def win_rate_interval(wins: int, ties: int, losses: int) -> tuple[float, float]:
    """Return the 95% interval of a win rate over prompts, a tie counting half.

    The rate is (1 + share of wins - share of losses) / 2, so this is the interval of a difference of two paired
    proportions, Wald's with one more win, loss and no tie (Bonett and Price 2012,
    https://doi.org/10.3102/1076998611411915). Many ties make it narrower than `share_interval`, and unlike a bootstrap
    it has a width where every prompt is won.

    Raises:
        ValueError: there are no prompts.
    """
    count = wins + ties + losses
    if count < 1:
        raise ValueError("a win rate needs at least one prompt")
    won, lost = (wins + 1) / (count + 2), (losses + 1) / (count + 2)
    half = stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt((won + lost - (won - lost) ** 2) / (count + 2))
    return max(0.0, (1 + won - lost - half) / 2), min(1.0, (1 + won - lost + half) / 2)
