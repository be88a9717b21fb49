"""Statistics of a single run: intervals of win rates, which training and evaluation count."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gptlab.reports import statistics


def test_a_win_rates_interval_is_of_a_difference_of_paired_proportions() -> None:
    """The published example of R's statpsych::ci.prop.ps(.05, 12, 4, 26, 6): 0.2548067 to 0.6251933."""
    low, high = statistics.win_rate_interval(26, 12 + 6, 4)
    assert 2 * low - 1 == pytest.approx(0.2548067, abs=1e-6)
    assert 2 * high - 1 == pytest.approx(0.6251933, abs=1e-6)


@pytest.mark.parametrize("ties", [0.0, 0.3, 0.8])
def test_a_win_rates_interval_covers_it(ties: float) -> None:
    """Over all outcomes of 40 prompts; that of a share is too wide where many are ties."""
    count = 40
    for won in (0.5, 0.65, 0.9):
        chances = won * (1 - ties), ties, (1 - won) * (1 - ties)
        rate, covered = chances[0] + ties / 2, 0.0
        for wins in range(count + 1):
            for losses in range(count + 1 - wins):
                counts = wins, count - wins - losses, losses
                low, high = statistics.win_rate_interval(*counts)
                covered += stats.multinomial.pmf(counts, count, chances) * (low <= rate <= high)
        assert 0.93 <= covered <= 0.985


def test_a_win_rates_interval_at_its_ends() -> None:
    for counts in ((10, 0, 0), (0, 10, 0), (0, 0, 10), (0, 1, 0)):
        low, high = statistics.win_rate_interval(*counts)
        assert 0 <= low < high <= 1
        assert low <= (counts[0] + counts[1] / 2) / sum(counts) <= high
    wilson = statistics.share_interval(20, 40)
    low, high = statistics.win_rate_interval(4, 32, 4)
    assert high - low < (wilson[1] - wilson[0]) / 1.5
    with pytest.raises(ValueError, match="at least one prompt"):
        statistics.win_rate_interval(0, 0, 0)


def test_a_prediction_interval_is_wider_than_that_of_the_mean() -> None:
    """Student's t for 2 degrees of freedom, 4.3027, and the new value's own spread beside that of the mean."""
    low, high = statistics.prediction_interval([1.0, 2.0, 3.0], 0.95)
    assert (low + high) / 2 == pytest.approx(2.0)
    assert (high - low) / 2 == pytest.approx(4.3027 * (1 + 1 / 3) ** 0.5, rel=1e-4)
    assert (high - low) / 2 > statistics.half_width(np.array([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="at least two"):
        statistics.prediction_interval([1.0], 0.95)


@pytest.mark.parametrize(("spread", "difference"), [(0.01, 0.01), (0.004, 0.003), (0.01, 0.003)])
def test_so_many_pairs_find_the_difference_four_times_in_five(spread: float, difference: float) -> None:
    count = statistics.pairs_needed(spread, difference)
    draws = np.random.default_rng(0).normal(difference, spread, (20_000, count))
    assert float((stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()) == pytest.approx(0.81, abs=0.02)
    fewer = draws[:, : count - 1]
    assert float((stats.ttest_1samp(fewer, 0, axis=1).pvalue < 0.05).mean()) < 0.81


def test_a_difference_far_above_the_noise_takes_two_pairs() -> None:
    assert statistics.pairs_needed(1e-9, 1.0) == 2


def test_more_pairs_than_the_most_are_none() -> None:
    assert statistics.pairs_needed(1.0, 0.003) is None
    assert statistics.pairs_needed(0.004, 0.003, most=15) is None
