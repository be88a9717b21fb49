"""Choose the group of runs that the others are compared with."""

from __future__ import annotations

from typing import Any

from gptlab.reports.records import Run, comparable_value
from gptlab.system.errors import UserError, did_you_mean


def choose_baseline(
    groups: list[list[Run]],
    described: list[dict[str, Any]],
    names: list[str],
    short: dict[str, str],
    wanted: str | None,
) -> tuple[int, list[str]]:
    """Return the index of the group that the others are compared with, and notes on that choice.

    Args:
        groups: the runs of each group.
        described: for each group the keys and values that distinguish it.
        names: the label of each group.
        short: the shortest distinct name of each key.
        wanted: a label, or key=value words that match one group; None: the sweep's own baseline, else the group of the
            name baseline, else the first.

    Raises:
        UserError: `wanted` matches none or several.
    """
    if wanted is not None:
        return _requested_baseline(described, names, short, wanted), []
    first = names.index("baseline") if "baseline" in names else 0
    planned = [run.baseline for each in groups for run in each if run.baseline is not None]
    if not planned or any(each != planned[0] for each in planned):
        return first, []
    fits = [number for number, each in enumerate(groups) if each[0].typed == planned[0]]
    if fits:
        return fits[0], []
    return first, [f"the sweep's own baseline is not among these runs; {names[first]} stands in for it"]


def _requested_baseline(described: list[dict[str, Any]], names: list[str], short: dict[str, str], wanted: str) -> int:
    """Return the index of the group that `wanted` names: a label, or key=value words that match one group.

    Raises:
        UserError: it matches none or several.
    """
    if wanted in names:
        return names.index(wanted)
    words = [word.partition("=") for word in wanted.split()]
    fits = [
        number
        for number, each in enumerate(described)
        if all(
            any(key in (k, short[k]) and comparable_value(text) == v for k, v in each.items()) for key, _, text in words
        )
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        which = ", ".join(names[number] for number in fits[:3]) + (" ..." if len(fits) > 3 else "")
        raise UserError(
            f"--baseline {wanted!r}: {len(fits)} groups are so ({which}); say more, e.g. {names[fits[0]]!r}"
        )
    raise UserError(f"--baseline {wanted!r}: there is no such group; {did_you_mean(wanted, names)}")
