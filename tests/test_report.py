"""`python -m gptlab.report`, as a user types it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.reports.post_training import lexicon_runs
from tests.reports.test_report import fake_run, heads_sweep
from tests.test_cli import assert_refused

FILES = {"index.html", "report.md", "report.csv", "report.json", "report.tex", "runs.csv"}


def test_a_sweeps_folder_gets_a_table_files_and_plots(command: Any, tmp_path: Path) -> None:
    heads_sweep(tmp_path / "sweep")
    result = command("report", "sweep", "--reference")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    rows = [line.split()[:2] for line in result.stdout.splitlines() if line.startswith(" n_head")]
    assert rows == [["n_head=8", "3"], ["n_head=4", "3"], ["n_head=2", "3"], ["n_head=1", "3"]]
    assert "difference: from n_head=4, with its 95% interval, by paired t-tests over the shared seeds" in result.stdout
    assert "reference heads: a README's ablation of heads" in result.stdout
    assert result.stdout.endswith("files: sweep/report\n")
    names = {path.name for path in (tmp_path / "sweep" / "report").iterdir()}
    images = {f"{name}.{kind}" for name in ("curves", "losses", "by_n_head") for kind in ("png", "svg")}
    assert names == FILES | images
    before = {name: (tmp_path / "sweep" / "report" / name).read_bytes() for name in names}
    assert command("report", "sweep", "--reference").stdout == result.stdout  # its own folder is no run
    assert before == {name: (tmp_path / "sweep" / "report" / name).read_bytes() for name in names}


def test_any_runs_will_do(command: Any, tmp_path: Path) -> None:
    """Several, or one: a table, and files where they are asked for only."""
    runs = [str(path.relative_to(tmp_path)) for path in sorted(heads_sweep(tmp_path / "sweep").iterdir())]
    for some in (runs[:3], runs[:1]):
        result = command("report", *some)
        assert "--out FOLDER" in result.stdout
        assert not (tmp_path / "sweep" / "report").exists()
        pages = [*(tmp_path / "sweep").glob("*/index.html")]
        assert pages == ([tmp_path / some[0] / "index.html"] if len(some) == 1 else [])
        assert (f"page: {some[0]}/index.html\n" in result.stdout) == (len(some) == 1)
    result = command("report", *runs, "--out", "there/it is", "--no-plots")
    assert result.stdout.endswith("files: there/it is\n")
    assert {path.name for path in (tmp_path / "there" / "it is").iterdir()} == FILES


def test_a_page_that_cannot_be_written_ends_no_report(command: Any, tmp_path: Path) -> None:
    fake_run(tmp_path / "run", 1.5)
    (tmp_path / "run" / "index.html").mkdir()
    result = command("report", "run")
    assert result.returncode == 0
    assert result.stderr.startswith("run: its page is not written: cannot write in run: ")
    assert "page: " not in result.stdout


def test_json_goes_to_standard_output_alone(command: Any, tmp_path: Path) -> None:
    heads_sweep(tmp_path / "sweep", seeds=1)
    content = json.loads(command("report", "sweep", "--json", "--sort", "n_head", "--baseline", "n_head=1").stdout)
    assert [row["model.n_head"] for row in content["groups"]] == [1, 2, 4, 8]
    assert content["baseline"] == "n_head=1"
    assert [row["low"] for row in content["groups"]] == [None] * 4
    assert not (tmp_path / "sweep" / "report").exists()


def test_a_frontier_has_files_of_its_own(command: Any, tmp_path: Path) -> None:
    lexicon_runs(tmp_path / "sweep", seeds=2)
    result = command("report", "sweep", "--frontier")
    assert (result.returncode, result.stderr) == (0, "")
    assert "test/reward against test/kl, the divergence from the reference" in result.stdout
    assert result.stdout.endswith("files: sweep/report\n")
    names = {path.name for path in (tmp_path / "sweep" / "report").iterdir()}
    assert names == {f"frontier.{kind}" for kind in ("html", "md", "csv", "json", "png", "svg")}
    printed = command("report", "sweep", "--frontier", "--json", "--metric", "val/reward").stdout
    assert json.loads(printed)["metric"] == "val/reward"
    assert "--out FOLDER" in command("report", "sweep/grpo-0", "--frontier", "--no-plots").stdout


def test_two_runs_side_by_side(command: Any, tmp_path: Path) -> None:
    fake_run(tmp_path / "a", 1.5, model__mlp="[relu]")
    fake_run(tmp_path / "b", 1.25, 2)
    fake_run(tmp_path / "c", 1.75, name="other")
    lines = command("report", "--diff", "a", "b").stdout.splitlines()
    assert lines[:2] == ["A: a", "B: b"]
    table = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(" ") and line.split()}
    assert table["model.mlp"] == ["[relu]", "gelu"]
    assert table["seed"] == ["1", "2"]
    assert table["val/loss"] == ["1.5", "1.25", "-0.25"]
    fake_run(tmp_path / "d", 1.75)
    assert "the configs are equal" in command("report", "--diff", "d", "d").stdout
    found = json.loads(command("report", "--diff", "a", "b", "--json").stdout)
    assert ["seed", 1, 2] in found["config"]


def test_a_real_run_can_be_reported(command: Any, trained: Path, tmp_path: Path) -> None:
    result = command("report", str(trained), "--out", "out")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000
    assert " ± ?" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], ["none: no such folder"]),
        (["empty"], ["empty: no finished run there", "outputs/<name>/<time>"]),
        (["run", "--metric", "val/bbp"], ["--metric val/bbp: no run has measured it; did you mean val/bpb?"]),
        (["run", "--out", "file/below"], ["cannot write in file"]),
        (["run", "--out", "run"], ["--out run: is a run's folder, which has a page of its own"]),
        (
            ["run", "--frontier"],
            ["no run has measured both test/reward and test/kl", "task=dpo, task=ppo and task=grpo"],
        ),
        (["--diff", "run", "empty"], ["--diff empty: is not a run directory"]),
    ],
)
def test_what_report_refuses(command: Any, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    fake_run(tmp_path / "run", 1.5)
    assert_refused(command("report", *arguments), *words)


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["run", "--diff", "a", "b"], ["--diff", "a"]),
        *(["run", "--frontier", "--sort", "n"], ["run", "--frontier", "--reference"]),
        *(["run", "--frontier", "--baseline", "b"], ["--frontier", "--diff", "a", "b"]),
    ],
)
def test_flags_that_do_not_go_together(command: Any, arguments: list[str]) -> None:
    assert command("report", *arguments).returncode == 2


def test_help_imports_nothing_heavy_and_a_report_no_torch(tmp_path: Path) -> None:
    """In a fresh process: what Python itself has loaded."""
    heads_sweep(tmp_path / "sweep")
    code = (
        "import sys; from gptlab import report\n"
        "try: report.main({arguments})\n"
        "except SystemExit: pass\n"
        "print(*sorted({{name.split('.')[0] for name in sys.modules}}), file=sys.stderr)"
    )
    table, heavy = {"pandas", "scipy", "matplotlib", "numpy", "rich"}, {"torch", "lightning", "hydra", "omegaconf"}
    for arguments, loaded in ((["--help"], set()), ([str(tmp_path / "sweep")], table)):
        process = subprocess.run(
            [sys.executable, "-W", "error", "-c", code.format(arguments=arguments)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert set(process.stderr.split()) & (table | heavy) == loaded


def test_many_runs_take_seconds(command: Any, tmp_path: Path) -> None:
    """300 here, so that it stays quick; 1,000 take about three times as long."""
    draw = random.Random(0)
    for number in range(300):
        heads, seed = number % 60 + 1, number // 60
        fake_run(
            tmp_path / "sweep" / str(number),
            draw.uniform(1, 2),
            seed,
            {"model.n_head": str(heads)},
            model__n_head=heads,
        )
    start = time.process_time()
    assert command("report", "sweep").returncode == 0
    assert time.process_time() - start < 5
