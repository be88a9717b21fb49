"""The LightningDataModule of prompts that a policy answers in training."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from gptlab.data.chat.batches import PromptBatches
from gptlab.data.chat.chat_format import Format
from gptlab.data.chat.conversations import Conversation
from gptlab.data.chat.encoding import answerable
from gptlab.system.errors import UserError, amount
from gptlab.training.chat_datamodule import ChatDataModule
from gptlab.training.tasks import PolicyConfig

log = logging.getLogger(__name__)


class PromptDataModule(ChatDataModule):
    """Prompts to answer in training; held-out conversations as in `ChatDataModule`.

    After `prepare_data`, `asked` holds the training conversations whose prompts are answered, cut so that an answer of
    task.answer_tokens fits, and `prompts` the tokens of these prompts.
    """

    task: PolicyConfig
    asked: list[Conversation]
    prompts: list[list[int]]

    def prepare_data(self) -> None:
        """Encode the conversations, and the prompts.

        Raises:
            UserError: they cannot be read, or none leaves room for an answer.
        """
        if hasattr(self, "prompts"):
            return
        super().prepare_data()
        chat = self.prepared.chat
        assert chat is not None
        self.asked = self.fitted(self.prepared.said.parts["train"], chat)
        if not self.asked:
            raise UserError(
                f"task.answer_tokens={self.task.answer_tokens}: no prompt leaves room for such an answer in "
                f"model.block_size={self.block_size}; make it smaller"
            )
        if left := len(self.prepared.said.parts["train"]) - len(self.asked):
            log.warning("%s left out: no room for an answer of task.answer_tokens", amount(left, "prompt"))
        self.prompts = [chat.prompt(each.messages[:-1]).tolist() for each in self.asked]

    def fitted(self, conversations: Sequence[Conversation], chat: Format) -> list[Conversation]:
        room = self.block_size + 1 - self.task.answer_tokens
        found = (answerable(each, chat, room) for each in conversations)
        return [each for each in found if each is not None]

    def train_dataloader(self) -> PromptBatches:
        trainer = self.trainer
        assert trainer is not None
        return PromptBatches(
            len(self.prompts),
            seed=self.seed,
            batch_size=self.config.batch_size,
            group=self.task.group,
            share=self.share(),
            repeats=self.task.updates,
            distinct=self.config.overfit_batches,
            start=lambda: trainer.global_step,
        )
