"""Choose how many threads of a CPU compute a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gptlab.models import Network
from gptlab.system.threads import worth
from gptlab.training.placement import Placement
from gptlab.training.resume import Start
from gptlab.training.settings import Settings


def choose_threads(settings: Settings, place: Placement, model: Network, block_size: int, start: Start | None) -> int:
    """Return the number of threads: trainer.threads, or by auto as many as pay for the FLOPs of a micro-batch.

    A resumed run keeps its number, on which the last bits of a float depend, if there are as many cores. The rule knows
    nothing of the time, so that the same run has the same threads, and the same bits, each time.
    """
    most, given = torch.get_num_threads(), settings.trainer.threads
    if place.kind != "cpu":
        return most
    if given != "auto":
        return int(given)
    if start is not None and (before := start.threads_of(most)) is not None:
        return before
    rows = settings.data.batch_size // (place.world_size * settings.data.accumulation(place.world_size))
    return worth(model.flops_per_token() * rows * block_size, most)


def set_threads(threads: int) -> None:
    """Let torch compute with so many threads, without a call if it does already.

    Any call keeps MKL from giving a small product fewer threads than there are, which costs a tenth of a step.
    """
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Inside, torch computes with so many threads."""
    before = torch.get_num_threads()
    set_threads(threads)
    try:
        yield
    finally:
        set_threads(before)
