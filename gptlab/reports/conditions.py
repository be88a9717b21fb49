"""Say how the numbers of a report were measured, and what limits their comparison."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gptlab.reports import units
from gptlab.reports.grouping import TRAITS

PROTOCOLS = {
    "val/loss": "of the last checkpoint, over the whole validation split",
    "best_val_loss": "the lowest of a run's validations, chosen on the validation split itself",
    "test/loss": "of the last checkpoint, over the whole test split",
    "val/bpb": "of the last checkpoint, over the whole validation split",
    "test/bpb": "of the last checkpoint, over the whole test split",
}
TESTS = {
    "paired": "paired t-tests over the shared seeds",
    "Welch": "Welch's t-tests, where seeds do not pair",
}


def conditions_of(metric: str, tasks: Sequence[str], groups: pd.DataFrame, base: str) -> list[str]:
    """Return sentences that explain how the numbers were measured."""
    protocol = PROTOCOLS.get(metric, "from the runs' summaries")
    if unit := units.unit(metric, tasks):
        protocol += f", {unit}" if unit in ("per pair", units.LOSSES["grpo"]) else f", in {unit}"
    words = [f"{metric}: {protocol}; the mean over n seeds with its 95% interval (Student's t), ? for a single seed"]
    if "test" in groups:
        kinds = groups["test"].value_counts()
        tests = " or ".join(f"{TESTS[kind]} ({count} rows)" for kind, count in kinds.items() if kind in TESTS)
        by = f", with its 95% interval, by {tests}; p is not corrected for the number of rows" if tests else ""
        words.append(f"difference: from {base}{by}")
        fewer = groups[(groups["test"] == "paired") & (groups["pairs"] < groups["n"].clip(lower=groups["n"][base]))]
        if len(fewer):
            words.append(f"over the shared seeds only, hence not that of the means: {', '.join(fewer.index)}")
    losses = "train/loss: the last batches, with dropout; gap: val/loss less train/loss; "
    words.append(f"{losses if units.loss_is_trained(tasks) else ''}time: of training alone")
    return words


def comparison_notes(frame: pd.DataFrame, metric: str, axes: list[str]) -> list[str]:
    """Return sentences that say why these runs are less comparable than they look."""
    found = []
    for what, (column, explained) in TRAITS.items():
        if column not in frame:
            continue
        counts = frame[column].map(lambda each: "unknown" if pd.isna(each) else str(each)[:48]).value_counts()
        if len(counts) > 1 and not any(axis.partition(".")[0] in explained for axis in axes):
            which = ", ".join(f"{each} ({count})" for each, count in counts.head(5).items())
            found.append(f"the runs have different {what}: {which}{', ...' if len(counts) > 5 else ''}")
    for name, part in frame.groupby("group", sort=False):
        diverged = part[part[metric].isna()]
        if len(diverged):
            seeds = ", ".join(map(str, diverged["seed"]))
            found.append(f"{name}: {metric} is not finite for seed {seeds}, so there is no mean")
        early = part["status"].to_list().count("stopped_early") if "status" in part else 0
        if early:
            found.append(f"{name}: {early} of {len(part)} runs stopped early")
    return found
