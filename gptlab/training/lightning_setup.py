"""Adapt Lightning: a quicker import, skipped hooks, and the micro-batch counts of resumed loops.

The functions import Lightning themselves, since `import_lightning` must come first.
"""

from __future__ import annotations

import inspect
import logging
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.profilers import Profiler

# Lightning imports torchmetrics, which imports these packages, if present, for plots and metrics not used here.
UNUSED = ("scipy", "matplotlib", "transformers", "torchvision")


def import_lightning() -> None:
    """Import Lightning without the packages in `UNUSED`, in half the time, and send its messages through our logging.

    Must be called before anything else imports Lightning.
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
    """Return the version of a package.

    Raises:
        PackageNotFoundError: it is not installed, or in `UNUSED`.
    """
    if package in UNUSED:
        raise PackageNotFoundError(package)
    return version(package)


def available_and_used(package: str) -> bool:
    """Return whether a package is installed and not in `UNUSED`."""
    return package not in UNUSED and find_spec(package) is not None


HOOKS_OF_A_STEP = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)
NOTHING = nullcontext()
PLAIN = (str, type(None), Tensor)


def no_profiler() -> Profiler:
    """Return a profiler that does nothing; Lightning's default does nothing too, but runs a generator for each hook."""
    from lightning.pytorch.profilers import PassThroughProfiler

    class NoProfiler(PassThroughProfiler):
        def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
            return NOTHING

    return NoProfiler()


def skip_idle_hooks(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Make Lightning skip empty hooks, and the transfer of batches that are on the device already."""
    import lightning as L

    callbacks = [(callback, L.Callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    for owner, base in ((module, L.LightningModule), *callbacks):
        for hook in HOOKS_OF_A_STEP:
            if getattr(type(owner), hook) is getattr(base, hook):
                setattr(owner, hook, None)
    trainer.strategy.batch_to_device = keep_on_device  # type: ignore[method-assign]
    step = type(module).training_step
    step.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]  # Lightning inspects it at each step


def keep_on_device(batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the batch itself, since our loaders create batches on the device."""
    return batch


def set_attribute(module: L.LightningModule, name: str, value: Any) -> None:
    """Set an attribute of a LightningModule quickly: Lightning sets `_current_fx_name` forty times a step.

    A plain value in the place of a plain value needs none of the checks of `nn.Module`.
    """
    if type(value) in PLAIN and name in module.__dict__:
        module.__dict__[name] = value
    else:
        nn.Module.__setattr__(module, name, value)


def count_micro_batches(content: dict[str, Any], accumulation: int) -> None:
    """Set the micro-batch counts of a resumed run, in which a step may have a different number of micro-batches.

    Args:
        content: the checkpoint's content, whose counts are changed in place.
        accumulation: micro-batches of one optimizer step from now on.
    """
    progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    seen = content["global_step"] * accumulation
    for counts in (progress["total"], progress["current"]):
        open_ones = counts["processed"] - counts["completed"]  # 1 if saved at the end of a micro-batch
        counts.update(ready=seen, started=seen, processed=seen, completed=seen - open_ones)
