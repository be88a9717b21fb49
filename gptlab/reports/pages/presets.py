"""Compare a run's config with what its presets, and conf/, compose to without further words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptlab.reports.records import comparable_value
from gptlab.runs.directory import PRESETS
from gptlab.runs.identity import flatten

ABSENT = "-"
LEFT_OUT = ("resume", "recipe.", "name")  # places, names, and what other keys repeat
UNDECIDED = ("null", "auto", "pretrained", ABSENT)  # a preset's value that the data or the weights fill in

WITHOUT = (
    f"There is no {PRESETS} in the run's folder: an older version has begun the run, or it was not begun on the "
    f"command line. How it differs from its presets is not known."
)

Row = tuple[str, str, str]  # key, the preset's value, the run's value


def compared(config: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the differences for the page, or under "why" the sentence that says why there are none.

    Args:
        config: the run's, with dotted keys.
        recorded: the content of presets.json; empty if there is none.
    """
    if not recorded:
        return {"why": WITHOUT}
    if not all(isinstance(recorded.get(name), dict) for name in ("presets", "defaults")):
        return {"why": "The presets of this run compose to nothing by themselves, so that nothing compares with them."}
    groups, values = (_words(recorded.get(name)) for name in ("groups", "values"))
    typed = {word.lstrip("+~").partition("=")[0] for word in values}
    rows = differences(recorded["presets"], config)
    filled = [row for row in rows if row[1] in UNDECIDED and row[0] not in typed]
    return {
        "groups": [*dict.fromkeys(groups)],
        "changed": [row for row in rows if row not in filled],
        "filled": filled,
        "defaults": [row for row in differences(recorded["defaults"], config) if row not in filled],
    }


def _words(value: Any) -> list[str]:
    """Return the words of a list; none if it is something else, as a file by hand may have."""
    return [*map(str, value)] if isinstance(value, list) else []


def differences(preset: dict[str, Any], config: Mapping[str, Any]) -> list[Row]:
    """Return a row for each key that differs, in the order of the run's config."""
    before = _values(flatten(preset))
    now = _values(config)
    rows = [(key, before.get(key, ABSENT), now.get(key, ABSENT)) for key in dict.fromkeys([*now, *before])]
    return [row for row in rows if row[1] != row[2]]


def _values(flat: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(comparable_value(value)) for key, value in flat.items() if not key.startswith(LEFT_OUT)}
