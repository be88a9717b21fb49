"""Runs as results: what varies between them, and what their seeds say about it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from gptlab import references
from gptlab.records import LeftOut, Run, computes, find, is_run, read, value
from gptlab.runs.identity import flatten, short_names
from gptlab.system.errors import UserError, did_you_mean

SECTIONS = ("experiment", "model", "arch", "optim", "schedule", "data", "tokenizer", "trainer")
DEFAULT = "(default)"  # the value of what a config does not name; nothing that can be typed
CONFIDENCE = 0.95
PROTOCOLS = {
    "val/loss": "of the last checkpoint, over the whole validation split, in nats per token",
    "best_val_loss": "the lowest of a run's validations, in nats per token; chosen on the validation split itself",
    "test/loss": "of the last checkpoint, over the whole test split, in nats per token",
    "val/bpb": "of the last checkpoint, over the whole validation split, in bits per byte of raw text",
    "test/bpb": "of the last checkpoint, over the whole test split, in bits per byte of raw text",
}
TESTS = {
    "paired": "paired t-tests over the shared seeds",
    "Welch": "Welch's t-tests, where seeds do not pair",
}
MEANS = {key: key for key in ("parameters", "flops", "tokens")} | {"train_seconds": "seconds"}
MEANS |= {key: key for key in ("train/loss", "gap", "val/bpb")}
TRAITS = {  # what should be alike in all runs: its column, and the groups of the config that change it on purpose
    "devices": ("device", {"trainer"}),
    "precisions": ("precision", {"trainer", "precision"}),
    "versions of gptlab": ("version", set()),
    "commits": ("commit", set()),
    "texts": ("data.sha256", {"data", "experiment"}),
}


@dataclass(frozen=True)
class Report:
    """What is known about a set of runs.

    Args:
        axes: the keys that vary between groups.
        short: their names without what is not needed to tell them apart.
        one_at_a_time: each group but one, the baseline unless another was asked for, changes one key of it.
        baseline: the label of the group that the others are compared with; "" if there is none.
        groups: one row a group, by label, sorted; NaN is unknown.
        runs: one row a run; `group` is its group's label.
        conditions: what must be known to read the numbers, a sentence each.
        notes: what about these runs makes them less comparable, a sentence each.
    """

    metric: str
    axes: list[str]
    short: dict[str, str]
    one_at_a_time: bool
    baseline: str
    groups: pd.DataFrame
    runs: pd.DataFrame
    left_out: list[LeftOut]
    conditions: list[str]
    notes: list[str]


# Grouping


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


# Statistics


def known(number: Any) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


def compact(number: float) -> str:
    """804k, 10.7M, 1.24B, 1.2e15."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if 0.9995 * size <= number < 1e12:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}".replace("e+", "e") if known(number) else "-"


