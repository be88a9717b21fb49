"""Read the texts that a run wrote after its validations."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gptlab.system.errors import UserError
from gptlab.system.files import read_bytes
from gptlab.system.terminal import harmless

HEADING = re.compile(r"^--- step (\d{1,18})$", re.MULTILINE)
MOST_LETTERS = 200_000  # of all samples on a page


def read_samples(run_dir: Path, validated: Collection[int]) -> list[dict[str, Any]]:
    """Return the samples of samples.txt in order, each with its "step" and "text"; none if there is no such file.

    A line of a sample that looks like a heading is none unless it names a later validation.

    Args:
        validated: the steps of the validations; empty if they are not known.
    """
    try:
        text = read_bytes(run_dir / "samples.txt").decode(errors="replace")
    except UserError:
        return []
    found: list[tuple[int, int, int]] = []  # step, and where the heading begins and ends
    for match in HEADING.finditer(text):
        step = int(match[1])
        if (not validated or step in validated) and (not found or step > found[-1][0]):
            found.append((step, match.start(), match.end() + 1))
    ends = [*(start for _, start, _ in found), len(text)][1:]
    return [
        {"step": step, "text": harmless(text[start:end].removesuffix("\n"))}
        for (step, _, start), end in zip(found, ends, strict=True)
    ]


def some(samples: list[dict[str, Any]], most: int = MOST_LETTERS) -> list[dict[str, Any]]:
    """Return the samples that fit into so many letters, evenly over the run: the last always, cut if it is too long."""
    total = sum(len(sample["text"]) for sample in samples)
    stride = 1
    while total > most and stride < len(samples):
        stride *= 2
        total = sum(len(sample["text"]) for sample in samples[::-1][::stride])
    return [{**sample, "text": sample["text"][:most]} for sample in samples[::-1][::stride][::-1]]
