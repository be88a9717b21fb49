"""What stands on the picture of reward against KL, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from gptlab.reports.frontier import Frontier, build_frontier
from gptlab.reports.plots.frontier import draw_frontier, write_frontier
from gptlab.reports.plots.style import COLOURS, STYLE
from tests.reports.plots.test_figures import axis_words, entries
from tests.reports.post_training import lexicon_runs, rewarded_run, with_best_of_n


def drawn(frontier: Frontier) -> Figure:
    with matplotlib.rc_context(STYLE):
        return draw_frontier(frontier)


def points(axes: Any) -> list[ErrorbarContainer]:
    return [each for each in axes.containers if isinstance(each, ErrorbarContainer)]


@pytest.fixture(scope="module", params=[False, True], ids=["rule", "judged"])
def frontier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Frontier:
    return build_frontier([lexicon_runs(tmp_path_factory.mktemp("runs"), 3, request.param)])


def test_groups_stand_at_their_means_in_their_tasks_colour(frontier: Frontier) -> None:
    figure = drawn(frontier)
    found = points(figure.axes[0])
    assert len(found) == len(frontier.points) == 5
    for bars, (_, row) in zip(found, frontier.points.iterrows(), strict=True):
        line = bars.lines[0]
        assert (line.get_xdata()[0], line.get_ydata()[0]) == (row["kl"], row["reward"])
        assert line.get_color() == COLOURS[["dpo", "grpo", "ppo"].index(row["task"])]
        across, up = (each.get_segments()[0] for each in bars.lines[2])
        assert np.ptp(across[:, 0]) == pytest.approx(2 * row["kl_half"])
        assert np.ptp(up[:, 1]) == pytest.approx(2 * row["reward_half"])
    looks = {(bars.lines[0].get_color(), bars.lines[0].get_marker()) for bars in found}
    assert len(looks) == 5
    assert set(frontier.points.index) < set(entries(figure))


def test_what_a_reward_model_judged_stands_beside_and_is_hollow(frontier: Frontier) -> None:
    figure = drawn(frontier)
    assert axis_words(figure)[0] == ("KL to the reference (nats per answer)", "test/reward")
    if "judged_reward" not in frontier.points or frontier.points["judged_reward"].isna().all():
        assert len(figure.axes) == 1
        return
    assert axis_words(figure)[1][1] == "test/judged_reward"
    found = points(figure.axes[1])
    assert [bars.lines[0].get_markerfacecolor() for bars in found] == ["white"] * 3  # PPO twice, and GRPO
    assert all(bars.lines[0].get_markerfacecolor() != "white" for bars in points(figure.axes[0]))


def test_the_reference_is_at_no_kl_and_each_run_has_its_way(frontier: Frontier) -> None:
    axes = drawn(frontier).axes[0]
    (star,) = [line for line in axes.lines if line.get_marker() == "*"]
    best = frontier.best_of_n
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (0, best["reward"][0])
    assert best["n"][0] == 1
    curves = {"reward": "--", "judged_reward": ":"}
    kinds = best["chosen_by"].unique()
    for by in kinds:
        (line,) = [line for line in axes.lines if line.get_linestyle() == curves[by]]
        assert list(line.get_ydata()) == best["reward"][best["chosen_by"] == by].to_list()
    assert [text.get_text() for text in axes.texts] == ["2", "4", "8", "16", "32", "64"] * len(kinds)
    assert len(axes.collections) == 2 * 5 + len(kinds)  # bars in two directions, and the bands
    assert sum(line.get_linewidth() == 0.6 for line in axes.lines) == 15


def test_without_the_best_of_n_there_is_neither_curve_nor_reference(tmp_path: Path) -> None:
    rewarded_run(tmp_path / "a", "ppo", 1, 3.0, 0.5)
    figure = drawn(build_frontier([tmp_path]))
    assert entries(figure) == ["ppo: gpt3m", "thin: training, on the validation part"]
    with_best_of_n(tmp_path / "a", [[2, 0.2, 0.19], [4, 0.3, 0.64]])
    assert entries(drawn(build_frontier([tmp_path])))[-1] == "best of n, of the reference"


def test_the_same_runs_give_the_same_picture(frontier: Frontier, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        assert write_frontier(frontier, tmp_path / folder) == ["frontier"]
    for name in ("frontier.png", "frontier.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
