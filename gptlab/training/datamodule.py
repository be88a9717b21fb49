"""The LightningDataModule: prepares a text and divides the batches of a run."""

from __future__ import annotations

import logging
from dataclasses import replace

import lightning as L

from gptlab.data import corpora
from gptlab.data.batches import EvalBatches, Share, TrainBatches, eval_batch_size
from gptlab.data.config import DataConfig
from gptlab.data.prepare import prepare
from gptlab.data.prepared import Prepared
from gptlab.data.split import Split
from gptlab.data.tokenizers import Tokenizer, TokenizerConfig
from gptlab.system.errors import UserError, quoted

log = logging.getLogger(__name__)


class LMDataModule(L.LightningDataModule):
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
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.block_size = block_size
        self.seed = seed

    def prepare_data(self) -> None:
        """Write the corpus as ids to disk; called first by us, since the model needs the vocabulary, then by Lightning.

        Raises:
            UserError: the text is not available or too short for a block, or the cache cannot be written.
        """
        if hasattr(self, "prepared"):
            return
        c, raw_dir, cache_dir = self.config, self.config.folder("dir"), self.config.folder("cache_dir")
        corpus = corpora.load(
            c.name,
            c.paths,
            raw_dir,
            cache_dir,
            options=c.reading,
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
