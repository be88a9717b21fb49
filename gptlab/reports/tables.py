"""A report in words: on the terminal, as Markdown, CSV, JSON and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gptlab.reports.report import Report, compact, known
from gptlab.system.files import write_atomically
from gptlab.system.terminal import as_json, duration, print_table, table, width

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = 1  # of report.json
MOST_LEFT_OUT = 10  # on the terminal; the files name all
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
LATEX |= {each: f"\\{each}" for each in "&%$#_{}"} | {each: f"${each}$" for each in "<>|"}


# One cell


def loss(number: float) -> str:
    return f"{number:.4f}" if known(number) else "-"


def spread(low: float, high: float) -> str:
    """Half of an interval."""
    return f" ± {(high - low) / 2:.4f}" if known(low) else ""


def p_value(p: float) -> str:
    return ("<0.001" if p < 0.001 else f"{p:.3f}") if known(p) else "-"


# The table


def cells(report: Report) -> dict[str, list[str]]:
    """Columns by their headings, numbers rounded for people; the label's heading is empty."""
    rows = report.groups.reset_index().to_dict("records")

    def mean(row: dict[str, Any]) -> str:
        return f"{row['mean']:.4f}{spread(row['low'], row['high']) or ' ± ?'}" if known(row["mean"]) else "not finite"

    def difference(row: dict[str, Any]) -> str:
        if row["group"] == report.baseline:
            return "baseline"
        interval = spread(row["difference_low"], row["difference_high"])
        return f"{row['difference']:+.4f}{interval}" if known(row["difference"]) else "-"

    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "": lambda row: row["group"],
        "n": lambda row: str(row["n"]),
        report.metric: mean,
        "difference": difference,
        "p": lambda row: p_value(row["p"]),
        "reference": lambda row: "-" if pd.isna(row["reference"]) else str(row["reference"]),
        "train": lambda row: loss(row["train/loss"]),
        "gap": lambda row: loss(row["gap"]),
        "bits/byte": lambda row: loss(row["val/bpb"]),
        "params": lambda row: compact(row["parameters"]),
        "FLOPs": lambda row: compact(row["flops"]),
        "tokens": lambda row: compact(row["tokens"]),
        "time": lambda row: duration(row["seconds"]),
    }
    for column in ("difference", "p", "reference"):
        if column not in report.groups:
            del columns[column]
    return {heading: [cell(row) for row in rows] for heading, cell in columns.items()}


def sentences(report: Report) -> list[str]:
    """What stands below the table."""
    return [*report.conditions, *(f"note: {note}" for note in report.notes)]


def show(report: Report, console: Console) -> None:
    """The table, in two where the terminal is too narrow for one, and what must be known to read it."""
    columns = cells(report)
    first = [heading for heading in columns if heading in ("", "n", report.metric, "difference", "p", "reference")]
    rest = {heading: column for heading, column in columns.items() if heading not in first}
    narrow = console.is_terminal and width(table(columns), console) > console.width
    parts = [{heading: columns[heading] for heading in first}, {"": columns[""], **rest}] if narrow else [columns]
    for part in parts:
        print_table(table(part), console)
    lines = sentences(report)
    if report.left_out:
        lines.append(f"left out, {len(report.left_out)}:")
        lines += [f"  {each.path}: {each.why}" for each in report.left_out[:MOST_LEFT_OUT]]
        if len(report.left_out) > MOST_LEFT_OUT:
            lines.append(f"  ... and {len(report.left_out) - MOST_LEFT_OUT} more, in the report's files and --json")
    for line in lines:
        console.print(line, markup=False, soft_wrap=not console.is_terminal)


def markdown(report: Report, plots: list[str]) -> str:
    columns = cells(report)
    columns[""] = ["`" + name.replace("|", "\\|").replace("`", "'") + "`" for name in columns[""]]
    lines = [f"# {report.metric}", "", _line(columns), _line("-:" if heading else "-" for heading in columns)]
    lines += [_line(row) for row in zip(*columns.values(), strict=True)]
    lines += ["", *(f"* {line}" for line in sentences(report))]
    if report.left_out:
        lines += ["", "Left out:", "", *(f"* `{each.path}` {each.why}" for each in report.left_out)]
    for name in plots:
        lines += ["", f"![{name}]({name}.png)"]
    return "\n".join(lines) + "\n"


def _line(row: Iterable[str]) -> str:
    return f"| {' | '.join(row)} |"


def latex(report: Report) -> str:
    """A tabular in the manner of booktabs."""

    def escaped(text: str) -> str:
        return "".join(LATEX.get(character, character) for character in text)

    columns = cells(report)
    names = columns.pop("")
    rows = [
        [escaped(name), *(re.sub(r"^-(?=\d)", "$-$", escaped(cell)) for cell in row)]
        for name, *row in zip(names, *columns.values(), strict=True)
    ]
    lines = [
        r"% needs \usepackage{booktabs}",
        *(f"% {line}" for line in sentences(report)),
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["", *map(escaped, columns)]) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def content(report: Report) -> dict[str, Any]:
    """The whole report, for report.json."""
    return {
        "format": FORMAT,
        "metric": report.metric,
        "baseline": report.baseline or None,
        "axes": report.axes,
        "groups": report.groups.reset_index().to_dict("records"),
        "runs": report.runs.to_dict("records"),
        "left_out": [{"run": each.path, "why": each.why} for each in report.left_out],
        "conditions": report.conditions,
        "notes": report.notes,
    }


def write(report: Report, folder: Path, plots: list[str]) -> None:
    """report.md, .csv, .json and .tex, and runs.csv with a row a run.

    Args:
        plots: names of the images that report.md shows.

    Raises:
        UserError: the folder cannot be written.
    """
    files = {
        "report.md": markdown(report, plots),
        "report.csv": report.groups.to_csv(),
        "runs.csv": report.runs.to_csv(index=False),
        "report.tex": latex(report),
        "report.json": as_json(content(report)),
    }
    for name, text in files.items():
        _write(folder / name, text)


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


# Two runs


def show_diff(found: dict[str, list[tuple[str, Any, Any]]], a: Path, b: Path, console: Console) -> None:
    """What two runs differ in: the config, what surrounded them, the results and their difference."""
    for letter, path in (("A", a), ("B", b)):
        console.print(f"{letter}: {path}", markup=False, soft_wrap=True)
    if not found["config"]:
        console.print("the configs are equal", markup=False)
    for what, rows in found.items():
        columns = {
            "": [key for key, _, _ in rows],
            "A": [word(x) for _, x, _ in rows],
            "B": [word(y) for *_, y in rows],
        }
        if what == "results":
            columns["B - A"] = [f"{y - x:+.6g}" if known(x) and known(y) else "-" for _, x, y in rows]
        if rows:
            print_table(table(columns, what), console)


def word(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
