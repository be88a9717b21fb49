"""Runs as results, on run directories that look as `fit` writes them."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from gptlab.reports import records, statistics
from gptlab.reports.difference import compare_runs
from gptlab.reports.plots.figures import figures
from gptlab.reports.report import Report, build_report
from gptlab.system.errors import UserError

CONFIG: dict[str, Any] = {
    "name": "gpt3m",
    "seed": 1,
    "resume": None,
    "recipe": {"batch_size": 64, "max_steps": 5000, "lr": 1e-3},
    "tokenizer": {"vocab_size": None, "name": "char"},
    "data": {"path": None, "dir": None, "cache_dir": None, "batch_size": 64, "name": "shakespeare_char"},
    "optim": {"lr": 1e-3, "weight_decay": 0.1, "name": "adamw"},
    "schedule": {"warmup_steps": 100, "decay_steps": 5000, "name": "cosine"},
    "trainer": {"accelerator": "cpu", "max_steps": 5000, "val_every": 250, "sample_prompt": "\n", "name": "cpu"},
    "model": {"bias": False, "mlp": "gelu", "qk_norm": False, "n_layer": 4, "n_head": 4, "n_embd": 256}
    | {"block_size": 128, "dropout": 0.2, "n_kv_head": None, "name": "gpt"},
    "precision": {"name": "fp32"},
    "compile": {"name": "eager"},
}


def fake_run(
    path: Path,
    loss: float,
    seed: int = 1,
    overrides: dict[str, str] | None = None,
    baseline: dict[str, str] | None = None,
    summary: dict[str, Any] | None = None,
    typed: list[str] | None = None,
    environment: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A finished run. `config` is dotted with __: model__n_head=8; `overrides` make it a sweep's job."""
    content = json.loads(json.dumps(CONFIG)) | {"seed": seed}
    for key, each in config.items():
        section, _, last = key.rpartition("__")
        (content.setdefault(section, {}) if section else content)[last] = each
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.dump(content, sort_keys=False, Dumper=getattr(yaml, "CSafeDumper", None)))
    steps, parameters = (
        content["trainer"]["max_steps"],
        12 * content["model"]["n_layer"] * content["model"]["n_embd"] ** 2,
    )
    tokens = steps * content["data"]["batch_size"] * content["model"]["block_size"]
    draw = random.Random(f"{seed} {loss}")
    rows = ["step,train/loss,val/loss,val/bpb,val/ppl,lr,grad_norm,tokens_per_sec,mfu", "0,,4.17,6.02,64.7,,,,"]
    for step in range(steps // 100, steps + 1, steps // 100):
        now = loss + (4.17 - loss) * math.exp(-7 * step / steps)
        rows.append(f"{step},{now - 0.11 * step / steps + draw.gauss(0, 0.02)},,,,0.001,0.5,100000,0.1")
        if step % (steps // 20) == 0:
            rows.append(f"{step},,{now},{now * 1.4427},{math.exp(min(now, 9))},,,,")
    (path / "metrics.csv").write_text("\n".join(rows) + "\n")
    (path / "environment.json").write_text(
        json.dumps(
            {
                "command": ["gptlab/train.py", *(typed or [])],
                "python": "3.11.7",
                "versions": {"gptlab": "0.1.0", "torch": "2.13.0"},
                "device": "cpu",
                "git_commit": "96435ae",
                "data_sha256": "7deb6b2c",
            }
            | (environment or {})
        )
    )
    if overrides is not None:
        words = {"sweep": "heads", "overrides": overrides | {"seed": str(seed)}, "baseline": baseline or {}}
        (path / "job.json").write_text(json.dumps(words))
    (path / "summary.json").write_text(
        json.dumps(
            {
                "status": "finished",
                "val/loss": loss,
                "val/bpb": loss / math.log(2),
                "val/ppl": math.exp(min(loss, 9)),
                "best_val_loss": loss - 0.01,
                "best_step": steps - 250,
                "train/loss": loss - 0.11,
                "steps": steps,
                "tokens": tokens,
                "parameters": parameters,
                "flops": 6 * parameters * tokens,
                "train_seconds": parameters * tokens / 4e11 * draw.uniform(0.95, 1.05),
                "total_seconds": 300.0,
                "tokens_per_sec": 1e6,
                "mfu": 0.25,
                "peak_memory_bytes": 10**9,
                "device": "cpu",
                "precision": "fp32",
                "compile": "eager",
                "seed": seed,
                "data": {"name": "shakespeare_char", "sha256": "7deb6b2c", "tokenizer": "char", "vocab_size": 65},
                "config_hash": "52df16863357",
                "run_dir": str(path),
            }
            | (summary or {})
        )
    )
    return path


def heads_sweep(root: Path, seeds: int = 3) -> Path:
    """The lessons' ablation: 1, 2, 4, 8 heads, with job.json."""
    for heads, loss in ((1, 1.7172), (2, 1.6691), (4, 1.6393), (8, 1.6288)):
        for seed in range(1, seeds + 1):
            noise = random.Random(10 * heads + seed).gauss(0, 0.004) + 0.003 * seed
            overrides = {"model.n_head": str(heads)}
            path = root / f"n_head-{heads}+seed-{seed}"
            fake_run(path, loss + noise, seed, overrides, {"model.n_head": "4"}, model__n_head=heads)
    return root


def labels(report: Report) -> list[str]:
    return list(report.groups.index)


# Statistics


def test_the_interval_is_students_t() -> None:
    """By hand: mean 3, sd sqrt(2.5), t(0.975, 4) = 2.776445."""
    half = statistics.half_width(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert half == pytest.approx(2.776445 * math.sqrt(2.5 / 5), abs=1e-6)
    assert np.isnan(statistics.half_width(np.array([1.0])))
    both = statistics.half_width(np.array([[1.0, 7.0], [2.0, 7.0], [4.0, 7.0]]))
    low, high = stats.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval(0.95)
    assert both == pytest.approx([(high - low) / 2, 0.0])


def test_shared_seeds_are_compared_in_pairs_whatever_their_order() -> None:
    ours, theirs = {3: 1.30, 1: 1.10, 2: 1.25}, {1: 1.20, 2: 1.33, 3: 1.39}
    found = statistics.compare_means(ours, theirs)
    expected = stats.ttest_rel([1.10, 1.25, 1.30], [1.20, 1.33, 1.39])
    low, high = expected.confidence_interval(0.95)
    assert (found["test"], found["pairs"]) == ("paired", 3)
    assert found["difference"] == pytest.approx(-0.09)
    assert (found["difference_low"], found["difference_high"], found["p"]) == pytest.approx(
        (low, high, expected.pvalue)
    )


def test_a_missing_seed_leaves_the_others_in_pairs_and_is_said(tmp_path: Path) -> None:
    found = statistics.compare_means({1: 1.0, 2: 1.2}, {1: 1.5, 2: 1.6, 8: -50.0})
    assert (found["test"], found["pairs"]) == ("paired", 2)
    assert found["difference"] == pytest.approx(-0.45)
    for seed in (1, 2, 3):
        fake_run(tmp_path / f"a{seed}", 1.5 + seed / 90, seed, {"model.n_head": "4"}, {"model.n_head": "4"})
    for seed in (1, 2):
        fake_run(
            tmp_path / f"b{seed}", 1.6 + seed / 70, seed, {"model.n_head": "8"}, {"model.n_head": "4"}, model__n_head=8
        )
    words = build_report([tmp_path]).conditions
    assert "over the shared seeds only, hence not that of the means: n_head=8" in words


def test_seeds_shared_by_chance_are_no_pairs() -> None:
    """Pairs of the two alone would say the contrary of what ten seeds do."""
    ours = {4: 1.80, 5: 1.81, 6: 1.55, 7: 1.54, 8: 1.55}
    theirs = {1: 1.66, 2: 1.67, 3: 1.66, 4: 1.70, 5: 1.71}
    found = statistics.compare_means(ours, theirs)
    assert found["test"] == "Welch"
    assert found["difference"] == pytest.approx(sum(ours.values()) / 5 - sum(theirs.values()) / 5)


def test_a_sweep_over_texts_or_the_recipe_keeps_its_baseline(tmp_path: Path) -> None:
    for key, first, second in (("data.path", "z.txt", "a.txt"), ("recipe.max_steps", "2000", "1000")):
        root = tmp_path / key
        for name, value in (("1", second), ("2", first)):
            other = (
                {"summary": {"data": {"sha256": value}}} if key == "data.path" else {"trainer__max_steps": int(value)}
            )
            fake_run(root / name, 1.5, 1, {key: value}, {key: first}, **other)
        report = build_report([root])
        assert report.baseline == f"{key.rpartition('.')[2]}={first}"


def test_a_search_has_no_baseline(tmp_path: Path) -> None:
    for number, lr in enumerate((0.1, 0.2, 0.3)):
        path = fake_run(tmp_path / f"t{number}", 1.5 + number, 1, {"optim.lr": str(lr)}, {}, optim__lr=lr)
        job = json.loads((path / "job.json").read_text()) | {"baseline": None}
        (path / "job.json").write_text(json.dumps(job))
    report = build_report([tmp_path])
    assert report.baseline == ""
    assert "difference" not in report.groups
    assert "difference" in build_report([tmp_path], baseline="lr=0.1").groups
    assert list(figures(report))


def test_a_report_among_the_runs_hides_none_of_them(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", 1.5)
    (tmp_path / "report.json").write_text("{}")
    assert len(build_report([tmp_path]).runs) == 1


def test_without_shared_seeds_it_is_welchs_test() -> None:
    ours, theirs = {1: 1.1, 2: 1.4, 3: 1.2}, {3: 1.5, 4: 1.9}
    found = statistics.compare_means(ours, theirs)
    expected = stats.ttest_ind([1.1, 1.4, 1.2], [1.5, 1.9], equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert (found["test"], found["pairs"]) == ("Welch", 0)
    assert (found["difference_low"], found["difference_high"], found["p"]) == pytest.approx(
        (low, high, expected.pvalue)
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [
        ({1: 1.1}, {1: 1.3}, -0.2),  # one pair
        ({1: 1.1}, {2: 1.3, 3: 1.5}, -0.3),  # one seed
        ({1: 1.1, 2: 1.2}, {1: 1.1, 2: 1.2}, 0.0),  # no spread
        ({1: 1.1, 2: 1.2, 3: 1.3}, {1: 1.2, 2: 1.3, 3: 1.4}, -0.1),  # none but that of rounding
        ({1: 1.1, 2: 1.1}, {3: 1.3, 4: 1.3}, -0.2),
    ],
)
def test_without_spread_or_seeds_the_difference_stands_alone(
    ours: dict[int, float], theirs: dict[int, float], difference: float
) -> None:
    found = statistics.compare_means(ours, theirs)
    assert found["difference"] == pytest.approx(difference)
    assert found["test"] == "none"
    assert all(math.isnan(found[key]) for key in ("difference_low", "difference_high", "p"))


# Groups


def test_a_sweep_is_grouped_by_what_it_varies(tmp_path: Path) -> None:
    report = build_report([heads_sweep(tmp_path)])
    assert labels(report) == ["n_head=8", "n_head=4", "n_head=2", "n_head=1"]
    assert report.axes == ["model.n_head"]
    assert report.baseline == "n_head=4"
    assert report.notes == report.left_out == []
    losses = report.runs[report.runs["group"] == "n_head=2"]["val/loss"]
    row = report.groups.loc["n_head=2"]
    assert row["n"] == len(losses) == 3
    assert row["mean"] == pytest.approx(losses.mean())
    assert (row["high"] - row["low"]) / 2 == pytest.approx(4.302653 * losses.std() / math.sqrt(3), abs=1e-6)
    assert row["test"] == "paired"
    assert row["gap"] == pytest.approx(row["val/bpb"] * math.log(2) - row["train/loss"])
    assert (row["parameters"], row["tokens"]) == (3145728, 40960000)


def test_a_key_that_is_null_is_as_one_that_older_runs_lack(tmp_path: Path) -> None:
    fake_run(tmp_path / "old", 1.5, seed=1)
    fake_run(tmp_path / "new", 1.6, seed=2, init_from=None)
    assert build_report([tmp_path]).groups["n"].tolist() == [2]


def test_a_single_seed_has_no_interval(tmp_path: Path) -> None:
    groups = build_report([heads_sweep(tmp_path, seeds=1)]).groups
    assert groups[["low", "high", "difference_low", "difference_high", "p"]].isna().all(axis=None)
    assert groups["difference"].notna().all()


def test_one_at_a_time_names_the_change_and_the_baseline(tmp_path: Path) -> None:
    """A value that is not typed is the config's: the baseline's n_head is 4."""
    for seed in (1, 2):
        fake_run(tmp_path / f"base{seed}", 1.6 + seed / 100, seed, {}, {})
        fake_run(tmp_path / f"heads{seed}", 1.5 + seed / 90, seed, {"model.n_head": "8"}, {}, model__n_head=8)
        fake_run(tmp_path / f"arch{seed}", 1.7 + seed / 80, seed, {"arch": "llama"}, {}, model__mlp="swiglu")
        fake_run(tmp_path / f"lr{seed}", 1.8 + seed / 70, seed, {"+optim.lr": "3e-3"}, {}, optim__lr=0.003)
    report = build_report([tmp_path])
    assert labels(report) == ["n_head=8", "baseline", "arch=llama", "lr=0.003"]
    assert report.baseline == "baseline"
    assert report.groups["model.n_head"].to_list() == [8, 4, 4, 4]
    assert report.groups["arch"].to_list() == ["(default)", "(default)", "llama", "(default)"]


def test_without_a_sweep_the_typed_words_are_the_labels(tmp_path: Path) -> None:
    """Names, seeds and places are not; what is typed for every run alike is not, either."""
    words = ["data.path=a.txt", "trainer=cpu", "name=x", "hydra.run.dir=there"]
    fake_run(tmp_path / "a", 1.6, typed=[*words, "seed=1"])
    fake_run(tmp_path / "b", 1.5, typed=[*words, "model=gpt1m", "optim.lr=3e-4"], model__n_layer=6, optim__lr=3e-4)
    fake_run(tmp_path / "c", 1.4, typed=[*words, "model=gpt1m"], model__n_layer=6)
    report = build_report([tmp_path])
    assert set(labels(report)) == {"lr=0.001", "model=gpt1m lr=0.0003", "model=gpt1m lr=0.001"}
    assert report.baseline == "lr=0.001"  # the first


def test_an_unfinished_grid_is_no_sweep_of_one_at_a_time(tmp_path: Path) -> None:
    for heads, lr in ((2, "1e-3"), (4, "1e-3"), (2, "3e-3")):
        overrides = {"model.n_head": str(heads), "optim.lr": lr}
        fake_run(tmp_path / f"{heads}{lr}", 1.5 + heads, 1, overrides, model__n_head=heads, optim__lr=float(lr))
    assert set(labels(build_report([tmp_path]))) == {"n_head=2 lr=0.001", "n_head=4 lr=0.001", "n_head=2 lr=0.003"}


def test_toggles_of_the_config_are_one_at_a_time(tmp_path: Path) -> None:
    changes = {"model__mlp": "relu", "model__qk_norm": True, "optim__lr": 0.01}
    for number, change in enumerate([{}, *({key: each} for key, each in changes.items())]):
        fake_run(tmp_path / str(number), 1.5 + number, **change)
    report = build_report([tmp_path])
    assert labels(report) == ["baseline", "mlp=relu", "qk_norm=true", "lr=0.01"]
    assert report.one_at_a_time


def test_where_typed_words_do_not_tell_the_config_does(tmp_path: Path) -> None:
    """Hydra's own sweep writes the same command line into every job. What merely follows is no label."""
    words = ["-m", "model.n_layer=2,4", "optim.lr=1e-3,3e-3", "seed=1,2"]
    for layers in (2, 4):
        for lr in (1e-3, 3e-3):
            for seed in (1, 2):
                follows = {"schedule__warmup_steps": 100 * layers, "recipe": {"lr": lr}}
                path = tmp_path / f"{layers}{lr}{seed}"
                fake_run(path, 1.5 + lr + layers, seed, typed=words, model__n_layer=layers, optim__lr=lr, **follows)
    report = build_report([tmp_path])
    assert labels(report) == [f"n_layer={layers} lr={lr}" for layers in (2, 4) for lr in (0.001, 0.003)]
    assert (report.groups["n"] == 2).all()


def test_names_are_labels_where_commands_are_alike(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", 1.6, name="before")
    fake_run(tmp_path / "b", 1.5, name="after", optim__weight_decay=0.2, model__mlp="relu")
    assert labels(build_report([tmp_path])) == ["after", "before"]


def test_other_text_is_another_group(tmp_path: Path) -> None:
    """By its hash, not by its place."""
    data = {"name": "text", "tokenizer": "char", "vocab_size": 65}
    for place, sha, seed in (("x", "aaaa", 1), ("y", "aaaa", 2), ("y", "bbbb", 1)):
        fake_run(tmp_path / f"{place}{sha}", 1.5, seed, summary={"data": data | {"sha256": sha}}, data__path=place)
    report = build_report([tmp_path])
    assert sorted(report.groups["n"]) == [1, 2]
    assert report.axes in (["data.path"], ["data.sha256"])


def test_the_same_run_is_no_second_sample(tmp_path: Path) -> None:
    old, new = (fake_run(tmp_path / name, loss, name=name) for name, loss in (("z-old", 1.5), ("a-new", 1.7)))
    os.utime(old / "summary.json", (1, 1))
    report = build_report([tmp_path, new, tmp_path / "a-new"])
    assert report.groups["n"].to_list() == [1]
    assert report.groups["mean"].to_list() == [1.7]
    ((left, why),) = [(each.path, each.why) for each in report.left_out]
    assert left == old
    assert str(new) in why


@pytest.mark.parametrize("same", [(1000, "1000"), (True, "true"), (4, "4\r"), (None, "null")])
def test_values_that_are_typed_alike_are_one_group(tmp_path: Path, same: tuple[Any, Any]) -> None:
    for number, value in enumerate(same):
        fake_run(tmp_path / f"run{number}", 1.5, seed=number, trainer__sample_prompt=value)
    fake_run(tmp_path / "other", 1.5, trainer__sample_prompt="ROMEO:")
    assert sorted(build_report([tmp_path]).groups["n"]) == [1, 2]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("4", 4),
        ("1e-3", 0.001),
        (0.1, 0.1),
        (None, "null"),
        (True, "true"),
        ("true", "true"),
        (["a", 1], "[a,1]"),
        ("\n\x1b[2J", "\\n\ufffd[2J"),
    ],
)
def test_values_are_what_would_be_typed(given: Any, expected: Any) -> None:
    assert records.comparable_value(given) == expected
    assert type(records.comparable_value(given)) is type(expected)


# The baseline, the order, the metric


def grid(root: Path) -> Path:
    for heads in (2, 10):
        for lr in ("1e-3", "3e-4"):
            for seed in (1, 2):
                overrides = {"model.n_head": str(heads), "optim.lr": lr}
                path = root / f"{heads}-{lr}-{seed}"
                loss = 1.5 + heads / 100 + float(lr) * seed
                fake_run(path, loss, seed, overrides, {}, model__n_head=heads, optim__lr=float(lr))
    return root


def test_a_baseline_can_be_chosen_in_any_words(tmp_path: Path) -> None:
    grid(tmp_path)
    for words in ("n_head=10 lr=0.001", "lr=1e-3 n_head=10", "optim.lr=1e-3 model.n_head=10"):
        assert build_report([tmp_path], baseline=words).baseline == "n_head=10 lr=0.001"
    report = build_report([tmp_path])
    assert "the sweep's own baseline is not among these runs" in report.notes[0]


def test_axes_sort_as_numbers(tmp_path: Path) -> None:
    report = build_report([grid(tmp_path)], sort="n_head")
    assert [label.split()[0] for label in labels(report)] == ["n_head=2", "n_head=2", "n_head=10", "n_head=10"]
    assert build_report([tmp_path], sort="optim.lr").groups["optim.lr"].is_monotonic_increasing
    assert build_report([tmp_path], sort="p").groups["p"].isna().iloc[-1]


@pytest.mark.parametrize("metric", ["test/accuracy", "val/accuracy_count", "val/stop_rate", "test/loss"])
def test_the_best_comes_first_also_where_more_is_better(tmp_path: Path, metric: str) -> None:
    for lr, value in ((1e-3, 0.4), (2e-3, 0.9), (3e-3, 0.6)):
        fake_run(tmp_path / str(lr), 1.5, summary={metric: value}, optim__lr=lr)
    means = build_report([tmp_path], metric=metric).groups["mean"].to_list()
    assert means == sorted(means, reverse=metric != "test/loss")


def test_any_number_of_the_summaries_is_a_metric(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", 1.5, summary={"test/loss": 1.9})
    fake_run(tmp_path / "b", 1.6, 2)
    report = build_report([tmp_path], metric="test/loss")
    assert report.groups["mean"].to_list() == [1.9]
    assert report.left_out == [records.LeftOut(tmp_path / "b", "has no test/loss")]
    assert "test split" in report.conditions[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metric": "val/los"}, "--metric val/los: no run has measured it; did you mean val/loss?"),
        ({"sort": "n_hed"}, "--sort n_hed: there is no such axis or column; did you mean n_head?"),
        ({"baseline": "n_head=3"}, "--baseline 'n_head=3': there is no such group; "),
        ({"baseline": "n_head=2"}, "--baseline 'n_head=2': 2 groups are so"),
        ({"reference": "head"}, "--reference head: there is no such reference; did you mean heads?"),
        ({"reference": "ladder"}, "--reference ladder: there is no figure for any of these runs"),
        ({"reference": "heads", "metric": "val/bpb"}, "--reference: its figures are validation losses, not val/bpb"),
    ],
)
def test_what_collect_refuses(tmp_path: Path, arguments: dict[str, str], words: str) -> None:
    grid(tmp_path)
    with pytest.raises(UserError) as error:
        build_report([tmp_path], **arguments)
    assert words in str(error.value)


# What is left out


def test_two_hundred_runs_and_three_that_cannot_be_counted(tmp_path: Path) -> None:
    expected: dict[str, list[float]] = {}
    for number in range(200):
        heads, seed = number % 40 + 1, number // 40
        loss = random.Random(number).uniform(1, 2)
        expected.setdefault(f"n_head={heads}", []).append(loss)
        fake_run(tmp_path / "good" / str(number), loss, seed, {"model.n_head": str(heads)}, model__n_head=heads)
    corrupt, half, newer = (fake_run(tmp_path / name, 1.0, 99) for name in ("corrupt", "half", "newer"))
    (corrupt / "summary.json").write_text('{"val/loss": 1.0, "val')
    (half / "summary.json").unlink()
    (half / "metrics.csv").write_text("step,train/loss,val/loss\n0,,4.17\n10,3.1,\n20,2.")
    summary = json.loads((newer / "summary.json").read_text())
    (newer / "summary.json").write_text(json.dumps({"format": 2, **summary}))
    (tmp_path / "good" / "0" / "checkpoints").mkdir()
    (tmp_path / "empty").mkdir()

    report = build_report([tmp_path])
    assert len(report.runs) == 200
    assert report.groups["n"].to_list() == [5] * 40
    for label, losses in expected.items():
        row = report.groups.loc[label]
        low, high = stats.ttest_1samp(losses, 0).confidence_interval(0.95)
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((np.mean(losses), low, high))
    assert report.groups["mean"].is_monotonic_increasing
    why = {each.path: each.why for each in report.left_out}
    assert set(why) == {corrupt, half, newer}
    assert "summary.json cannot be read: Unterminated string" in why[corrupt]
    assert "has not finished (at step 20 of 5000): start it anew" in why[half]
    assert "newer gptlab (summary format 2, this one reads 1): update gptlab" in why[newer]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("summary.json", "[]", "summary.json cannot be read: it is no JSON object"),
        ("summary.json", '{"val/loss": 1.0}', "summary.json lacks train/loss, steps"),
        ("summary.json", None, "has not finished (at step 5000 of 5000)"),
        ("config.yaml", "a: [", "config.yaml cannot be read: while parsing"),
        ("config.yaml", "word", "config.yaml is no config"),
        ("config.yaml", None, "has not begun: there is no config.yaml"),
    ],
)
def test_why_a_run_is_left_out(tmp_path: Path, file: str, content: str | None, words: str) -> None:
    fake_run(tmp_path / "good", 1.5)
    broken = fake_run(tmp_path / "broken", 1.5, 2)
    if content is None:
        (broken / file).unlink()
    else:
        (broken / file).write_text(content)
    report = build_report([tmp_path])
    assert [each.path for each in report.left_out] == [broken]
    assert words in report.left_out[0].why
    assert len(report.runs) == 1


def test_wrong_types_leave_a_run_out(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", 1.5)
    fake_run(tmp_path / "b", 1.5, 2, summary={"val/loss": "low"})
    assert "val/loss is 'low', not a number" in build_report([tmp_path]).left_out[0].why


def test_what_surrounds_a_run_may_be_broken(tmp_path: Path) -> None:
    """environment.json, job.json and metrics.csv add to a report; none is needed."""
    for name, content in (("a", "{"), ("b", '{"command": null, "overrides": null, "baseline": null}'), ("c", "[]")):
        path = fake_run(tmp_path / name, 1.5, ord(name))
        for file in ("environment.json", "job.json", "metrics.csv"):
            (path / file).write_text(content)
    assert build_report([tmp_path]).groups["n"].to_list() == [3]


def test_a_sweeps_unfinished_job_says_how_it_goes_on(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", 1.5)
    job = fake_run(tmp_path / "job", 1.5, 2, {"model.n_head": "4"})
    (job / "summary.json").unlink()
    (job / "config.yaml").unlink()
    left_out = build_report([tmp_path]).left_out
    assert [(each.path, each.why) for each in left_out] == [(job, "has not begun: there is no config.yaml")]
    (job / "config.yaml").write_text("{}")
    assert "the same sweep goes on with it" in build_report([tmp_path]).left_out[0].why


def test_nothing_to_report_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run there; a run lies in outputs/"):
        build_report([tmp_path])
    (fake_run(tmp_path / "a", 1.5) / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"a: summary\.json cannot be read"):
        build_report([tmp_path])
    with pytest.raises(UserError, match="none: no such folder"):
        build_report([tmp_path / "none"])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_run_that_diverged_has_no_mean(tmp_path: Path, loss: float) -> None:
    """Leaving it out would flatter its group."""
    heads_sweep(tmp_path)
    fake_run(tmp_path / "n", loss, 7, {"model.n_head": "8"}, {"model.n_head": "4"}, {"val/bpb": loss}, model__n_head=8)
    report = build_report([tmp_path])
    assert labels(report)[-1] == "n_head=8"
    assert report.groups["n"].iloc[-1] == 4
    assert math.isnan(report.groups["mean"].iloc[-1])
    assert report.notes == ["n_head=8: val/loss is not finite for seed 7, so there is no mean"]


def test_runs_that_are_unlike_are_noted(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", 1.5, 1, summary={"device": "NVIDIA A100", "status": "stopped_early"})
    fake_run(tmp_path / "b", 1.5, 2, environment={"git_commit": "bbb", "versions": {"gptlab": "0.2.0"}})
    notes = "\n".join(build_report([tmp_path]).notes)
    for words in (
        "different devices: NVIDIA A100 (1), cpu (1)",
        "different commits: 96435ae (1), bbb (1)",
        "different versions of gptlab: 0.1.0 (1), 0.2.0 (1)",
        "gpt3m: 1 of 2 runs stopped early",
    ):
        assert words in notes


def test_runs_that_began_with_different_models_of_one_name_are_noted(tmp_path: Path) -> None:
    """A sweep goes on when the run that init_from names has been made anew."""
    for seed, sha256 in enumerate(("a" * 64, "a" * 64, "b" * 64)):
        fake_run(tmp_path / str(seed), 1.5, seed, summary={"init_from_sha256": sha256}, init_from="base")
    note = f"the runs have different models behind init_from: {'a' * 48} (2), {'b' * 48} (1)"
    assert note in build_report([tmp_path]).notes
    fake_run(tmp_path / "other", 1.5, 7, {"init_from": "other"}, summary={"init_from_sha256": "c"}, init_from="other")
    assert not any("behind init_from" in note for note in build_report([tmp_path]).notes)


def test_what_is_swept_on_purpose_is_not_noted(tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        summary = {"precision": precision, "data": {"sha256": "a", "tokenizer": precision, "name": "x"}}
        fake_run(tmp_path / precision, 1.5, 1, {"precision": precision}, summary=summary, precision__name=precision)
    notes = build_report([tmp_path]).notes
    assert len(notes) == 2
    assert notes[1].startswith("the vocabularies differ (bf16, fp32): val/bpb, bits per byte, decides")


# References and two runs


def test_the_lessons_figures_stand_beside_ours(tmp_path: Path) -> None:
    report = build_report([heads_sweep(tmp_path)], reference="")
    assert report.groups["reference"].to_dict() == {
        "n_head=1": 1.7172,
        "n_head=2": 1.6691,
        "n_head=4": 1.6393,
        "n_head=8": 1.6288,
    }
    assert "n_embd 256, 4 layers, block 128" in report.conditions[-1]
    assert "other than there" not in report.conditions[-1]


def test_other_conditions_than_the_references_are_said(tmp_path: Path) -> None:
    for heads in (1, 2, 3):
        fake_run(tmp_path / str(heads), 1.6, model__n_head=heads, model__n_embd=96)
    report = build_report([tmp_path], reference="heads")
    assert report.groups["reference"].isna().sum() == 1
    assert "other than there, model.n_embd=96 (there: 256)" in report.conditions[-1]
    with pytest.raises(UserError, match="no figure"):
        build_report([fake_run(tmp_path / "one", 1.6, model__n_embd=64)], reference="")


def test_the_ladder_goes_by_experiment_or_name(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", 2.4, overrides={"experiment": "ladder_2_head"}, model__n_embd=32)
    fake_run(tmp_path / "b", 2.3, typed=["experiment=ladder_5_stacked"], name="ladder_5_stacked")
    report = build_report([tmp_path], reference="")
    assert report.groups["reference"].to_list() == ["no better", 2.4]


def test_a_diff_has_what_differs_and_the_results(tmp_path: Path) -> None:
    a = fake_run(tmp_path / "a", 1.5, optim__lr=1e-3, recipe={"lr": 1e-3}, model__only_here=1)
    b = fake_run(tmp_path / "b", 1.25, 2, optim__lr=3e-4, environment={"git_commit": "bbb"}, summary={"test/loss": 2.0})
    found = compare_runs(a, b)
    assert found["config"] == [("seed", 1, 2), ("optim.lr", 0.001, 0.0003), ("model.only_here", 1, None)]
    assert found["surroundings"] == [("git_commit", "96435ae", "bbb")]
    assert ("val/loss", 1.5, 1.25) in found["results"]
    assert ("test/loss", None, 2.0) in found["results"]
    with pytest.raises(UserError, match="is not a run directory"):
        compare_runs(a, tmp_path)
    (b / "summary.json").unlink()
    with pytest.raises(UserError, match="has not finished"):
        compare_runs(a, b)


def test_a_real_run_is_read(trained: Path) -> None:
    report = build_report([trained])
    summary = json.loads((trained / "summary.json").read_text())
    assert report.left_out == []
    assert report.groups["mean"].to_list() == [summary["val/loss"]]
    assert report.runs["steps"].to_list() == [7]
    assert records.read_curves(trained)["val/loss"].dropna().iloc[-1] == pytest.approx(summary["val/loss"])


@pytest.mark.parametrize(
    ("count", "interval"),
    [(5, None), (6, (1, 6)), (21, (6, 16))],  # of 21 coins 5 or fewer show heads once in 75 times, 6 once in 26
)
def test_the_interval_of_a_median(count: int, interval: tuple[float, float] | None) -> None:
    assert statistics.median_interval(range(count, 0, -1)) == interval
