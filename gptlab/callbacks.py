"""What goes on around the steps: curves and throughput, samples, the progress bar."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from gptlab.data.tokenizers import Tokenizer
from gptlab.distributed.sharding import whole
from gptlab.faults import check_finite
from gptlab.generation.context import Context
from gptlab.generation.decoding import generate, prompt_ids
from gptlab.generation.sampling import Sampling
from gptlab.loggers import TensorBoard
from gptlab.models import Model
from gptlab.module import LMModule
from gptlab.saving import Checkpoints
from gptlab.system.errors import quoted
from gptlab.system.files import writing
from gptlab.system.terminal import harmless

log = logging.getLogger(__name__)


class Curves(L.Callback):
    """Logs training every `log_every` steps and each validation; keeps the time that training itself took.

    The one place that waits for the device, so that steps between two logs never do.

    Args:
        tokens_per_step: of one optimizer step, over all devices.
        flops_per_token: forward and backward; 0 where the model multiplies no matrices (no mfu then).
        peak_flops: what all devices together can reach, FLOP/s.
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
        self._since: float | None = None  # when training went on after a pause
        self._step = self._skipped = 0
        self._logged: tuple[int, float] = (0, 0.0)  # step and train_seconds of the last log

    def _pause(self) -> None:
        if self._since is not None:
            self.train_seconds += time.perf_counter() - self._since
            self._since = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is None:  # a resumed run has written them
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
        loss, grad_norm = pl_module.train_loss(), float(pl_module.grad_norm)  # waits for the device
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
            "train/loss": loss,
            "lr": pl_module.lr_at(self._step - 1),  # the optimizer's is the next step's already
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
            check_finite(trainer, pl_module)  # before anything is made of the weights

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LMModule)
        metrics = dict(pl_module.val_metrics)
        if self.last:
            metrics["val/gap"] = metrics["val/loss"] - self.last["train/loss"]
            self._sum_up(trainer, metrics)
        self._write(trainer, metrics)
        train = f", train/loss {self.last['train/loss']:.4f}" if self.last else ""
        log.info(
            "step %d of %d: val/loss %.4f (%.4f bits per byte)%s",
            trainer.global_step,
            trainer.max_steps,
            metrics["val/loss"],
            metrics["val/bpb"],
            train,
        )

    def _sum_up(self, trainer: L.Trainer, metrics: dict[str, float]) -> None:
        """The columns that TensorBoard's HParams tab shows unasked: the first five tags in the alphabet."""
        assert isinstance(trainer.checkpoint_callback, Checkpoints)
        columns = {f"eval/val_{name}": metrics[f"val/{name}"] for name in ("loss", "bpb", "gap")}
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


class Samples(L.Callback):
    """After each validation, lets the model continue `prompt`; into samples.txt, TensorBoard and the log.

    The draw is a function of (seed, step): it neither touches nor depends on the training's random state.
    """

    def __init__(self, path: Path, prompt: str, tokens: int, temperature: float, seed: int) -> None:
        self.path = path
        self.prompt = prompt
        self.tokens = tokens
        self.sampling = Sampling(temperature=temperature)
        self.seed = seed

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LMModule)
        if unknown := pl_module.tokenizer.unknown(self.prompt):
            log.warning(
                "trainer.sample_prompt has characters that the training text lacks, left out: %s", quoted(unknown)
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.tokens == 0:
            return
        assert isinstance(pl_module, LMModule)
        with whole(pl_module.model) as model:
            if trainer.is_global_zero:
                self._draw(trainer, model, pl_module.tokenizer)

    def _draw(self, trainer: L.Trainer, model: Model, tokenizer: Tokenizer) -> None:
        step = trainer.global_step
        ids = prompt_ids(tokenizer, self.prompt)
        context = Context(model, [ids], self.tokens)
        generator = torch.Generator().manual_seed(self.seed + step)
        with trainer.precision_plugin.val_step_context():
            ids += [int(tokens) for tokens, _ in generate(context, self.tokens, self.sampling, [generator])]
        text = harmless(tokenizer.decode(ids))
        with writing(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(f"--- step {step}\n{text}\n")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                logger.experiment.add_text("sample", "    " + text.replace("\n", "\n    "), step)
        log.info("a sample at step %d:\n%s\n", step, text.strip("\n"))


class Progress(ProgressBar):
    """One tqdm bar over optimizer steps, with loss, tokens/s and the time left; silent where stderr is no terminal."""

    def __init__(self, curves: Curves) -> None:
        super().__init__()
        self.curves = curves
        self.bar: tqdm | None = None
        self._disabled = False

    def disable(self) -> None:
        """Lightning's request to all processes but the first."""
        self._disabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit="step",
            disable=True if self._disabled else None,
            dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]",
        )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        assert self.bar is not None
        assert isinstance(pl_module, LMModule)
        step = trainer.global_step
        if self.bar.disable or step == self.bar.n:
            return
        if self.curves.last:
            val = pl_module.val_metrics.get("val/loss", float("nan"))
            self.bar.set_postfix_str(
                f"loss {self.curves.last['train/loss']:.3f}, val {val:.3f}, "
                f"{self.curves.last['tokens_per_sec']:,.0f} tokens/s",
                refresh=False,
            )
        self.bar.update(step - self.bar.n)

    def on_train_end(self, *args: Any) -> None:
        self.close()

    def on_exception(self, *args: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
