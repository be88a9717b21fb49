"""Decide where a run is computed: the kind of device, the processes, the precision. Decided once, at its start."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import torch

from gptlab.distributed import processes
from gptlab.system import accelerator
from gptlab.system.errors import UserError
from gptlab.training.settings import Settings, TrainerConfig

GRAPHS = ("reduce-overhead", "max-autotune")  # the compile.mode that record CUDA graphs


@dataclass(frozen=True)
class Placement:
    """Where a run is computed."""

    kind: str
    """cuda, mps or cpu."""
    device_name: str
    """A GPU's name, as torch gives it; otherwise the kind."""
    processes_here: int
    """Processes on this machine; each has its own device."""
    machines: int
    strategy: str
    """auto, ddp or fsdp."""
    precision: str
    """fp32, bf16, fp16 or bf16_true; `auto` is resolved."""
    compile_mode: str | None

    @property
    def world_size(self) -> int:
        """The number of processes of the run."""
        return self.processes_here * self.machines

    @property
    def device(self) -> torch.device:
        """The first device of this kind."""
        return torch.device(self.kind, 0) if self.kind == "cuda" else torch.device(self.kind)

    @property
    def description(self) -> str:
        """The device, or the number of devices and the strategy, for people."""
        if self.world_size == 1:
            return self.device_name
        return f"{self.world_size} x {self.device_name} ({self.strategy.replace('auto', 'ddp')})"

    def check_graphs(self, accumulation: int) -> None:
        """Refuse CUDA graphs together with gradient accumulation: each replay would overwrite the gradients.

        Raises:
            UserError: the run has both.
        """
        if self.kind == "cuda" and accumulation > 1 and self.compile_mode in GRAPHS:
            raise UserError(
                f"compile.mode={self.compile_mode} records CUDA graphs of a batch as a whole, and this one is computed "
                f"in {accumulation} parts: use compile=inductor, or data.micro_batch_size=null"
            )


def decide(settings: Settings) -> Placement:
    """Decide where the run of these settings is computed.

    Raises:
        UserError: the device is missing or cannot do what the settings ask for, or these do not go with the processes.
    """
    trainer, precision = settings.trainer, settings.precision.name
    kind = _kind(trainer)
    visible = torch.cuda.device_count() if kind == "cuda" else 1
    here = processes.devices(trainer.devices, visible)
    if here > visible and kind != "cpu":
        raise UserError(f"trainer.devices={here}: there are {visible} GPUs here")
    if trainer.strategy == "fsdp":
        _check_fsdp(settings)
    if precision == "fp16" and kind != "cuda":
        raise UserError(f"precision=fp16 needs a CUDA GPU, this run is on {kind}: use precision=bf16 or precision=fp32")
    # torch.cuda.is_bf16_supported() counts emulation, which is slower than fp32.
    if precision.startswith("bf16") and kind == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        raise UserError(
            f"precision={precision} needs a GPU of compute capability 8.0, {accelerator.device_name(kind)} has "
            f"{'.'.join(map(str, torch.cuda.get_device_capability()))}: use precision=fp16 or precision=fp32"
        )
    if settings.compile.backend == "inductor" and kind == "cpu" and not has_compiler():
        raise UserError(
            f"compile={settings.compile.name} needs a C++ compiler on a CPU (g++ or clang++), none is found: "
            f"install one or use compile=eager"
        )
    if precision == "auto":
        precision = "bf16" if accelerator.fast_bf16(kind) else "fp32"
    name, machines = accelerator.device_name(kind), processes.machines()
    return Placement(kind, name, here, machines, trainer.strategy, precision, settings.compile.mode)


def has_compiler() -> bool:
    """Return whether the C++ compiler is installed that torch.compile needs on a CPU."""
    return any(name and shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "cl"))


def _kind(trainer: TrainerConfig) -> str:
    """Return cuda, mps or cpu; raises as `decide`."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    asked = f"trainer.accelerator={trainer.accelerator} (trainer={trainer.name})"
    way_out = "none is visible: use trainer.accelerator=auto or trainer=cpu"
    if trainer.accelerator == "gpu" and not cuda:
        raise UserError(f"{asked} needs a CUDA GPU, {way_out}")
    if trainer.accelerator == "mps" and not mps:
        raise UserError(f"{asked} needs an Apple GPU, {way_out}")
    best = "cuda" if cuda else "mps" if mps else "cpu"
    return {"gpu": "cuda", "auto": best}.get(trainer.accelerator, trainer.accelerator)


def _check_fsdp(settings: Settings) -> None:
    """Refuse what does not work with weights that are sharded over processes; raises as `decide`."""
    if settings.precision.name == "fp16":
        raise UserError("precision=fp16 does not go with trainer.strategy=fsdp: use precision=bf16, or trainer=ddp")
    if settings.optim.name == "muon":
        raise UserError(
            "optim=muon needs whole matrices, which trainer.strategy=fsdp spreads over the processes: use trainer=ddp, "
            "or optim=adamw"
        )
    if settings.compile.mode in GRAPHS:
        raise UserError(
            f"compile.mode={settings.compile.mode} records CUDA graphs, which do not go with trainer.strategy=fsdp: "
            f"use compile=inductor"
        )
