"""Reports on runs that were tuned for a task: which number compares them, in which unit, and which end is best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptlab.reports import tables
from gptlab.reports.report import build_report
from gptlab.reports.units import higher_is_better, unit
from tests.reports.plots.test_figures import axis_words, drawn
from tests.reports.post_training import TEXT, change_summary, rewarded_run, tuned_run
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
    for number, task in enumerate(("sft", "grpo")):
        tuned_run(tmp_path / task, task, 1, {"val/accuracy": 0.5 + number / 10}, -number)
    report = build_report([tmp_path])
    assert report.metric == "val/accuracy"
    assert labels(report) == ["task=grpo", "task=sft"]
    (note,) = report.notes
    assert note.startswith("the tasks differ (grpo, sft): val/accuracy decides; their losses, ")
    assert "their losses do not compare; use --metric" in build_report([tmp_path], "val/loss").notes[0]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (("sft", "grpo", "dpo"), "pairs with a positive margin (dpo), exact answers (grpo, sft)"),
        (("dpo", "ppo"), "pairs with a positive margin (dpo), exact answers (ppo)"),
        (("classify", "reward"), "texts in their class (classify), pairs with a positive margin (reward)"),
        (("dpo", "reward"), None),
    ],
)
def test_accuracies_compare_where_they_are_of_one_kind(tmp_path: Path, tasks: tuple[str, ...], words: str) -> None:
    for task in tasks:
        tuned_run(tmp_path / task, task, 1, {"val/accuracy": 0.9, "test/accuracy": 0.8})
    assert build_report([tmp_path]).metric == ("val/loss" if words else "val/accuracy")
    for metric in ("val/accuracy", "test/accuracy"):
        notes = build_report([tmp_path], metric).notes
        assert (f"{metric} is the share of different things: {words}" in notes) == (words is not None)
    assert not any("share" in note for note in build_report([tmp_path], "val/loss").notes)


def test_what_tasks_are_validated_on_is_noted_beside_their_losses(tmp_path: Path) -> None:
    for task in ("sft", "grpo"):
        path = tuned_run(tmp_path / task, task, 1, {"val/accuracy": 0.5})
        change_summary(path, data=TEXT | {"sha256": task})
    losses, data = build_report([tmp_path]).notes
    assert losses.startswith("the tasks differ (grpo, sft): val/accuracy decides")
    assert data.startswith("the runs are validated on 2 different data sets")


@pytest.mark.parametrize(
    ("task", "key", "values"),
    [
        ("dpo", "task.variant", ("ipo", "sigmoid")),
        ("dpo", "task.beta", (0.1, 0.5)),
        ("dpo", "task.label_smoothing", (0.05, 0.1)),
        ("reward", "task.centring", (0.01, 0.1)),
        ("reward", "task.margin", ("data", "none")),
        ("classify", "task.balance", ("false", "true")),
    ],
)
def test_a_score_decides_where_a_key_makes_the_losses_differ(
    tmp_path: Path, task: str, key: str, values: tuple[Any, Any]
) -> None:
    """The run with the lower loss is the worse one."""
    for loss, value in enumerate(values):
        config = {key.replace(".", "__"): value}
        tuned_run(tmp_path / str(value), task, 1, {"val/accuracy": 0.5 + loss / 10}, loss, **config)
    report = build_report([tmp_path])
    assert report.metric == "val/accuracy"
    assert labels(report) == [f"{key.partition('.')[2]}={value}" for value in reversed(values)]
    why = f"the runs differ in {key} ({values[0]}, {values[1]}): "
    assert report.notes == [f"{why}val/accuracy decides; their losses, val/loss and train among them, do not compare"]
    for metric in ("val/loss", "best_val_loss"):
        assert build_report([tmp_path], metric).notes[0].startswith(f"{why}their losses do not compare; use --metric")
    assert build_report([tmp_path], "val/accuracy").notes == []


def test_without_a_score_such_losses_are_shown_with_the_note(tmp_path: Path) -> None:
    for beta in (0.1, 0.5):
        tuned_run(tmp_path / str(beta), "dpo", 1, {}, beta, task__beta=beta)
    report = build_report([tmp_path])
    assert report.metric == "val/loss"
    assert report.notes[0].startswith("the runs differ in task.beta (0.1, 0.5): their losses do not compare")
    tuned_run(tmp_path / "typed", "dpo", 2, {}, task__beta="1e-1")  # is 0.1
    assert "task.beta (0.1, 0.5):" in build_report([tmp_path]).notes[0]


def test_the_penalty_is_noted_where_the_loss_is_asked_for(tmp_path: Path) -> None:
    for coef in (0.0, 0.1):
        rewarded_run(tmp_path / str(coef), "grpo", 1, 3.0, 0.5, task__kl_coef=coef)
    assert build_report([tmp_path]).notes == []
    assert build_report([tmp_path], "val/loss").notes[0].startswith("the runs differ in task.kl_coef (0.0, 0.1): their")


def test_other_rewards_are_noted_where_they_are_compared(tmp_path: Path) -> None:
    for name in ("exact", "rhyme"):
        rewarded_run(tmp_path / name, "grpo", 1, 3.0, 0.5, reward__name=name)
    for metric in (None, "test/reward", "test/win_rate"):
        said = f"the runs differ in reward.name (exact, rhyme): {metric or 'val/reward'} does not compare them"
        assert build_report([tmp_path], metric).notes == [said]
    assert build_report([tmp_path], "test/kl").notes == []


def test_an_older_run_had_the_reward_that_is_now_the_default(tmp_path: Path) -> None:
    rewarded_run(tmp_path / "old", "grpo", 1, 3.0, 0.5)
    reward = {"reward__name": "exact", "reward__argument": None, "reward__unended": 0.0}
    rewarded_run(tmp_path / "new", "grpo", 2, 3.0, 0.5, **reward)
    assert build_report([tmp_path]).notes == []


def test_what_is_trained_on_changes_train_loss_alone(tmp_path: Path) -> None:
    for value in ("all", "answers"):
        tuned_run(tmp_path / value, "sft", 1, {"val/accuracy": 0.5}, task__loss_on=value)
    report = build_report([tmp_path])
    assert report.metric == "val/loss"
    said = ["the runs differ in task.loss_on (all, answers): train/loss and gap do not compare"]
    assert report.notes == said == build_report([tmp_path], "train/loss").notes
    assert build_report([tmp_path], "val/accuracy").notes == []


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
