"""Which runs belong together, what varies between them, and how a group is called."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from gptlab.reports.records import LeftOut, Run, computes, value

DEFAULT = "(default)"  # the value of what a config does not name; nothing that can be typed
SECTIONS = ("experiment", "model", "arch", "optim", "schedule", "data", "tokenizer", "trainer")
TRAITS = {  # what should be alike in all runs: its column, and the groups of the config that change it on purpose
    "devices": ("device", {"trainer"}),
    "precisions": ("precision", {"trainer", "precision"}),
    "versions of gptlab": ("version", set()),
    "commits": ("commit", set()),
    "texts": ("data.sha256", {"data", "experiment"}),
}


def group(found: Iterable[Run]) -> tuple[list[list[Run]], list[LeftOut]]:
    """Runs that differ in their seed only, together; of the same config and seed the newest, the others left out."""
    groups: dict[str, dict[int, Run]] = {}
    left_out = []
    for run in found:
        config = {key: each for key, each in run.config.items() if computes(key) and each is not None}
        identity = json.dumps([config, run.summary["data.sha256"]], sort_keys=True, default=str)
        seeds = groups.setdefault(identity, {})
        other = seeds.get(run.summary["seed"])
        older, newer = sorted((other, run), key=_written) if other else (None, run)
        seeds[run.summary["seed"]] = newer
        if older:
            why = f"is the same run as {newer.path}, same config and seed, and older: no second sample"
            left_out.append(LeftOut(older.path, why))
    return [list(seeds.values()) for seeds in groups.values()], left_out


def _written(run: Run) -> tuple[float, str]:
    return (run.path / "summary.json").stat().st_mtime, str(run.path)


def varying(groups: list[list[Run]]) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """What tells the groups apart, by key: as typed, if that does; else the runs' names; else the config.

    Where a group choice (`arch=...`) was not typed, the value is DEFAULT. The second is the group that each of the
    others differs from in one of several keys; None where there is none.
    """
    firsts = [each[0] for each in groups]
    described: list[dict[str, Any]] = []
    if all(run.typed == each[0].typed for each in groups for run in each):
        keys = list(dict.fromkeys(key for run in firsts for key in run.typed))
        described = [{key: _chosen(run, key) for key in keys} for run in firsts]
    plain = [run.typed for run in firsts]
    same_name = all(run.config.get("name") == each[0].config.get("name") for each in groups for run in each)
    if not _distinct(described) and same_name:
        described = [{"name": value(run.config.get("name"))} for run in firsts]
    if not _distinct(described):
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


def _chosen(run: Run, key: str) -> Any:
    """The value of a key or group that was typed here or in another run; DEFAULT if it cannot be known."""
    if key in run.typed:
        return run.typed[key]
    said = next((k for k in (key, f"{key}.name") if k in run.config and k != "model.name"), None)
    return value(run.config[said]) if said else DEFAULT


def _distinct(described: list[dict[str, Any]]) -> bool:
    return len({tuple(map(str, each.values())) for each in described}) == len(described) > 0


def _fewest_keys(firsts: list[Run]) -> list[dict[str, Any]]:
    """Few keys of the config that tell the runs apart: each time the one that tells most of them from others."""
    flat = [
        {key: value(each) for key, each in run.config.items() if computes(key) or key == "data.path"}
        | {"data.sha256": str(run.summary["data.sha256"])[:8]}
        for run in firsts
    ]
    frame = pd.DataFrame(flat, dtype=object)
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


def labels(described: list[dict[str, Any]], base: dict[str, Any] | None, short: dict[str, str]) -> list[str]:
    """n_head=4 lr=0.001, a group each; where all change one key of `base`, that key, and `baseline`."""

    def label(values: dict[str, Any], number: str) -> str:
        said = {k: v for k, v in values.items() if (v != base[k] if base else v != DEFAULT)}
        words = {k: f"{v:{number}}" if isinstance(v, float) else str(v) for k, v in said.items()}
        return " ".join(word if k == "name" else f"{short[k]}={word}" for k, word in words.items()) or "baseline"

    brief = [label(each, "g") for each in described]
    return brief if len(set(brief)) == len(brief) else [label(each, "") for each in described]
