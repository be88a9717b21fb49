"""Reward against KL: means and intervals by hand, the best of n, and what is left out and why."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gptlab.reports import frontier_tables
from gptlab.reports.frontier import Frontier, build_frontier
from gptlab.system.errors import UserError
from tests.reports.post_training import (
    TEXT,
    best_of_n,
    change_summary,
    lexicon_runs,
    rewarded_run,
    tuned_run,
    with_best_of_n,
)
from tests.reports.test_report import fake_run


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lexicon_runs(tmp_path_factory.mktemp("lexicon"), seeds=3, judged=True)


@pytest.fixture(scope="module")
def frontier(lexicon: Path) -> Frontier:
    return build_frontier([lexicon])


def measured(folder: Path, name: str, key: str) -> np.ndarray:
    return np.array([json.loads(path.read_text())[key] for path in sorted(folder.glob(f"{name}-*/summary.json"))])


def test_a_group_has_means_and_intervals_in_both_directions(lexicon: Path, frontier: Frontier) -> None:
    row = frontier.points.loc["task=ppo weight_decay=0.02"]
    assert (row["task"], row["n"]) == ("ppo", 3)
    keys = {
        "kl": "test/kl",
        "reward": "test/reward",
        "judged_reward": "test/judged_reward",
        "win_rate": "test/win_rate",
    }
    for key, column in keys.items():
        values = measured(lexicon, "ppo0.02", column)
        assert row[key] == pytest.approx(values.mean(), abs=1e-12)
        half = stats.t.ppf(0.975, 2) * values.std(ddof=1) / math.sqrt(3)
        assert row[f"{key}_half"] == pytest.approx(half, abs=1e-12)
    assert frontier.points["kl"].is_monotonic_increasing
    assert math.isnan(frontier.points["judged_reward"]["task=dpo weight_decay=0.1"])


def test_equal_measurements_of_the_best_of_n_count_once(frontier: Frontier) -> None:
    """Four groups share a reference, whose answers are the same for the same seed; in two a reward model chooses."""
    curves = np.array([[row[1] for row in best_of_n(seed)] for seed in range(3)])
    half = stats.t.ppf(0.975, 2) * stats.sem(curves, axis=0)
    for by, share in (("reward", 1), ("judged_reward", 0.8)):
        best = frontier.best_of_n[frontier.best_of_n["chosen_by"] == by].set_index("n")
        assert best.index.to_list() == [1, 2, 4, 8, 16, 32, 64]
        assert set(best["measurements"]) == {3}
        assert best["reward"].to_numpy() == pytest.approx(share * curves.mean(0))
        assert best["reward_half"].to_numpy() == pytest.approx(share * half)
        assert best["kl"][4] == pytest.approx(math.log(4) - 3 / 4)


def test_runs_without_the_numbers_are_named_and_left_out(tmp_path: Path) -> None:
    rewarded_run(tmp_path / "ppo", "ppo", 1, 3.0, 0.5)
    fake_run(tmp_path / "text", 1.5)
    tuned_run(tmp_path / "no kl", "sft", 1, {"test/reward": 0.2})
    left_out = {each.path.name: each.why for each in build_frontier([tmp_path]).left_out}
    assert left_out == {"text": "has no test/reward and no test/kl", "no kl": "has no test/kl"}
    left_out = {each.path.name: each.why for each in build_frontier([tmp_path], "test/kl").left_out}
    assert left_out == {"text": "has no test/kl", "no kl": "has no test/kl"}


def test_the_validation_part_stands_in_where_there_is_no_test(tmp_path: Path) -> None:
    tuned_run(tmp_path / "a", "grpo", 1, {"val/reward": 0.4, "val/kl": 2.0})
    tuned_run(tmp_path / "b", "sft", 1, {"test/reward": 0.4})
    found = build_frontier([tmp_path])
    assert (found.metric, found.points["kl"].item(), found.points["reward"].item()) == ("val/reward", 2.0, 0.4)


def test_another_metric_takes_the_kl_of_its_part_and_no_best_of_n(tmp_path: Path) -> None:
    """That is the reward of answers to the prompts of the test part."""
    summary = {"test/accuracy": 0.9, "test/kl": 2.0, "val/kl": 3.0, "val/accuracy": 0.8, "val/reward": 0.7}
    with_best_of_n(tuned_run(tmp_path / "a", "grpo", 1, summary), best_of_n(1))
    for metric, kl, reward in (("test/accuracy", 2.0, 0.9), ("val/accuracy", 3.0, 0.8), ("val/reward", 3.0, 0.7)):
        found = build_frontier([tmp_path], metric)
        assert (found.points["kl"].item(), found.points["reward"].item()) == (kl, reward)
        assert not len(found.best_of_n)
        assert not any("best of n" in line for line in found.conditions)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"init_from": "b"}, "init_from (a, b)"),
        ({"reward__name": "function"}, "reward.name (exact, function)"),
        ({"reward__unended": None, "reward__argument": "x"}, "reward.argument (null, x), reward.unended (0.0, null)"),
        ({"task__answer_tokens": 40}, "task.answer_tokens (100, 40)"),
        ({"data__test_fraction": 0.2}, "their data"),
    ],
)
def test_curves_of_different_things_have_no_mean(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    for seed, changed in ((1, {}), (2, config)):
        path = rewarded_run(tmp_path / str(seed), "ppo", seed, 3.0, 0.5, **({"init_from": "a"} | changed))
        with_best_of_n(path, best_of_n(seed))
    found = build_frontier([tmp_path])
    assert not len(found.best_of_n)
    assert f"note: no best of n is drawn: the runs differ in {words}" in found.conditions
    assert not any(line.startswith("best of n") for line in found.conditions)


def test_curves_on_different_data_have_no_mean(tmp_path: Path) -> None:
    for sha256 in ("7deb6b2c", "aaaaaaaa"):
        path = rewarded_run(tmp_path / sha256, "ppo", 1, 3.0, 0.5, data__path=sha256)
        change_summary(path, best_of_n=best_of_n(1), data=TEXT | {"sha256": sha256})
    found = build_frontier([tmp_path])
    assert not len(found.best_of_n)
    assert "note: no best of n is drawn: the runs differ in their data" in found.conditions


def test_a_way_of_choosing_that_agrees_keeps_its_curve(tmp_path: Path) -> None:
    """Of the reward models it only matters where they have chosen."""
    for seed, judge in ((1, "a"), (2, "b")):
        for by in (None, 0.4):
            path = tmp_path / f"{judge} {by}"
            with_best_of_n(rewarded_run(path, "ppo", seed, 3.0, 0.5, by, reward__model=judge), best_of_n(seed))
    found = build_frontier([tmp_path])
    assert set(found.best_of_n["chosen_by"]) == {"reward"}
    assert set(found.best_of_n["measurements"]) == {2}
    assert "note: no best of n by the reward model is drawn: the runs differ in reward.model (a, b)" in found.conditions


def test_points_by_different_rewards_are_noted(tmp_path: Path) -> None:
    for name in ("exact", "rhyme"):
        rewarded_run(tmp_path / name, "ppo", 1, 3.0, 0.5, reward__name=name)
    words = "note: the runs differ in reward.name (exact, rhyme): test/reward does not compare them"
    assert words in build_frontier([tmp_path]).conditions


@pytest.mark.parametrize("rows", [[], "x", [[1, 2]], [[1, None, 0]], [[1, 0.1, 0], [1, 0.2, 0]], {"1": 2}])
def test_a_best_of_n_that_cannot_be_read_is_named(tmp_path: Path, rows: Any) -> None:
    with_best_of_n(rewarded_run(tmp_path / "a", "ppo", 1, 3.0, 0.5), rows)
    found = build_frontier([tmp_path])
    assert not len(found.best_of_n)
    if not isinstance(rows, dict):  # whose keys are its own
        assert any("its best_of_n is not rows of n, reward and KL" in line for line in found.conditions)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (
            None,
            "--frontier: no run has measured both test/reward and test/kl; runs of task=dpo, task=ppo and task=grpo",
        ),
        ("test/rewad", "--metric test/rewad: no run has measured it; did you mean"),
        ("val/loss", "no run has measured both val/loss and val/kl"),
    ],
)
def test_what_a_frontier_refuses(tmp_path: Path, metric: str | None, words: str) -> None:
    tuned_run(tmp_path / "a", "sft", 1, {"val/reward": 0.1})
    with pytest.raises(UserError) as error:
        build_frontier([tmp_path], metric)
    assert words in str(error.value)


def test_tables_say_the_same(frontier: Frontier, tmp_path: Path) -> None:
    frontier_tables.write_files(frontier, tmp_path, ["frontier"])
    columns = frontier_tables.table_columns(frontier)
    assert list(columns) == ["", "task", "n", "KL", "test/reward", "judged reward", "win rate"]
    at = columns[""].index("task=dpo weight_decay=0.5")
    row = frontier.points.iloc[at]
    assert columns["test/reward"][at] == f"{row['reward']:.4f} ± {row['reward_half']:.4f}"
    assert columns["judged reward"][at] == "-"
    assert columns["KL"][columns[""].index("best of 2")] == "0.1931"
    assert columns["KL"][columns[""].index("best of 4 by the reward model")] == "0.6363"
    lines = (tmp_path / "frontier.md").read_text().splitlines()
    assert lines[0] == "# test/reward against KL"
    assert lines[4 + at].startswith(f"| `task=dpo weight_decay=0.5` | dpo | 3 | {columns['KL'][at]} |")
    assert "![frontier](frontier.png)" in lines
    written = list(csv.DictReader((tmp_path / "frontier.csv").read_text().splitlines()))
    assert [row["group"] for row in written] == list(frontier.points.index)
    assert float(written[at]["win_rate_half"]) == pytest.approx(row["win_rate_half"])
    content = json.loads((tmp_path / "frontier.json").read_text())
    assert content["points"][at]["judged_reward"] is None
    assert [each["n"] for each in content["best_of_n"]] == frontier.best_of_n["n"].to_list()


def test_a_single_seed_has_no_interval(tmp_path: Path) -> None:
    rewarded_run(tmp_path / "a", "ppo", 1, 3.0, 0.5)
    columns = frontier_tables.table_columns(build_frontier([tmp_path]))
    assert all(columns[key][0].endswith(" ± ?") for key in ("KL", "test/reward", "win rate"))
    assert "judged reward" not in columns
