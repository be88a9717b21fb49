"""Show a progress bar over the steps of a run."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from gptlab.training.callbacks.curves import Curves
from gptlab.training.module import LMModule


class Progress(ProgressBar):
    """A tqdm bar over optimizer steps, with loss, tokens/s and the time left; hidden if stderr is not a terminal."""

    def __init__(self, curves: Curves) -> None:
        super().__init__()
        self.curves = curves
        self.bar: tqdm | None = None
        self._disabled = False

    def disable(self) -> None:
        """Hide the bar: Lightning calls this in every process except the first."""
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
