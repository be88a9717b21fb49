"""The LightningDataModule of labelled texts."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from gptlab.data.batches import IGNORED, Batch
from gptlab.data.chat.batches import LabelledRows
from gptlab.data.chat.chat_format import Format
from gptlab.data.chat.encoding import encode_labelled
from gptlab.data.chat.example_set import LABELS, ExampleSet
from gptlab.data.tokenizers import Tokenizer
from gptlab.training.example_datamodule import ExampleDataModule


class LabelDataModule(ExampleDataModule):
    """Batches of labelled texts; see `LabelledBatch`."""

    form = LABELS
    has_messages = False

    def rows_of(
        self, part: str, said: ExampleSet, tokenizer: Tokenizer, chat: Format | None, counts: Counter[str]
    ) -> LabelledRows:
        encoded = encode_labelled(
            said.parts[part], tokenizer, said.classes, self.block_size, counts, too_long=self.task.too_long
        )
        return LabelledRows(encoded, self.block_size)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers."""
        return tuple(map(str, self.prepared.said.classes))

    def class_counts(self) -> Tensor:
        """Return how many training texts each class has, (K,) int64."""
        numbers = torch.tensor([each.label for each in self.prepared.rows["train"].texts])
        return numbers.bincount(minlength=len(self.labels))

    def fixed_batch(self, tokens: int) -> Batch:
        rows = self.prepared.rows["val"]
        count = max(tokens // self.block_size, 1)
        found = rows.batch(range(count), range(count), None, torch.device("cpu"))
        place = torch.arange(found.idx.shape[1])
        nothing = torch.full_like(found.idx[:, :1], IGNORED)
        following = torch.cat((found.idx[:, 1:], nothing), dim=1)
        return Batch(found.idx, following.where(place < found.lengths[:, None] - 1, IGNORED))
