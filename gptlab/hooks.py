"""Lightning's hooks at their least cost: a step calls a hundred, and a small model notices those that do nothing."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
from lightning.pytorch.profilers import PassThroughProfiler

OF_A_STEP = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)
NOTHING = nullcontext()


class NoProfiler(PassThroughProfiler):
    """Lightning's own, which measures nothing either, runs a generator for each hook of each callback."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return NOTHING


def spare(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Let Lightning pass over what does nothing in a step: empty hooks, and sending batches that are there already."""
    callbacks = [(callback, L.Callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    for owner, base in ((module, L.LightningModule), *callbacks):
        for hook in OF_A_STEP:
            if getattr(type(owner), hook) is getattr(base, hook):
                setattr(owner, hook, None)
    trainer.strategy.batch_to_device = there  # type: ignore[method-assign]
    step = type(module).training_step
    step.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]  # which is asked for at each step


def there(batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Our loaders make batches on the device."""
    return batch
