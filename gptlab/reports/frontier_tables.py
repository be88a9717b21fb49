"""Write a frontier as tables: on the terminal and as Markdown, CSV and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.reports.frontier import CHOSEN_BY, Frontier
from gptlab.reports.number_words import is_finite
from gptlab.reports.tables import markdown_row, print_lines, write_text
from gptlab.system.terminal import as_json, print_table, table

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = 1  # of frontier.json
HEADINGS = {"kl": "KL", "judged_reward": "judged reward", "win_rate": "win rate"}


def table_columns(frontier: Frontier) -> dict[str, list[str]]:
    """Return the table's cells by column heading: the groups in ascending order of KL, then the best of n."""
    points, best = frontier.points, frontier.best_of_n
    others = best.to_dict("records")
    columns = {
        "": [*points.index, *(f"best of {row['n']}{CHOSEN_BY[row['chosen_by']]}" for row in others)],
        "task": [*points["task"], *("best of n" for _ in others)],
        "n": [*map(str, points["n"]), *(str(row["measurements"]) for row in others)],
    }
    for key in ("kl", "reward", "judged_reward", "win_rate"):
        if key not in points or points[key].isna().all():
            continue
        cells = [_cell(row[key], row[f"{key}_half"]) for row in points.to_dict("records")]
        cells += [f"{row[key]:.4f}" if key == "kl" else _cell(row.get(key), row.get(f"{key}_half")) for row in others]
        columns[frontier.metric if key == "reward" else HEADINGS[key]] = cells
    return columns


def _cell(mean: Any, half: Any) -> str:
    """Return a mean with half its interval: 0.8123 ± 0.0045, ± ? where that is unknown."""
    return f"{mean:.4f} ± {f'{half:.4f}' if is_finite(half) else '?'}" if is_finite(mean) else "-"


def print_frontier(frontier: Frontier, console: Console) -> None:
    """Print the table and its footnotes."""
    print_table(table(table_columns(frontier)), console)
    print_lines(frontier.conditions, frontier.left_out, console)


def to_markdown(frontier: Frontier, plots: list[str]) -> str:
    columns = table_columns(frontier)
    columns[""] = ["`" + name.replace("|", "\\|").replace("`", "'") + "`" for name in columns[""]]
    lines = [f"# {frontier.metric} against KL", "", markdown_row(columns)]
    lines += [markdown_row("-:" if heading not in ("", "task") else "-" for heading in columns)]
    lines += [markdown_row(row) for row in zip(*columns.values(), strict=True)]
    lines += ["", *(f"* {line}" for line in frontier.conditions)]
    if frontier.left_out:
        lines += ["", "Left out:", "", *(f"* `{each.path}` {each.why}" for each in frontier.left_out)]
    for name in plots:
        lines += ["", f"![{name}]({name}.png)"]
    return "\n".join(lines) + "\n"


def frontier_dict(frontier: Frontier) -> dict[str, Any]:
    """Return the whole frontier as a dict, for frontier.json."""
    return {
        "format": FORMAT,
        "metric": frontier.metric,
        "points": frontier.points.reset_index().to_dict("records"),
        "best_of_n": frontier.best_of_n.to_dict("records"),
        "left_out": [{"run": each.path, "why": each.why} for each in frontier.left_out],
        "conditions": frontier.conditions,
    }


def write_files(frontier: Frontier, folder: Path, plots: list[str]) -> None:
    """Write frontier.md, .csv (the groups) and .json.

    Args:
        plots: names of the images that frontier.md shows, without ".png".

    Raises:
        UserError: the folder cannot be written.
    """
    write_text(folder / "frontier.md", to_markdown(frontier, plots))
    write_text(folder / "frontier.csv", frontier.points.to_csv())
    write_text(folder / "frontier.json", as_json(frontier_dict(frontier)))
