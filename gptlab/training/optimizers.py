"""Build the optimizer: its config, its parameter groups and their description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gptlab.system.errors import UserError
from gptlab.training.muon import Muon

OPTIMIZERS = ("adamw", "muon")
MUONS = ("adam_lr", "momentum", "ns_steps", "nor_beta")


@dataclass(frozen=True)
class OptimConfig:
    """The config group `optim`, checked.

    Raises:
        UserError: a value is out of range, or belongs to another optimizer.
    """

    name: str
    """adamw, or muon, which takes the matrices of the blocks and leaves the rest to AdamW."""
    lr: float
    """Peak learning rate; with muon, of the blocks' matrices."""
    weight_decay: float
    """Decoupled decay, on matrices only (embeddings among them, as in nanoGPT)."""
    beta1: float
    beta2: float
    eps: float
    grad_clip: float
    """Gradients are scaled down to this global norm; 0: never."""
    adam_lr: float | None = None
    """Peak learning rate of the parameters that muon leaves to AdamW; the betas and eps are theirs, too."""
    momentum: float | None = None
    ns_steps: int | None = None
    """Newton-Schulz iterations, see `muon.orthogonalized`."""
    nor_beta: float | None = None
    """Decay of NorMuon's running row norms, see `muon.Muon`; 0: plain Muon."""

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise UserError(f"optim.name={self.name}: no such optimizer; there are {', '.join(OPTIMIZERS)}")
        for field in MUONS:
            value = getattr(self, field)
            if self.name == "muon" and value is None:
                raise UserError(f"optim.{field}: is missing; optim=muon has it")
            if self.name != "muon" and value is not None:
                raise UserError(f"optim.{field}={value}: is optim=muon's; leave it out of optim={self.name}")
        for field in ("lr", "eps", "adam_lr"):
            if (value := getattr(self, field)) is not None and not value > 0:
                raise UserError(f"optim.{field}={value}: must be above 0")
        for field in ("weight_decay", "grad_clip"):
            if not getattr(self, field) >= 0:
                raise UserError(f"optim.{field}={getattr(self, field)}: must be at least 0")
        for field in ("beta1", "beta2", "momentum", "nor_beta"):
            if (value := getattr(self, field)) is not None and not 0 <= value < 1:
                raise UserError(f"optim.{field}={value}: must be at least 0 and below 1")
        if self.ns_steps is not None and self.ns_steps < 1:
            raise UserError(f"optim.ns_steps={self.ns_steps}: must be at least 1")


def parameter_groups(
    model: nn.Module, config: OptimConfig, matrices: Mapping[nn.Parameter, Sequence[int]]
) -> list[dict[str, Any]]:
    """Return the parameter groups: "decay" (matrices) and "no_decay" (biases, norm weights, convolutions).

    With muon the first group is "matrices", with the given matrices of the model's blocks.

    Raises:
        UserError: Muon is chosen and there are no such matrices.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"name": "decay", "params": [p for p in parameters if p.dim() == 2], "weight_decay": config.weight_decay},
        {"name": "no_decay", "params": [p for p in parameters if p.dim() != 2], "weight_decay": 0.0},
    ]
    if config.name == "muon":
        if not matrices:
            frozen = len(parameters) < len(list(model.parameters()))
            which = "here none of them is trained" if frozen else f"a {type(model).__name__} has none"
            raise UserError(f"optim=muon is for the matrices of a model's blocks, and {which}: use optim=adamw")
        groups[0]["params"] = [p for p in groups[0]["params"] if p not in matrices]
        groups = [{**group, "lr": config.adam_lr} for group in groups]
        ours = {field: getattr(config, field) for field in ("lr", "momentum", "ns_steps", "nor_beta")}
        turned = [p for p in parameters if p in matrices]
        groups.insert(0, {"name": "matrices", "params": turned, "weight_decay": config.weight_decay, **ours})
    return [group for group in groups if group["params"]]


def build_optimizer(
    model: nn.Module, config: OptimConfig, matrices: Mapping[nn.Parameter, Sequence[int]], fused: bool
) -> torch.optim.Optimizer:
    """Build AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), or Muon together with it.

    Args:
        matrices: the matrices of the blocks, each with the rows of the projections stacked in it.
        fused: whether AdamW runs as one kernel.

    Raises:
        UserError: Muon is chosen for a model without such matrices.
    """
    groups = parameter_groups(model, config, matrices)
    betas = (config.beta1, config.beta2)
    if config.name == "muon":
        return Muon(groups, matrices, betas, config.eps, fused)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=fused)


def describe_groups(groups: list[dict[str, Any]]) -> str:
    """Describe the groups in one line: tensors, parameters, weight decay, and learning rate where it is the group's."""
    parts = [
        f"{len(group['params'])} {'matrices' if 'momentum' in group else 'tensors'} with "
        f"{sum(p.numel() for p in group['params']):,} parameters at weight decay {group['weight_decay']:g}"
        + (f" and learning rate {group['lr']:g}" if "lr" in group else "")
        for group in groups
    ]
    return "; ".join(parts)
