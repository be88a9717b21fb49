"""Read the confusion matrices of classifiers from their summaries, and add them up over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptlab.reports.records import Run


@dataclass(frozen=True)
class Confusion:
    """How often each class was predicted for each true class.

    Args:
        labels: the names of the K classes.
        counts: (K, K) int, a row for each true class.
    """

    labels: list[str]
    counts: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.counts) / max(1, self.counts.sum()))


def confusions_of(runs: Sequence[Run]) -> list[Confusion]:
    """Return the confusion matrices of a group's runs; those with the same classes are added up.

    A summary whose "confusion" is not K labels and K rows of K counts has none.
    """
    found: dict[tuple[str, ...], np.ndarray] = {}
    for run in runs:
        labels, rows = run.summary.get("confusion.labels"), run.summary.get("confusion.counts")
        if isinstance(labels, list) and _is_square(rows, len(labels)):
            names = tuple(map(str, labels))
            found[names] = found.get(names, 0) + np.array(rows, dtype=np.int64)
    return [Confusion(list(labels), counts) for labels, counts in found.items()]


def _is_square(rows: object, size: int) -> bool:
    """Return whether `rows` are as many rows of as many counts."""
    return (
        isinstance(rows, list)
        and len(rows) == size > 0
        and all(isinstance(row, list) and len(row) == size for row in rows)
        and all(type(count) is int and 0 <= count < 2**53 for row in rows for count in row)
    )
