"""Write a report as a page: tables that sort, pictures that zoom, and links to the page of each run."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gptlab.reports import frontier_tables, tables
from gptlab.reports.frontier import Frontier
from gptlab.reports.number_words import is_finite
from gptlab.reports.pages.files import page_of
from gptlab.reports.records import LeftOut
from gptlab.reports.report import Report
from gptlab.reports.units import axis_label
from gptlab.runs.directory import PAGE
from gptlab.system.errors import amount
from gptlab.system.files import read_bytes, write_atomically
from gptlab.system.terminal import duration, harmless

FRONTIER = "frontier.html"
MOST_CLASSES = 30  # of a confusion matrix that is a table here, too
MEASURED = {
    **{"n": "n", "difference": "difference", "p": "p", "train": "train/loss", "gap": "gap", "bits/byte": "val/bpb"},
    **{"params": "parameters", "trained": "trained_parameters", "FLOPs": "flops", "tokens": "tokens"},
    "time": "seconds",
}
"""By which column of the groups a column of the table is sorted."""
OF_RUNS = {
    "seed": ("seed", "{}"),
    "val/loss": ("val/loss", "{:.4f}"),
    "best_val_loss": ("best", "{:.4f}"),
    "best_step": ("at step", "{:,.0f}"),
    "train/loss": ("train", "{:.4f}"),
    "steps": ("steps", "{:,.0f}"),
    "tokens_per_sec": ("tokens/s", "{:,.0f}"),
}
"""Numbers of a run in the second table: what they are called there, and how they are written."""
ENDS = {"finished": "finished", "stopped_early": "stopped early"}  # of a run

Cell = dict[str, Any]  # "text"; "sort", a number that it is sorted by; "href"; "bar": low, mean and high


def write_report_page(report: Report, folder: Path, plots: Sequence[str]) -> Path:
    """Write index.html; returns its path.

    Args:
        plots: names of the pictures in `folder` that it shows, without ".png".

    Raises:
        UserError: a picture cannot be read, or the folder cannot be written.
    """
    runs: list[dict[str, Any]] = report.runs.to_dict("records")  # type: ignore[assignment]
    above = _common_folder([row["run"] for row in runs])
    data = {
        "name": harmless(above.name or "Report"),
        "status": f"{amount(len(runs), 'run')} in {amount(len(report.groups), 'group')}, by "
        f"{axis_label(report.metric, report.tasks)}",
        "tables": [_groups(report), _runs(report, runs, above, folder)],
        "confusions": _confusions(report),
        "conditions": [*report.conditions],
        "notes": [*report.notes],
        "links": _link("Reward against KL", FRONTIER, folder),
    }
    return _write(data, folder / PAGE, report.left_out, plots)


def write_frontier_page(frontier: Frontier, folder: Path, plots: Sequence[str]) -> Path:
    """Write frontier.html; returns its path. Arguments and errors as in `write_report_page`."""
    columns = frontier_tables.table_columns(frontier)
    shown = [_cells(texts, [_first_number(text) for text in texts]) for texts in columns.values()]
    data = {
        "name": f"{frontier.metric} against KL",
        "status": "in ascending order of KL, then the best of n",
        "tables": [_table("Groups", columns, zip(*shown, strict=True))],
        "confusions": [],
        "conditions": [*frontier.conditions],
        "notes": [],
        "links": _link("The runs' report", PAGE, folder),
    }
    return _write(data, folder / FRONTIER, frontier.left_out, plots)


def _write(data: dict[str, Any], path: Path, left_out: Sequence[LeftOut], plots: Sequence[str]) -> Path:
    whole = {
        **data,
        "leftOut": [[str(each.path), each.why] for each in left_out],
        "pictures": [{"name": name.replace("_", " "), "src": _picture(path.parent / f"{name}.png")} for name in plots],
    }
    content = page_of("report", f"{data['name']}: report", whole).encode(errors="backslashreplace")
    write_atomically(path, lambda file: file.write(content))
    return path


def _picture(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(read_bytes(path)).decode()}"


def _link(words: str, name: str, folder: Path) -> list[list[str]]:
    return [[words, name]] if (folder / name).is_file() else []


def _common_folder(runs: Sequence[str]) -> Path:
    """Return the folder that all runs are in."""
    return Path(os.path.commonpath([Path(run).absolute().parent for run in runs]))


def _groups(report: Report) -> dict[str, Any]:
    """Return the table of the groups; the metric's mean has its interval as a bar."""
    columns = tables.table_columns(report)
    groups = report.groups.reset_index()
    keys = {**MEASURED, report.metric: "mean"}
    if len(report.axes) == 1:
        keys[""] = report.axes[0]
    shown = {
        heading: _cells(texts, groups[keys[heading]] if keys.get(heading) in groups else ())
        for heading, texts in columns.items()
    }
    bars = groups[["low", "mean", "high"]].to_numpy(float)
    for cell, (low, mean, high) in zip(shown[report.metric], bars, strict=True):
        if is_finite(mean):
            cell["bar"] = [low, mean, high] if is_finite(low) and is_finite(high) else [mean, mean, mean]
    return _table("Groups", columns, zip(*shown.values(), strict=True))


