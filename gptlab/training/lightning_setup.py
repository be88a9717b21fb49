"""What is done to Lightning, in one place: a quicker import, hooks that are skipped, what its loops must be told.

Lightning is imported inside the functions: `import_lightning` has to come first.
"""

from __future__ import annotations

import inspect
import logging
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.profilers import Profiler

# torchmetrics, which Lightning imports, takes these whole where it finds them, for plots and metrics not used here.
UNUSED = ("scipy", "matplotlib", "transformers", "torchvision")


def import_lightning() -> None:
    """Import Lightning without what it would bring along, half of its seconds; its messages go through our logging.

    To be called before anything else imports it.
    """
    from unittest.mock import patch

    from lightning_utilities.core import imports

    with patch.multiple(imports, create=True, _version=version_if_used, package_available=available_and_used):
        import torchmetrics  # noqa: F401
    import lightning  # noqa: F401

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def version_if_used(package: str) -> str:
    if package in UNUSED:
        raise PackageNotFoundError(package)
    return version(package)


def available_and_used(package: str) -> bool:
    return package not in UNUSED and find_spec(package) is not None


# What costs time in every step and does nothing there.

HOOKS_OF_A_STEP = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)
NOTHING = nullcontext()


def no_profiler() -> Profiler:
    """A profiler that does nothing: Lightning's own, which measures nothing either, runs a generator for each hook."""
    from lightning.pytorch.profilers import PassThroughProfiler

    class NoProfiler(PassThroughProfiler):
        def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
            return NOTHING

    return NoProfiler()


def skip_idle_hooks(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Let Lightning skip what does nothing in a step: empty hooks, and sending batches that are on the device."""
    import lightning as L

    callbacks = [(callback, L.Callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    for owner, base in ((module, L.LightningModule), *callbacks):
        for hook in HOOKS_OF_A_STEP:
            if getattr(type(owner), hook) is getattr(base, hook):
                setattr(owner, hook, None)
    trainer.strategy.batch_to_device = keep_on_device  # type: ignore[method-assign]
    step = type(module).training_step
    step.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]  # which is asked for at each step


def keep_on_device(batch: Any, *args: Any, **kwargs: Any) -> Any:
    """The batch itself: our loaders make batches on the device."""
    return batch


def set_attribute(module: L.LightningModule, name: str, value: Any) -> None:
    """A quicker `__setattr__` for a LightningModule: Lightning sets one name forty times a step, by nn.Module's way."""
    if name == "_current_fx_name":
        module.__dict__[name] = value
    else:
        nn.Module.__setattr__(module, name, value)


def count_micro_batches(content: dict[str, Any], accumulation: int) -> None:
    """Let the loops of a resumed run know how many micro-batches have been, of which a step may have another number.

    Args:
        content: of the checkpoint, in which Lightning's counts are changed.
    """
    progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    seen = content["global_step"] * accumulation
    for counts in (progress["total"], progress["current"]):
        open_ones = counts["processed"] - counts["completed"]  # the last, where it was saved at its end
        counts.update(ready=seen, started=seen, processed=seen, completed=seen - open_ones)
