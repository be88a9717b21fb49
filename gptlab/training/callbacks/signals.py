"""Listen to the signals that stop a run: SIGINT, SIGTERM and, under SLURM, SIGUSR1."""

from __future__ import annotations

import logging
import os
import signal
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class Signals:
    """Remembers the first signal, so that the run can finish its step and save; a second one stops it at once.

    Attributes:
        heard: the number of the signal that came; None before one came.
    """

    def __init__(self) -> None:
        self.heard: int | None = None
        self._previous: dict[int, Any] = {}

    def listen(self) -> None:
        """Take over the signals' handlers; SIGUSR1 only under SLURM, which sends it before the time limit."""
        for number in (signal.SIGINT, signal.SIGTERM, *((signal.SIGUSR1,) if "SLURM_JOB_ID" in os.environ else ())):
            self._previous.setdefault(number, signal.signal(number, self._remember))

    def restore(self) -> None:
        """Give the signals their previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @property
    def asks_for_requeue(self) -> bool:
        """Whether the signal was SLURM's, after which the job goes back into the queue."""
        return self.heard is not None and self.heard == getattr(signal, "SIGUSR1", None)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number; that of SIGTERM where another process heard the signal."""
        return 128 + (self.heard or signal.SIGTERM)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.heard = number
        log.warning("finishing the step and saving; once more stops at once")
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
