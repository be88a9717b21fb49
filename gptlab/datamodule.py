"""The LightningDataModule: which text, how it is split, and how an optimizer step's batch is divided."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L

from gptlab import corpora
from gptlab.dataset import ORDERS, EvalBatches, Share, TrainBatches, eval_batch_size
from gptlab.prepare import Prepared, Split, prepare
from gptlab.system.errors import UserError, quoted
from gptlab.system.files import user_folder
from gptlab.tokenizers import Tokenizer, TokenizerConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
    name: str
    path: Any
    """A file, a folder, or a list of them; of the Hugging Face hub, a data set's name."""
    text_key: str
    subset: str | None
    revision: str | None
    max_documents: int | None
    dir: str | None
    cache_dir: str | None
    split: str
    val_fraction: float
    test_fraction: float
    batch_size: int
    micro_batch_size: Any
    """A number; None: the whole share of a device; "auto": what fits a GPU's memory or a CPU's caches, see `fit`."""
    val_batch_size: int | None
    overfit_batches: int
    order: str
    """random or epochs, see `TrainBatches`."""

    def __post_init__(self) -> None:
        Split(self.split, self.val_fraction, self.test_fraction)  # which checks them
        if not all(isinstance(path, str) for path in self.paths):
            raise UserError(f"data.path={self.path}: must be a file, a folder, or a list of them")
        if self.max_documents is not None and self.max_documents < 1:
            raise UserError(f"data.max_documents={self.max_documents}: must be at least 1, or null for all")
        if self.batch_size < 1:
            raise UserError(f"data.batch_size={self.batch_size}: must be at least 1")
        micro = self.micro_batch_size
        if micro not in (None, "auto") and not (type(micro) is int and micro >= 1):
            raise UserError(f"data.micro_batch_size={micro}: must be at least 1, null for all at once, or auto")
        if self.val_batch_size is not None and self.val_batch_size < 1:
            raise UserError(f"data.val_batch_size={self.val_batch_size}: must be at least 1, or null to choose it")
        if self.overfit_batches < 0:
            raise UserError(f"data.overfit_batches={self.overfit_batches}: must be at least 0")
        if self.order not in ORDERS:
            raise UserError(f"data.order={self.order}: must be one of {', '.join(ORDERS)}")

    @property
    def paths(self) -> list[str]:
        if self.path is None:
            return []
        return list(self.path) if isinstance(self.path, (list, tuple)) else [self.path]

    def folder(self, which: str) -> Path:
        """`dir` or `cache_dir`, by default the user's cache folder."""
        return user_folder(getattr(self, which))

    def accumulation(self, world_size: int) -> int:
        """Micro-batches that each process runs per optimizer step.

        Raises:
            UserError: batch_size is no multiple of micro_batch_size times the processes.
        """
        micro = self.micro_batch_size or max(self.batch_size // world_size, 1)
        if self.batch_size % (micro * world_size):
            raise UserError(
                f"data.batch_size={self.batch_size} is the whole optimizer step and must be a multiple of "
                f"data.micro_batch_size={micro} times {world_size} device(s)"
            )
        return self.batch_size // (micro * world_size)


class LMDataModule(L.LightningDataModule):
    """Batches (idx, targets), (b, T) int64 each, of one corpus.

    After `prepare_data`, `prepared` holds the ids on disk and the tokenizer, and `config.name` the set that was
    taken. The trainer's world size and device are read when it asks for the loaders.

    Args:
        tokenizer: how to make one for the text, or the one that a trained model has.
    """

    prepared: Prepared

    def __init__(self, config: DataConfig, tokenizer: TokenizerConfig | Tokenizer, block_size: int, seed: int) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.block_size = block_size
        self.seed = seed

    def prepare_data(self) -> None:
        """Have the corpus as ids on disk: first called for the vocabulary, before there is a model, then by Lightning.

        Raises:
            UserError: the text cannot be had, is too short for a block, or the cache cannot be written.
        """
        if hasattr(self, "prepared"):
            return
        c, raw_dir, cache_dir = self.config, self.config.folder("dir"), self.config.folder("cache_dir")
        corpus = corpora.load(
            c.name,
            c.paths,
            raw_dir,
            cache_dir,
            text_key=c.text_key,
            subset=c.subset,
            revision=c.revision,
            max_documents=c.max_documents,
        )
        self.config = replace(c, name=corpus.name)
        split = Split(c.split, c.val_fraction, c.test_fraction)
        prepared = prepare(corpus, split, self.tokenizer, raw_dir, cache_dir)
        train = prepared.ids("train")
        if len(train) <= self.block_size:
            raise UserError(
                f"model.block_size={self.block_size} is longer than the training part of data={corpus.name} "
                f"({len(train):,} tokens): choose a smaller block or give more text"
            )
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
        self.prepared = prepared

    def _share(self) -> Share:
        assert self.trainer is not None
        world_size = self.trainer.world_size
        return Share(self.trainer.global_rank, world_size, self.config.accumulation(world_size))

    def train_dataloader(self) -> TrainBatches:
        assert self.trainer is not None
        trainer = self.trainer
        return TrainBatches(
            self.prepared.ids("train"),
            seed=self.seed,
            batch_size=self.config.batch_size,
            block_size=self.block_size,
            share=self._share(),
            device=trainer.strategy.root_device,
            distinct=self.config.overfit_batches,
            order=self.config.order,
            start=lambda: trainer.global_step,
        )

    def val_dataloader(self) -> EvalBatches:
        return self._whole("val")

    def test_dataloader(self) -> EvalBatches:
        return self._whole("test")

    def _whole(self, split: str) -> EvalBatches:
        assert self.trainer is not None
        size = self.config.val_batch_size or eval_batch_size(self.block_size, self.prepared.tokenizer.vocab_size)
        return EvalBatches(
            self.prepared.ids(split),
            batch_size=size,
            block_size=self.block_size,
            share=self._share(),
            device=self.trainer.strategy.root_device,
        )
