"""Train one run, from checked settings to its summary."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.memory import is_oom_error

from gptlab.runs.directory import PAGE, first_process, write_config
from gptlab.runs.environment import environment
from gptlab.system.errors import UserError
from gptlab.system.files import explain_write_errors, write_json
from gptlab.system.machine import keep_freed_memory, rows_that_fit_caches
from gptlab.training import placement
from gptlab.training.optimizers import describe_groups, parameter_groups
from gptlab.training.placement import Placement
from gptlab.training.resume import Start, cut_curves, remove_temporary_files, starting_point
from gptlab.training.run import Run, assemble
from gptlab.training.settings import Settings
from gptlab.training.summary import summarise
from gptlab.training.threads import computing_with
from gptlab.training.trainer import build_trainer, train

log = logging.getLogger(__name__)


def fit(
    settings: Settings,
    run_dir: Path,
    resume: bool = False,
    callbacks: Sequence[L.Callback] = (),
) -> dict[str, Any]:
    """Train, or resume training, in `run_dir`; returns the summary that is written there last.

    Args:
        resume: start from the run's newest checkpoint, or from the beginning if it has none yet.
        callbacks: further callbacks; they are called after the run's own.

    Raises:
        UserError: something was refused before the first step, the disk cannot be written, a step's gradients are not
            finite, or memory ran out.
        SystemExit: a signal stopped the run; the current step was finished and saved.
    """
    place = placement.decide(settings)
    with only_first_process_logs():
        attempts = MicroBatches(settings, place)
        for attempt in attempts:  # only one, unless memory runs out
            with attempts.smaller_if_out_of_memory():
                return fit_once(attempt, place, run_dir, resume, callbacks)
            resume = resume or (run_dir / "config.yaml").exists()
    raise AssertionError("the last attempt returns or raises")


def fit_once(
    settings: Settings, place: Placement, run_dir: Path, resume: bool, callbacks: Sequence[L.Callback]
) -> dict[str, Any]:
    """Train as `fit` does, with micro-batches of a given size."""
    started = time.perf_counter()
    start = starting_point(run_dir) if resume else None
    run = assemble(settings, place, start)
    write_run_files(run_dir, run, start)
    trainer = build_trainer(run, run_dir, start, callbacks)
    with computing_with(run.threads):
        train(trainer, run, run_dir, start)
    return summarise(trainer, run, run_dir, time.perf_counter() - started)


@contextmanager
def only_first_process_logs() -> Iterator[None]:
    """Inside, only the first of several processes logs; the others log errors only."""
    before = logging.root.manager.disable
    try:
        if not first_process():
            logging.disable(logging.WARNING)
        yield
    finally:
        logging.disable(before)


class MicroBatches:
    """Iterates over copies of the settings with ever smaller micro-batches, as long as memory runs out.

    On a CPU, `auto` begins with what fits its caches; on a GPU with the whole share of a process, halved until it fits.
    Each copy is tried inside `smaller_if_out_of_memory`, which adds the next one.

    Raises:
        UserError: `auto` was given for several processes on GPUs.
    """

    def __init__(self, settings: Settings, place: Placement) -> None:
        self.settings, self.place = settings, place
        self.share = settings.data.batch_size // place.world_size
        self.auto = settings.data.micro_batch_size == "auto"
        if self.auto and place.world_size > 1 and place.kind != "cpu":
            raise UserError(
                f"data.micro_batch_size=auto is for one process, and there are {place.world_size}: give a number"
            )
        if place.kind == "cpu":
            keep_freed_memory()
        self.sizes = [self._first_size()]

    def _first_size(self) -> int | None:
        """Return the size that is tried first; None: the whole batch at once."""
        if not self.auto:
            return self.settings.data.micro_batch_size
        if self.place.kind == "cpu" and self.share:
            return rows_that_fit_caches(self.share, self.settings.model.get("block_size") or 1024)
        return self.share

    def __iter__(self) -> Iterator[Settings]:
        for size in self.sizes:  # the list grows during the loop
            yield replace(self.settings, data=replace(self.settings.data, micro_batch_size=size))

    @contextmanager
    def smaller_if_out_of_memory(self) -> Iterator[None]:
        """Inside, running out of memory is not an error if a smaller size can be tried next.

        Raises:
            UserError: no smaller size can be tried, or the user gave the size.
        """
        try:
            yield
            return
        except (RuntimeError, MemoryError) as error:
            if not (is_oom_error(error) or isinstance(error, MemoryError)):
                raise
            at_once = self.sizes[-1] or self.share
            smaller = [size for size in range(1, at_once) if self.share % size == 0 and 2 * size <= at_once]
            if not (self.auto and smaller and self.place.world_size == 1):
                other = "" if self.auto else ", or auto"
                way_out = f"data.micro_batch_size={smaller[-1]}{other}" if smaller else "a smaller model.block_size"
                raise UserError(
                    f"out of memory with {at_once} sequences at once: try {way_out}, "
                    f"model.gradient_checkpointing=true, or data.val_batch_size=1 if it was in a validation"
                ) from error
            self.sizes.append(smaller[-1])
        # Outside the handler, since its traceback keeps the model alive. A checkpoint fits any micro-batch size.
        log.warning("out of memory with %d sequences at once: going on with %d, accumulated", *self.sizes[-2:])
        gc.collect()
        torch.cuda.empty_cache()


def write_run_files(run_dir: Path, run: Run, start: Start | None) -> None:
    """Log what is run, and write its config and environment; cut curves and samples to those before `start`.

    Raises:
        UserError: the folder cannot be written.
    """
    model = run.module.model
    groups = describe_groups(parameter_groups(model, run.settings.optim, run.matrices))
    log.info("run directory: %s", os.path.relpath(run_dir))
    log.info(
        "%s on %s: %s parameters, %s",
        run.settings.name,
        run.place.description,
        f"{model.num_parameters():,}",
        run.data.in_words(),
    )
    if start is not None:
        log.info("going on after step %d", start.step)
    log.info("%s: %s", run.settings.optim.name, groups)
    if (trained := run.trained_parameters) < model.num_parameters():
        log.info("trained: %s of %s parameters", f"{trained:,}", f"{model.num_parameters():,}")
    if not first_process():
        return
    with explain_write_errors(run_dir):
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name in ("summary.json", PAGE):  # of an earlier end
            (run_dir / name).unlink(missing_ok=True)
        remove_temporary_files(run_dir)
        cut_curves(run_dir, start.lengths if start else {})
    write_config(run_dir / "config.yaml", run.config)
    if start is None:
        write_json(run_dir / "environment.json", environment(run.place.device_name, run.data.prepared.sha256))
