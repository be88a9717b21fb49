"""One run, from checked settings to its summary."""

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

from gptlab.runs.directory import first_process, write_config
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
        resume: from the run's newest checkpoint, or from the beginning where there is none yet.
        callbacks: beside the run's own, after them.

    Raises:
        UserError: anything that can be refused before the first step, a disk that cannot be written, a step whose
            gradients are not finite, too little memory.
        SystemExit: stopped by a signal, after the step was finished and saved.
    """
    place = placement.decide(settings)
    with one_voice():
        attempts = MicroBatches(settings, place)
        for attempt in attempts:  # one, unless memory runs out
            with attempts.smaller_where_memory_runs_out():
                return fit_once(attempt, place, run_dir, resume, callbacks)
            resume = resume or (run_dir / "config.yaml").exists()
    raise AssertionError("the last attempt returns or raises")


def fit_once(
    settings: Settings, place: Placement, run_dir: Path, resume: bool, callbacks: Sequence[L.Callback]
) -> dict[str, Any]:
    """As `fit`, with micro-batches of a given size."""
    started = time.perf_counter()
    start = starting_point(run_dir) if resume else None
    run = assemble(settings, place, start)
    write_run_files(run_dir, run, start)
    trainer = build_trainer(run, run_dir, start, callbacks)
    train(trainer, run, run_dir, start)
    return summarise(trainer, run, run_dir, time.perf_counter() - started)


@contextmanager
def one_voice() -> Iterator[None]:
    """Let the first of several processes speak for all; the others' errors are heard all the same."""
    before = logging.root.manager.disable
    try:
        if not first_process():
            logging.disable(logging.WARNING)
        yield
    finally:
        logging.disable(before)


class MicroBatches:
    """The settings with the sizes of micro-batch that are tried, one after the other while memory runs out.

    On a CPU `auto` is what fits its caches, elsewhere the whole share of a process, halved until it fits. Iterating
    yields settings; a size that did not fit is left with `smaller_where_memory_runs_out`.

    Raises:
        UserError: `auto` with several processes on GPUs.
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
        """The size that is tried first; None: all at once."""
        if not self.auto:
            return self.settings.data.micro_batch_size
        if self.place.kind == "cpu" and self.share:
            return rows_that_fit_caches(self.share, self.settings.model.get("block_size") or 1024)
        return self.share

    def __iter__(self) -> Iterator[Settings]:
        for size in self.sizes:  # which grows meanwhile
            yield replace(self.settings, data=replace(self.settings.data, micro_batch_size=size))

    @contextmanager
    def smaller_where_memory_runs_out(self) -> Iterator[None]:
        """Inside, too little memory is not an error if there is a smaller size to try.

        Raises:
            UserError: there is none, or the size was given.
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
        # Out of the handler, whose traceback holds on to the model; the checkpoint serves any number.
        log.warning("out of memory with %d sequences at once: going on with %d, accumulated", *self.sizes[-2:])
        gc.collect()
        torch.cuda.empty_cache()


def write_run_files(run_dir: Path, run: Run, start: Start | None) -> None:
    """Say what is run, and let the run's folder hold it: its config, its environment, no more of its past than `start`.

    Raises:
        UserError: the folder cannot be written.
    """
    model, prepared, tokenizer = run.module.model, run.data.prepared, run.module.tokenizer
    groups = describe_groups(parameter_groups(model, run.settings.optim, run.matrices))
    log.info("run directory: %s", os.path.relpath(run_dir))
    log.info(
        "%s on %s: %s parameters, %s of %s",
        run.settings.name,
        run.place.words,
        f"{model.num_parameters():,}",
        f"{len(prepared.ids('train')):,} training and {len(prepared.ids('val')):,} validation tokens",
        f"{prepared.name} (tokenizer={tokenizer.name}, {tokenizer.vocab_size:,} in the vocabulary)",
    )
    if start is not None:
        log.info("going on after step %d", start.step)
    log.info("%s: %s", run.settings.optim.name, groups)
    if not first_process():
        return
    with explain_write_errors(run_dir):
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run_dir / "summary.json").unlink(missing_ok=True)  # until this run, too, has finished
        remove_temporary_files(run_dir)
        cut_curves(run_dir, start.lengths if start else {})
    write_config(run_dir / "config.yaml", run.config)
    if start is None:
        write_json(run_dir / "environment.json", environment(run.place.device_name, prepared.sha256))
