"""What every objective has: the loss of a micro-batch, and the sums from which held-out data is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from gptlab.alignment.losses import Figure, Loss
from gptlab.models import Network

NO_FIGURES: dict[str, Figure] = {}


class MicroLoss(NamedTuple):
    """The loss of a micro-batch."""

    loss: Tensor
    """(), to be differentiated: the mean of those of all micro-batches and processes is the step's loss."""
    mean: Tensor
    """The loss of what counts here, () without gradient."""
    weight: Tensor | int
    """How much counts here: tokens, rows, answers or pairs."""
    figures: Mapping[str, Figure]
    """What is logged beside it."""


class Objective:
    """What a run minimises, and what it measures of held-out data.

    An objective holds no weights that are trained. It gets the trainer for the number of processes and micro-batches.
    """

    figures: tuple[str, ...] = ()
    """The figures of a training step that metrics.csv has; TensorBoard has all."""
    measures: tuple[str, ...] = ()
    """What is measured of held-out data beside its loss, and metrics.csv has."""
    compares = True
    """Whether the losses of training and of held-out data are of one kind."""
    settles_at = 1
    """Of how many steps a run may only be stopped and saved after a multiple: those that share what they learn from."""

    def loss(self, model: Network, batch: Any, trainer: L.Trainer) -> MicroLoss:
        """Return the loss of one micro-batch of the training data."""
        raise NotImplementedError

    def diagnosed(self, model: Network, batch: Any, trainer: L.Trainer) -> Tensor:
        """Return the loss of a micro-batch once more, (), uncompiled, to find what went wrong in it."""
        return self.loss(model, batch, trainer).loss

    def measure(self, model: Network, batch: Any) -> Tensor:
        """Return sums over a batch of held-out data, (n,), which `metrics` receives added up; the model evaluates."""
        raise NotImplementedError

    def metrics(self, sums: Tensor, split: str) -> dict[str, float]:
        """Return what is measured of a part, by names that begin with `split`; among them its loss.

        Args:
            sums: those of `measure`, of all batches, (n,) float64 on the CPU.
        """
        raise NotImplementedError

    def completed(self, metrics: dict[str, float], split: str) -> dict[str, float]:
        """Return the metrics of a part once the model's answers are judged."""
        return metrics


def shared(loss: Loss, whole: Tensor | float, trainer: L.Trainer) -> MicroLoss:
    """Return the loss of a micro-batch whose weight is a share of the whole step's.

    Args:
        loss: its sum, and weight, of this micro-batch.
        whole: the weight of all micro-batches and processes.
    """
    count = trainer.accumulate_grad_batches * trainer.world_size  # Lightning and DDP take the mean of so many
    return MicroLoss(loss.total * (count / whole), loss.mean.detach(), loss.weight, loss.figures)


def summed(trainer: L.Trainer, values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; of one process it stays where it is."""
    if trainer.world_size == 1:
        return values
    found = trainer.strategy.reduce(values.to(trainer.strategy.root_device), reduce_op="sum")
    assert isinstance(found, Tensor)
    return found


def figure_sums(loss: Loss) -> Tensor:
    """Return a loss and its figures as the sums and weights that `figure_means` divides, (2 + 2 n,) float32."""
    pairs = [(loss.total.detach(), loss.weight), *loss.figures.values()]
    return torch.stack([each.float() for pair in pairs for each in pair])


def figure_means(sums: Tensor, names: Sequence[str], split: str) -> dict[str, float]:
    """Return the means of sums by `figure_sums`: of the loss, and of the figures with these names."""
    totals, weights = sums.view(-1, 2).T.tolist()
    found = zip(["loss", *names], totals, weights, strict=True)
    return {f"{split}/{name}": total / max(weight, 1) for name, total, weight in found}
