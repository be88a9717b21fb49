"""How well one or two models do a task, with 95% intervals: as plain data, and in a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gptlab.reports.statistics import half_width, share_interval, win_rate_interval
from gptlab.system.terminal import table

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = 1  # of --json
LETTERS = "AB"


class Performance(Protocol):
    """What was measured of a model on P held-out examples."""

    @property
    def model(self) -> str: ...
    @property
    def shares(self) -> Mapping[str, np.ndarray]: ...
    @property
    def means(self) -> Mapping[str, np.ndarray]: ...
    @property
    def figures(self) -> Mapping[str, float]: ...
    @property
    def gold(self) -> np.ndarray | None: ...


def with_interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def mean_with_interval(values: np.ndarray) -> dict[str, float]:
    """Return the mean of numbers, (n,), and its interval (Student's t); none of a single number."""
    mean, half = float(values.mean()), float(half_width(values))
    return with_interval(mean, mean - half, mean + half)


def difference_of_shares(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Return by how much the first share is larger, on the same examples, (n,) bool each: see `win_rate_interval`."""
    wins, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    low, high = win_rate_interval(wins, len(ours) - wins - losses, losses)
    return with_interval((wins - losses) / len(ours), 2 * low - 1, 2 * high - 1)


def win_rate(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Return how often a sampled answer earns more than the other model's to the same prompt, a tie counting half.

    Each answer is compared to each of the other model, and the interval is over the prompts.

    Args:
        ours, theirs: what S answers to each of Q prompts earn, (Q, S) each.
    """
    margins = np.sign(ours[:, :, None] - theirs[:, None, :]).mean((1, 2))
    found = mean_with_interval((margins + 1) / 2)
    if ours.shape[1] > 1 and found["high"] > found["low"]:
        return found
    wins, losses = int((margins > 0).sum()), int((margins < 0).sum())  # one answer each, or no spread
    low, high = win_rate_interval(wins, len(margins) - wins - losses, losses)
    return with_interval(found["value"], low, high)


def content(performances: Sequence[Performance], task: str, data: Mapping[str, str]) -> dict[str, Any]:
    """Return what `evaluate --task --json` prints of one or two models; of two also the differences, A - B.

    Args:
        task: what the first model has learned to do.
        data: what they are measured on.
    """
    records = [record(each) for each in performances]
    found: dict[str, Any] = {"format": FORMAT, "task": task, "data": dict(data), **records[0]}
    if len(records) == 2:
        ours, theirs = performances
        found["compare"] = records[1]
        differences = {
            name: difference_of_shares(ours.shares[name], theirs.shares[name])
            for name in ours.shares
            if name in theirs.shares and len(ours.shares[name]) == len(theirs.shares[name])
        }
        differences |= {
            name: mean_with_interval(ours.means[name] - theirs.means[name])
            for name in ours.means
            if name in theirs.means
        }
        found["difference"] = differences
        if ours.gold is not None and theirs.gold is not None:
            found["win_rate"] = win_rate(ours.gold, theirs.gold)
    return found


def forgetting(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run has forgotten, from what `measure_losses` found of it and, for comparison, of its base.

    The loss is in bits per byte where the two read other tokens.
    """
    difference, data = measured["difference"], measured["data"]
    name = difference["unit"].replace(" ", "_")
    return {
        "base": measured["compare"]["model"],
        "text": data["name"],
        "split": data["split"],
        "unit": difference["unit"],
        "before": measured["compare"][name],
        "after": measured[name],
        "difference": with_interval(difference["mean"], difference["low"], difference["high"]),
    }


def record(each: Performance) -> dict[str, Any]:
    """Return what was measured of one model, as plain data."""
    values: dict[str, Any] = {}
    for name, those in each.shares.items():
        values[name] = with_interval(float(those.mean()), *share_interval(int(those.sum()), len(those)))
        values[name]["examples"] = len(those)
    for name, numbers in each.means.items():
        values[name] = mean_with_interval(numbers) | {"examples": len(numbers)}
    return {"model": each.model, "values": values | {name: {"value": value} for name, value in each.figures.items()}}


def show(found: dict[str, Any], console: Console) -> None:
    """Print what `content` returns."""

    def say(words: str) -> None:
        console.print(words, markup=False, soft_wrap=not console.is_terminal)

    models = [found, *([found["compare"]] if "compare" in found else [])]
    letters = LETTERS if len(models) == 2 else ("",)
    for letter, each in zip(letters, models, strict=True):
        say(f"{letter or 'model'}: {each['model']}")
    data = found["data"]
    say(f"task={found['task']} on {data['name']}, {data['split']}, sha256 {data['sha256'][:16]}")
    names = [*dict.fromkeys(name for each in models for name in each["values"])]
    columns = {"": [name.replace("_", " ") for name in names]}
    for letter, each in zip(letters, models, strict=True):
        columns[letter or "value"] = [in_words(each["values"].get(name)) for name in names]
    if len(models) == 2:
        columns["A - B"] = [in_words(found["difference"].get(name), signed=True) for name in names]
    else:
        columns["examples"] = [str(found["values"][name].get("examples", "")) for name in names]
    console.print(table(columns))
    if "win_rate" in found:
        say(f"win rate of A's sampled answers over B's, a tie counting half: {in_words(found['win_rate'])}")
    if "forgetting" in found:
        lost = found["forgetting"]
        change = in_words(lost["difference"], signed=True)
        where = f"{lost['unit']} on {lost['text']}, {lost['split']}"
        say(f"forgotten, {where}: {lost['before']:.4f} before, {lost['after']:.4f} now: {change}")
    for note in found.get("notes", []):
        say(f"note: {note}")


def in_words(value: Mapping[str, float] | None, signed: bool = False) -> str:
    """Return a number with its interval."""
    if value is None:
        return "-"
    form = "{:+.4f}" if signed else "{:.4f}"
    found = form.format(value["value"])
    if not math.isfinite(value.get("low", math.nan)):
        return found
    return f"{found} ({form.format(value['low'])} to {form.format(value['high'])})"
