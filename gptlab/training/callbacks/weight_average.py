"""An average of the weights over the last steps, by which a run is measured, and which its checkpoints hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from gptlab.distributed.sharding import reshard
from gptlab.training.module import LMModule

KEY = "average"  # of a weight, among what the optimizer knows of it: saved, moved and spread as its moments are


class Averaging(L.Callback):
    """Keeps an exponential moving average of the weights, in whose place it stands in validations and at the end.

    Each optimizer step that is made moves it by 1 - decay towards the weights; in the beginning by 9 / (10 + step), so
    that the first weights are soon forgotten. The order among callbacks matters: what is to see the average comes
    before it, on_validation_end goes back to the weights.

    Args:
        decay: per optimizer step; 0: no average, at no cost.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._averages: list[Tensor] = []
        self._weights: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        swap_weights_and_average(trainer)  # of a run that goes on: see `with_averaged_weights`
        (optimizer,) = trainer.optimizers
        if self.decay:
            optimizer.register_step_post_hook(lambda optimizer, *args: self._follow(optimizer, trainer.global_step))
        else:  # it was another before
            for state in optimizer.state.values():
                state.pop(KEY, None)

    @torch.no_grad()
    def _follow(self, optimizer: Optimizer, step: int) -> None:
        """After step 0, 1, 2, ..., which fp16's scaling does not make where it is not finite."""
        bad: Tensor | None = getattr(optimizer, "found_inf", None)
        if bad is not None and bad.is_cpu and bad:
            return
        if not self._averages:
            trained = {p: state for p, state in optimizer.state.items() if state}
            for p, state in trained.items():
                state.setdefault(KEY, p.detach().clone())
            self._weights, self._averages = list(trained), [state[KEY] for state in trained.values()]
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        if bad is None or bad.is_cpu:
            torch._foreach_lerp_(self._averages, self._weights, share)
        else:  # nothing waits for the GPU
            changes = torch._foreach_sub(self._weights, self._averages)
            torch._foreach_mul_(changes, share * (1 - bad))
            torch._foreach_add_(self._averages, changes)

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        swap_weights_and_average(trainer)

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        swap_weights_and_average(trainer)

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        swap_weights_and_average(trainer)  # for good


@torch.no_grad()
def swap_weights_and_average(trainer: L.Trainer) -> None:
    """Let the weights and their averages change places; where there are none nothing happens."""
    (optimizer,) = trainer.optimizers
    pairs = [(p, state[KEY]) for p, state in optimizer.state.items() if KEY in state]
    for weight, average in pairs:
        held = average.clone()
        average.copy_(weight)
        weight.copy_(held)
    if pairs:
        assert isinstance(trainer.lightning_module, LMModule)
        reshard(trainer.lightning_module.model)


@contextmanager
def with_averaged_weights(trainer: L.Trainer) -> Iterator[None]:
    """Inside, a checkpoint has the averages as the model's weights, and the weights as the optimizer's averages."""
    swap_weights_and_average(trainer)
    yield
    swap_weights_and_average(trainer)
