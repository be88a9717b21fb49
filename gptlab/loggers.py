"""Where a run's curves go: metrics.csv and TensorBoard events, both without doubled steps after a resume."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from gptlab.files import write_atomically, writing

FIELDS = ("step", "train/loss", "val/loss", "val/bpb", "val/ppl", "lr", "grad_norm", "tokens_per_sec", "mfu")


class CSVLogger(Logger):
    """One row a call, written through at once; Lightning's own starts the file anew when a run is resumed.

    Args:
        resumed_at: rows of later steps are dropped: the run is about to write them again.
    """

    def __init__(self, path: Path, resumed_at: int | None = None) -> None:
        super().__init__()
        self.path = path
        rows: list[dict[str, Any]] = []
        if resumed_at is not None and path.is_file():
            with path.open(newline="") as file:
                complete = (row for row in csv.DictReader(file) if None not in row.values())
                rows = [row for row in complete if int(row["step"]) <= resumed_at]
        self._start(rows)

    @rank_zero_only
    def _start(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, lambda file: file.write(text.getvalue().encode()))

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with writing(self.path.parent), self.path.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS, extrasaction="ignore").writerow({"step": step, **metrics})

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml holds them."""


class TensorBoard(TensorBoardLogger):
    """Events in the run directory itself.

    Args:
        resumed_at: events of later steps are hidden: the run is about to write them again.
    """

    def __init__(self, run_dir: Path, resumed_at: int | None = None) -> None:
        purge_step = None if resumed_at is None else resumed_at + 1
        super().__init__(run_dir, name="", version="", default_hp_metric=False, purge_step=purge_step, flush_secs=10)

    def save(self) -> None:
        """Flush, and leave out Lightning's hparams.yaml: config.yaml has them."""
        self.experiment.flush()
