"""What the LightningDataModules of conversations, preferences and labelled texts have in common."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from gptlab.data import tokenizers
from gptlab.data.batches import Share, eval_batch_size
from gptlab.data.chat import sources
from gptlab.data.chat.batches import ChatEvalBatches, ChatTrainBatches
from gptlab.data.chat.chat_format import ChatFormat, Format, chat_tokenizer
from gptlab.data.chat.conversations import Conversation
from gptlab.data.chat.encoding import ALIKE, LEFT_OUT, REFUSE, SHORTENED, WAYS_OUT, answerable, fitting
from gptlab.data.chat.example_set import CONVERSATIONS, FORMS, ExampleSet
from gptlab.data.chat.template import ChatTemplate
from gptlab.data.config import DataConfig
from gptlab.data.tokenizers import Tokenizer, TokenizerConfig
from gptlab.system.errors import UserError, amount, quoted
from gptlab.training.answers import Answers
from gptlab.training.datamodule import RunData
from gptlab.training.sampled import SampledAnswers
from gptlab.training.tasks import TaskConfig

LONGEST = 60  # characters of a prompt that the closing words of a run show
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedExamples:
    """Examples as ids."""

    said: ExampleSet
    sha256: str
    """Hash of what is said in them."""
    tokenizer: Tokenizer
    chat: Format | None
    """How messages become ids; None: there are none."""
    rows: dict[str, Any]
    """Of train, val and perhaps test, a `RowSet` each."""

    @property
    def name(self) -> str:
        return self.said.name


class ExampleDataModule(RunData):
    """Batches of examples.

    After `prepare_data`, `prepared` holds the rows and the tokenizer.

    Args:
        task: what counts in the loss, and what a row holds.
        tokenizer: how to train a tokenizer on what is said, or the tokenizer of a trained model; for messages both get
            the tokens of gptlab's chat format, unless there is a template.
        block_size: tokens in a row, T.
        seed: the seed of the order of batches and of dropout.
        template: the chat template of a trained model, in which messages are written; None: gptlab's format.
        source: the value of init_from, whose answers data=preferences has; None: there is none.
        judged: whether a reward model reads sampled answers: their last tokens, too.
    """

    form: ClassVar[str]
    """What it has, one of `example_set.FORMS`."""
    has_messages: ClassVar[bool] = True
    """Whether the examples are written in a chat format."""
    prepared: PreparedExamples

    def __init__(
        self,
        config: DataConfig,
        task: TaskConfig,
        tokenizer: TokenizerConfig | Tokenizer,
        block_size: int,
        seed: int,
        template: ChatTemplate | None = None,
        source: str | None = None,
        judged: bool = False,
    ) -> None:
        super().__init__(config, block_size, seed)
        self.task, self.tokenizer, self.template = task, tokenizer, template
        self.source, self.judged = source, judged

    def prepare_data(self) -> None:
        """Encode the examples; called first by us, since the model needs the vocabulary, then by Lightning.

        Raises:
            UserError: they cannot be read, or none of a part fits.
        """
        if hasattr(self, "prepared"):
            return
        said = self.load()
        tokenizer = self.tokenizer
        if isinstance(tokenizer, TokenizerConfig):
            tokenizer = tokenizers.build(tokenizer, said.texts("train"), False, self.config.folder("dir"))
        chat: Format | None = None
        if self.has_messages:
            tokenizer = tokenizer if self.template else chat_tokenizer(tokenizer)
            chat = self.template or ChatFormat(tokenizer)
        self._warn_of_unknown(said, tokenizer)
        counts, rows, noun = Counter[str](), {}, FORMS[self.form].noun
        for part in said.parts:
            in_part = Counter[str]()
            rows[part] = self.rows_of(part, said, tokenizer, chat, in_part)
            if not len(rows[part]):
                why = [f"{count:,} {what}; {WAYS_OUT[what]}" for what, count in in_part.items() if what in WAYS_OUT]
                raise UserError(f"data={said.name}: no {noun} of the {part} part are left: {', and '.join(why)}")
            counts.update(in_part)
        for what, count in counts.items():
            row = "" if what == ALIKE else f" (model.block_size={self.block_size})"
            log.warning("%s: %s%s", amount(count, noun.removesuffix("s")), what, row)
        self.prepared = PreparedExamples(said, said.sha256(), tokenizer, chat, rows)

    def load(self) -> ExampleSet:
        """Return the examples; raises UserError, see `sources.load`."""
        return sources.load(self.config, self.form)

    def rows_of(
        self, part: str, said: ExampleSet, tokenizer: Tokenizer, chat: Format | None, counts: Counter[str]
    ) -> Any:
        """Return the rows of a part, a `RowSet`.

        Args:
            counts: counts the examples that are cut or left out.
        """
        raise NotImplementedError

    def held_out(self, part: str) -> Sequence[Conversation]:
        """Return conversations whose last message answers a prompt of a part; none: nothing is answered."""
        return ()

    def _warn_of_unknown(self, said: ExampleSet, tokenizer: Tokenizer) -> None:
        unknown = sorted(
            {character for part in said.parts for text in said.texts(part) for character in tokenizer.unknown(text)}
        )
        if unknown:
            log.warning(
                "the %s have %d distinct characters that the tokenizer lacks; they are left out: %s",
                FORMS[self.form].noun,
                len(unknown),
                quoted(unknown),
            )

    @property
    def has_test(self) -> bool:
        return "test" in self.prepared.rows

    def in_words(self) -> str:
        prepared, tokenizer = self.prepared, self.prepared.tokenizer
        written = f", written in {prepared.chat.words}" if prepared.chat else ""
        return (
            f"{prepared.said.in_words()}{self.rows_in_words()} (tokenizer={tokenizer.name}, "
            f"{tokenizer.vocab_size:,} in the vocabulary){written}"
        )

    def rows_in_words(self) -> str:
        """Return what the training part becomes, after how many examples there are."""
        return ""

    def opening(self) -> str | None:
        said = (each.asked for each in self.held_out("val"))
        return next((text for text in said if text.isprintable() and len(text) < LONGEST and text[0] != "-"), None)

    def answers(self, sampled: SampledAnswers | None = None, asked_in: Format | None = None) -> Answers | None:
        """Return what lets a model answer held-out prompts; None if none are to be answered.

        Where each prompt has one right answer, those of the whole test part are.

        Args:
            sampled: what samples several answers to the first of them, for which prompts leave room; None: nothing.
            asked_in: the format in which the model is asked; None: that of the data.

        Raises:
            UserError: no prompt leaves room.
        """
        said, chat, count = self.prepared.said, self.prepared.chat, self.task.check
        if not count or chat is None:
            return None
        asked = {}
        for part in said.parts.keys() - {"train"}:
            rows = self.held_out(part)
            some = rows if said.known and part == "test" else rows[:count]
            asked[part] = self.with_room(part, some, chat, Counter()) if sampled else self.fitted(some, chat)
        expected = said.known or (self.form == CONVERSATIONS and said.name == "chat")
        answers = Answers(asked_in or chat, asked, self.task.answer_tokens, sampled, count, expected)
        for part in asked if expected else ():
            if impossible := answers.impossible(part):
                log.warning(
                    "%s of the %s answers that %s/accuracy is of cannot be right: %s writes them otherwise, or in more "
                    "than task.answer_tokens=%d",
                    f"{impossible:,}",
                    f"{len(asked[part]):,}",
                    part,
                    chat.words if isinstance(chat, ChatTemplate) else f"tokenizer={chat.tokenizer.name}",
                    self.task.answer_tokens,
                )
        return answers

    def fitted(self, conversations: Sequence[Conversation], chat: Format) -> list[Conversation]:
        """Return conversations cut as the model sees them in training."""
        cut = (fitting(each, chat, self.block_size) for each in conversations)
        return [each for each in cut if each is not None]

    def with_room(
        self, part: str, conversations: Sequence[Conversation], chat: Format, counts: Counter[str]
    ) -> list[Conversation]:
        """Return conversations of a part whose prompts are cut so that an answer of task.answer_tokens fits the row.

        Args:
            counts: counts those that are cut or left out.

        Raises:
            UserError: a prompt is too long and to be refused, or none leaves room.
        """
        tokens = self.task.answer_tokens
        most, found = self.block_size + 1 - self.judged - tokens, []
        for each in conversations:
            kept = answerable(each, chat, most)
            if kept is None or kept.messages != each.messages:
                counts[LEFT_OUT if kept is None else SHORTENED] += 1
                if self.task.too_long == REFUSE:
                    raise UserError(
                        f"{each.where or 'a prompt'}: beside an answer of task.answer_tokens={tokens} a row of "
                        f"model.block_size={self.block_size} has room for {amount(max(most, 0), 'token')}, and the "
                        f"prompt has {len(chat.prompt(each.messages[:-1]))}; shorten it, make one smaller or the other "
                        f"larger, or give task.too_long=cut"
                    )
            if kept is not None:
                found.append(kept)
        if conversations and not found:
            raise UserError(
                f"task.answer_tokens={tokens}: no prompt of the {part} part leaves room for such an answer in "
                f"model.block_size={self.block_size}; make it smaller"
            )
        return found

    def train_dataloader(self) -> Any:
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

    def whole(self, part: str) -> ChatEvalBatches[Any]:
        assert self.trainer is not None
        return self.eval_batches(part, self.share(), self.trainer.strategy.root_device)

    def eval_batches(self, part: str, share: Share, device: torch.device) -> ChatEvalBatches[Any]:
        """Return a process's batches of all of val or test; without a trainer."""
        size = self.config.val_batch_size or eval_batch_size(self.block_size, self.prepared.tokenizer.vocab_size)
        return ChatEvalBatches(self.prepared.rows[part], batch_size=size, share=share, device=device)
