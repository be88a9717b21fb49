"""The LightningDataModule: which text, how it is split, and how an optimizer step's batch is divided."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import platformdirs

from gptlab import corpora, dataset
from gptlab.dataset import EvalBatches, Prepared, Share, TrainBatches
from gptlab.errors import UserError, quoted

log = logging.getLogger(__name__)

EVAL_TOKENS = 8192  # of one validation batch, where data.val_batch_size does not say


@dataclass(frozen=True)
class DataConfig:
    name: str
    path: str | None
    dir: str | None
    cache_dir: str | None
    val_fraction: float
    batch_size: int
    micro_batch_size: int | None
    val_batch_size: int | None
    overfit_batches: int

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.val_fraction={self.val_fraction}: must be above 0 and below 1")
        if self.batch_size < 1:
            raise UserError(f"data.batch_size={self.batch_size}: must be at least 1")
        for field in ("micro_batch_size", "val_batch_size"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise UserError(f"data.{field}={getattr(self, field)}: must be at least 1, or null to choose it")
        if self.overfit_batches < 0:
            raise UserError(f"data.overfit_batches={self.overfit_batches}: must be at least 0")

    def folder(self, which: str) -> Path:
        """`dir` or `cache_dir`, by default the user's cache folder."""
        given = getattr(self, which)
        return Path(given).expanduser() if given else platformdirs.user_cache_path("gptlab", appauthor=False)

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
    """

    prepared: Prepared

    def __init__(self, config: DataConfig, block_size: int, seed: int) -> None:
        super().__init__()
        self.config = config
        self.block_size = block_size
        self.seed = seed

    def prepare_data(self) -> None:
        """Have the corpus as ids on disk: first called for the vocabulary, before there is a model, then by Lightning.

        Raises:
            UserError: the text cannot be had, is too short for a block, or the cache cannot be written.
        """
        if hasattr(self, "prepared"):
            return
        c = self.config
        path = Path(c.path).expanduser() if c.path else None
        text, name = corpora.load(c.name, path, c.folder("dir"), c.folder("cache_dir"))
        self.config = c = replace(c, name=name)
        prepared = dataset.prepare(name, text, c.val_fraction, c.folder("cache_dir"))
        train = prepared.ids("train")
        if len(train) <= self.block_size:
            raise UserError(
                f"model.block_size={self.block_size} is longer than the training part of data={name} "
                f"({len(train):,} tokens): choose a smaller block or give more text"
            )
        unknown = prepared.tokenizer.unknown(text)
        if unknown:
            log.warning(
                "the validation part has %d distinct characters that the training part lacks; they are left out "
                "of it, as of any prompt: %s",
                len(unknown),
                quoted(unknown),
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
            start=lambda: trainer.global_step,
        )

    def val_dataloader(self) -> EvalBatches:
        assert self.trainer is not None
        return EvalBatches(
            self.prepared.ids("val"),
            batch_size=self.config.val_batch_size or max(EVAL_TOKENS // self.block_size, 1),
            block_size=self.block_size,
            share=self._share(),
            device=self.trainer.strategy.root_device,
        )
