"""The LightningDataModule: prepares a text and divides the batches of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import lightning as L
import torch

from gptlab.data import corpora, find_ids, ready_ids
from gptlab.data.batches import Batch, EvalBatches, Share, TrainBatches, eval_batch_size
from gptlab.data.config import DataConfig
from gptlab.data.prepare import prepare
from gptlab.data.prepared import Prepared
from gptlab.data.split import LAST_FILE, Split
from gptlab.data.tokenizers import Tokenizer, TokenizerConfig
from gptlab.data.tokenizers.base import UNKNOWN
from gptlab.system.errors import UserError, quoted

log = logging.getLogger(__name__)


class RunData(L.LightningDataModule):
    """What a run asks of its data, whatever it is to learn.

    Args:
        block_size: tokens in a row, T.
        seed: the seed of the order of batches and of dropout.
    """

    prepared: Any
    """After `prepare_data`: what is learned from, with its `name`, `sha256` and `tokenizer`."""

    def __init__(self, config: DataConfig, block_size: int, seed: int) -> None:
        super().__init__()
        self.config = config
        self.block_size = block_size
        self.seed = seed

    @property
    def has_test(self) -> bool:
        """Whether there is a test part."""
        raise NotImplementedError

    def in_words(self) -> str:
        """Return how much there is of what, and in which tokens."""
        raise NotImplementedError

    def fixed_batch(self, tokens: int) -> Batch:
        """Return the first rows of the validation part, on the CPU: as many as have about so many tokens."""
        raise NotImplementedError

    def opening(self) -> str | None:
        """Return a few words of the validation part to try the model with, if there are any."""
        raise NotImplementedError

    def whole(self, part: str) -> Iterable[Batch]:
        """Return this process's batches of all of val or test."""
        raise NotImplementedError

    def share(self) -> Share:
        """Return this process's share of each step."""
        assert self.trainer is not None
        world_size = self.trainer.world_size
        return Share(self.trainer.global_rank, world_size, self.config.accumulation(world_size))

    def val_dataloader(self) -> Iterable[Batch]:
        return self.whole("val")

    def test_dataloader(self) -> Iterable[Batch]:
        return self.whole("test")


class LMDataModule(RunData):
    """Batches of one corpus: idx and targets, (b, T) int64 each; for training also noise, (b,) int32.

    After `prepare_data`, `prepared` holds the ids on disk and the tokenizer, and `config.name` the chosen data set.
    The loaders read the trainer's world size and device when they are created.

    Args:
        tokenizer: how to train a tokenizer on the text, or the tokenizer of a trained model.
        block_size: tokens in a row, T.
        seed: the seed of the order of batches and of dropout.
    """

    prepared: Prepared

    def __init__(self, config: DataConfig, tokenizer: TokenizerConfig | Tokenizer, block_size: int, seed: int) -> None:
        super().__init__(config, block_size, seed)
        self.tokenizer = tokenizer

    def prepare_data(self) -> None:
        """Write the corpus as ids to disk; called first by us, since the model needs the vocabulary, then by Lightning.

        Raises:
            UserError: the text is not available or too short for a block, or the cache cannot be written.
        """
        if hasattr(self, "prepared"):
            return
        prepared = self._prepare()
        if len(train := prepared.ids("train")) <= self.block_size:
            raise UserError(
                f"model.block_size={self.block_size} is longer than the training part of data={prepared.name} "
                f"({len(train):,} tokens): choose a smaller block or give more text"
            )
        self.prepared = prepared

    def _prepare(self) -> Prepared:
        """Return the ids on disk, and say what of the text they lack."""
        c, raw_dir, cache_dir = self.config, self.config.folder("dir"), self.config.folder("cache_dir")
        split = Split(c.split, c.val_fraction, c.test_fraction)
        if c.name == find_ids.NAME:
            return ready_ids.open_ready_ids(
                c.paths, split, self.tokenizer, raw_dir, cache_dir, c.reading, c.max_documents
            )
        corpus = corpora.load(
            c.name,
            c.paths,
            raw_dir,
            cache_dir,
            options=c.reading,
            subset=c.subset,
            revision=c.revision,
            max_documents=c.max_documents,
            last_file=c.split == LAST_FILE,
        )
        self.config = replace(c, name=corpus.name)
        prepared = prepare(corpus, split, self.tokenizer, raw_dir, cache_dir)
        if prepared.unknown:
            given = isinstance(self.tokenizer, Tokenizer)
            log.warning(
                "the %s has %d distinct characters that %s lacks; they are left out of it, as of any prompt: %s",
                "text" if given else "validation part",
                len(prepared.unknown),
                "init_from's tokenizer" if given else "the training part",
                quoted(prepared.unknown),
            )
        if corpus.documents and prepared.tokenizer.end_of_text is None:
            log.warning(
                "init_from's tokenizer has no end of text: the documents of data=%s follow each other without a mark",
                corpus.name,
            )
        return prepared

    @property
    def has_test(self) -> bool:
        return "test" in self.prepared.files

    def in_words(self) -> str:
        prepared, tokenizer = self.prepared, self.prepared.tokenizer
        return (
            f"{len(prepared.ids('train')):,} training and {len(prepared.ids('val')):,} validation tokens of "
            f"{prepared.name} (tokenizer={tokenizer.name}, {tokenizer.vocab_size:,} in the vocabulary)"
        )

    def fixed_batch(self, tokens: int) -> Batch:
        rows = max(tokens // self.block_size, 1)
        return next(iter(self._eval_batches("val", rows, Share(0, 1, 1), torch.device("cpu"))))

    def opening(self) -> str | None:
        return opening_words(self.prepared)

    def train_dataloader(self) -> TrainBatches:
        assert self.trainer is not None
        trainer = self.trainer
        return TrainBatches(
            self.prepared.ids("train"),
            seed=self.seed,
            batch_size=self.config.batch_size,
            block_size=self.block_size,
            share=self.share(),
            device=trainer.strategy.root_device,
            distinct=self.config.overfit_batches,
            order=self.config.order,
            start=lambda: trainer.global_step,
        )

    def whole(self, part: str) -> EvalBatches:
        assert self.trainer is not None
        size = self.config.val_batch_size or eval_batch_size(self.block_size, self.prepared.tokenizer.vocab_size)
        return self._eval_batches(part, size, self.share(), self.trainer.strategy.root_device)

    def _eval_batches(self, part: str, size: int, share: Share, device: torch.device) -> EvalBatches:
        return EvalBatches(
            self.prepared.ids(part), batch_size=size, block_size=self.block_size, share=share, device=device
        )


def opening_words(data: Prepared) -> str | None:
    """Return a few words from the beginning of the validation text, to try the model with; None if it has none.

    A text without spaces gives a few letters. The first line and the first word may be cut, so they come last.
    """
    tokenizer = data.tokenizer
    ids = [token for token in data.ids("val")[:256].tolist() if token != tokenizer.end_of_text]
    first, *lines = tokenizer.decode(ids).split("\n")
    for line in (*lines, " ".join(first.split()[1:]), first):
        words = line.split()[:3]
        text = " ".join(words)[:20] if len(words) > 1 else line.strip()[:8]
        odd = not text.isprintable() or "\ufffd" in text or UNKNOWN in text or text.startswith("-")
        if any(map(str.isalnum, text)) and not odd and not tokenizer.unknown(text):
            return text.strip()
    return None
