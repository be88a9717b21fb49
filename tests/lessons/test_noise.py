"""Chapter 10: how many seeds are enough, and what is read from a sweep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptlab.lessons import chapter_10_noise as chapter
from gptlab.system.errors import UserError
from tests.reports.test_report import fake_run


@pytest.mark.parametrize(("spread", "difference"), [(0, 1), (1, 0), (-1, 1), (float("nan"), 1), (1, float("inf"))])
def test_numbers_that_mean_nothing_are_refused(spread: float, difference: float) -> None:
    with pytest.raises(UserError, match="both must be above 0"):
        chapter.seeds_needed(spread, difference)


def test_what_no_patience_can_tell_is_refused() -> None:
    with pytest.raises(UserError, match="takes more than 100,000 seeds"):
        chapter.seeds_needed(1, 0.003)


def test_means_and_differences_are_those_of_the_sweep(tmp_path: Path) -> None:
    losses = {"4": (1.90, 1.92, 1.94), "8": (1.91, 1.90, 1.95)}
    for heads, each in losses.items():
        for seed, loss in enumerate(each, 1):
            overrides = {"model.n_head": heads} if heads != "4" else {}
            place = tmp_path / chapter.SWEEP / f"{heads}-{seed}"
            fake_run(place, loss, seed, overrides, {}, model__n_head=int(heads))
    fake_run(tmp_path / chapter.SWEEP / "deep", 1.8, 1, {"model.n_layer": "2"}, {}, model__n_layer=2)
    assert chapter.mean_of("baseline")(tmp_path) == pytest.approx(1.92)
    assert chapter.spread_of("baseline")(tmp_path) == pytest.approx(0.02)
    assert chapter.difference_of("n_head=8")(tmp_path) == pytest.approx(0)
    assert chapter.spread_of_pairs("n_head=8")(tmp_path) == pytest.approx(np.std([0.01, -0.02, 0.01], ddof=1))
    with pytest.raises(UserError, match=r"there is no run of n_head=1"):
        chapter.mean_of("n_head=1")(tmp_path)
