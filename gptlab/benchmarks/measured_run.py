"""Measure our own training as a user runs it, in a process that takes turns with others, see `alternation`."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import PassThroughProfiler

from gptlab import models
from gptlab.benchmarks.alternation import Parent, Stopwatch, about_here, memory, wait_for
from gptlab.system import accelerator
from gptlab.training import fit, placement
from gptlab.training.datamodule import LMDataModule
from gptlab.training.module import LMModule
from gptlab.training.placement import Placement
from gptlab.training.settings import Settings

PARTS = ("loader", "forward", "backward", "optimizer", "logging", "lightning")
OPTIM = ("lr", "weight_decay", "beta1", "beta2", "grad_clip")  # the plain loop takes these keys from a run's optimizer
ENDLESS = 1 << 40  # steps, more than are ever made


class Shares(PassThroughProfiler):
    """Measures how long each part of a step takes, between `begin` and `end`.

    Lightning tells a profiler when each of its nested actions starts and stops; time counts for the innermost one.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.seconds: dict[str, float] | None = None
        self._within: list[str] = []
        self._since = 0.0

    def begin(self) -> None:
        self.seconds, self._within = defaultdict(float), ["lightning"]
        wait_for(self.device)
        self._since = time.perf_counter()

    def end(self) -> dict[str, float]:
        """Return the share of the time of each of PARTS; the shares add up to 1."""
        assert self.seconds is not None
        self._count()
        seconds, self.seconds = self.seconds, None
        whole = sum(seconds[part] for part in PARTS)
        return {part: seconds[part] / whole for part in PARTS}

    def _count(self) -> None:
        assert self.seconds is not None
        wait_for(self.device)
        now = time.perf_counter()
        self.seconds[self._within[-1]] += now - self._since
        self._since = now

    def start(self, action_name: str) -> None:
        if self.seconds is not None:
            self._count()
            self._within.append(part(action_name) or self._within[-1])

    def stop(self, action_name: str) -> None:
        if self.seconds is None or len(self._within) == 1:  # the action started before `begin`
            return
        self._count()
        self._within.pop()
        if action_name.endswith(".configure_gradient_clipping"):  # the optimizer's own work follows
            self._within[-1] = "optimizer"


def part(action: str) -> str | None:
    """Return the part of a step that an action belongs to; None: the part of the enclosing action.

    It is one of PARTS, or "turns" for `MeasuredSteps`. Everything else that callbacks do is "logging".
    """
    owner, _, rest = action.partition("]")
    hook = rest.rpartition(".")[2]
    if owner == "[Callback":
        return "turns" if rest.startswith(MeasuredSteps.__qualname__) else "logging"
    if hook in ("train_dataloader_next", "batch_to_device"):
        return "loader"
    if hook in ("configure_gradient_clipping", "optimizer_zero_grad"):
        return "optimizer"
    return {"training_step": "forward", "backward": "backward"}.get(hook) if owner == "[Strategy" else None


class MeasuredSteps(L.Callback):
    """Lets a run make as many steps as each order asks for, and sends their times; ends when the parent is gone.

    A step lasts from the end of one step's callbacks to the end of the next step's callbacks.

    Args:
        parent: the process that sends orders; None in all processes but the first.
    """

    def __init__(self, settings: Settings, place: Placement, parent: Parent | None) -> None:
        self.settings, self.place = settings, place
        self.parent = parent
        self.order: dict[str, Any] | None = None
        self.left = self.step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.device = trainer.strategy.root_device
        trainer.profiler = self.shares = Shares(self.device)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        if self.order is not None:  # the run has started again with smaller micro-batches
            self._begin(self.order)
            return
        self._tell(trainer, **self._about(trainer, pl_module))
        self._next(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            return  # in the middle of an accumulation
        self.step = trainer.global_step
        self.watch.mark()
        self.left -= 1
        if self.left == 0:
            assert self.order is not None
            answer = {"shares": self.shares.end()} if self.order.get("shares") else self.watch.read()
            self._tell(trainer, **answer)
            self._next(trainer)

    def _begin(self, order: dict[str, Any]) -> None:
        self.order, self.left = order, order["steps"]
        self.watch = Stopwatch(self.device)
        if order.get("shares"):
            self.shares.begin()

    def _next(self, trainer: L.Trainer) -> None:
        """Wait for the next order to make steps.

        Raises:
            SystemExit: the parent is gone.
        """
        while True:
            order = trainer.strategy.broadcast(self.parent.receive() if self.parent else None)
            if order is None:
                raise SystemExit(0)
            if "steps" in order:
                self._begin(order)
                return
            precision, processes = self.place.precision, trainer.world_size
            # Memory first, since measuring the peak uses some; all processes at once, as in a step.
            answer: dict[str, Any] = {"memory": self._memory(trainer)}
            peaks = [accelerator.peak_flops(self.device, precision, measured=True) for _ in range(5)]
            answer["measured_peak_flops"] = max(peaks) * processes
            listed = accelerator.listed_peak_flops(self.device)
            answer["listed_peak_flops"] = listed and listed * processes
            self._tell(trainer, **answer)

    def _memory(self, trainer: L.Trainer) -> int | None:
        """Return the peak memory of all processes together, in bytes; None if unknown."""
        here = memory(self.device)
        if here is None or trainer.world_size == 1:
            return here
        whole = trainer.strategy.reduce(torch.tensor(here, device=self.device), reduce_op="sum")
        assert isinstance(whole, torch.Tensor)
        return int(whole)

    def _about(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        data, s = trainer.datamodule, self.settings  # type: ignore[attr-defined]
        assert isinstance(module, LMModule)
        assert isinstance(data, LMDataModule)
        first, *_ = data.prepared.files["train"]
        here = about_here(self.device) | {"memory_before": self._memory(trainer), "processes": trainer.world_size}
        return here | {
            "device": self.place.device_name,
            "precision": self.place.precision,
            "data": data.prepared.name,
            "data_sha256": data.prepared.sha256,
            "parameters": module.model.num_parameters(),
            "tokens_per_step": s.data.batch_size * data.block_size,
            "flops_per_token": module.model.flops_per_token(),
            "plain": {
                "model": models.to_dict(module.model.config),
                "ids": str(first.path),
                "id_type": first.dtype,
                "offset": first.offset,
                "batch_size": s.data.batch_size,
                # `auto` is our own feature: a plain loop takes the whole batch unless a number is given.
                "accumulation": 1 if s.data.micro_batch_size == "auto" else data.config.accumulation(1),
                "optim": {field: getattr(s.optim, field) for field in OPTIM} | {"lr": s.optim.adam_lr or s.optim.lr},
                "schedule": asdict(s.schedule),
                "seed": s.seed,
                "device": str(self.device),
            },
        }

    def _tell(self, trainer: L.Trainer, **answer: Any) -> None:
        if self.parent:
            self.parent.send(**answer)


def train(settings: Settings, run_dir: Path, parent: Parent | None) -> None:
    """Train as a user's run does, as many steps as each order asks for.

    Raises:
        UserError: see `fit.fit`.
        SystemExit: the parent is gone.
    """
    others: dict[str, Any] = {
        "val_first": False,
        "val_every": ENDLESS,
        "checkpoint_minutes": None,
        "sample_tokens": 0,
        "patience": None,
    }
    trainer = replace(settings.trainer, max_steps=ENDLESS, **others)
    steps = MeasuredSteps(settings, placement.decide(settings), parent)
    fit.fit(replace(settings, trainer=trainer), run_dir, callbacks=[steps])
