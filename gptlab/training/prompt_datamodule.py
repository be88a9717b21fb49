"""The LightningDataModule of prompts that a policy answers in training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from gptlab.data.chat.batches import PromptBatches
from gptlab.data.chat.chat_format import Format
from gptlab.data.chat.conversations import Conversation
from gptlab.data.chat.example_set import ExampleSet
from gptlab.data.tokenizers import Tokenizer
from gptlab.system.errors import amount
from gptlab.training.chat_datamodule import ChatDataModule
from gptlab.training.tasks import PolicyConfig


@dataclass(frozen=True)
class Prompts:
    """Prompts that leave room for an answer."""

    asked: list[Conversation]
    """The conversations, whose last messages are the expected answers."""
    ids: list[list[int]]
    """The tokens of their prompts."""

    def __len__(self) -> int:
        return len(self.ids)


class PromptDataModule(ChatDataModule):
    """Prompts to answer in training; held-out conversations as in `ChatDataModule`.

    After `prepare_data`, `prepared.rows["train"]` are `Prompts`.
    """

    task: PolicyConfig

    @property
    def prompts(self) -> Prompts:
        found: Prompts = self.prepared.rows["train"]
        return found

    def rows_of(
        self, part: str, said: ExampleSet, tokenizer: Tokenizer, chat: Format | None, counts: Counter[str]
    ) -> Any:
        if part != "train":
            return super().rows_of(part, said, tokenizer, chat, counts)
        assert chat is not None
        asked = self.with_room(part, said.parts[part], chat, counts)
        return Prompts(asked, [chat.prompt(each.messages[:-1]).tolist() for each in asked])

    def rows_in_words(self) -> str:
        return f", {amount(len(self.prompts), 'prompt')} to answer"

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
