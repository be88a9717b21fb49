"""The parts of a run, put together: its data, its model and tokenizer, and what these decide of its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import nn

from gptlab import models
from gptlab.data.tokenizers import Tokenizer
from gptlab.distributed import sharding
from gptlab.models import Model
from gptlab.training import init_from
from gptlab.training.datamodule import LMDataModule
from gptlab.training.module import LMModule
from gptlab.training.placement import Placement
from gptlab.training.resume import Start, check_resumable
from gptlab.training.settings import Settings


@dataclass(frozen=True)
class Decided:
    """What the text and the weights decide of a run, and its settings leave open."""

    data_name: str
    """The data set, where data=auto chooses it."""
    vocab_size: int
    model: dict[str, Any]
    """The config's node of the model, whose architecture `init_from` may bring."""

    def config(self, settings: Settings) -> dict[str, Any]:
        """The run's whole config, as it is kept in its folder and in its checkpoints."""
        config = settings.to_dict()
        return {**config, "model": self.model, "data": {**config["data"], "name": self.data_name}}


@dataclass(frozen=True)
class Run:
    """All that is needed to train."""

    settings: Settings
    place: Placement
    data: LMDataModule
    module: LMModule

    @property
    def config(self) -> dict[str, Any]:
        """The run's whole config."""
        return self.module.config

    @property
    def matrices(self) -> Mapping[nn.Parameter, Sequence[int]]:
        """Those of the model's blocks, see `models.matrices`."""
        return models.matrices(self.module.model)

    @property
    def tokens_per_step(self) -> int:
        """Of an optimizer step, over all devices."""
        return self.settings.data.batch_size * self.data.block_size


def load(settings: Settings, start: Start | None = None) -> tuple[LMDataModule, Model | None, Tokenizer, Decided]:
    """The data of a run, prepared; the model where it is there already; the tokenizer; and what they decide.

    Args:
        start: the checkpoint that the run resumes from.

    Raises:
        UserError: the text, or what init_from names, cannot be had, or they do not go together.
    """
    model: Model | None = None
    given: Tokenizer | None = None
    node: dict[str, Any] = settings.resolved["model"]
    if settings.init_from:  # which a resumed run needs no more
        source = start.path if start else settings.init_from
        model, given = init_from.load(source, settings.model, settings.data.folder("dir"))
        node = init_from.node(model)
    how = settings.tokenizer or given
    assert how is not None  # `from_config` sees to that
    data = LMDataModule(settings.data, how, node["block_size"], settings.seed)
    data.prepare_data()
    if given:
        init_from.check_tokenizer(data.prepared.tokenizer, given)
    tokenizer = given or data.prepared.tokenizer
    return data, model, tokenizer, Decided(data.prepared.name, tokenizer.vocab_size, node)


def assemble(settings: Settings, place: Placement, start: Start | None = None) -> Run:
    """The parts of a run, its model compiled where that is asked for; seeds torch.

    Raises:
        UserError: see `load` and `check_resumable`; or the device cannot compute a step in so many parts.
    """
    data, model, tokenizer, decided = load(settings, start)
    if start:
        check_resumable(start, settings, data.prepared)
    place.check_graphs(data.config.accumulation(place.world_size))
    seed_torch(settings)
    model = model or models.build(settings.model_config(decided.vocab_size))
    compile: dict[str, Any] | None = None
    if settings.compile.backend is not None:
        # Shapes are fixed: one graph for training, one for validation.
        compile = {"backend": settings.compile.backend, "mode": settings.compile.mode, "dynamic": False}
        if place.strategy == "fsdp" and place.world_size > 1:  # gathering a block's weights is not compiled
            sharding.compile_blocks(model, **compile)
            compile = None
    module = LMModule(
        model,
        tokenizer,
        settings.optim,
        settings.schedule,
        decided.config(settings),
        data.prepared.sha256,
        compile,
        fused=place.precision != "fp16",  # Lightning does not unscale gradients for a fused optimizer
        skip=settings.trainer.nonfinite == "skip",
    )
    return Run(settings, place, data, module)


def seed_torch(settings: Settings) -> None:
    """Before weights are drawn: the seed, and how exact matrix products are."""
    L.seed_everything(settings.seed, verbose=False)
    torch.set_float32_matmul_precision(settings.precision.matmul)
