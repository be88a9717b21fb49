"""A bare loop over the parts of a run: the same model, kernels, optimizer and batches, without Lightning."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from gptlab.benchmarks.alternation import Parent, make_steps
from gptlab.data.batches import Share, TrainBatches
from gptlab.training import placement
from gptlab.training.fit import MicroBatches
from gptlab.training.module import LMModule, parameters_of
from gptlab.training.objectives.next_token import NextToken
from gptlab.training.run import assemble
from gptlab.training.schedules import lr_scale
from gptlab.training.settings import Settings
from gptlab.training.threads import set_threads


def make_bare_steps(settings: Settings, parent: Parent) -> None:
    """Make steps of the bare loop whenever the parent asks for them."""
    module, step = bare_step(settings)
    make_steps(parent, step, module.device)


def bare_step(settings: Settings) -> tuple[LMModule, Callable[[], None]]:
    """Return a run's module, compiled as in the run, and a function that makes one of its steps in plain Python."""
    place = placement.decide(settings)
    settings = next(iter(MicroBatches(settings, place)))
    run = assemble(settings, place)
    set_threads(run.threads)
    data, module, device = run.data, run.module, place.device
    module.to(device, torch.bfloat16 if place.precision == "bf16_true" else None)
    autocast = torch.autocast(place.kind, torch.bfloat16) if place.precision == "bf16" else nullcontext()
    optimizer = module.configure_optimizers()["optimizer"]
    parameters = parameters_of(optimizer)
    assert isinstance(module.objective, NextToken)
    model_loss = module.objective.model_loss
    accumulation = data.config.accumulation(1)
    batches = iter(
        TrainBatches(
            data.prepared.ids("train"),
            seed=settings.seed,
            batch_size=settings.data.batch_size,
            block_size=data.block_size,
            share=Share(0, 1, accumulation),
            device=device,
            distinct=settings.data.overfit_batches,
            order=settings.data.order,
        )
    )
    number = 0

    def step() -> None:
        nonlocal number
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_scale(number, settings.schedule)
        for _ in range(accumulation):
            batch = next(batches)
            with autocast:
                loss = model_loss(module.model, batch.idx, batch.targets, "mean", batch.noise) / accumulation
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.optim.grad_clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        number += 1
        if number % settings.trainer.log_every == 0:
            print(f"step {number}: loss {loss.item() * accumulation:.4f}")

    return module, step
