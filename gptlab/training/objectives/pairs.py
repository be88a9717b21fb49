"""To prefer the better of two answers: as a policy (DPO), or as a judge (a reward model)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import lightning as L
import torch
from torch import Tensor

from gptlab.alignment.logprobs import sequence_sums, token_logprobs
from gptlab.alignment.losses import Loss, dpo_loss, figure, reward_loss
from gptlab.alignment.reference import Reference
from gptlab.alignment.rewards import expected_accuracy
from gptlab.data.batches import IGNORED
from gptlab.data.chat.batches import PairBatch
from gptlab.models import Network
from gptlab.models.heads import HeadedGPT
from gptlab.training.objectives.base import MicroLoss, Objective, figure_means, figure_sums, shared
from gptlab.training.tasks import DPOConfig, RewardConfig


class Pairs(Objective):
    """Learns from pairs of answers."""

    figures: tuple[str, ...] = ("accuracy", "margin", "chosen_reward", "rejected_reward")
    measures = figures
    names: tuple[str, ...] = ()
    """Of the figures of the loss, in their order."""

    def of_pairs(self, model: Network, batch: PairBatch) -> Loss:
        """Return the loss of the pairs of a batch that count."""
        raise NotImplementedError

    def loss(self, model: Network, batch: PairBatch, trainer: L.Trainer) -> MicroLoss:
        assert batch.pairs is not None
        return shared(self.of_pairs(model, batch), batch.pairs, trainer)

    def measure(self, model: Network, batch: PairBatch) -> Tensor:
        loss = self.of_pairs(model, batch)
        self.names = tuple(loss.figures)
        return figure_sums(loss)

    def metrics(self, sums: Tensor, split: str) -> dict[str, float]:
        return figure_means(sums, self.names, split)


def two_columns(values: Tensor) -> Tensor:
    """Return values of the rows of a `PairBatch`, (2b,), as (b, 2): chosen, rejected."""
    return values.view(2, -1).T


def rewards_of(model: Network, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Return the rewards of the n pairs of a batch that count, (n, 2): chosen, rejected; and their margins, (n,)."""
    assert isinstance(model, HeadedGPT)
    rewards = two_columns(model(batch.idx, batch.lengths, batch.noise))
    return rewards[batch.counted], batch.margins[batch.counted]


@dataclass(eq=False)
class DPO(Pairs):
    """Direct preference optimisation; see `losses.dpo_loss`."""

    figures = (*Pairs.figures, "chosen_logprob", "rejected_logprob")
    measures = figures
    task: DPOConfig
    reference: Reference

    def of_pairs(self, model: Network, batch: PairBatch) -> Loss:
        counted = batch.targets != IGNORED

        def answers(model: Network) -> Tensor:
            """Return the log-probability of each answer, (b, 2)."""
            return two_columns(sequence_sums(token_logprobs(model(batch.idx), batch.targets), counted))

        policy = answers(model)
        with torch.no_grad(), self.reference.beside(model) as reference:
            beside = answers(reference)
        lengths = two_columns(counted.sum(-1))
        some, task = batch.counted, self.task
        return dpo_loss(
            policy[some],
            beside[some],
            lengths[some],
            beta=task.beta,
            variant=task.variant,
            label_smoothing=task.label_smoothing,
        )


@dataclass(eq=False)
class RewardModel(Pairs):
    """A reward model; see `losses.reward_loss`.

    Args:
        bayes_accuracy: returns the best accuracy that can be had on a part, by its name; None where it is not known.
        noise: the temperature of the labels, see `rewards.expected_accuracy`; None where it is not known.
    """

    task: RewardConfig
    bayes_accuracy: Callable[[str], float | None]
    noise: float | None = None

    def __post_init__(self) -> None:
        self.measures = Pairs.measures if self.noise is None else (*Pairs.measures, "expected_accuracy")

    def of_pairs(self, model: Network, batch: PairBatch) -> Loss:
        rewards, margins = rewards_of(model, batch)
        loss = reward_loss(rewards, margins if self.task.margin == "data" else None, self.task.centring)
        if self.noise is None or batch.pairs is not None:  # in training only what the loss knows is measured
            return loss
        judged = (rewards[:, 0] - rewards[:, 1]).cpu().numpy()
        expected = torch.from_numpy(expected_accuracy(judged, margins.cpu().numpy(), self.noise))
        return replace(loss, figures={**loss.figures, "expected_accuracy": figure(expected.to(rewards))})

    def metrics(self, sums: Tensor, split: str) -> dict[str, float]:
        found = super().metrics(sums, split)
        best = self.bayes_accuracy(split)
        return found if best is None else found | {f"{split}/bayes_accuracy": best}
