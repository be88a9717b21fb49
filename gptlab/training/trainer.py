"""Build Lightning's Trainer for a run, with its callbacks and loggers, and train."""

from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from gptlab.distributed import processes, strategies
from gptlab.models.heads import has_logits
from gptlab.runs.identity import does, flatten
from gptlab.system import accelerator
from gptlab.system.files import explain_write_errors
from gptlab.system.terminal import pasteable
from gptlab.training.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, Enough, Lengths, Patience
from gptlab.training.callbacks.curves import Curves
from gptlab.training.callbacks.diagnostics import TOKENS, Diagnostics
from gptlab.training.callbacks.progress_bar import Progress
from gptlab.training.callbacks.samples import AnswerSamples, Samples
from gptlab.training.callbacks.weight_average import Averaging
from gptlab.training.lightning_setup import no_profiler, skip_idle_hooks
from gptlab.training.loggers import CSVLogger, TensorBoard, silent_writer_thread
from gptlab.training.module import LMModule
from gptlab.training.resume import Start
from gptlab.training.run import Run

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed", "bf16_true": "bf16-true"}
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)  # by the disk
log = logging.getLogger(__name__)


def build_trainer(run: Run, run_dir: Path, start: Start | None, callbacks: Sequence[L.Callback]) -> L.Trainer:
    """Build the Trainer of a run.

    Args:
        start: the checkpoint that the run resumes from, if any.
        callbacks: further callbacks; they are called after the run's own.
    """
    settings, place = run.settings, run.place
    accumulation = run.data.config.accumulation(place.world_size)
    board = TensorBoard(run_dir)
    trainer = L.Trainer(
        accelerator=settings.trainer.accelerator,
        devices=place.processes_here,
        num_nodes=place.machines,
        strategy=strategies.build_strategy(place.strategy, place.world_size),
        precision=PRECISIONS[place.precision],  # type: ignore[arg-type]
        max_steps=settings.trainer.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulation,
        val_check_interval=settings.trainer.val_every * accumulation,  # counted in micro-batches
        check_val_every_n_epoch=None,
        num_sanity_val_steps=-1 if settings.trainer.val_first else 0,  # the whole split, or nothing
        logger=[board, CSVLogger(run_dir / "metrics.csv", columns(run.module))],
        callbacks=[*run_callbacks(run, run_dir, start, board), *callbacks],
        profiler=no_profiler(),
        plugins=[AtomicCheckpointIO(start.take() if start else None), strategies.environment()],
        deterministic=settings.deterministic,
        default_root_dir=run_dir,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,  # no_grad: a compiled model is then compiled once less
    )
    check_order(trainer.callbacks)  # type: ignore[attr-defined]
    skip_idle_hooks(trainer, run.module)
    return trainer


def columns(module: LMModule) -> list[str]:
    """Return the columns of metrics.csv beside those of every run."""
    found = [f"train/{name}" for name in module.objective.figures]
    names = module.objective.measures + (module.answers.measures if module.answers else ())
    names += ("text_loss",) if module.text_loss else ()
    return found + [f"val/{name}" for name in names]


def run_callbacks(run: Run, run_dir: Path, start: Start | None, board: TensorBoard) -> list[L.Callback]:
    """Return a run's own callbacks, in the order in which they are called."""
    t, model = run.settings.trainer, run.module.model
    peak = accelerator.peak_flops(torch.device(run.place.kind), run.place.precision) * run.place.world_size
    hparams = {key: value for key, value in flatten(run.config).items() if does(key, "shown")}
    hparams["parameters"] = model.num_parameters()
    curves = Curves(t.log_every, run.tokens_per_step, model.flops_per_token(), peak, hparams)
    checkpoints = Checkpoints(
        run_dir / "checkpoints",
        t.val_every,
        every=t.checkpoint_every,
        minutes=t.checkpoint_minutes,
        keep=t.keep_checkpoints,
        points=t.log_every,
        patience=t.patience,
        whole=start is not None and start.path.name == "last.ckpt",
    )
    path, samples = run_dir / "samples.txt", list[L.Callback]()
    if run.module.answers is not None:
        samples.append(AnswerSamples(path))
    elif has_logits(model):
        samples.append(Samples(path, t.sample_prompt, t.sample_tokens, t.sample_temperature, run.settings.seed))
    callbacks: list[L.Callback] = [curves, *samples, checkpoints, Progress(curves), Lengths(run_dir), Averaging(t.ema)]
    if t.diagnose_every:
        callbacks.append(Diagnostics(t.diagnose_every, run.data.fixed_batch(TOKENS), board))
    if run.settings.task.enough is not None:
        callbacks.append(Enough(run.settings.task.enough))
    if t.patience is not None:
        callbacks.append(Patience("val/loss", patience=t.patience))
    return callbacks


def check_order(callbacks: Sequence[L.Callback]) -> None:
    """Check that callbacks which use the average of the weights come before the one that swaps it out again.

    Raises:
        RuntimeError: one of them comes after it.
    """
    kinds = [type(callback) for callback in callbacks]
    average = kinds.index(Averaging)
    for kind in (Curves, Samples):
        if kind in kinds[average:]:
            raise RuntimeError(f"{kind.__name__} must stand before Averaging among the callbacks: it sees the average")


def callback(trainer: L.Trainer, kind: type[Any]) -> Any:
    """Return the trainer's callback of this class."""
    return next(each for each in trainer.callbacks if isinstance(each, kind))  # type: ignore[attr-defined]


def train(trainer: L.Trainer, run: Run, run_dir: Path, start: Start | None) -> None:
    """Train to the end, and evaluate on the test split if there is one.

    Raises:
        UserError: see `fit.fit`.
        SystemExit, KeyboardInterrupt: a signal stopped the run.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time
    if run.place.kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with quiet_lightning(), silent_writer_thread(), logging_redirect_tqdm():  # which prints messages above the bar
        try:
            processes.begin(run_dir)
            trainer.fit(run.module, datamodule=run.data, ckpt_path=start.path if start else None)
            if run.data.has_test:
                trainer.test(run.module, datamodule=run.data, verbose=False)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # our handlers are not set; Lightning exits with 1
                if trainer.state.fn == "test":
                    log.warning(
                        "stopped before the test part was measured; go on with: python -m gptlab.train %s",
                        pasteable("resume", os.path.relpath(run_dir)),
                    )
                raise KeyboardInterrupt from None
            raise
        except Exception as error:
            strategies.end_children(trainer)
            if isinstance(error, OSError) and error.errno in REFUSED:
                with explain_write_errors(run_dir):
                    raise
            raise
        finally:
            torch.use_deterministic_algorithms(False)  # Lightning leaves them on


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Inside, Lightning's warnings that do not apply here are silenced."""
    with warnings.catch_warnings():
        # Our loaders are plain iterables, to which its advice on workers does not apply.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Early stopping and diagnostics may be turned off when a run is resumed.
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning's use of torch's pytrees
        yield