def _runs(report: Report, runs: list[dict[str, Any]], above: Path, folder: Path) -> dict[str, Any]:
    """Return the table of the runs, each with a link to its page, if it has one."""
    shown = {report.metric: (report.metric, "{:.4f}"), **OF_RUNS}
    keys = [key for key in shown if any(is_finite(row.get(key)) for row in runs)]
    rows = []
    for row in runs:
        path = Path(row["run"])
        cells = [{"text": harmless(os.path.relpath(path, above)), **_href(path, folder)}, _cell(row["group"])]
        for key in keys:
            cells.append(_cell(shown[key][1].format(row[key]) if is_finite(row.get(key)) else "-", row.get(key)))
        rows.append([*cells, _cell(duration(row["train_seconds"]), row["train_seconds"])])
    columns = ["run", "group", *(shown[key][0] for key in keys), "time"]
    ends = [ENDS.get(str(row.get("status")), "-") for row in runs]
    if {*ends} != {"finished"}:  # else it is no news
        columns.append("end")
        rows = [[*row, _cell(end)] for row, end in zip(rows, ends, strict=True)]
    return _table("Runs", columns, rows)


def _href(run: Path, folder: Path) -> Cell:
    """Return the link to a run's page, relative to the report's; none if there is no such page."""
    with suppress(OSError, ValueError):  # on another drive; no name of a file
        if (run / PAGE).is_file():
            return {"href": quote(Path(os.path.relpath(run / PAGE, folder)).as_posix())}
    return {}


def _confusions(report: Report) -> list[dict[str, Any]]:
    """Return a table for each confusion matrix: a row for each true class."""
    return [
        _table(
            f"Confusion of {name}: a row for each true class, {each.accuracy:.1%} right",
            ["", *each.labels],
            [
                [{"text": label}, *(_cell(f"{count:,}", count) for count in row)]
                for label, row in zip(each.labels, each.counts.tolist(), strict=True)
            ],
        )
        for name in report.best_first.index
        for each in report.confusions.get(str(name), ())
        if len(each.labels) <= MOST_CLASSES
    ]


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Cell]]) -> dict[str, Any]:
    return {
        "title": title,
        "columns": [*map(harmless, columns)],
        "rows": [[*row] for row in rows],
    }


def _first_number(text: str) -> float | None:
    """Return the number that a cell begins with, as of "0.8123 ± 0.0045"."""
    with suppress(ValueError):
        return float(text.partition(" ")[0])
    return None


def _cells(texts: Sequence[str], values: Sequence[Any] = ()) -> list[Cell]:
    """Return cells with these texts, sorted by these numbers or else by the texts."""
    return [_cell(text, values[i] if len(values) else None) for i, text in enumerate(texts)]


def _cell(text: str, value: Any = None) -> Cell:
    number = value.item() if hasattr(value, "item") else value
    return {"text": harmless(text), **({"sort": number} if is_finite(number) else {})}
