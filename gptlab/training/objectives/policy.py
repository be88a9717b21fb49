"""To earn more: a policy samples answers, and learns from their rewards (GRPO, PPO)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor

from gptlab.alignment.advantages import gae, group_advantages, token_rewards
from gptlab.alignment.logprobs import entropy, exact_kl, kl_estimate, token_logprobs
from gptlab.alignment.losses import Figure, Loss, figure, policy_loss, value_loss
from gptlab.alignment.reference import Reference
from gptlab.alignment.rewards import shuffled_rewards
from gptlab.alignment.rollouts import ROLLOUTS, Rollouts, roll_out, uniform_numbers
from gptlab.alignment.scoring import Scorer
from gptlab.data.batches import Batch
from gptlab.data.chat.batches import PromptBatch
from gptlab.data.chat.chat_format import Format
from gptlab.data.chat.conversations import Conversation
from gptlab.models import Network
from gptlab.models.gpt import GPT
from gptlab.models.heads import HeadedGPT, language_model
from gptlab.models.lora import merged
from gptlab.training.objectives.base import MicroLoss, Objective, shared, summed
from gptlab.training.objectives.next_token import NextToken
from gptlab.training.tasks import GRPOConfig, PolicyConfig, PPOConfig


class Computed(NamedTuple):
    """What the policy computes of rows, with its reference and its value head."""

    logprobs: Tensor
    """(n, T): of the sampled tokens."""
    entropy: Tensor
    """(n, T), without gradient."""
    kl: Tensor | None
    """(n, T): the divergence from the reference; None, as of the next: it is not needed."""
    log_ratio: Tensor | None
    """(n, T): of the probabilities that policy and reference give the sampled tokens, without gradient."""
    values: Tensor | None
    """(n, T): of the value head; None: there is none."""


class Drawn(NamedTuple):
    """What the steps on one set of answers learn from; all without gradient."""

    rollouts: Rollouts
    advantages: Tensor
    """(N,), or (N, T)."""
    old: Tensor | None
    """(N, T): the policy's log-probabilities when it answered; None: there is only one step."""
    values: Tensor | None
    """(N, T): of the value head at that time, as the next; None: it has none."""
    returns: Tensor | None
    weight: Tensor
    """What divides the losses of the whole step, over all processes, ()."""
    tokens: Tensor
    """The tokens of all answers, over all processes, ()."""
    figures: dict[str, Figure]
    """What is logged of them."""


