"""Maps of weights or probabilities, as the chapters draw them: a row and a column for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def label_cells(axes: Axes, labels: Sequence[str], size: float) -> None:
    """Write the same labels beside the rows and below the columns of a map, in place of ticks and a grid."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(range(len(labels)), labels, fontsize=size)
    axes.tick_params(length=0)
    axes.grid(False)
