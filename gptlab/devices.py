"""Where a run will be: on which kind of device, and on how many of them."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import torch

from gptlab.config import PrecisionConfig, Settings
from gptlab.distributed import processes
from gptlab.system.errors import UserError

GRAPHS = ("reduce-overhead", "max-autotune")  # the compile.mode that record CUDA graphs


def device_type(settings: Settings) -> str:
    """cuda, mps or cpu: where this run will be.

    Raises:
        UserError: it is not there, or cannot do the precision that is asked for.
    """
    trainer, precision = settings.trainer, settings.precision.name
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if trainer.accelerator == "gpu" and not cuda:
        raise UserError(f"trainer={trainer.name} needs a CUDA GPU, none is visible: use trainer=auto or trainer=cpu")
    if trainer.accelerator == "mps" and not mps:
        raise UserError(f"trainer={trainer.name} needs an Apple GPU, none is visible: use trainer=auto or trainer=cpu")
    kind = {"gpu": "cuda", "auto": "cuda" if cuda else "mps" if mps else "cpu"}.get(
        trainer.accelerator, trainer.accelerator
    )
    visible = torch.cuda.device_count() if kind == "cuda" else 1
    if (devices := processes.devices(trainer.devices, visible)) > visible and kind != "cpu":
        raise UserError(f"trainer.devices={devices}: there are {visible} GPUs here")
    if trainer.strategy == "fsdp" and precision == "fp16":
        raise UserError("precision=fp16 does not go with trainer.strategy=fsdp: use precision=bf16, or trainer=ddp")
    if trainer.strategy == "fsdp" and settings.optim.name == "muon":
        raise UserError(
            "optim=muon needs whole matrices, which trainer.strategy=fsdp spreads over the processes: use trainer=ddp, "
            "or optim=adamw"
        )
    if trainer.strategy == "fsdp" and settings.compile.mode in GRAPHS:
        raise UserError(
            f"compile.mode={settings.compile.mode} records CUDA graphs, which do not go with trainer.strategy=fsdp: "
            f"use compile=inductor"
        )
    if precision == "fp16" and kind != "cuda":
        raise UserError(f"precision=fp16 needs a CUDA GPU, this run is on {kind}: use precision=bf16 or precision=fp32")
    # torch.cuda.is_bf16_supported() counts emulation, which is slower than fp32.
    if precision.startswith("bf16") and kind == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        raise UserError(
            f"precision={precision} needs a GPU of compute capability 8.0, {torch.cuda.get_device_name()} has "
            f"{'.'.join(map(str, torch.cuda.get_device_capability()))}: use precision=fp16 or precision=fp32"
        )
    compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if settings.compile.backend == "inductor" and kind == "cpu" and not any(c and shutil.which(c) for c in compilers):
        raise UserError(
            f"compile={settings.compile.name} needs a C++ compiler on a CPU (g++ or clang++), none is found: "
            f"install one or use compile=eager"
        )
    return kind


def check_graphs(settings: Settings, kind: str, accumulation: int) -> None:
    """Refuse to record of a GPU's steps what is computed in several parts: a replay overwrites their gradients.

    Raises:
        UserError: `accumulation` is above 1.
    """
    if kind == "cuda" and accumulation > 1 and settings.compile.mode in GRAPHS:
        raise UserError(
            f"compile.mode={settings.compile.mode} records CUDA graphs of a batch as a whole, and this one is computed "
            f"in {accumulation} parts: use compile=inductor, or data.micro_batch_size=null"
        )


def devices_here(settings: Settings) -> int:
    """How many devices of this machine the run takes; raises as `device_type`."""
    visible = torch.cuda.device_count() if device_type(settings) == "cuda" else 1
    return processes.devices(settings.trainer.devices, visible)


def precision(settings: Settings) -> PrecisionConfig:
    """That of the run; for `auto`, bf16 where this device multiplies it faster than fp32; raises as `device_type`."""
    if settings.precision.name != "auto":
        return settings.precision
    kind = device_type(settings)
    if kind == "cuda":
        fast = torch.cuda.get_device_capability() >= (8, 0)
    else:
        fast = kind == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return replace(settings.precision, name="bf16" if fast else "fp32")
