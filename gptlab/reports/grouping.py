"""Group runs that differ only in their seed, find what varies between the groups, and label them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from gptlab.reports.records import LeftOut, Run, affects_result, comparable_value

DEFAULT = "(default)"  # the value of a key that a config does not name; cannot be typed as a value
SECTIONS = ("experiment", "model", "arch", "optim", "schedule", "data", "tokenizer", "trainer")
TRAITS = {  # should be equal in all runs: the column, and the config groups that may change it on purpose
    "devices": ("device", {"trainer"}),
    "precisions": ("precision", {"trainer", "precision"}),
    "versions of gptlab": ("version", set()),
    "commits": ("commit", set()),
    "models behind init_from": ("init_from_sha256", {"init_from", "model", "arch", "task"}),  # as each run changed it
}


def group_runs(found: Iterable[Run]) -> tuple[list[list[Run]], list[LeftOut]]:
    """Group runs that differ only in their seed; of runs with the same config and seed only the newest is used.

    Returns:
        The groups, and the older duplicates with the reason why each is left out.
    """
    groups: dict[str, dict[int, Run]] = {}
    left_out = []
    for run in found:
        config = {key: comparable_value(each) for key, each in run.config.items() if affects_result(key)}
        known = {key: each for key, each in config.items() if each != "null"}  # as where an older config lacks the key
        identity = json.dumps([known, run.summary["data.sha256"]], sort_keys=True)
        seeds = groups.setdefault(identity, {})
        other = seeds.get(run.summary["seed"])
        older, newer = sorted((other, run), key=_time_written) if other else (None, run)
        seeds[run.summary["seed"]] = newer
        if older:
            why = f"is the same run as {newer.path}, same config and seed, and older: no second sample"
            left_out.append(LeftOut(older.path, why))
    return [list(seeds.values()) for seeds in groups.values()], left_out


def _time_written(run: Run) -> tuple[float, str]:
    """Sort key: when the run's summary was written; the path breaks ties."""
    return (run.path / "summary.json").stat().st_mtime, str(run.path)


def distinguishing_values(groups: list[list[Run]]) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Find the keys and values that distinguish the groups: the typed overrides, else the run names, else the config.

    Where a group choice (`arch=...`) was not typed, its value is DEFAULT.

    Returns:
        The distinguishing keys and values of each group; and those of the group from which every other group differs
        in exactly one of several keys, None if there is no such group.
    """
    firsts = [each[0] for each in groups]
    described: list[dict[str, Any]] = []
    if all(run.typed == each[0].typed for each in groups for run in each):
        keys = list(dict.fromkeys(key for run in firsts for key in run.typed))
        described = [{key: _value_or_default(run, key) for key in keys} for run in firsts]
    plain = [run.typed for run in firsts]
    same_name = all(run.config.get("name") == each[0].config.get("name") for each in groups for run in each)
    if not _all_distinct(described) and same_name:
        described = [{"name": comparable_value(run.config.get("name"))} for run in firsts]
    if not _all_distinct(described):
        described = _fewest_keys(firsts)
        common = {key: Counter(each[key] for each in described).most_common(1)[0][0] for key in described[0]}
        plain = [{} if each == common else each for each in described]
    axes = [key for key in described[0] if len({str(each[key]) for each in described}) > 1]
    described = [{key: each[key] for key in axes} for each in described]
    base = next((each for each, typed in zip(described, plain, strict=True) if not typed.keys() & each.keys()), None)
    if base is None or len(axes) < 2:
        return described, None
    changes = sorted(sum(each[key] != base[key] for key in axes) for each in described)
    return described, base if changes == [0] + [1] * (len(described) - 1) else None


def _value_or_default(run: Run, key: str) -> Any:
    """Return the run's value of a key or group that some run's command line sets; DEFAULT if it is not known."""
    if key in run.typed:
        return run.typed[key]
    found = next((k for k in (key, f"{key}.name") if k in run.config and k != "model.name"), None)
    return comparable_value(run.config[found]) if found else DEFAULT


def _all_distinct(described: list[dict[str, Any]]) -> bool:
    return len({tuple(map(str, each.values())) for each in described}) == len(described) > 0


def _fewest_keys(firsts: list[Run]) -> list[dict[str, Any]]:
    """Choose few config keys that distinguish the runs, greedily: always the key that gives the most parts."""
    flat = [
        {key: comparable_value(each) for key, each in run.config.items() if affects_result(key) or key == "data.path"}
        | {"data.sha256": str(run.summary["data.sha256"])[:8]}
        for run in firsts
    ]
    frame = pd.DataFrame(flat, dtype=object).fillna("null")
    codes = {key: pd.factorize(frame[key].map(str))[0] for key in frame}

    def rank(key: str) -> tuple[int, int]:
        section = key.partition(".")[0]
        words = frame[key].map(lambda each: isinstance(each, str)).any()
        last = key in ("data.path", "data.sha256")
        return words + last, SECTIONS.index(section) if section in SECTIONS else len(SECTIONS)

    keys = sorted((key for key, code in codes.items() if code.any()), key=rank)
    chosen: list[str] = []
    parts = np.zeros(len(firsts), dtype=int)
    while parts.max(initial=0) + 1 < len(firsts):
        split = {key: pd.factorize(parts * len(firsts) + codes[key])[0] for key in keys}
        best = max(keys, key=lambda key: split[key].max())
        chosen.append(best)
        parts = split[best]
    return [{key: each.get(key, DEFAULT) for key in chosen} for each in flat]


def group_labels(described: list[dict[str, Any]], base: dict[str, Any] | None, short: dict[str, str]) -> list[str]:
    """Return a label for each group, e.g. "n_head=4 lr=0.001"; with `base` only the key that differs, or "baseline"."""
    nothing = "baseline" if base else "default"

    def label(values: dict[str, Any], number: str) -> str:
        shown = {k: v for k, v in values.items() if (v != base[k] if base else v != DEFAULT)}
        words = {k: f"{v:{number}}" if isinstance(v, float) else str(v) for k, v in shown.items()}
        return " ".join(word if k == "name" else f"{short[k]}={word}" for k, word in words.items()) or nothing

    brief = [label(each, "g") for each in described]
    return brief if len(set(brief)) == len(brief) else [label(each, "") for each in described]
