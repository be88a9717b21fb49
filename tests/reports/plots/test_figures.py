"""The plots: which there are, what stands on them, and that the same runs give the same bytes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from gptlab.reports.plots.curves import mean_curve, run_curves
from gptlab.reports.plots.figures import figures, write_plots
from gptlab.reports.plots.style import STYLE, is_geometric
from gptlab.reports.report import build_report
from tests.reports.test_report import fake_run, heads_sweep


def drawn(paths: list[Path], **options: Any) -> dict[str, Figure]:
    with matplotlib.rc_context(STYLE):
        return dict(figures(build_report(paths, **options)))


def entries(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def axis_words(figure: Figure) -> list[tuple[str, str]]:
    return [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return heads_sweep(tmp_path_factory.mktemp("heads"))


def grid(root: Path, seeds: tuple[int, ...] = (1, 2)) -> Path:
    for lr in ("1e-3", "3e-4", "1e-4"):
        for mlp in ("gelu", "relu", "relu2"):
            for seed in seeds:
                loss = 1.5 + float(lr) * seed + len(mlp) / 100
                overrides, place = {"optim.lr": lr, "model.mlp": mlp}, root / f"{lr}{mlp}{seed}"
                fake_run(place, loss, seed, overrides, overrides, optim__lr=float(lr), model__mlp=mlp)
    return root


def test_a_sweep_of_one_number(heads: Path) -> None:
    """Its models are of one size and cost: no plot against that."""
    found = drawn([heads], reference="heads")
    assert list(found) == ["curves", "losses", "by_n_head"]
    assert axis_words(found["curves"]) == [("steps", "loss (nats per token)"), ("steps", "val/loss (nats per token)")]
    assert entries(found["curves"]) == ["n_head=1", "n_head=2", "n_head=4", "n_head=8"]
    assert axis_words(found["by_n_head"]) == [("model.n_head", "val/loss (nats per token)")]
    assert entries(found["by_n_head"]) == ["baseline", "reference"]
    (axes,) = found["by_n_head"].axes
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8"]
    groups = build_report([heads]).groups.sort_values("model.n_head")
    assert axes.lines[0].get_ydata() == pytest.approx(groups["mean"].to_numpy())


def test_curves_are_means_over_the_shared_steps(tmp_path: Path) -> None:
    """Of two seeds, one without its last validation; train/loss is the mean since the validation before."""
    header = "step,train/loss,val/loss\n"
    curves = ["0,,4.0\n1,3.0,\n2,2.0,\n2,,3.0\n4,1.0,\n4,,2.0\n", "0,,4.2\n1,3.2,\n2,2.2,\n2,,3.4\n"]
    for seed, curve in enumerate(curves):
        (fake_run(tmp_path / str(seed), 1.5, seed) / "metrics.csv").write_text(header + curve)
    found = mean_curve(run_curves(build_report([tmp_path]), "gpt3m"))
    assert found.index.to_list() == [0, 2]
    assert found["val"].to_list() == pytest.approx([4.1, 3.2])
    assert found["train"][2] == pytest.approx(2.6)
    assert np.isnan(found["train"][0])
    assert found["half"][2] == pytest.approx(12.706205 * 0.2, rel=1e-5)


@pytest.mark.parametrize(("seeds", "lines", "bands"), [(1, 1, 0), (2, 3, 0), (3, 1, 1)])
def test_few_seeds_have_thin_curves_instead_of_a_band(tmp_path: Path, seeds: int, lines: int, bands: int) -> None:
    for seed in range(seeds):
        fake_run(tmp_path / str(seed), 1.5 + seed / 10, seed)
    figure = drawn([tmp_path])["curves"]
    whole, end = figure.axes
    assert (len(end.lines), len(end.collections)) == (lines, bands)
    assert (len(whole.lines), len(whole.collections)) == (lines + 1, bands)  # and train/loss
    assert ("thin: single seeds (no band for fewer than 3)" in entries(figure)) == (seeds == 2)
    assert ("band" in figure.get_suptitle()) == (seeds == 3)


@pytest.mark.parametrize(("measure", "ends"), [("accuracy", (0, 1)), ("reward", (-0.494, 1.494))])
def test_the_band_of_a_share_ends_where_shares_do(tmp_path: Path, measure: str, ends: tuple[float, float]) -> None:
    for seed, share in enumerate((0.1, 0.5, 0.9)):
        run_dir = fake_run(tmp_path / str(seed), 1.5, seed, summary={f"test/{measure}": share})
        rows = "".join(f"{step},3.0,\n{step},,{share}\n" for step in (1, 2))
        (run_dir / "metrics.csv").write_text(f"step,train/loss,val/{measure}\n" + rows)
    axes = drawn([tmp_path], metric=f"test/{measure}")["curves"].axes[0]
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx(ends, abs=1e-3)


def test_a_run_with_two_validations_shows_its_points_and_no_second_half(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", 1.5)
    (run / "metrics.csv").write_text("step,train/loss,val/loss\n0,,4.0\n5,3.0,\n10,2.0,\n10,,2.5\n")
    (whole,) = drawn([run])["curves"].axes
    assert [line.get_marker() for line in whole.lines] == ["o", "o"]
    assert list(whole.lines[0].get_ydata()) == [4.0, 2.5]


def test_a_grid_has_a_line_for_each_choice_of_the_others(tmp_path: Path) -> None:
    found = drawn([grid(tmp_path)])
    assert list(found) == ["curves", "losses", "by_lr", "by_mlp"]
    assert entries(found["by_lr"]) == ["mlp=gelu", "mlp=relu", "mlp=relu2", "baseline"]
    assert entries(found["by_mlp"]) == ["lr=0.0001", "lr=0.0003", "lr=0.001", "baseline"]
    assert [label.get_text() for label in found["by_mlp"].axes[0].get_xticklabels()] == ["gelu", "relu", "relu2"]
    assert len([name for name in entries(found["curves"]) if "=" in name]) <= 8  # beside the entry for single seeds
    assert "the best, the worst and the baseline of 9 groups" in found["curves"].get_suptitle()


def test_toggles_need_one_plot_only(tmp_path: Path) -> None:
    for key, value in (("", ""), ("model.mlp", "relu"), ("model.qk_norm", "true"), ("model.parallel", "true")):
        config = {key.replace(".", "__"): value} if key else {}
        fake_run(tmp_path / f"x{key}", 1.5 + len(key) / 100, 1, {key: value} if key else {}, {}, **config)
    assert list(drawn([tmp_path])) == ["curves", "losses"]


def test_a_random_search_is_a_cloud(tmp_path: Path) -> None:
    draw = random.Random(0)
    for number in range(12):
        lr, decay = 10 ** draw.uniform(-4, -2), draw.uniform(0, 0.3)
        overrides = {"optim.lr": str(lr), "optim.weight_decay": str(decay)}
        fake_run(tmp_path / str(number), 1.5 + decay, 1, overrides, optim__lr=lr, optim__weight_decay=decay)
    axes = drawn([tmp_path])["by_lr"].axes[0]
    assert len(axes.lines[0].get_xdata()) == 12
    assert axes.lines[0].get_linestyle() == "None"
    assert all("mathdefault" not in label.get_text() for label in axes.get_xticklabels())


def test_sizes_are_compared_by_cost_and_by_gap(tmp_path: Path) -> None:
    for name, layers, width, loss in (("small", 2, 64, 1.8), ("middle", 4, 128, 1.6), ("large", 6, 384, 1.5)):
        for seed in (1, 2):
            shape = {"model__n_layer": layers, "model__n_embd": width}
            fake_run(tmp_path / f"{name}{seed}", loss + seed / 100, seed, {"model": name}, **shape)
    found = drawn([tmp_path])
    assert list(found) == ["curves", "losses", "parameters", "flops", "seconds", "size"]
    assert axis_words(found["parameters"]) == [("parameters", "val/loss (nats per token)")]
    assert axis_words(found["seconds"])[0][0] == "training time (minutes)"
    assert found["flops"].axes[0].get_xscale() == "log"
    assert entries(found["parameters"]) == ["model=large", "model=middle", "model=small"]
    assert [words.partition(" parameters: ")[::2] for words in entries(found["size"])] == [
        ("model=small, 98.3k", "val/loss"),
        ("model=small, 98.3k", "train/loss"),
        ("model=large, 10.6M", "val/loss"),
        ("model=large, 10.6M", "train/loss"),
    ]
    assert [text.get_text()[:5] for text in found["size"].axes[0].texts if text.get_text()] == ["gap 0", "gap 0"]


def test_what_would_be_empty_is_not_drawn(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "one", 1.5)
    assert list(drawn([run])) == ["curves"]
    (run / "metrics.csv").unlink()
    assert drawn([run]) == {}
    fake_run(tmp_path / "two", float("nan"), model__n_head=8)
    assert drawn([tmp_path]) == {}


def test_everything_lies_within_the_picture(tmp_path: Path) -> None:
    """Forty groups with long labels: no text leaves the canvas, no entry of the legend another's place."""
    for number in range(40):
        words = f"{'long ' * 15}$label$_{number}"
        fake_run(tmp_path / str(number), 1.5 + number / 100, 1, {"model.mlp": words}, model__mlp=words)
    for figure in drawn([tmp_path]).values():
        figure.draw_without_rendering()
        width, height = figure.bbox.size
        box = figure.get_tightbbox()
        assert box.x0 * figure.dpi >= -1
        assert box.y0 * figure.dpi >= -1
        assert box.x1 * figure.dpi <= width + 1
        assert box.y1 * figure.dpi <= height + 1
        assert len(set(entries(figure))) == len(entries(figure)) <= 9


def test_the_same_runs_give_the_same_bytes(heads: Path, tmp_path: Path) -> None:
    report = build_report([heads])
    for folder in ("a", "b"):
        assert write_plots(report, tmp_path / folder) == ["curves", "losses", "by_n_head"]
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [f"{name}.{kind}" for name in ("by_n_head", "curves", "losses") for kind in ("png", "svg")]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).stat().st_size < 300_000
    assert ">n_head=4</text>" in (tmp_path / "a" / "curves.svg").read_text()


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2, 4, 8], True), ([2, 4, 6, 8], False), ([1e-4, 3e-4, 1e-3], True), ([0, 1, 10], False), ([1, 100], False)],
)
def test_which_values_are_steps_of_a_factor(values: list[float], expected: bool) -> None:
    assert is_geometric(pd.Series(values)) is expected
