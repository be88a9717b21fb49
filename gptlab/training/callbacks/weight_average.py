"""Average the weights over the last steps; validations measure the average, and checkpoints hold it."""

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

KEY = "average"  # in the optimizer's state of a weight, so that it is saved, moved and sharded as the moments are


class Averaging(L.Callback):
    """Keeps an exponential moving average of the weights, which replaces them in validations and after training.

    Each optimizer step moves it by 1 - decay towards the weights; early steps by 9 / (10 + step), so that the first
    weights are soon forgotten. on_validation_end swaps the weights back, so callbacks that need the average must
    come before this one.

    Args:
        decay: decay per optimizer step; 0: no average, at no cost.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._averages: list[Tensor] = []
        self._weights: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        swap_weights_and_average(trainer)  # of a resumed run, see `with_averaged_weights`
        (optimizer,) = trainer.optimizers
        if self.decay:
            optimizer.register_step_post_hook(lambda optimizer, *args: self._follow(optimizer, trainer.global_step))
        else:  # the resumed run may have had an average
            for state in optimizer.state.values():
                state.pop(KEY, None)

    @torch.no_grad()
    def _follow(self, optimizer: Optimizer, step: int) -> None:
        """Update the average after step 0, 1, 2, ...; not after a step that fp16 skipped."""
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
        else:  # without waiting for the GPU
            changes = torch._foreach_sub(self._weights, self._averages)
            torch._foreach_mul_(changes, share * (1 - bad))
            torch._foreach_add_(self._averages, changes)

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        swap_weights_and_average(trainer)

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        swap_weights_and_average(trainer)

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        swap_weights_and_average(trainer)  # the average replaces the weights for good


@torch.no_grad()
def swap_weights_and_average(trainer: L.Trainer) -> None:
    """Swap the weights with their averages, if there are any."""
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
    """Swap weights and averages inside, so that a checkpoint has the averages as its model's weights."""
    swap_weights_and_average(trainer)
    yield
    swap_weights_and_average(trainer)
