"""The LightningModule: one cross entropy in nats per token, its exact mean over the validation split, what to save."""

from __future__ import annotations

import math
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from gptlab import checkpoint, metrics
from gptlab.dataset import IGNORED, Batch
from gptlab.errors import UserError
from gptlab.models import Model
from gptlab.optim import OptimConfig, ScheduleConfig, build_optimizer, lr_scale
from gptlab.tokenizers import Tokenizer


class LMModule(L.LightningModule):
    """Trains `model` on batches (idx, targets), (B, T) int64 each.

    Args:
        config: the run's resolved config as a plain dict; it travels in the checkpoint, as
        data_sha256: that of the raw text.
        fused: let the optimizer make its step in one kernel (not with fp16's gradient scaling).
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        config: dict[str, Any],
        data_sha256: str,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.optim = optim
        self.schedule = schedule
        self.config = config
        self.data_sha256 = data_sha256
        self.fused = fused
        self.val_metrics: dict[str, float] = {}
        self.val_step = 0
        self.test_metrics: dict[str, float] = {}
        self.grad_norm: Tensor | None = None
        # No buffers: DDP would make them the first process's, and bf16_true would round them.
        self.loss_sum = torch.zeros(())  # of the micro-batches since the last log
        self.loss_count = 0
        self.token_bytes = torch.from_numpy(tokenizer.token_bytes())
        self._sums: list[Tensor] = []

    def cross_entropy(self, batch: Batch, reduction: str) -> Tensor:
        idx, targets = batch
        logits = self.model(idx)  # (B, T, V)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction=reduction
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.cross_entropy(batch, "mean")
        self.loss_sum = self.loss_sum + loss.detach()  # on the loss's device from the first one on
        self.loss_count += 1
        return loss

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        """Clip to the global norm; Lightning's own way refuses fused optimizers under autocast."""
        limit = self.optim.grad_clip or float("inf")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]  # faster than walking the model
        self.grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit)

    def train_loss(self) -> float:
        """Mean loss of the micro-batches since the last call, over all processes."""
        total = cast(Tensor, self.trainer.strategy.reduce(self.loss_sum.clone(), reduce_op="mean"))
        mean = total.item() / max(self.loss_count, 1)
        self.loss_sum = torch.zeros_like(self.loss_sum)
        self.loss_count = 0
        return mean

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        targets = batch[1]
        counted = targets != IGNORED
        self.token_bytes = self.token_bytes.to(targets.device)
        text_bytes = (self.token_bytes[targets.clamp(min=0)] * counted).sum()
        self._sums.append(torch.stack((self.cross_entropy(batch, "sum"), counted.sum(), text_bytes)))

    test_step = validation_step

    def _evaluation(self, split: str) -> dict[str, float]:
        """Loss and the like of all batches of a split, over all processes."""
        sums = torch.stack(self._sums).cpu().double().sum(0)  # in double: no digit is lost over many batches
        self._sums.clear()
        if self.trainer.world_size > 1:
            sums = cast(Tensor, self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum")).cpu()
        nats, tokens, text_bytes = sums.tolist()
        return metrics.evaluation(nats, int(tokens), int(text_bytes), split)

    def on_test_epoch_end(self) -> None:
        self.test_metrics = self._evaluation("test")

    def on_validation_epoch_end(self) -> None:
        self.val_metrics = self._evaluation("val")
        self.val_step = self.trainer.global_step
        loss = self.val_metrics["val/loss"]
        if not math.isfinite(loss):
            raise UserError(
                f"val/loss is {loss} at step {self.val_step}: the run has diverged; lower "
                f"optim.lr={self.optim.lr:g} or raise schedule.warmup_steps={self.schedule.warmup_steps}"
            )
        self.log("val/loss", loss, logger=False, sync_dist=True)  # for early stopping

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = build_optimizer(self.model, self.optim, self.fused)
        scheduler = LambdaLR(optimizer, lambda step: lr_scale(step, self.schedule))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_at(self, step: int) -> float:
        """The learning rate that optimizer step 0, 1, 2, ... is made with."""
        return self.optim.lr * lr_scale(step, self.schedule)

    def on_save_checkpoint(self, content: dict[str, Any]) -> None:
        step = content["global_step"]
        measured = self.val_metrics if self.val_step == step else {}
        content[checkpoint.KEY] = checkpoint.describe(
            self.model, self.tokenizer, self.config, self.data_sha256, step, measured
        )
        content["losses"] = {"sum": self.loss_sum.cpu(), "count": self.loss_count}
        content["random"] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            content["random"]["cuda"] = torch.cuda.get_rng_state_all()

    def on_load_checkpoint(self, content: dict[str, Any]) -> None:
        self.loss_sum = content["losses"]["sum"].to(self.device)
        self.loss_count = content["losses"]["count"]
        self.val_metrics = content[checkpoint.KEY]["metrics"]
        self.val_step = content["global_step"]
        self._random = content["random"]

    def on_train_start(self) -> None:
        """Put the random states back last, when nothing draws any more before the first step."""
        random = self.__dict__.pop("_random", None)
        if random is None:
            return
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(random["cuda"])
