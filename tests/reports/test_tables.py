"""A report in words: every format parses back, and says the same."""

from __future__ import annotations

import json
import math
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from gptlab.reports import tables
from gptlab.reports.number_words import compact_number
from gptlab.reports.report import Report, build_report
from gptlab.system import terminal
from tests.reports.test_report import fake_run, heads_sweep

ODD = "a_b & 50% | `c` $x$ #1 ^~\\{}<ü>[red]"


@pytest.fixture
def report(tmp_path: Path) -> Report:
    root = heads_sweep(tmp_path / "runs")
    for number, loss in enumerate((1.7, 1.71, math.nan)):
        fake_run(root / f"odd{number}", loss, number, {"model.n_head": ODD}, {"model.n_head": "4"}, model__n_head=ODD)
    fake_run(root / "one", 1.8, 1, {"model.n_head": "16"}, {"model.n_head": "4"}, model__n_head=16)
    (fake_run(root / "broken", 1.5) / "summary.json").write_text("{")
    return build_report([root], reference="heads")


def test_every_format_says_the_same(report: Report, tmp_path: Path) -> None:
    tables.write_files(report, tmp_path, [])
    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    frame = pd.read_csv(tmp_path / "report.csv")
    assert frame["group"].to_list() == [row["group"] for row in content["groups"]] == list(report.groups.index)
    for column in ("mean", "low", "high", "difference", "p", "parameters", "flops", "seconds", "train/loss", "gap"):
        for ours, theirs in zip(content["groups"], frame[column], strict=True):
            assert theirs == pytest.approx(math.nan if ours[column] is None else ours[column], rel=1e-14, nan_ok=True)
    cells = tables.table_columns(report)
    for name, mean, low in zip(frame["group"], frame["mean"], frame["low"], strict=True):
        cell = cells["val/loss"][cells[""].index(name)]
        half = "?" if math.isnan(low) else f"{mean - low:.4f}"
        assert cell == ("not finite" if math.isnan(mean) else f"{mean:.4f} ± {half}")
    for text in ((tmp_path / "report.md").read_text(), (tmp_path / "report.tex").read_text().replace("$\\pm$", "±")):
        for cell in cells["val/loss"]:
            assert cell in text


def test_a_folder_whose_name_is_no_utf8_is_escaped(tmp_path: Path) -> None:
    moved = fake_run(tmp_path / "caf\udce9", 1.5, summary={"run_dir": "outputs/run"})
    (fake_run(tmp_path / "broken\udce9", 1.5) / "summary.json").write_text("{")
    tables.write_files(build_report([moved, tmp_path]), tmp_path / "out", [])
    (row,) = json.loads((tmp_path / "out" / "report.json").read_text())["runs"]
    assert row["run"] == str(tmp_path / "caf\\udce9")


def test_a_single_seed_is_unknown_everywhere(report: Report, tmp_path: Path) -> None:
    tables.write_files(report, tmp_path, [])
    (row,) = (row for row in json.loads((tmp_path / "report.json").read_text())["groups"] if row["n"] == 1)
    assert [row[key] for key in ("low", "high", "difference_low", "difference_high", "p")] == [None] * 5
    assert row["difference"] == pytest.approx(1.8 - report.groups["mean"]["n_head=4"])
    assert "| `n_head=16` | 1 | 1.8000 ± ? |" in (tmp_path / "report.md").read_text()


def test_a_row_a_run_for_pandas(report: Report, tmp_path: Path) -> None:
    tables.write_files(report, tmp_path, [])
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert len(runs) == 12 + 3 + 1
    assert {"run", "group", "model.n_head", "seed", "val/loss", "data.sha256", "mfu", "commit"} <= set(runs)
    assert runs["parameters"].dtype == "int64"
    assert runs.groupby("group")["val/loss"].mean()["n_head=8"] == pytest.approx(report.groups["mean"]["n_head=8"])


def test_markdown_has_as_many_cells_in_every_row(report: Report) -> None:
    text = tables.to_markdown(report, ["curves"])
    rows = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(report.groups)
    assert {len(row) for row in rows} == {len(tables.table_columns(report)) + 2}
    assert "![curves](curves.png)" in text
    assert "broken` summary.json cannot be read" in text


def test_latex_escapes_what_it_must(report: Report) -> None:
    text = tables.to_latex(report)
    body = text.partition("\\midrule\n")[2].partition("\n\\bottomrule")[0].splitlines()
    plain = [re.sub(r"\\[&%$#_{}]", "", line) for line in body]
    columns = len(tables.table_columns(report))
    assert all(line.endswith(r" \\") and line.count("&") == columns - 1 for line in plain)
    assert not any(re.search(r"[%#_]", line) or line.count("$") % 2 for line in plain)
    assert f"{{l{'r' * (columns - 1)}}}" in text
    assert r"a\_b \& 50\% $|$ `c` \$x\$ \#1 \textasciicircum{}\textasciitilde{}\textbackslash{}\{\}$<$ü$>$[red]" in text
    assert "$-$0.01" in text
    assert text.count("{") == text.count("}")


def shown(report: Report, **options: Any) -> str:
    console = Console(file=StringIO(), highlight=False, **options)
    tables.print_report(report, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_narrow_terminal_gets_two_tables_and_a_wide_one_one(report: Report) -> None:
    narrow, wide = (shown(report, width=width, force_terminal=True, color_system=None) for width in (80, 200))
    assert max(map(len, narrow.splitlines())) <= 80
    assert [narrow.count(word) for word in ("difference  ", "gap  ", "n_head=8 ")] == [1, 1, 2]
    assert [wide.count(word) for word in ("difference  ", "gap  ", "n_head=8 ")] == [1, 1, 1]
    assert "[red]" in wide


def test_nothing_is_folded_in_a_pipe(report: Report) -> None:
    lines = shown(report, width=80).splitlines()
    (row,) = (line for line in lines if line.startswith(" n_head=8"))
    assert row.split() == [
        *("n_head=8", "3", *tables.table_columns(report)["val/loss"][0].split()),
        *tables.table_columns(report)["difference"][0].split(),
        *(column[0] for column in list(tables.table_columns(report).values())[4:-1]),
        *tables.table_columns(report)["time"][0].split(),
    ]


def test_many_left_out_are_counted(tmp_path: Path) -> None:
    fake_run(tmp_path / "good", 1.5)
    for number in range(13):
        (fake_run(tmp_path / f"bad{number}", 1.5) / "summary.json").unlink()
    text = shown(build_report([tmp_path]), width=300)
    assert "left out, 13:\n" in text
    assert text.count("has not finished") == 10
    assert "... and 3 more" in text


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (804096, "804k"),
        (999_600, "1M"),
        (3197440, "3.2M"),
        (124_439_808, "124M"),
        (2_525_766_049, "2.53B"),
        (1.2345e15, "1.23e15"),
        (17, "17"),
        (0.5, "0.5"),
        (0, "0"),
        (math.nan, "-"),
    ],
)
def test_numbers_for_people(number: float, words: str) -> None:
    assert compact_number(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0s"), (12.34, "12.3s"), (250, "4m 10s"), (3599.6, "1h 00m"), (3900, "1h 05m"), (math.nan, "-")],
)
def test_times_for_people(seconds: float, words: str) -> None:
    assert terminal.duration(seconds) == words