def half_width(values: np.ndarray) -> np.ndarray:
    """Half of the 95% interval of the mean over the first axis, by Student's t; NaN, unknown, for a single value."""
    if len(values) < 2:
        return np.full(values.shape[1:], math.nan)
    return stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values, axis=0)


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of the median, by the ranks of a sign test; None, unknown, for less than six values."""
    low, high = map(float, stats.quantile_test(values, p=0.5).confidence_interval(CONFIDENCE))
    return (low, high) if math.isfinite(low + high) else None


def compare(ours: dict[int, float], theirs: dict[int, float]) -> dict[str, Any]:
    """Our mean less theirs, of losses by seed: by a paired t-test if the seeds of one, at least two, are among those of
    the other, else by Welch's.

    Where neither can be had, for want of seeds or of any spread, the difference stands alone.
    """
    shared = [seed for seed in ours if seed in theirs]
    # Two seeds that many have in common by chance are not what either was measured on.
    paired = len(shared) >= 2 and len(shared) == min(len(ours), len(theirs))
    a, b = (np.array([x[seed] for seed in (shared if paired else x)]) for x in (ours, theirs))
    found = {"difference": a.mean() - b.mean(), "difference_low": math.nan, "difference_high": math.nan, "p": math.nan}
    spread = np.std(a - b) if paired else max(np.std(a), np.std(b))
    enough = paired or min(len(a), len(b)) >= 2
    if not enough or not spread > 1e-12 * np.abs(b).max():  # NaN, or the noise of rounding
        return found | {"test": "none", "pairs": 0}
    result = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    low, high = result.confidence_interval(CONFIDENCE)
    found |= {"difference_low": float(low), "difference_high": float(high), "p": float(result.pvalue)}
    return found | {"test": "paired" if paired else "Welch", "pairs": len(shared) if paired else 0}


# The report


def collect(
    paths: Sequence[Path],
    metric: str = "val/loss",
    baseline: str | None = None,
    sort: str = "mean",
    reference: str | None = None,
) -> Report:
    """Everything there is to say about the runs among and below `paths`.

    Args:
        metric: a number of the summaries.
        baseline: a group's label, or key=value words that fit one group only.
        sort: an axis or a column of the groups.
        reference: the name of a reference, "" for the one that fits.

    Raises:
        UserError: there is nothing to report, or an argument fits none of the runs.
    """
    found: list[Run] = []
    left_out: list[LeftOut] = []
    for path in find(paths):
        try:
            found.append(read(path))
        except UserError as error:
            left_out.append(LeftOut(path, str(error)))
    where = ", ".join(map(str, paths[:3])) + (" ..." if len(paths) > 3 else "")
    if not found:
        why = "".join(f"\n  {each.path}: {each.why}" for each in left_out[:10])
        raise UserError(f"{where}: no finished run there; a run lies in outputs/<name>/<time>{why}")
    measured = [run for run in found if isinstance(run.summary.get(metric), int | float)]
    if not measured:
        keys = {key for run in found for key, each in run.summary.items() if isinstance(each, int | float)}
        raise UserError(f"--metric {metric}: no run has measured it; {did_you_mean(metric, keys)}")
    left_out += [LeftOut(run.path, f"has no {metric}") for run in found if metric not in run.summary]
    grouped, repeated = group(measured)

    described, base = varying(grouped)
    axes = list(described[0])
    short = short_names(axes)
    names = labels(described, base, short) if axes else [str(grouped[0][0].config.get("name", "run"))]
    chosen, notes = _baseline(grouped, described, names, short, baseline)
    compared = len(names) > 1 and (baseline is not None or not all(run.searched for run in measured))

    frame = pd.DataFrame(
        _run_row(run, name, values)
        for name, values, each in zip(names, described, grouped, strict=True)
        for run in each
    )
    numbers = frame.select_dtypes("float")
    frame[numbers.columns] = numbers.where(np.isfinite(numbers))  # what has diverged has no number
    frame["gap"] = frame["val/loss"] - frame["train/loss"]
    parts = {name: frame[frame["group"] == name] for name in names}
    by_seed = {name: dict(zip(part["seed"], part[metric], strict=True)) for name, part in parts.items()}
    groups = pd.DataFrame(
        {
            "group": name,
            **values,
            **_group_row(parts[name], metric),
            **(compare(by_seed[name], by_seed[names[chosen]]) if compared else {}),
        }
        for name, values in zip(names, described, strict=True)
    ).set_index("group")
    conditions = _conditions(metric, groups, names[chosen])
    if reference is not None:
        if metric not in ("val/loss", "best_val_loss"):
            raise UserError(f"--reference: its figures are validation losses, not {metric}; leave one of the two out")
        facts = [each[0].facts for each in grouped]
        name = references.choose(reference, facts)
        figures = [references.REFERENCES[name].figure(each) for each in facts]
        groups["reference"] = pd.Series(figures, index=groups.index, dtype=object)
        conditions.append(references.REFERENCES[name].words(name, facts))
    return Report(
        metric=metric,
        axes=axes,
        short=short,
        one_at_a_time=base is not None,
        baseline=names[chosen] if compared else "",
        groups=groups.loc[_order(groups, axes, short, sort)],
        runs=frame,
        left_out=left_out + repeated,
        conditions=conditions,
        notes=notes + _notes(frame, metric, axes),
    )


def _baseline(
    groups: list[list[Run]],
    described: list[dict[str, Any]],
    names: list[str],
    short: dict[str, str],
    wanted: str | None,
) -> tuple[int, list[str]]:
    """Which group the others are compared with, and what there is to say about it."""
    if wanted is not None:
        return _wanted(described, names, short, wanted), []
    first = names.index("baseline") if "baseline" in names else 0
    planned = [run.baseline for each in groups for run in each if run.baseline is not None]
    if not planned or any(each != planned[0] for each in planned):
        return first, []
    fits = [number for number, each in enumerate(groups) if each[0].typed == planned[0]]
    if fits:
        return fits[0], []
    return first, [f"the sweep's own baseline is not among these runs; {names[first]} stands in for it"]


def _wanted(described: list[dict[str, Any]], names: list[str], short: dict[str, str], wanted: str) -> int:
    if wanted in names:
        return names.index(wanted)
    words = [word.partition("=") for word in wanted.split()]
    fits = [
        number
        for number, each in enumerate(described)
        if all(any(key in (k, short[k]) and value(text) == v for k, v in each.items()) for key, _, text in words)
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        which = ", ".join(names[number] for number in fits[:3]) + (" ..." if len(fits) > 3 else "")
        raise UserError(
            f"--baseline {wanted!r}: {len(fits)} groups are so ({which}); say more, e.g. {names[fits[0]]!r}"
        )
    raise UserError(f"--baseline {wanted!r}: there is no such group; {did_you_mean(wanted, names)}")


def _run_row(run: Run, name: str, values: dict[str, Any]) -> dict[str, Any]:
    environment = flatten(run.environment)
    where = {"version": environment.get("versions.gptlab"), "commit": environment.get("git_commit")}
    return {"run": str(run.path), "group": name, **values, **run.summary, **where}


def _group_row(part: pd.DataFrame, metric: str) -> dict[str, Any]:
    """The runs of a group as one."""
    half = float(half_width(part[metric].to_numpy()))
    mean = {key: float(part[key].mean(skipna=False)) for key in (metric, *MEANS)}
    whole = {key: round(mean[key]) for key in ("parameters", "flops", "tokens") if math.isfinite(mean[key])}
    return {
        "n": len(part),
        "mean": mean[metric],
        "low": mean[metric] - half,
        "high": mean[metric] + half,
        **{column: whole.get(key, mean[key]) for key, column in MEANS.items()},
    }


def _order(groups: pd.DataFrame, axes: list[str], short: dict[str, str], sort: str) -> list[str]:
    """The labels, by an axis or a column; numbers by size and before words, unknowns last."""
    columns = {**{short[axis]: axis for axis in axes}, **{key: key for key in (*axes, *groups)}}
    if sort not in columns:
        raise UserError(f"--sort {sort}: there is no such axis or column; {did_you_mean(sort, columns)}")

    def rank(row: tuple[str, Any, float]) -> tuple[bool, bool, Any, bool, float]:
        _, each, mean = row
        return each != each, isinstance(each, str), 0 if each != each else each, mean != mean, mean

    rows = zip(groups.index, groups[columns[sort]].tolist(), groups["mean"].tolist(), strict=True)
    return [name for name, _, _ in sorted(rows, key=rank)]


def _conditions(metric: str, groups: pd.DataFrame, base: str) -> list[str]:
    """How the numbers were had."""
    protocol = PROTOCOLS.get(metric, "from the runs' summaries")
    words = [f"{metric}: {protocol}; the mean over n seeds with its 95% interval (Student's t), ? for a single seed"]
    if "test" in groups:
        kinds = groups["test"].value_counts()
        tests = " or ".join(f"{TESTS[kind]} ({count} rows)" for kind, count in kinds.items() if kind in TESTS)
        by = f", with its 95% interval, by {tests}; p is not corrected for the number of rows" if tests else ""
        words.append(f"difference: from {base}{by}")
        fewer = groups[(groups["test"] == "paired") & (groups["pairs"] < groups["n"].clip(lower=groups["n"][base]))]
        if len(fewer):
            words.append(f"over the shared seeds only, hence not that of the means: {', '.join(fewer.index)}")
    words.append("train/loss: the last batches, with dropout; gap: val/loss less train/loss; time: of training alone")
    return words


def _notes(frame: pd.DataFrame, metric: str, axes: list[str]) -> list[str]:
    """What makes these runs less comparable than they look."""
    notes = []
    for what, (column, explained) in TRAITS.items():
        if column not in frame:
            continue
        counts = frame[column].map(lambda each: "unknown" if pd.isna(each) else str(each)[:48]).value_counts()
        if len(counts) > 1 and not any(axis.partition(".")[0] in explained for axis in axes):
            which = ", ".join(f"{each} ({count})" for each, count in counts.head(5).items())
            notes.append(f"the runs have different {what}: {which}{', ...' if len(counts) > 5 else ''}")
    if metric.endswith("loss") and "data.tokenizer" in frame and frame["data.tokenizer"].nunique() > 1:
        notes.append(f"{metric} does not compare tokenizers: use --metric val/bpb")
    for name, part in frame.groupby("group", sort=False):
        diverged = part[part[metric].isna()]
        if len(diverged):
            seeds = ", ".join(map(str, diverged["seed"]))
            notes.append(f"{name}: {metric} is not finite for seed {seeds}, so there is no mean")
        early = part["status"].to_list().count("stopped_early") if "status" in part else 0
        if early:
            notes.append(f"{name}: {early} of {len(part)} runs stopped early")
    return notes


# Two runs


def diff(a: Path, b: Path) -> dict[str, list[tuple[str, Any, Any]]]:
    """What two runs differ in: key, a's value, b's; None for a key that only the other has.

    Under "config" and "surroundings" what differs, under "results" every number that either has.

    Raises:
        UserError: one of them is no finished run.
    """

    def pairs(left: dict[str, Any], right: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        return [(key, left.get(key), right.get(key)) for key in dict.fromkeys([*left, *right])]

    def about(run: Run) -> dict[str, Any]:
        data = {key: each for key, each in run.summary.items() if key.startswith("data.")}
        return {
            key: each for key, each in flatten(run.environment).items() if key not in ("command", "data_sha256")
        } | data

    def numbers(run: Run) -> dict[str, Any]:
        kept = {k: v for k, v in run.summary.items() if isinstance(v, int | float) and k not in ("format", "seed")}
        return {key: each for key, each in kept.items() if not key.startswith("data.")}

    both = [_read_one(path) for path in (a, b)]
    configs = [{k: value(v) for k, v in run.config.items() if not k.startswith("recipe.")} for run in both]
    return {
        "config": [row for row in pairs(*configs) if row[1] != row[2]],
        "results": pairs(*map(numbers, both)),
        "surroundings": [row for row in pairs(*map(about, both)) if row[1] != row[2]],
    }


def _read_one(path: Path) -> Run:
    if not is_run(path):
        raise UserError(f"--diff {path}: is not a run directory (no config.yaml in it)")
    try:
        return read(path)
    except UserError as error:
        raise UserError(f"--diff {path}: {error}") from error
