"""The LightningDataModule of conversations: encodes them and divides the batches of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from gptlab.data.batches import Batch
from gptlab.data.chat.batches import Rows
from gptlab.data.chat.chat_format import Format
from gptlab.data.chat.conversations import Conversation
from gptlab.data.chat.encoding import encode_conversations
from gptlab.data.chat.example_set import CONVERSATIONS, ExampleSet
from gptlab.data.tokenizers import Tokenizer, TokenizerConfig
from gptlab.system.errors import UserError, amount
from gptlab.training.example_datamodule import ExampleDataModule


class ChatDataModule(ExampleDataModule):
    """Batches of conversations; see `Batch`."""

    form = CONVERSATIONS

    def rows_of(
        self, part: str, said: ExampleSet, tokenizer: Tokenizer, chat: Format | None, counts: Counter[str]
    ) -> Rows:
        assert chat is not None
        encoded = encode_conversations(
            said.parts[part],
            chat,
            self.block_size,
            counts,
            loss_on_all=part == "train" and self.task.loss_on == "all",
            too_long=self.task.too_long,
        )
        if encoded and not any(tokenizer.text_bytes(ids)[counted].any() for ids, counted in encoded):
            way = "use tokenizer=byte" if isinstance(self.tokenizer, TokenizerConfig) else "begin with another model"
            raise UserError(
                f"data={said.name}: the {part} part has no answer with a character that tokenizer={tokenizer.name} "
                f"knows, so that nothing could be learned of it or measured; {way}, or leave such rows out"
            )
        return Rows(encoded, self.block_size, self.task.pack)

    def held_out(self, part: str) -> Sequence[Conversation]:
        found: list[Conversation] = self.prepared.said.parts[part]
        return found

    def rows_in_words(self) -> str:
        rows = self.prepared.rows["train"]
        return f" in {amount(len(rows), 'row')} of training, {rows.fill:.0%} full"

    def fixed_batch(self, tokens: int) -> Batch:
        alone = Rows(
            self.prepared.rows["val"].conversations[: max(tokens // self.block_size, 1)], self.block_size, packed=False
        )
        idx, targets, _ = map(torch.from_numpy, alone.filled(range(len(alone)), self.block_size))
        return Batch(idx, targets)
