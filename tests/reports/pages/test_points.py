"""The points of a run's curves: what is read of metrics.csv, and what is left of many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptlab.reports.pages.points import MOST_POINTS, embedded, numbers, read_points, thinned


def test_many_points_are_thinned_and_extremes_are_kept() -> None:
    values = np.cumsum(np.random.default_rng(0).normal(size=100_000))
    values[43_210], values[77_777] = 1e6, -1e6
    kept = thinned(values)
    assert len(kept) <= MOST_POINTS
    assert (np.diff(kept) > 0).all()
    assert {0, 43_210, 77_777, 99_999} <= set(kept.tolist())
    assert np.diff(kept).max() < 1000  # it is as dense everywhere


def test_a_gap_stays_a_gap() -> None:
    values = np.sin(np.arange(20_000) / 500)
    values[12_345] = np.nan
    values[15_000:15_100] = np.inf
    kept = thinned(values)
    assert len(kept) <= MOST_POINTS
    assert {12_345, 15_000} <= set(kept.tolist())
    assert np.isfinite(values[kept]).sum() > 500


@pytest.mark.parametrize("count", [0, 1, 2, 3, MOST_POINTS - 1, MOST_POINTS, MOST_POINTS + 1])
def test_few_points_are_all_kept(count: int) -> None:
    kept = thinned(np.random.default_rng(1).normal(size=count))
    assert len(kept) == count if count <= MOST_POINTS else 500 < len(kept) <= MOST_POINTS


@pytest.mark.parametrize("steps", ["", "nan", "x"])
def test_without_steps_there_is_nothing_to_draw_by(tmp_path: Path, steps: str) -> None:
    (tmp_path / "metrics.csv").write_text(f"step,tokens,val/loss\n{steps},0,4.17\n")
    assert read_points(tmp_path).lines == {}


def test_each_line_has_its_own_rows_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,tokens,seconds,train/loss,val/loss,val/f1,lr\n"
        "0,0,0.0,,4.17,,\n"
        "10,640,0.123456789,2.123456789,,,0.001\n"
        "20,1280,0.5,nan,,,0.002\n"
        "20,1280,0.5,,1.5,,\n"
        "30,1920,0.7,oops,,,0.003\n"
        "40,25"  # the disk was full here
    )
    points = read_points(tmp_path)
    assert points.steps("val/loss").tolist() == [0, 20]
    assert points.values("lr").tolist() == [0.001, 0.002, 0.003]
    assert len(points.values("val/f1")) == len(points.steps("val/f1")) == 0
    found = embedded(points)
    assert found == {
        "axes": {
            "step": [0, 10, 20, 20, 30],
            "tokens": [0, 640, 1280, 1280, 1920],
            "seconds": [0, 0.123457, 0.5, 0.5, 0.7],
        },
        "lines": {
            "train/loss": {"at": [1, 2, 4], "y": [2.12346, None, None]},
            "val/loss": {"at": [0, 3], "y": [4.17, 1.5]},
            "lr": {"at": [1, 2, 4], "y": [0.001, 0.002, 0.003]},
        },
    }


def test_lines_of_many_points_share_their_rows(tmp_path: Path) -> None:
    draw = np.random.default_rng(2).normal(size=(5000, 2))
    rows = [f"{step},{a},{b}" for step, (a, b) in enumerate(draw.tolist(), 1)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,a,b", *rows]))
    found = embedded(read_points(tmp_path))
    for column, name in enumerate("ab"):
        line = found["lines"][name]
        steps = np.array(found["axes"]["step"])[line["at"]]
        assert np.allclose(draw[steps - 1, column], line["y"], rtol=1e-5)
        assert {draw[:, column].argmin() + 1, draw[:, column].argmax() + 1} <= set(steps.tolist())


@pytest.mark.parametrize(
    "content", [None, b"", b"step\n", b"no,column\n1,2\n", b"step,a\n1,\n", b"\xff\x00\n\x00", b'step,"a\n']
)
def test_what_cannot_be_read_has_no_points(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "metrics.csv").write_bytes(content)
    points = read_points(tmp_path)
    assert embedded(points)["lines"] == {}
    assert len(points.steps("val/loss")) == 0


def test_words_are_no_numbers() -> None:
    assert np.array_equal(numbers(["1", "x", "-2e3", ""]), [1, np.nan, -2000, np.nan], equal_nan=True)