@dataclass(eq=False)
class Policy(Objective):
    """Samples answers to prompts, each step or every few steps, and makes those with more reward more probable.

    The answers are a function of (seed, step, prompt, sample), and of the weights before the step.

    Args:
        asked: the conversations whose prompts are answered, by number; their last message is the expected answer.
        prompts: the tokens of their prompts.
        supervised: measures the loss of the expected answers of held-out conversations.
        shuffle: whether rewards are dealt out at random.
    """

    task: PolicyConfig
    seed: int
    batch_size: int
    chat: Format
    asked: Sequence[Conversation]
    prompts: Sequence[Sequence[int]]
    scorer: Scorer
    reference: Reference
    supervised: NextToken
    shuffle: bool

    drawn: Drawn | None = field(default=None, init=False)
    figures, measures = ("reward", "entropy", "answer_tokens", "stop_rate"), ("answer_loss",)
    compares = False

    def __post_init__(self) -> None:
        self.settles_at = self.task.updates

    # Training

    def loss(self, model: Network, batch: PromptBatch, trainer: L.Trainer) -> MicroLoss:
        halted = cast(Tensor, trainer.lightning_module.bad_step).item() >= 0  # its answers are looked at once more
        if batch.micro == 0 and batch.step % self.task.updates == 0 and not halted:
            with answering(model):
                self.drawn = self._draw(model, batch, trainer)
        return self._loss_of_answers(model, batch, trainer)

    def diagnosed(self, model: Network, batch: PromptBatch, trainer: L.Trainer) -> Tensor:
        """Return the loss of some of this process's answers, with which the step went bad.

        Args:
            batch: one of all processes.
        """
        own = self.batch_size // trainer.world_size
        return self._loss_of_answers(model, batch._replace(first=batch.rows.start // own * own), trainer).loss

    def _loss_of_answers(self, model: Network, batch: PromptBatch, trainer: L.Trainer) -> MicroLoss:
        """Return the loss of the answers of a micro-batch, which are drawn."""
        drawn = self.drawn
        assert drawn is not None
        rows = slice(batch.rows.start - batch.first, batch.rows.stop - batch.first)
        counted = drawn.rollouts.counted[rows]
        old = None if drawn.old is None else drawn.old[rows]
        now = self._compute(model, drawn.rollouts, rows, self.task.kl_coef > 0, old)
        ratio = self.task.ratio if isinstance(self.task, GRPOConfig) else "token"
        loss = policy_loss(
            now.logprobs,
            old,
            drawn.advantages[rows],
            counted,
            clip=self.task.clip,
            clip_high=self.task.clip_high,
            ratio=ratio,
            normalise=self.task.normalise,
            length=self.task.answer_tokens,
            kl=now.kl,
            kl_coef=self.task.kl_coef,
        )
        figures = {**loss.figures, "entropy": figure(now.entropy, counted)}
        figures |= drawn.figures if batch.micro == 0 else {}
        if batch.step % self.task.updates == 0:
            figures["sampler_gap"] = figure((now.logprobs - drawn.rollouts.logprobs[rows]).abs(), counted)
        found = shared(Loss(loss.total, loss.weight, figures), drawn.weight, trainer)
        if now.values is None:
            return found
        assert isinstance(self.task, PPOConfig)
        assert drawn.values is not None
        assert drawn.returns is not None
        of_values = value_loss(now.values, drawn.values[rows], drawn.returns[rows], counted, clip=self.task.value_clip)
        beside = shared(of_values, drawn.tokens, trainer)
        figures |= {"value_loss": (of_values.total.detach(), of_values.weight)}
        figures |= {f"value_{name}": figure for name, figure in of_values.figures.items()}
        return found._replace(loss=found.loss + self.task.value_coef * beside.loss, figures=figures)

    def _draw(self, model: Network, batch: PromptBatch, trainer: L.Trainer) -> Drawn:
        """Sample this process's answers of a step, and say how much better each was than expected."""
        group, task = self.task.group, self.task
        numbers = [number for number in batch.numbers for _ in range(group)]
        count = len(numbers)
        uniform = uniform_numbers(self.seed + ROLLOUTS, batch.step, self.batch_size, task.answer_tokens)
        mine = uniform[batch.first : batch.first + count]
        answering_model = language_model(model)
        if isinstance(answering_model, GPT):
            answering_model = merged(answering_model)
        prompts = [self.prompts[number] for number in numbers]
        rollouts = roll_out(answering_model, prompts, mine, self.chat.ends, task.temperature)
        gold = self.scorer.gold([self.asked[number] for number in numbers], rollouts.replies)
        earned = gold if self.scorer.judge is None else self.scorer.judged(rollouts)
        figures = {"reward": of_answers(gold), "answer_tokens": of_answers([len(r.ids) for r in rollouts.replies])}
        figures["stop_rate"] = of_answers([reply.ended for reply in rollouts.replies])
        if self.scorer.judge is not None:
            figures["judged_reward"] = of_answers(earned)
        if self.shuffle:
            earned = self._shuffled(earned, batch, trainer)
        device, counted = rollouts.idx.device, rollouts.counted
        rewards = torch.from_numpy(earned).to(device, torch.float32)
        then = None
        if task.updates > 1 or isinstance(task, PPOConfig):
            then = self._computed_by_rows(model, rollouts, batch.rows.stop - batch.rows.start)
        values = returns = None
        if isinstance(task, PPOConfig):
            assert then is not None
            values = then.values
            assert values is not None
            assert then.kl is not None
            assert then.log_ratio is not None
            figures["kl_of_answer"] = (then.kl.sum(), torch.tensor(count, device=device))
            earned_by_token = token_rewards(rewards, then.log_ratio, counted, task.kl_reward)
            advantages, returns = gae(earned_by_token, values, counted, gamma=task.gamma, lam=task.lam)
            advantages = whitened(advantages, counted, trainer) if task.whiten else advantages
        else:
            assert isinstance(task, GRPOConfig)
            advantages = group_advantages(rewards.view(-1, group), task.baseline).flatten()
        tokens = summed(trainer, counted.sum())
        weight = {"token": tokens, "sequence": torch.tensor(self.batch_size)}.get(
            task.normalise, torch.tensor(self.batch_size * task.answer_tokens)
        )
        old = then.logprobs if then is not None and task.updates > 1 else None
        return Drawn(rollouts, advantages, old, values, returns, weight.to(device), tokens, figures)

    def _shuffled(self, earned: np.ndarray, batch: PromptBatch, trainer: L.Trainer) -> np.ndarray:
        """Deal out the rewards of the whole step's answers, over all processes, at random."""
        everyone = torch.zeros(self.batch_size, dtype=torch.float64)
        everyone[batch.first : batch.first + len(earned)] = torch.from_numpy(earned)
        dealt = shuffled_rewards(summed(trainer, everyone).cpu().numpy(), self.seed, batch.step)
        return dealt[batch.first : batch.first + len(earned)]

    def _compute(
        self, model: Network, rollouts: Rollouts, rows: slice, against: bool, old: Tensor | None = None
    ) -> Computed:
        """Return what the policy computes of rows.

        Args:
            against: whether the reference is needed.
            old: the policy's log-probabilities when it answered, (n, T); None: those of this moment.
        """
        idx, targets, counted = rollouts.idx[rows], rollouts.targets[rows], rollouts.counted[rows]
        logits, values = logits_and_values(model, idx)
        logprobs = token_logprobs(logits, targets, self.task.temperature)
        kl = log_ratio = None
        if against:
            with torch.no_grad(), self.reference.beside(model) as reference:
                beside = reference(idx)
            theirs = token_logprobs(beside, targets, self.task.temperature)
            log_ratio = logprobs.detach() - theirs
            if self.task.kl == "exact":
                kl = exact_kl(logits, beside, counted, self.task.temperature)
            else:
                kl = kl_estimate(logprobs, theirs, self.task.kl, old).masked_fill(~counted, 0)
        return Computed(logprobs, entropy(logits.detach(), counted, self.task.temperature), kl, log_ratio, values)

    @torch.no_grad()
    def _computed_by_rows(self, model: Network, rollouts: Rollouts, rows: int) -> Computed:
        """Return what the policy computes of all rows, as many at a time as in a micro-batch: then the first ratio is 1
        to the bit."""
        count, against = len(rollouts.replies), isinstance(self.task, PPOConfig)
        parts = [self._compute(model, rollouts, slice(i, i + rows), against) for i in range(0, count, rows)]
        logprobs, entropies, kl, log_ratio, values = (joined(each) for each in zip(*parts, strict=True))
        assert logprobs is not None
        assert entropies is not None
        return Computed(logprobs, entropies, kl, log_ratio, values)

    # Measuring

    def measure(self, model: Network, batch: Batch) -> Tensor:
        return self.supervised.measure(language_model(model), batch)

    def metrics(self, sums: Tensor, split: str) -> dict[str, float]:
        found = self.supervised.metrics(sums, split)
        return {f"{split}/answer_loss": found[f"{split}/loss"]}

    def completed(self, metrics: dict[str, float], split: str) -> dict[str, float]:
        """Add the loss: minus what the policy is to earn, with the penalty for its distance from the reference."""
        coef = self.task.kl_coef + getattr(self.task, "kl_reward", 0.0)
        earned = metrics.get(f"{split}/judged_reward", metrics[f"{split}/reward"])
        return {f"{split}/loss": coef * metrics[f"{split}/kl"] - earned, **metrics}


@contextmanager
def answering(model: Network) -> Iterator[None]:
    """Inside, a model in training mode evaluates, without gradient."""
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()


def logits_and_values(model: Network, idx: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a policy's logits, (n, T, V), and the values of its value head, (n, T), if it has one."""
    if not isinstance(model, HeadedGPT):
        return model(idx), None
    x = model.features(idx)
    return model.head(x), model.scores(x)


def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Return the rows of all parts, or None if they are none."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def of_answers(values: Sequence[float] | np.ndarray) -> Figure:
    """Return numbers of answers as a figure."""
    return torch.tensor(float(np.sum(values))), torch.tensor(len(values))


def whitened(advantages: Tensor, counted: Tensor, trainer: L.Trainer) -> Tensor:
    """Return the advantages of tokens, (N, T), with mean 0 and standard deviation 1 over those of all processes."""
    a = advantages.double()
    count = summed(trainer, counted.sum().double())
    mean = summed(trainer, a.sum()) / count
    deviation = summed(trainer, (a - mean).square().masked_fill(~counted, 0).sum()) / count
    return ((a - mean) / (deviation.sqrt() + 1e-8)).masked_fill(~counted, 0).to(advantages.dtype)
