"""The LightningDataModule of conversations: encodes them and divides the batches of a run."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import torch

from gptlab.data import tokenizers
from gptlab.data.batches import Batch, eval_batch_size
from gptlab.data.chat import sources
from gptlab.data.chat.batches import ChatEvalBatches, ChatTrainBatches, Rows
from gptlab.data.chat.chat_format import ChatFormat, chat_tokenizer
from gptlab.data.chat.conversations import Conversation
from gptlab.data.chat.encoding import encode_conversations, fitting
from gptlab.data.chat.example_set import ExampleSet
from gptlab.data.config import DataConfig
from gptlab.data.tokenizers import Tokenizer, TokenizerConfig
from gptlab.system.errors import amount, quoted
from gptlab.training.answers import Answers
from gptlab.training.datamodule import RunData
from gptlab.training.sampled import SampledAnswers
from gptlab.training.tasks import TaskConfig

LONGEST = 60  # characters of a prompt that the closing words of a run show
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedChat:
    """Conversations as ids."""

    said: ExampleSet
    sha256: str
    """Hash of what is said in them."""
    tokenizer: Tokenizer
    """With the tokens of the chat format."""
    rows: dict[str, Rows]
    """Of train, val and perhaps test."""

    @property
    def name(self) -> str:
        return self.said.name


class ChatDataModule(RunData):
    """Batches of conversations; see `Batch`.

    After `prepare_data`, `prepared` holds the rows and the tokenizer.

    Args:
        task: what counts in the loss, and what a row holds.
        tokenizer: how to train a tokenizer on what is said, or the tokenizer of a trained model; both get the tokens of
            the chat format.
        block_size: tokens in a row, T.
        seed: the seed of the order of batches and of dropout.
    """

    prepared: PreparedChat

    def __init__(
        self, config: DataConfig, task: TaskConfig, tokenizer: TokenizerConfig | Tokenizer, block_size: int, seed: int
    ) -> None:
        super().__init__(config, block_size, seed)
        self.task, self.tokenizer = task, tokenizer

    def prepare_data(self) -> None:
        """Encode the conversations; called first by us, since the model needs the vocabulary, then by Lightning.

        Raises:
            UserError: they cannot be read, or none fits.
        """
        if hasattr(self, "prepared"):
            return
        said = sources.load(self.config)
        tokenizer = self.tokenizer
        if isinstance(tokenizer, TokenizerConfig):
            tokenizer = tokenizers.build(tokenizer, said.texts("train"), False, self.config.folder("dir"))
        tokenizer = chat_tokenizer(tokenizer)
        self._warn_of_unknown(said, tokenizer)
        rows, counts, chat = {}, Counter[str](), ChatFormat(tokenizer)
        for part, conversations in said.parts.items():
            encoded = encode_conversations(
                conversations,
                chat,
                self.block_size,
                counts,
                loss_on_all=part == "train" and self.task.loss_on == "all",
                too_long=self.task.too_long,
            )
            rows[part] = Rows(encoded, self.block_size, self.task.pack)
        for what, count in counts.items():
            log.warning("%s: %s (model.block_size=%d)", amount(count, "conversation"), what, self.block_size)
        self.prepared = PreparedChat(said, said.sha256(), tokenizer, rows)

    def _warn_of_unknown(self, said: ExampleSet, tokenizer: Tokenizer) -> None:
        unknown = sorted(
            {character for part in said.parts for text in said.texts(part) for character in tokenizer.unknown(text)}
        )
        if unknown:
            log.warning(
                "the conversations have %d distinct characters that the tokenizer lacks; they are left out: %s",
                len(unknown),
                quoted(unknown),
            )

    @property
    def has_test(self) -> bool:
        return "test" in self.prepared.rows

    def in_words(self) -> str:
        rows, tokenizer = self.prepared.rows["train"], self.prepared.tokenizer
        return (
            f"{self.prepared.said.in_words()} in {amount(len(rows), 'row')} of training, {rows.fill:.0%} full "
            f"(tokenizer={tokenizer.name}, {tokenizer.vocab_size:,} in the vocabulary)"
        )

    def fixed_batch(self, tokens: int) -> Batch:
        alone = Rows(
            self.prepared.rows["val"].conversations[: max(tokens // self.block_size, 1)], self.block_size, packed=False
        )
        idx, targets, _ = map(torch.from_numpy, alone.filled(range(len(alone)), self.block_size))
        return Batch(idx, targets)

    def opening(self) -> str | None:
        said = (each.messages[-2].content for each in self.prepared.said.parts["val"])
        return next((text for text in said if text.isprintable() and len(text) < LONGEST and text[0] != "-"), None)

    def answers(self, sampled: SampledAnswers | None = None) -> Answers | None:
        """Return what lets a model answer held-out prompts; None if none are to be answered.

        Where each prompt has one right answer, those of the whole test part are.

        Args:
            sampled: what samples several answers to the first of them; None: nothing.
        """
        said, tokenizer, count = self.prepared.said, self.prepared.tokenizer, self.task.check
        if not count:
            return None
        chat, asked = ChatFormat(tokenizer), {}
        for part in said.parts.keys() - {"train"}:
            rows = said.parts[part]
            some = rows if said.known and part == "test" else rows[:count]
            asked[part] = self.fitted(some, chat)
        return Answers(tokenizer, chat, asked, self.task.answer_tokens, said.kind, sampled, count)

    def fitted(self, conversations: list[Conversation], chat: ChatFormat) -> list[Conversation]:
        """Return conversations cut as the model sees them in training."""
        cut = (fitting(each, chat, self.block_size) for each in conversations)
        return [each for each in cut if each is not None]

    def train_dataloader(self) -> ChatTrainBatches[Batch]:
        trainer = self.trainer
        assert trainer is not None
        return ChatTrainBatches(
            self.prepared.rows["train"],
            seed=self.seed,
            batch_size=self.config.batch_size,
            share=self.share(),
            device=trainer.strategy.root_device,
            distinct=self.config.overfit_batches,
            start=lambda: trainer.global_step,
        )

    def whole(self, part: str) -> ChatEvalBatches[Batch]:
        assert self.trainer is not None
        size = self.config.val_batch_size or eval_batch_size(self.block_size, self.prepared.tokenizer.vocab_size)
        return ChatEvalBatches(
            self.prepared.rows[part],
            batch_size=size,
            share=self.share(),
            device=self.trainer.strategy.root_device,
        )
