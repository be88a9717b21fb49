"""Whether two run directories hold the same run, to the bit, but for what depends on the clock and on the machine."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gptlab.system.files import read_json

VOLATILE = {"seconds", "tokens_per_sec", "mfu"}
TIMES = VOLATILE | {"train_seconds", "total_seconds", "peak_memory_bytes", "run_dir"}
# Of a checkpoint: also the sizes of files that have times in them, when the last point was logged, where data lie.
NOT_THE_RUN = TIMES | {"lengths", "logged", "path", "dir", "cache_dir"}


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in VOLATILE} for row in csv.DictReader(file)]


def points(run_dir: Path) -> dict[str, Any]:
    """Of each tag what TensorBoard shows: (step, value), without what depends on the clock."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tags, shown = events.Tags(), {}
    for tag in tags["scalars"]:  # two files of one second may be read in either order
        series = sorted(events.Scalars(tag), key=lambda event: event.wall_time)
        shown[tag] = [(event.step, event.value) for event in series]
    for tag in tags["tensors"]:
        series = sorted(events.Tensors(tag), key=lambda event: event.wall_time)
        shown[tag] = [(event.step, event.tensor_proto.string_val[:]) for event in series]
    for tag, series in shown.items():
        if tag in VOLATILE:
            shown[tag] = [step for step, _ in series]
        if tag.endswith("_by_seconds"):
            assert [x for x, _ in series] == sorted(x for x, _ in series)
            shown[tag] = [value for _, value in series]
    return shown


def unlike(a: Any, b: Any, place: str, skipped: set[str]) -> Iterator[str]:
    """Where two nests of dicts, lists and tensors differ, a line each; keys in `skipped` are passed over."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            if key in skipped:
                continue
            if key not in a or key not in b:
                yield f"{place}.{key}: only in the {'second' if key in b else 'first'}"
            else:
                yield from unlike(a[key], b[key], f"{place}.{key}", skipped)
    elif isinstance(a, (list, tuple)) and type(a) is type(b):
        if len(a) != len(b):
            yield f"{place}: {len(a)} and {len(b)} of them"
        for i, (left, right) in enumerate(zip(a, b)):  # noqa: B905 (the lengths were spoken of)
            yield from unlike(left, right, f"{place}[{i}]", skipped)
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if not same_bits(a, b):
            count = (a != b).sum().item() if a.shape == b.shape else f"shapes {list(a.shape)} and {list(b.shape)},"
            yield f"{place}: {count} of {a.numel()} numbers differ"
    elif type(a) is not type(b) or not (a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))):
        yield f"{place}: {a!r:.80} and {b!r:.80}"


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    left, right = (x.cpu().reshape(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(left, right)


def differences(a: Path, b: Path, *but: str) -> Iterator[str]:
    """Where run directory `b` differs from `a`, a line each: checkpoints, curves, samples and summary.

    Args:
        but: keys of checkpoints and summary that may differ.
    """
    kept = (sorted(path.name for path in (d / "checkpoints").glob("*.ckpt")) for d in (a, b))
    yield from unlike(*kept, "checkpoints", set())
    for name in ("last.ckpt", "best.ckpt"):
        left, right = (torch.load(d / "checkpoints" / name, weights_only=True) for d in (a, b))
        yield from unlike(left, right, name, NOT_THE_RUN | {*but})
    yield from unlike(rows(a), rows(b), "metrics.csv", set())
    yield from unlike(points(a), points(b), "TensorBoard", set())
    texts = [d / "samples.txt" for d in (a, b) if (a / "samples.txt").exists() or (b / "samples.txt").exists()]
    yield from unlike(*(text.read_text().split("\n") for text in texts), "samples.txt", set()) if texts else ()
    yield from unlike(*(read_json(d / "summary.json") for d in (a, b)), "summary.json", TIMES | {*but})


def assert_same_run(a: Path, b: Path, *but: str) -> None:
    found = list(differences(a, b, *but))
    assert not found, "\n".join(found)
