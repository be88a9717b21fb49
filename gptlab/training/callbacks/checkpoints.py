"""Save a run's checkpoints, so that it can be stopped at any moment and resumed as if it had not been."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.plugins.io import TorchCheckpointIO

from gptlab.distributed.processes import requeue
from gptlab.formats import checkpoint
from gptlab.system.files import explain_write_errors, sync
from gptlab.system.terminal import pasteable
from gptlab.training.callbacks.nonfinite import check_finite
from gptlab.training.callbacks.signals import Signals
from gptlab.training.callbacks.weight_average import with_averaged_weights
from gptlab.training.module import LMModule
from gptlab.training.resume import appended_files, machine_facts

log = logging.getLogger(__name__)


class Patience(EarlyStopping):
    """Early stopping; a resumed run may have a different patience than before."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})


class Enough(L.Callback):
    """Ends a run at the first validation with so large a share of right answers."""

    def __init__(self, share: float) -> None:
        self.share = share

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LMModule)
        if not trainer.sanity_checking and pl_module.val_metrics.get("val/accuracy", 0.0) >= self.share:
            trainer.should_stop = True


class Lengths(L.Callback):
    """Adds to each checkpoint the lengths of the files that a run appends to, for `cut_curves`, and the machine."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        with explain_write_errors(self.run_dir):
            for path in (*appended_files(self.run_dir), self.run_dir):
                sync(path)
        checkpoint["lengths"] = {path.name: path.stat().st_size for path in appended_files(self.run_dir)}
        checkpoint["machine"] = machine_facts()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints so that a kill at any moment leaves either the old file or the new one.

    Args:
        content: the content of the checkpoint that the run resumes from, already read and verified; None for a new run.
    """

    def __init__(self, content: dict[str, Any] | None) -> None:
        self.content = content

    def save_checkpoint(self, checkpoint_: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        checkpoint.save_checkpoint(checkpoint_, Path(path))

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        assert self.content is not None
        content, self.content = self.content, None  # so that its memory can be freed
        return content


class Checkpoints(Checkpoint):
    """Saves last.ckpt, and best.ckpt after a validation that is better than all before it.

    last.ckpt is saved after each validation, every `every` steps (0: never), at the first point of the curves at least
    `minutes` after the previous save, and after a signal, see `Signals`. A signal lets the step finish and exits
    with 128 + its number: 130, 143 or 138; after SIGUSR1 the job is also put back into SLURM's queue.

    Args:
        val_every: steps between two validations.
        minutes: minutes between two saves; None: no limit.
        keep: how many checkpoints to keep beside best.ckpt; those before the last are step_<N>.ckpt.
        points: steps between two points of the curves, the only steps at which several processes ask each other.
        patience: the patience of early stopping; a resumed run must know whether it changed.
        whole: whether a resumed run starts from last.ckpt and not from an older checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        val_every: int,
        every: int,
        minutes: float | None,
        keep: int,
        points: int,
        patience: int | None,
        whole: bool,
    ) -> None:
        self.folder = folder
        self.val_every = val_every
        self.every = every
        self.seconds = float("inf") if minutes is None else 60 * minutes
        self.keep = keep
        self.points = points
        self.patience = patience
        self.best_val_loss = float("inf")
        self.best_step = 0
        self._out_of_patience = False
        self._whole = whole
        self._last_step: int | None = None  # the step of last.ckpt
        self._saved = time.monotonic()
        self._signals = Signals()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._signals.restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._signals.restore()

    def _any(self, trainer: L.Trainer, mine: bool) -> bool:
        """Return whether `mine` is true in any process, so that all of them do the same after the same step."""
        return mine if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(mine, all=False)

    def _stop(self, trainer: L.Trainer) -> None:
        log.warning("stopped after step %d", trainer.global_step)
        if self._signals.asks_for_requeue and trainer.is_global_zero:
            requeue()
        else:
            log.warning(
                "go on with: python -m gptlab.train %s", pasteable("resume", os.path.relpath(self.folder.parent))
            )
        raise SystemExit(self._signals.exit_code)

    def _save(self, trainer: L.Trainer) -> None:
        last, step = self.folder / "last.ckpt", trainer.global_step
        if trainer.is_global_zero and self.keep > 1 and self._last_step is not None:
            with explain_write_errors(self.folder):
                _link(last, checkpoint.step_file(self.folder, self._last_step))
        with with_averaged_weights(trainer):
            trainer.save_checkpoint(last)
        if trainer.is_global_zero:  # now that the new one is there
            before = [path for number, path in checkpoint.kept_checkpoints(self.folder) if number < step]
            for _, path in checkpoint.kept_checkpoints(self.folder):
                if path not in before[: self.keep - 1]:
                    path.unlink()
        self._last_step = step
        self._saved = time.monotonic()

    def on_sanity_check_start(self, *args: Any) -> None:
        self._signals.listen()

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.sanity_checking and trainer.world_size == 1 and self._signals.heard is not None:
            self._stop(trainer)  # before the first step there is nothing to finish

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._any(trainer, self._signals.heard is not None):
            self._stop(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, content: dict[str, Any]) -> None:
        self._last_step = content["global_step"] if self._whole else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._signals.listen()  # no sanity check came before where trainer.val_first is false
        trainer.should_stop = trainer.should_stop or self._out_of_patience  # Lightning does not save this

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        step = trainer.global_step
        if step == trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates, whatever the interval
        if (trainer.fit_loop.epoch_loop.batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if step % self.val_every == 0 or step == trainer.max_steps:
            return  # a validation follows, and then a checkpoint
        point = step % self.points == 0
        assert isinstance(trainer.lightning_module, LMModule)
        if step % trainer.lightning_module.objective.settles_at:
            return  # the next step learns from the same answers
        stop = (point or trainer.world_size == 1) and self._any(trainer, self._signals.heard is not None)
        due = point and self._any(trainer, time.monotonic() > self._saved + self.seconds)
        if stop or due or (self.every and step % self.every == 0):
            check_finite(trainer, trainer.lightning_module)
            self._save(trainer)
        if stop:
            self._stop(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, LMModule)
        loss = pl_module.val_metrics["val/loss"]
        self._out_of_patience = trainer.should_stop and trainer.global_step < trainer.max_steps
        if loss < self.best_val_loss:
            self.best_val_loss, self.best_step = loss, trainer.global_step
            with with_averaged_weights(trainer):
                trainer.save_checkpoint(self.folder / "best.ckpt")  # before last.ckpt, which records it
        self._save(trainer)
        continues = trainer.global_step < trainer.max_steps and not trainer.should_stop  # else the run is finished
        if continues and self._any(trainer, self._signals.heard is not None):
            self._stop(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_val_loss": self.best_val_loss,
            "best_step": self.best_step,
            "patience": self.patience if self._out_of_patience else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_val_loss, self.best_step = state_dict["best_val_loss"], state_dict["best_step"]
        self._out_of_patience = state_dict["patience"] is not None and state_dict["patience"] == self.patience


def _link(path: Path, name: Path) -> None:
    """Give the file at `path` the second name `name`, replacing what had it; without hard links move the file."""
    new = name.with_suffix(".new")
    new.unlink(missing_ok=True)
    try:
        os.link(path, new)
    except OSError:  # the file system has no hard links
        path.replace(name)
    else:
        new.replace(name)
