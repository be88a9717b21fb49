"""Log curves and throughput, and measure the time that training itself took."""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning as L

from gptlab.training.callbacks.checkpoints import Checkpoints
from gptlab.training.callbacks.nonfinite import check_finite
from gptlab.training.loggers import TensorBoard
from gptlab.training.module import LMModule

SHOWN = {
    "val/accuracy": ", {:.1%} right",
    "val/reward": ", reward {:.3f} (sampled)",
    "val/judged_reward": ", {:.3f} by the reward model",
    "val/kl": ", {:.2f} nats from the reference",
    "val/win_rate": ", wins {:.1%}",
    "val/text_loss": ", {:.4f} on the text",
}
"""What a line of the log says of a validation, where it was measured."""
log = logging.getLogger(__name__)


class Curves(L.Callback):
    """Logs training every `log_every` steps and each validation, and measures the time that training itself took.

    Only here does training wait for the device, so that the steps between two logs never do.

    Args:
        tokens_per_step: tokens of one optimizer step, over all devices.
        flops_per_token: FLOPs of forward and backward; 0 for a model without matrix products, which has no mfu.
        peak_flops: the peak of all devices together, in FLOP/s.
        hparams: the values of TensorBoard's HParams tab, by dotted key.
    """

    def __init__(
        self,
        log_every: int,
        tokens_per_step: int,
        flops_per_token: int,
        peak_flops: float,
        hparams: dict[str, Any],
    ) -> None:
        self.log_every = log_every
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.hparams = hparams
        self.train_seconds = 0.0
        self.last: dict[str, float] = {}
        self._since: float | None = None  # when training continued after a pause
        self._step = self._skipped = 0
        self._logged: tuple[int, float] = (0, 0.0)  # step and train_seconds of the last log

    def _pause(self) -> None:
        if self._since is not None:
            self.train_seconds += time.perf_counter() - self._since
            self._since = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is None:  # a resumed run has them already
            for logger in trainer.loggers:
                logger.log_hyperparams(self.hparams)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        assert isinstance(pl_module, LMModule)
        self._skipped = int(pl_module.skipped)

    def on_train_batch_start(self, *args: Any) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if step == self._step:
            return  # in the middle of an accumulation
        self._step = step
        if step % self.log_every == 0 or step == trainer.max_steps:
            self._log(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step > self._logged[0]:  # stopped early, between two points
            self._step = trainer.global_step
            self._log(trainer, pl_module)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LMModule)
        check_finite(trainer, pl_module)
        measured, grad_norm = pl_module.training_metrics(), float(pl_module.grad_norm)  # waits for the device
        if (skipped := int(pl_module.skipped)) > self._skipped:
            log.warning("step %d: %d steps so far had no finite gradients and were left out", self._step, skipped)
            self._skipped = skipped
        training = self._since is not None
        self._pause()
        if training:
            self._since = time.perf_counter()
        steps, seconds = self._step - self._logged[0], self.train_seconds - self._logged[1]
        self._logged = (self._step, self.train_seconds)
        speed = steps * self.tokens_per_step / seconds
        self.last = {
            **measured,
            "lr": pl_module.lr_at(self._step - 1),  # the optimizer already has the rate of the next step
            "grad_norm": grad_norm,
            "tokens_per_sec": speed,
        }
        if self.flops_per_token:
            self.last["mfu"] = speed * self.flops_per_token / self.peak_flops
        self._write(trainer, self.last)

    def _write(self, trainer: L.Trainer, values: dict[str, float]) -> None:
        seen = {"tokens": trainer.global_step * self.tokens_per_step, "seconds": round(self.train_seconds, 3)}
        for logger in trainer.loggers:
            logger.log_metrics(seen | values, trainer.global_step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pause()
        assert isinstance(pl_module, LMModule)
        if not trainer.sanity_checking:
            check_finite(trainer, pl_module)  # before the weights are used

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LMModule)
        metrics = dict(pl_module.val_metrics)
        if self.last:
            if pl_module.objective.compares:
                metrics["val/gap"] = metrics["val/loss"] - self.last["train/loss"]
            self._sum_up(trainer, metrics)
        self._write(trainer, metrics)
        train = f", train/loss {self.last['train/loss']:.4f}" if self.last else ""
        bits = f" ({metrics['val/bpb']:.4f} bits per byte)" if "val/bpb" in metrics else ""
        more = "".join(words.format(metrics[key]) for key, words in SHOWN.items() if key in metrics)
        step, steps = trainer.global_step, trainer.max_steps
        log.info("step %d of %d: val/loss %.4f%s%s%s", step, steps, metrics["val/loss"], bits, train, more)

    def _sum_up(self, trainer: L.Trainer, metrics: dict[str, float]) -> None:
        """Log the columns that TensorBoard's HParams tab shows by default: the first five tags in the alphabet."""
        assert isinstance(trainer.checkpoint_callback, Checkpoints)
        names = (name for name in ("loss", "bpb", "gap") if f"val/{name}" in metrics)
        columns = {f"eval/val_{name}": metrics[f"val/{name}"] for name in names}
        columns["eval/train_loss"] = self.last["train/loss"]
        columns["eval/best_val_loss"] = min(metrics["val/loss"], trainer.checkpoint_callback.best_val_loss)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                logger.log_metrics(columns, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return {"train_seconds": self.train_seconds + running, "last": self.last, "logged": self._logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_seconds, self.last = state_dict["train_seconds"], state_dict["last"]
        self._logged = tuple(state_dict["logged"])
