"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from gptlab.errors import UserError


@dataclass(frozen=True)
class OptimConfig:
    name: str
    lr: float
    """Peak learning rate."""
    weight_decay: float
    """Decoupled decay, on matrices only (embeddings among them, as in nanoGPT)."""
    beta1: float
    beta2: float
    eps: float
    grad_clip: float
    """Gradients are scaled down to this global norm; 0: never."""

    def __post_init__(self) -> None:
        if self.name != "adamw":
            raise UserError(f"optim.name={self.name}: no such optimizer; there is adamw")
        for field in ("lr", "eps"):
            if not getattr(self, field) > 0:
                raise UserError(f"optim.{field}={getattr(self, field)}: must be above 0")
        for field in ("weight_decay", "grad_clip"):
            if not getattr(self, field) >= 0:
                raise UserError(f"optim.{field}={getattr(self, field)}: must be at least 0")
        for field in ("beta1", "beta2"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"optim.{field}={getattr(self, field)}: must be at least 0 and below 1")


@dataclass(frozen=True)
class ScheduleConfig:
    name: str
    warmup_steps: int
    """Linear warmup to the peak."""
    decay_steps: int
    """Step at which the decay has reached its end; later steps stay there."""
    min_ratio: float
    """Learning rate at the end, as a share of the peak."""

    def __post_init__(self) -> None:
        if self.name not in ("constant", "cosine"):
            raise UserError(f"schedule.name={self.name}: must be one of constant, cosine")
        for field in ("warmup_steps", "decay_steps"):
            if getattr(self, field) < 0:
                raise UserError(f"schedule.{field}={getattr(self, field)}: must be at least 0")
        if not 0 <= self.min_ratio <= 1:
            raise UserError(f"schedule.min_ratio={self.min_ratio}: must be between 0 and 1")


def lr_scale(step: int, config: ScheduleConfig) -> float:
    """The learning rate of step 0, 1, 2, ... as a share of its peak; nanoGPT's formula for the cosine."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.name == "constant":
        return 1.0
    if step >= config.decay_steps:
        return config.min_ratio
    progress = (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps)
    return config.min_ratio + (1 - config.min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups, "decay" (two dimensions and more) and "no_decay" (biases and norm weights)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"name": "decay", "params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"name": "no_decay", "params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimConfig, fused: bool) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101); `fused`: one kernel a step."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=fused,
    )


def describe_groups(groups: list[dict]) -> str:
    """One line: how many tensors and parameters each group holds, and its decay."""
    parts = [
        f"{len(group['params'])} tensors with {sum(p.numel() for p in group['params']):,} parameters "
        f"at weight decay {group['weight_decay']:g}"
        for group in groups
    ]
    return "; ".join(parts)
