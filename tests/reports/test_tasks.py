"""Reports on runs that were tuned for a task: which number compares them, in which unit, and which end is best."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptlab.reports import tables
from gptlab.reports.report import build_report
from gptlab.reports.units import higher_is_better, unit
from tests.reports.plots.test_figures import axis_words, drawn
from tests.reports.post_training import rewarded_run, tuned_run
from tests.reports.test_report import fake_run, labels


def rewarded(root: Path, task: str = "grpo") -> Path:
    for lr, reward in ((1e-3, 0.3), (3e-3, 0.7), (1e-2, 0.5)):
        for seed in (1, 2, 3):
            rewarded_run(root / f"{lr}-{seed}", task, seed, 5.0, reward, optim__lr=lr)
    return root


def test_a_sweep_of_rewarded_runs_is_decided_by_the_reward(tmp_path: Path) -> None:
    report = build_report([rewarded(tmp_path)])
    assert report.metric == "val/reward"
    assert labels(report) == ["lr=0.003", "lr=0.01", "lr=0.001"]
    assert not {"bits/byte", "train", "gap"} & set(tables.table_columns(report))
    assert not any("nats" in line or "byte" in line or "train/loss" in line for line in tables.footnotes(report))
    assert report.notes == []


def test_minus_the_reward_is_a_loss_with_its_own_unit(tmp_path: Path) -> None:
    report = build_report([rewarded(tmp_path)], "val/loss")
    assert labels(report) == ["lr=0.003", "lr=0.01", "lr=0.001"]
    assert "over the whole validation split, minus the reward;" in report.conditions[0]
    assert axis_words(drawn([tmp_path], metric="val/loss")["losses"])[0][0] == "val/loss (minus the reward)"


def test_plots_have_the_best_on_top_and_keep_it(tmp_path: Path) -> None:
    found = drawn([rewarded(tmp_path)])
    (axes,) = found["losses"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["lr=0.003", "lr=0.01", "lr=0.001"]
    assert {axes.get_ylabel() for axes in found["curves"].axes} == {"val/reward"}
    assert "size" not in found


def test_of_many_groups_the_best_get_colours_where_more_is_better(tmp_path: Path) -> None:
    for number in range(12):
        tuned_run(tmp_path / str(number), "classify", 1, {"val/accuracy": number / 12}, optim__lr=number / 1000)
    for metric in ("val/accuracy", "val/loss"):
        legend = drawn([tmp_path], metric=metric)["curves"].legends[0].get_texts()
        assert (legend[0].get_text() == "lr=0.011") == (metric == "val/accuracy")


@pytest.mark.parametrize(
    ("task", "words"), [("reward", "in nats per pair"), ("classify", "in nats per text"), ("dpo", "per pair")]
)
def test_a_loss_of_a_task_has_its_unit(tmp_path: Path, task: str, words: str) -> None:
    for lr in (1e-3, 2e-3):
        tuned_run(tmp_path / str(lr), task, 1, {"test/accuracy": 0.9}, 0.6, optim__lr=lr)
    report = build_report([tmp_path])
    assert report.metric == "val/loss"
    assert f"over the whole validation split, {words};" in report.conditions[0]
    words = words.removeprefix("in ")
    columns = tables.table_columns(report)
    assert {"train", "gap"} < set(columns)
    assert "bits/byte" not in columns
    assert {ylabel for _, ylabel in axis_words(drawn([tmp_path])["curves"])} == {
        f"loss ({words})",
        f"val/loss ({words})",
    }


def test_losses_of_different_tasks_do_not_compare_but_their_scores_do(tmp_path: Path) -> None:
    for number, task in enumerate(("dpo", "grpo")):
        tuned_run(tmp_path / task, task, 1, {"val/accuracy": 0.5 + number / 10}, -number)
    report = build_report([tmp_path])
    assert report.metric == "val/accuracy"
    assert labels(report) == ["task=grpo", "task=dpo"]
    (note,) = report.notes
    assert note.startswith("the tasks differ (dpo, grpo): val/accuracy decides; their losses, ")
    assert "their losses do not compare; use --metric" in build_report([tmp_path], "val/loss").notes[0]
    tuned_run(tmp_path / "reward", "reward", 1, {"val/accuracy": 0.9})  # of pairs, not of answers
    assert build_report([tmp_path]).metric == "val/loss"


def test_runs_of_text_keep_bits_per_byte_beside_those_without(tmp_path: Path) -> None:
    fake_run(tmp_path / "text", 1.5)
    tuned_run(tmp_path / "dpo", "dpo", 1, {})
    report = build_report([tmp_path])
    assert sorted(tables.table_columns(report)["bits/byte"])[0] == "-"
    assert len(report.groups) == 2


def test_which_end_is_best() -> None:
    better = ("accuracy", "accuracy_count", "bayes_accuracy", "stop_rate", "reward", "judged_reward", "win_rate")
    better += ("pass_at_1", "pass_at_16", "f1", "f1_spam")
    worse = ("loss", "bpb", "kl", "entropy", "answer_tokens", "ppl")
    assert all(higher_is_better(f"test/{kind}") for kind in better)
    assert not any(higher_is_better(f"test/{kind}") for kind in (*worse, "best_val_loss"))
    assert not higher_is_better("best_val_loss")


def test_units_of_measures() -> None:
    assert unit("test/kl", ["ppo"]) == "nats per answer"
    assert unit("test/loss", ["pretrain", "sft"]) == "nats per token"
    assert unit("best_val_loss", ["reward"]) == "nats per pair"
    assert unit("val/loss", ["sft", "dpo"]) == unit("val/accuracy", ["sft"]) == ""


def test_curves_show_the_metric_that_was_asked_for(tmp_path: Path) -> None:
    """On the validation part, where it was measured on the way; else what decides."""
    for seed in range(2):
        rewarded_run(tmp_path / f"{seed}", "grpo", seed, 3.0, 0.5)
    asked = {"test/kl": "val/kl", "val/kl": "val/kl", "test/win_rate": "val/reward", "test/reward": "val/reward"}
    assert {metric: build_report([tmp_path], metric=metric).curve for metric in asked} == asked
