"""Find where a training step became nonfinite, and end the run with an explanation."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from gptlab.data.batches import Share
from gptlab.distributed.sharding import gathered_model
from gptlab.formats import checkpoint
from gptlab.system.errors import UserError
from gptlab.training.module import LMModule


def check_finite(trainer: L.Trainer, module: LMModule) -> None:
    """End the run if the gradients of a step were not finite; called where training waits for the device anyway.

    The weights are still those from before that step, so the step is repeated to find the first bad layer. Weights and
    `batches` of the step are saved as nonfinite_step_<N>.ckpt, which is otherwise an ordinary checkpoint.

    Raises:
        UserError: the gradients of a step were not finite.
    """
    step = int(module.bad_step)
    if step < 0:
        return
    loader: Any = copy(trainer.train_dataloader)
    micros = trainer.accumulate_grad_batches * trainer.world_size
    loader.share = Share(0, 1, micros)  # the micro-batches of all processes
    batches = [loader.batch(step, micro) for micro in range(micros)]
    with trainer.precision_plugin.train_step_context(), gathered_model(module.model) as model:
        losses = ((lambda batch=batch: module.objective.diagnosed(model, batch, trainer)) for batch in batches)
        where = next(filter(None, (first_bad_layer(model, loss) for loss in losses)), "not found again")
    content = {
        **module.described(trainer.strategy.lightning_module_state_dict(), step, {}),
        "batches": [
            {key: value.cpu() for key, value in getattr(batch, "_asdict", dict)().items() if isinstance(value, Tensor)}
            for batch in batches
        ],
    }
    file = Path(trainer.default_root_dir) / f"nonfinite_step_{step + 1}.ckpt"
    if trainer.is_global_zero:
        checkpoint.save_checkpoint(content, file)
    raise UserError(
        f"the gradients of step {step + 1} are not finite (learning rate {module.lr_at(step):g}); the first layer that "
        f"went bad: {where}. The weights before it and its batches are in {file}. Lower optim.lr={module.optim.lr:g}, "
        f"raise schedule.warmup_steps={module.schedule.warmup_steps}, or leave such steps out with "
        f"trainer.nonfinite=skip; resume= goes on from the last checkpoint"
    )


@torch.enable_grad()
def first_bad_layer(model: nn.Module, loss_of_step: Callable[[], Tensor]) -> str | None:
    """Return where a training step becomes nonfinite: a module's name and "forward" or "backward"; None: nowhere.

    Args:
        loss_of_step: computes the loss with `model`, (), without a compiled call, which runs no hooks.
    """
    bad: list[str] = []
    training = model.training

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bad and not output.isfinite().all():
                bad.append(name)

        return hook

    model.train()
    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        loss = loss_of_step()
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if bad:
        return f"{bad[0]}, forward"
    if not loss.isfinite():
        return "the loss"
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named])
    for (name, _), gradient in reversed(list(zip(named, gradients, strict=True))):
        if not gradient.isfinite().all():
            return f"{name}, backward"
    return None
