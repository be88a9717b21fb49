"""Write a report as tables: on the terminal and as Markdown, CSV, JSON and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gptlab.reports.number_words import compact_number, is_finite
from gptlab.reports.records import LeftOut
from gptlab.reports.report import Report
from gptlab.reports.units import loss_is_trained
from gptlab.system.files import write_atomically
from gptlab.system.terminal import as_json, duration, print_table, table, width

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = 1  # of report.json
MAX_LEFT_OUT = 10  # runs left out that the terminal lists; the files list all
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
LATEX |= {each: f"\\{each}" for each in "&%$#_{}"} | {each: f"${each}$" for each in "<>|"}


def format_loss(number: float) -> str:
    return f"{number:.4f}" if is_finite(number) else "-"


def format_half_width(low: float, high: float) -> str:
    """Return half of an interval as " ± 0.0123"; nothing if it is unknown."""
    return f" ± {(high - low) / 2:.4f}" if is_finite(low) else ""


def format_p_value(p: float) -> str:
    return ("<0.001" if p < 0.001 else f"{p:.3f}") if is_finite(p) else "-"


def table_columns(report: Report) -> dict[str, list[str]]:
    """Return the table's cells by column heading, numbers rounded for reading; the label's heading is empty."""
    rows = report.groups.reset_index().to_dict("records")

    def mean(row: dict[str, Any]) -> str:
        return (
            f"{row['mean']:.4f}{format_half_width(row['low'], row['high']) or ' ± ?'}"
            if is_finite(row["mean"])
            else "not finite"
        )

    def difference(row: dict[str, Any]) -> str:
        if row["group"] == report.baseline:
            return "baseline"
        interval = format_half_width(row["difference_low"], row["difference_high"])
        return f"{row['difference']:+.4f}{interval}" if is_finite(row["difference"]) else "-"

    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "": lambda row: row["group"],
        "n": lambda row: str(row["n"]),
        report.metric: mean,
        "difference": difference,
        "p": lambda row: format_p_value(row["p"]),
        "reference": lambda row: "-" if pd.isna(row["reference"]) else str(row["reference"]),
        "train": lambda row: format_loss(row["train/loss"]),
        "gap": lambda row: format_loss(row["gap"]),
        "bits/byte": lambda row: format_loss(row["val/bpb"]),
        "params": lambda row: compact_number(row["parameters"]),
        "trained": lambda row: compact_number(row["trained_parameters"]),
        "FLOPs": lambda row: compact_number(row["flops"]),
        "tokens": lambda row: compact_number(row["tokens"]),
        "time": lambda row: duration(row["seconds"]),
    }
    for column in ("difference", "p", "reference"):
        if column not in report.groups:
            del columns[column]
    if not loss_is_trained(report.tasks):
        del columns["train"], columns["gap"]
    if report.runs["val/bpb"].isna().all() and report.runs["val/loss"].notna().any():
        del columns["bits/byte"]
    if (report.groups["trained_parameters"] == report.groups["parameters"]).all():
        del columns["trained"]
    return {heading: [cell(row) for row in rows] for heading, cell in columns.items()}


def footnotes(report: Report) -> list[str]:
    """Return the lines below the table."""
    return [*report.conditions, *(f"note: {note}" for note in report.notes)]


def print_report(report: Report, console: Console) -> None:
    """Print the table, in two parts if the terminal is too narrow, and its footnotes."""
    columns = table_columns(report)
    first = [heading for heading in columns if heading in ("", "n", report.metric, "difference", "p", "reference")]
    rest = {heading: column for heading, column in columns.items() if heading not in first}
    narrow = console.is_terminal and width(table(columns), console) > console.width
    parts = [{heading: columns[heading] for heading in first}, {"": columns[""], **rest}] if narrow else [columns]
    for part in parts:
        print_table(table(part), console)
    print_lines(footnotes(report), report.left_out, console)


def print_lines(lines: list[str], left_out: list[LeftOut], console: Console) -> None:
    """Print the lines below a table, and which runs are left out."""
    if left_out:
        lines = [*lines, f"left out, {len(left_out)}:"]
        lines += [f"  {each.path}: {each.why}" for each in left_out[:MAX_LEFT_OUT]]
        if len(left_out) > MAX_LEFT_OUT:
            lines.append(f"  ... and {len(left_out) - MAX_LEFT_OUT} more, in the report's files and --json")
    for line in lines:
        console.print(line, markup=False, soft_wrap=not console.is_terminal)


def to_markdown(report: Report, plots: list[str]) -> str:
    columns = table_columns(report)
    columns[""] = ["`" + name.replace("|", "\\|").replace("`", "'") + "`" for name in columns[""]]
    lines = [
        f"# {report.metric}",
        "",
        markdown_row(columns),
        markdown_row("-:" if heading else "-" for heading in columns),
    ]
    lines += [markdown_row(row) for row in zip(*columns.values(), strict=True)]
    lines += ["", *(f"* {line}" for line in footnotes(report))]
    if report.left_out:
        lines += ["", "Left out:", "", *(f"* `{each.path}` {each.why}" for each in report.left_out)]
    for name in plots:
        lines += ["", f"![{name}]({name}.png)"]
    return "\n".join(lines) + "\n"


def markdown_row(row: Iterable[str]) -> str:
    return f"| {' | '.join(row)} |"


def to_latex(report: Report) -> str:
    """Return the table as a LaTeX tabular with the rules of booktabs."""

    def escaped(text: str) -> str:
        return "".join(LATEX.get(character, character) for character in text)

    columns = table_columns(report)
    names = columns.pop("")
    rows = [
        [escaped(name), *(re.sub(r"^-(?=\d)", "$-$", escaped(cell)) for cell in row)]
        for name, *row in zip(names, *columns.values(), strict=True)
    ]
    lines = [
        r"% needs \usepackage{booktabs}",
        *(f"% {line}" for line in footnotes(report)),
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["", *map(escaped, columns)]) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def report_dict(report: Report) -> dict[str, Any]:
    """Return the whole report as a dict, for report.json."""
    return {
        "format": FORMAT,
        "metric": report.metric,
        "baseline": report.baseline or None,
        "axes": report.axes,
        "groups": report.groups.reset_index().to_dict("records"),
        "runs": report.runs.to_dict("records"),
        "confusions": {
            group: [{"labels": each.labels, "counts": each.counts.tolist()} for each in found]
            for group, found in report.confusions.items()
            if found
        },
        "left_out": [{"run": each.path, "why": each.why} for each in report.left_out],
        "conditions": report.conditions,
        "notes": report.notes,
    }


def write_files(report: Report, folder: Path, plots: list[str]) -> None:
    """Write report.md, .csv, .json and .tex, and runs.csv with a row for each run.

    Args:
        plots: names of the images that report.md shows, without ".png".

    Raises:
        UserError: the folder cannot be written.
    """
    files = {
        "report.md": to_markdown(report, plots),
        "report.csv": report.groups.to_csv(),
        "runs.csv": report.runs.to_csv(index=False),
        "report.tex": to_latex(report),
        "report.json": as_json(report_dict(report)),
    }
    for name, text in files.items():
        write_text(folder / name, text)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def print_difference(found: dict[str, list[tuple[str, Any, Any]]], a: Path, b: Path, console: Console) -> None:
    """Print how two runs differ: in config, environment and results.

    Args:
        found: see `difference.compare_runs`.
    """
    for letter, path in (("A", a), ("B", b)):
        console.print(f"{letter}: {path}", markup=False, soft_wrap=True)
    if not found["config"]:
        console.print("the configs are equal", markup=False)
    for what, rows in found.items():
        columns = {
            "": [key for key, _, _ in rows],
            "A": [format_value(x) for _, x, _ in rows],
            "B": [format_value(y) for *_, y in rows],
        }
        if what == "results":
            columns["B - A"] = [f"{y - x:+.6g}" if is_finite(x) and is_finite(y) else "-" for _, x, y in rows]
        if rows:
            print_table(table(columns, what), console)
    unlike = [key for key, _, _ in found["surroundings"] if key in ("data.tokenizer", "data.vocab_size", "data.sha256")]
    if "data.sha256" in unlike:
        console.print("note: the texts differ: no loss says which model is better", markup=False)
    elif unlike:
        console.print(
            "note: the vocabularies differ: nats per token (loss) do not compare, bits per byte do", markup=False
        )


def format_value(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
