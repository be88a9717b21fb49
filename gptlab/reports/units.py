"""Decide in which unit runs compare: nats per token where the tokens are the same, else bits per byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptlab.reports.records import Run
from gptlab.runs.upgrades import DATA

NATS, BITS = "val/loss", "val/bpb"
HELD_OUT = ("data.split", "data.val_fraction", "data.test_fraction")  # which part of a text is validated on
IN_BITS = {"test/loss": "test/bpb"}  # other losses than `NATS`, and what compares in their place


def higher_is_better(metric: str) -> bool:
    """Return whether a measure is a share of what is right, as of answers, and no loss."""
    return metric.rpartition("/")[2].startswith(("accuracy", "stop_rate"))


def vocabularies(runs: Sequence[Run]) -> list[str]:
    """Return the distinct vocabularies of runs in words: "bpe of 512"; where one does not say its size, the names."""
    found = [(_of(run, "tokenizer", "tokenizer.name"), _of(run, "vocab_size", "tokenizer.vocab_size")) for run in runs]
    sized = all(size is not None for _, size in found)
    return list(dict.fromkeys(f"{name} of {size}" if sized else str(name) for name, size in found))


def _of(run: Run, fact: str, key: str) -> Any:
    """Return a fact about a run's data; of an older run, whose summary lacks it, what its config says."""
    return run.summary.get(f"data.{fact}", run.config.get(key))


def texts(runs: Sequence[Run]) -> int:
    """Return how many different texts, or parts of a text, the runs are validated on."""
    held_out = [
        tuple(run.config.get(key, DATA.get(key.partition(".")[2])) for key in HELD_OUT) for run in runs
    ]  # an older run had no choice
    return len({(run.summary["data.sha256"], *parts) for run, parts in zip(runs, held_out, strict=True)})


def deciding_metric(runs: Sequence[Run]) -> str:
    """Return the metric by which the runs are sorted and compared unless another is asked for."""
    return NATS if len(vocabularies(runs)) == 1 and texts(runs) == 1 else BITS


def notes(runs: Sequence[Run], metric: str, chosen: bool) -> list[str]:
    """Return sentences that say which numbers of these runs do not compare.

    Args:
        metric: the metric of the report.
        chosen: whether it was chosen by `deciding_metric`.
    """
    known, different = vocabularies(runs), texts(runs)
    if deciding_metric(runs) == NATS:
        return []
    found = []
    if len(known) > 1:
        which = f"{', '.join(known[:5])}{', ...' if len(known) > 5 else ''}"
        if metric.endswith("loss"):
            instead = IN_BITS.get(metric, BITS)
            found.append(f"{metric} does not compare tokenizers ({which}): use --metric {instead}")
        elif chosen:
            found.append(
                f"the vocabularies differ ({which}): {BITS}, bits per byte, decides; val/loss, train and gap are nats "
                f"per token and do not compare"
            )
        if any(name.startswith("word") for name in known):
            found.append("tokenizer=word leaves out white space and rare words: not even bits per byte compare with it")
    if different > 1:
        found.append(
            f"the runs are validated on {different} different texts: neither nats per token nor bits per byte say "
            f"which model is better"
        )
    return found
