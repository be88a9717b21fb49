"""What answers earn: by a rule, or by the judgement of a trained reward model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gptlab.alignment.rewards import Answer, Reward
from gptlab.alignment.rollouts import Rollouts
from gptlab.data.chat.conversations import Conversation
from gptlab.data.tokenizers import Tokenizer
from gptlab.generation.replies import Reply
from gptlab.models.heads import HeadedGPT


def reply_text(reply: Reply, tokenizer: Tokenizer) -> str:
    """Return what a reply says, without its end token."""
    return tokenizer.decode(reply.ids[: len(reply.ids) - reply.ended])


class Scorer:
    """Gives each answer its reward.

    Args:
        rule: the gold reward, of which the truth is known.
        judge: a reward model in evaluation mode, which reads the ids of the policy; None: there is none.
        unended: what an answer earns that does not end; None: what it would if it had ended there.
    """

    def __init__(
        self, tokenizer: Tokenizer, rule: Reward, judge: HeadedGPT | None = None, unended: float | None = None
    ) -> None:
        self.tokenizer, self.rule, self.judge, self.unended = tokenizer, rule, judge, unended

    def gold(self, asked: Sequence[Conversation], replies: Sequence[Reply]) -> np.ndarray:
        """Return the gold rewards of replies to the prompts of conversations, (N,) float64.

        Args:
            asked: conversations whose last message is the expected answer, one for each reply.
        """
        answers = [
            Answer(each.asked, reply_text(reply, self.tokenizer), each.messages[-1].content)
            for each, reply in zip(asked, replies, strict=True)
        ]
        return self._with_unended(np.asarray(self.rule(answers), dtype=np.float64), replies)

    @torch.no_grad()
    def judged(self, rollouts: Rollouts, rows: int = 256) -> np.ndarray:
        """Return the reward model's rewards, (N,) float64.

        Args:
            rows: at a time.
        """
        assert self.judge is not None
        judge = self.judge.to(rollouts.idx.device)
        parts = zip(rollouts.tokens.split(rows), rollouts.lengths.split(rows), strict=True)
        rewards = torch.cat([judge(texts, lengths) for texts, lengths in parts])
        return self._with_unended(rewards.double().cpu().numpy(), rollouts.replies)

    def _with_unended(self, rewards: np.ndarray, replies: Sequence[Reply]) -> np.ndarray:
        if self.unended is None:
            return rewards
        return np.where([reply.ended for reply in replies], rewards, self.unended)
