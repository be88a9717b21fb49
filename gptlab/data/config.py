"""The config group `data`, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.data.split import Split
from gptlab.data.text_options import TextOptions
from gptlab.system.errors import UserError
from gptlab.system.files import user_folder

ORDERS = ("random", "epochs")


@dataclass(frozen=True)
class DataConfig:
    """Which text a run trains on, how it is split, and in what batches."""

    name: str
    path: Any
    """A file, a folder, or a list of them; for the Hugging Face hub, a data set's name."""
    text_key: str
    format: str
    separator: str | None
    named_parts: Any
    line_ends: str
    """Of this and the four before, see `TextOptions`."""
    subset: str | None
    revision: str | None
    max_documents: int | None
    dir: str | None
    cache_dir: str | None
    split: str
    val_fraction: float
    test_fraction: float
    batch_size: int
    micro_batch_size: Any
    """A number; None: the whole share of a device; "auto": as many as fit a GPU's memory or a CPU's caches."""
    val_batch_size: int | None
    overfit_batches: int
    order: str
    """random or epochs, see `TrainBatches`."""
    problems: Any = None
    """Of generated examples, such as data=arithmetic, see `chat.sources.NODES`; None: of the others."""

    def __post_init__(self) -> None:
        Split(self.split, self.val_fraction, self.test_fraction)  # raises if they are out of range
        assert self.reading  # raises, too
        if not all(isinstance(path, str) and path for path in self.paths):
            raise UserError(
                f"data.path={self.path!r}: must be a file, a folder, or a list of them; a name like 123 needs quotes: "
                f"\"data.path='123'\""
            )
        if self.max_documents is not None and self.max_documents < 1:
            raise UserError(f"data.max_documents={self.max_documents}: must be at least 1, or null for all")
        if self.batch_size < 1:
            raise UserError(f"data.batch_size={self.batch_size}: must be at least 1")
        micro = self.micro_batch_size
        if micro not in (None, "auto") and not (type(micro) is int and micro >= 1):
            raise UserError(f"data.micro_batch_size={micro}: must be at least 1, null for all at once, or auto")
        if self.val_batch_size is not None and self.val_batch_size < 1:
            raise UserError(f"data.val_batch_size={self.val_batch_size}: must be at least 1, or null to choose it")
        if self.overfit_batches < 0:
            raise UserError(f"data.overfit_batches={self.overfit_batches}: must be at least 0")
        if self.order not in ORDERS:
            raise UserError(f"data.order={self.order}: must be one of {', '.join(ORDERS)}")

    @property
    def reading(self) -> TextOptions:
        """How the files of a text are read."""
        return TextOptions(self.text_key, self.format, self.separator, self.named_parts, self.line_ends)

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        if self.path is None:
            return []
        return list(self.path) if isinstance(self.path, (list, tuple)) else [self.path]

    def folder(self, which: str) -> Path:
        """Return `dir` or `cache_dir`, by default the user's cache folder."""
        return user_folder(getattr(self, which))

    def accumulation(self, world_size: int) -> int:
        """Return how many micro-batches each process runs per optimizer step.

        Raises:
            UserError: batch_size is not a multiple of micro_batch_size times the processes.
        """
        micro = self.micro_batch_size or max(self.batch_size // world_size, 1)
        if self.batch_size % (micro * world_size):
            raise UserError(
                f"data.batch_size={self.batch_size} is the whole optimizer step and must be a multiple of "
                f"data.micro_batch_size={micro} times {world_size} device(s)"
            )
        return self.batch_size // (micro * world_size)
