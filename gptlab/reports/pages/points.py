"""Read the points of a run's curves from metrics.csv, and thin those that a page cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.system.errors import UserError
from gptlab.system.files import read_bytes

AXES = ("step", "tokens", "seconds")
MOST_POINTS = 1500  # of a line: more than a screen has pixels for
DIGITS = 6


@dataclass(frozen=True)
class Points:
    """The points of a run's curves.

    Args:
        axes: the columns of `AXES` that the file has, as text, a cell for each row.
        lines: for each other column that has numbers, the rows that have one, in order, and the numbers.
    """

    axes: dict[str, Sequence[str]]
    lines: dict[str, tuple[np.ndarray, np.ndarray]]

    def values(self, name: str) -> np.ndarray:
        """Return the numbers of a line; none if there is no such line."""
        return self.lines[name][1] if name in self.lines else np.empty(0)

    def steps(self, name: str) -> np.ndarray:
        """Return the steps of a line's numbers; none if there is no such line."""
        return numbers([self.axes["step"][row] for row in self.lines[name][0]]) if name in self.lines else np.empty(0)


def read_points(run_dir: Path) -> Points:
    """Read metrics.csv; rows that were cut off are left out, and a file that cannot be read has no points."""
    try:
        header, *rows = read_bytes(run_dir / "metrics.csv").decode(errors="replace").splitlines()
    except (UserError, ValueError):  # it has no line
        return Points({}, {})
    names = header.split(",")
    whole = [row for row in rows if row.count(",") == len(names) - 1]
    cells = ",".join(whole).split(",")  # of numbers, without quotes: csv would take twice as long
    columns = {name: cells[place :: len(names)] for place, name in enumerate(names)}
    if not np.isfinite(numbers(columns.get("step", []))).any():  # there is nothing to draw them by
        return Points({}, {})
    lines = {}
    for name, column in columns.items():
        if name not in AXES and (filled := [cell for cell in column if cell]):
            lines[name] = (np.flatnonzero([*map(bool, column)]), numbers(filled))
    return Points({name: columns[name] for name in AXES if name in columns}, lines)


def numbers(cells: Sequence[str]) -> np.ndarray:
    """Return cells as numbers; NaN where one is something else."""
    try:
        return np.array(list(map(float, cells)))
    except ValueError:
        return np.array([float(cell) if _is_number(cell) else np.nan for cell in cells])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def thinned(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Return the places of at most `most` of the values, in order.

    Of many values these are the first and the last, and of each of equal stretches the lowest, the highest, and the
    first that is not finite.
    """
    if len(values) <= most:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    finite = np.isfinite(values)
    low, high = np.where(finite, values, np.inf), np.where(finite, values, -np.inf)
    for part in np.array_split(np.arange(len(values)), (most - 2) // 3):
        first, last = part[0], part[-1] + 1
        kept |= {first + int(low[first:last].argmin()), first + int(high[first:last].argmax())}
        if not finite[first:last].all():
            kept.add(first + int(finite[first:last].argmin()))
    return np.array(sorted(kept))


def embedded(points: Points) -> dict[str, Any]:
    """Return what the page draws: "axes", columns of numbers, and "lines", each with places in them and its numbers.

    A number that is not finite is None.
    """
    chosen = {name: thinned(values) for name, (_, values) in points.lines.items()}
    rows = np.unique(np.concatenate([points.lines[name][0][places] for name, places in chosen.items()] or [[]]))
    lines = {}
    for name, places in chosen.items():
        at, values = points.lines[name]
        lines[name] = {"at": np.searchsorted(rows, at[places]).tolist(), "y": plain(values[places])}
    axes = {name: plain(numbers([cells[int(row)] for row in rows])) for name, cells in points.axes.items()}
    known = {name: column for name, column in axes.items() if any(x is not None for x in column)}
    return {"axes": known, "lines": lines}


def plain(values: np.ndarray) -> list[int | float | None]:
    """Return numbers as JSON holds them: short, and None for what is not finite."""
    return [_short(value) if np.isfinite(value) else None for value in values.tolist()]


def _short(value: float) -> int | float:
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.{DIGITS}g}")
