"""Sample several answers to each held-out prompt: what they earn, and how far they are from the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gptlab.alignment.logprobs import entropy, exact_kl
from gptlab.alignment.metrics import best_of_n_curve, pass_at_k, win_rate
from gptlab.alignment.reference import Reference
from gptlab.alignment.rollouts import Rollouts, roll_out, uniform_numbers
from gptlab.alignment.scoring import Scorer, reply_text
from gptlab.data.chat.chat_format import Format
from gptlab.data.chat.conversations import Conversation
from gptlab.models import Model, Network

POLICY, REFERENCE = 12 << 32, 13 << 32  # the purposes of random numbers, added to a seed, which is below 1 << 32
PARTS = {"val": 0, "test": 1}  # the step of their random numbers: the same at each validation
ROWS = 256  # at a time


class Earned(NamedTuple):
    """What S answers to each of P prompts earn."""

    gold: np.ndarray
    """(P, S)."""
    judged: np.ndarray | None
    """(P, S): by the reward model; None: there is none."""


class SampledAnswers:
    """Samples answers from the whole distribution, with the same random numbers at each validation.

    Args:
        samples: answers to each prompt.
        max_tokens: the most tokens of an answer.
        reference: what the model is compared to; None: nothing.
        known: whether the last message of a conversation is the only right answer.
    """

    def __init__(
        self,
        chat: Format,
        scorer: Scorer,
        samples: int,
        max_tokens: int,
        seed: int,
        reference: Reference | None,
        known: bool,
    ) -> None:
        self.chat, self.scorer, self.samples, self.max_tokens = chat, scorer, samples, max_tokens
        self.seed, self.reference, self.known = seed, reference, known
        self.measures: tuple[str, ...] = ("reward", "entropy")
        self.measures += ("judged_reward",) if scorer.judge is not None else ()
        self.measures += tuple(f"pass_at_{k}" for k in self.passes)
        self.measures += ("kl", "win_rate") if reference is not None else ()
        self.of_model: dict[str, Earned] = {}
        """Of the answers to the prompts of a part, when they were last measured."""
        self.of_reference: dict[str, Earned] = {}
        """Of the reference's answers to the prompts of a part, which are drawn once."""
        self.best_of_n: list[list[float]] = []
        """[n, gold reward, KL] of taking the best of n answers, of the reference, or else of the model itself: what the
        reward model holds best, if there is one."""

    @property
    def passes(self) -> list[int]:
        """The k of the pass@k that are measured."""
        return sorted({1, self.samples}) if self.known else []

    def measure(
        self, model: Model, policy: Network, asked: Sequence[Conversation], rights: Sequence[str | None], part: str
    ) -> dict[str, float]:
        """Return what is measured of the answers to the prompts of conversations.

        Args:
            model: the policy in evaluation mode, its adapters merged.
            policy: the model that is trained, of which the reference may be a part.
            rights: the right answers, where they are known; None: no answer can be right.
            part: val or test.
        """
        repeated = [each for each in asked for _ in range(self.samples)]
        drawn = self._drawn(model, repeated, part, POLICY)
        earned = self.of_model[part] = self._earned(repeated, drawn)
        found = {"reward": float(earned.gold.mean())}
        if earned.judged is not None:
            found["judged_reward"] = float(earned.judged.mean())
        if self.known:
            texts = [(reply.ended and reply_text(reply, self.scorer.tokenizer)) for reply in drawn.replies]
            wanted = [right for right in rights for _ in range(self.samples)]
            right = np.array([a == b for a, b in zip(texts, wanted, strict=True)]).reshape(-1, self.samples)
            found |= {f"pass_at_{k}": pass_at_k(right, k) for k in self.passes}
        found |= self._distance(model, policy, drawn)
        if self.reference is not None:
            if part not in self.of_reference:
                with self.reference.beside(policy) as reference:
                    self.of_reference[part] = self._earned(repeated, self._drawn(reference, repeated, part, REFERENCE))
            ours, theirs = earned.gold, self.of_reference[part].gold  # each answer against each: they are drawn apart
            found["win_rate"] = win_rate(ours.repeat(self.samples, 1).ravel(), np.tile(theirs, self.samples).ravel())
        if part == "test":
            self.best_of_n = best_of_n_curve(*self.of_reference.get(part, earned))
        return {f"{part}/{name}": value for name, value in found.items()}

    def _earned(self, asked: Sequence[Conversation], drawn: Rollouts) -> Earned:
        judged = None if self.scorer.judge is None else self.scorer.judged(drawn).reshape(-1, self.samples)
        return Earned(self.scorer.gold(asked, drawn.replies).reshape(-1, self.samples), judged)

    def _drawn(self, model: Model, asked: Sequence[Conversation], part: str, purpose: int) -> Rollouts:
        prompts = [self.chat.prompt(each.messages[:-1]).tolist() for each in asked]
        uniform = uniform_numbers(self.seed + purpose, PARTS[part], len(prompts), self.max_tokens)
        return roll_out(model, prompts, uniform, self.chat.ends)

    @torch.no_grad()
    def _distance(self, model: Model, policy: Network, drawn: Rollouts) -> dict[str, float]:
        """Return the entropy of a token, and the divergence from the reference of an answer, in nats."""
        entropies, divergence = torch.zeros(()), torch.zeros(())
        for idx, counted in zip(drawn.idx.split(ROWS), drawn.counted.split(ROWS), strict=True):
            logits: Tensor = model(idx)  # before the reference, which may be the same weights
            entropies = entropies + entropy(logits, counted).sum().cpu()
            if self.reference is not None:
                with self.reference.beside(policy) as reference:
                    divergence = divergence + exact_kl(logits, reference(idx), counted).sum().cpu()
        found = {"entropy": float(entropies / drawn.counted.sum())}
        return found if self.reference is None else found | {"kl": float(divergence / len(drawn.replies))}
