"""Confusion matrices: added up over seeds, the best groups first, and none of what is no matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlab.reports.confusion import confusions_of
from gptlab.reports.records import read_run
from gptlab.reports.report import build_report
from gptlab.reports.tables import report_dict
from tests.reports.plots.test_figures import drawn
from tests.reports.post_training import tuned_run

COUNTS = [[8, 2], [1, 9]]


def classifiers(root: Path, groups: int, labels: Any = ("ham", "spam"), counts: Any = COUNTS) -> Path:
    for number in range(groups):
        for seed in (1, 2):
            summary = {"test/accuracy": 0.5 + number / 20, "confusion": {"labels": list(labels), "counts": counts}}
            tuned_run(root / f"{number}-{seed}", "classify", seed, summary, optim__lr=(number + 1) / 1000)
    return root


def test_counts_are_added_up_over_seeds_and_drawn(tmp_path: Path) -> None:
    figure = drawn([classifiers(tmp_path, 1)], metric="test/accuracy")["confusion"]
    axes, bar = figure.axes
    assert [text.get_text() for text in axes.texts] == ["16", "4", "2", "18"]
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(np.array([[0.8, 0.2], [0.1, 0.9]]))
    assert axes.get_title().splitlines() == ["gpt3m (n = 2)", "85.0% of 40 right"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ham", "spam"]
    assert bar.get_ylabel() == "share of the true class"
    content = report_dict(build_report([tmp_path]))["confusions"]
    assert content == {"gpt3m": [{"labels": ["ham", "spam"], "counts": [[16, 4], [2, 18]]}]}


def test_of_many_groups_the_best_are_drawn(tmp_path: Path) -> None:
    figure = drawn([classifiers(tmp_path, 6)], metric="test/accuracy")["confusion"]
    titles = [axes.get_title().partition(" (")[0] for axes in figure.axes[:-1]]
    assert titles == ["lr=0.006", "lr=0.005", "lr=0.004", "lr=0.003"]
    assert figure.get_suptitle().endswith(", the best 4 of 6")


def test_many_classes_show_colours_alone_and_all_stays_in_the_picture(tmp_path: Path) -> None:
    labels = [f"a class with a long name {number}" for number in range(13)]
    figure = drawn([classifiers(tmp_path, 1, labels, np.eye(13, dtype=int).tolist())])["confusion"]
    assert not figure.axes[0].texts
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.bbox.size / figure.dpi
    assert (box.x0 >= 0, box.y0 >= 0, box.x1 <= width, box.y1 <= height) == (True,) * 4


@pytest.mark.parametrize(
    ("labels", "counts"),
    [
        (["a"], COUNTS),
        ("ab", COUNTS),
        ([], []),
        (["a", "b"], [[1, 2], [3]]),
        (["a", "b"], [[1, 2], [3, -1]]),
        (["a", "b"], [[1, 2], [3, 0.5]]),
        (["a", "b"], [[1, 2], [3, True]]),
        (["a", "b"], [1, 2]),
        (["a", "b"], None),
    ],
)
def test_what_is_no_matrix_is_not_drawn(tmp_path: Path, labels: Any, counts: Any) -> None:
    run = tuned_run(tmp_path / "a", "classify", 1, {"confusion": {"labels": labels, "counts": counts}})
    assert confusions_of([read_run(run)]) == []
    assert "confusion" not in drawn([run])


def test_other_classes_are_another_matrix(tmp_path: Path) -> None:
    a = tuned_run(tmp_path / "a", "classify", 1, {"confusion": {"labels": ["x", "y"], "counts": COUNTS}})
    b = tuned_run(tmp_path / "b", "classify", 2, {"confusion": {"labels": ["y", "x"], "counts": COUNTS}})
    assert [each.labels for each in confusions_of([read_run(a), read_run(b)])] == [["x", "y"], ["y", "x"]]
