"""Decide which charts a run's page has, what they are called, and which lines each shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gptlab.reports.units import unit

TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "grad_norm": "Norm of the gradient, before clipping",
    "gap": "val/loss - train/loss",
    "bpb": "Bits per byte",
    "ppl": "Perplexity",
    "tokens_per_sec": "Tokens per second",
    "mfu": "Share of the device's peak (mfu)",
    "kl": "KL from the reference",
    "kl_of_answer": "KL of an answer from the reference",
    "f1": "F1",
    "text_loss": "Loss on the text beside",
    "stop_rate": "Share of answers that end",
    "answer_tokens": "Length of an answer",
    "judged_reward": "Reward by the reward model",
    "win_rate": "Share of answers that win against the reference's",
}
"""What a chart is called; others are called by the column."""
TOGETHER = {"accuracy_": "Accuracy by kind", "pass_at_": "Right within k answers (pass at k)"}
PAIRS = {"chosen_": "of chosen and rejected answers", "rejected_": "of chosen and rejected answers"}
FOLDED = (TITLES["bpb"], TITLES["ppl"], TITLES["gap"], TITLES["tokens_per_sec"], TITLES["mfu"])


def charts_of(columns: Iterable[str], task: str, is_one_loss: bool) -> list[dict[str, Any]]:
    """Return the charts of a run in the order of the page, each with "title", "unit", "lines" and "folded".

    Lines of the same measure, of the training part and of a held-out one, share a chart.

    Args:
        columns: those of metrics.csv that have numbers.
        is_one_loss: whether train/loss and val/loss are one measure.
    """
    found: dict[str, list[str]] = {}
    for column in columns:
        kind = column.rpartition("/")[2]
        found.setdefault(column if kind == "loss" and not is_one_loss else title(kind), []).append(column)
    order = sorted(found, key=lambda name: (name in FOLDED, FOLDED.index(name) if name in FOLDED else 0))
    return [
        {"title": name, "unit": unit(found[name][0], (task,)), "lines": found[name], "folded": name in FOLDED}
        for name in order
    ]


def title(kind: str) -> str:
    """Return what the chart of a measure is called."""
    for beginning, name in TOGETHER.items():
        if kind.startswith(beginning):
            return name
    for beginning, ending in PAIRS.items():
        if kind.startswith(beginning):
            return f"{title(kind.removeprefix(beginning))} {ending}"
    words = kind.replace("_", " ")
    return TITLES.get(kind, words[:1].upper() + words[1:])
