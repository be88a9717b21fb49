"""To predict the next token: of a text, or of the answers in conversations."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from gptlab.alignment.losses import Loss
from gptlab.data.batches import IGNORED, Batch
from gptlab.data.tokenizers import Tokenizer
from gptlab.evaluation.loss import cross_entropy, loss_metrics
from gptlab.models import Network
from gptlab.training.objectives.base import NO_FIGURES, MicroLoss, Objective, shared


def model_loss(
    model: Network,
    idx: Tensor,
    targets: Tensor,
    reduction: str,
    noise: Tensor | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """Return the loss in nats: (), "mean" or "sum" over the tokens; compiled as one graph it keeps no fp32 logits."""
    return cross_entropy(model(idx, noise=noise, places=places), targets, reduction)


class NextToken(Objective):
    """The cross entropy of the targets of each `Batch`, in nats per token, and its exact mean over a part.

    Args:
        compile: arguments of torch.compile, which compiles model and loss as one graph; None: eager.
    """

    def __init__(self, tokenizer: Tokenizer, compile: dict[str, Any] | None = None) -> None:
        self.model_loss = model_loss if compile is None else torch.compile(model_loss, **compile)
        self.unpredicted = tokenizer.unpredicted
        tables = (tokenizer.token_bytes(), tokenizer.first_bytes(), tokenizer.before_texts())
        self.text_bytes = tuple(map(torch.from_numpy, tables))

    def loss(self, model: Network, batch: Batch, trainer: L.Trainer) -> MicroLoss:
        idx, targets, noise, places, tokens = batch
        if tokens is None:  # all of all rows; micro-batches may have other sizes
            loss = self.model_loss(model, idx, targets, "mean", noise, places)
            return MicroLoss(loss, loss.detach(), len(idx), NO_FIGURES)
        total = self.model_loss(model, idx, targets, "sum", noise, places)
        return shared(Loss(total, (targets != IGNORED).sum(), NO_FIGURES), tokens, trainer)

    def diagnosed(self, model: Network, batch: Batch, trainer: L.Trainer) -> Tensor:
        return model_loss(model, batch.idx, batch.targets, "mean", batch.noise, batch.places)

    def measure(self, model: Network, batch: Batch) -> Tensor:
        """Return the nats, the tokens and the bytes of text that they stand for, (3,)."""
        idx, targets, _, places, _ = batch
        if self.unpredicted:
            unpredicted = torch.tensor(self.unpredicted, device=targets.device)
            targets = targets.masked_fill(torch.isin(targets, unpredicted), IGNORED)
        counted = targets != IGNORED
        self.text_bytes = tuple(table.to(targets.device) for table in self.text_bytes)
        within, first, before_texts = self.text_bytes
        known = targets.clamp(min=0)
        text_bytes = (torch.where(before_texts[idx], first[known], within[known]) * counted).sum()
        nats = self.model_loss(model, idx, targets, "sum", None, places)
        return torch.stack((nats, counted.sum(), text_bytes))

    def metrics(self, sums: Tensor, split: str) -> dict[str, float]:
        nats, tokens, text_bytes = sums.tolist()
        return loss_metrics(nats, int(tokens), int(text_bytes), split)
