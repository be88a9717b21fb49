"""Schedule the learning rate over the steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gptlab.system.errors import UserError

SCHEDULES = ("constant", "cosine", "linear", "wsd")


@dataclass(frozen=True)
class ScheduleConfig:
    """The config group `schedule`, checked.

    Raises:
        UserError: a value is out of range.
    """

    name: str
    """constant, cosine, linear or wsd (warmup, stable, decay)."""
    warmup_steps: int
    """Steps of linear warmup to the peak."""
    decay_steps: int
    """Step at which the decay ends; the rate stays constant afterwards."""
    min_ratio: float
    """Learning rate at the end, as a share of the peak."""
    decay_fraction: float = 0.2
    """For wsd: the last share of decay_steps, in which the rate decays."""

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise UserError(f"schedule.name={self.name}: must be one of {', '.join(SCHEDULES)}")
        for field in ("warmup_steps", "decay_steps"):
            if getattr(self, field) < 0:
                raise UserError(f"schedule.{field}={getattr(self, field)}: must be at least 0")
        if not 0 <= self.min_ratio <= 1:
            raise UserError(f"schedule.min_ratio={self.min_ratio}: must be between 0 and 1")
        if not 0 < self.decay_fraction <= 1:
            raise UserError(f"schedule.decay_fraction={self.decay_fraction}: must be above 0 and at most 1")


def lr_scale(step: int, config: ScheduleConfig) -> float:
    """Return the learning rate of step 0, 1, 2, ... as a share of its peak.

    After a linear warmup, cosine follows nanoGPT's formula; wsd stays at the peak and then decays linearly
    (Hu et al. 2024, https://arxiv.org/abs/2404.06395; Hägele et al. 2024, https://arxiv.org/abs/2405.18392).
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.name == "constant":
        return 1.0
    if step >= config.decay_steps:
        return config.min_ratio
    stable = config.decay_steps * (1 - config.decay_fraction) if config.name == "wsd" else 0
    start = max(config.warmup_steps, stable)
    progress = max(step - start, 0) / (config.decay_steps - start)
    share = 0.5 * (1 + math.cos(math.pi * progress)) if config.name == "cosine" else 1 - progress
    return config.min_ratio + (1 - config.min_ratio) * share
