"""To name the class of a text."""

from __future__ import annotations

from dataclasses import dataclass, field

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gptlab.alignment.losses import Loss
from gptlab.alignment.metrics import macro_f1
from gptlab.data.batches import IGNORED
from gptlab.data.chat.batches import LabelledBatch
from gptlab.models import Network
from gptlab.training.objectives.base import MicroLoss, Objective, shared


@dataclass(eq=False)
class Classes(Objective):
    """The cross entropy of the classes, in nats per text.

    Args:
        weights: what a text of each class counts, (K,); None: all the same.
    """

    figures, measures = ("accuracy",), ("accuracy", "f1")
    labels: tuple[str, ...]
    weights: Tensor | None
    confusion: dict[str, list[list[int]]] = field(default_factory=dict, init=False)
    """For each part that was measured, how many texts of each class (row) were taken for each (column), (K, K)."""

    def _losses(self, model: Network, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """Return the scores of the texts, (b, K), and their losses with their weights, (b,); 0 where there is none."""
        scores = model(batch.idx, batch.lengths, batch.noise).float()
        weights = None if self.weights is None else self.weights.to(scores)
        return scores, F.cross_entropy(scores, batch.labels, weights, ignore_index=IGNORED, reduction="none")

    def loss(self, model: Network, batch: LabelledBatch, trainer: L.Trainer) -> MicroLoss:
        scores, losses = self._losses(model, batch)
        assert batch.texts is not None
        right = (scores.detach().argmax(-1) == batch.labels).sum()
        weight = torch.tensor(len(losses), device=losses.device)
        return shared(Loss(losses.sum(), weight, {"accuracy": (right.float(), weight)}), batch.texts, trainer)

    def measure(self, model: Network, batch: LabelledBatch) -> Tensor:
        """Return the loss, and the counts of `confusion`, (1 + K K,)."""
        scores, losses = self._losses(model, batch)
        size, there = len(self.labels), batch.labels != IGNORED
        cells = (batch.labels * size + scores.argmax(-1))[there]
        return torch.cat((losses.sum()[None], cells.bincount(minlength=size * size).to(losses)))

    def metrics(self, sums: Tensor, split: str) -> dict[str, float]:
        size = len(self.labels)
        counts = sums[1:].long().view(size, size)
        self.confusion[split] = counts.tolist()
        total = int(counts.sum())
        return {
            f"{split}/loss": float(sums[0]) / total,
            f"{split}/accuracy": float(counts.trace()) / total,
            f"{split}/f1": macro_f1(np.array(self.confusion[split])),
        }
