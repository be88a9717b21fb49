"""Assemble a run from its settings: the data, the model, the tokenizer, and the config that they complete."""

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
from gptlab.formats.adapters import Base
from gptlab.models import Model
from gptlab.models.freezing import train_only
from gptlab.models.gpt import GPT
from gptlab.models.lora import add_adapters, train_new_rows
from gptlab.system.errors import UserError
from gptlab.training import init_from
from gptlab.training.chat_datamodule import ChatDataModule
from gptlab.training.datamodule import LMDataModule, RunData
from gptlab.training.module import LMModule
from gptlab.training.objectives.next_token import NextToken
from gptlab.training.placement import Placement
from gptlab.training.resume import Start, check_resumable
from gptlab.training.settings import Settings
from gptlab.training.threads import choose_threads


@dataclass(frozen=True)
class Decided:
    """What a run's settings leave open, and its text and weights decide."""

    data_name: str
    """The data set; data=auto chooses one."""
    vocab_size: int
    model: dict[str, Any]
    """The config's model node; with `init_from` the architecture of those weights."""
    known_tokens: int
    """Tokens that are not new to the model of `init_from`; without one, all."""
    base: Base | None
    """What names the model that the run's adapters belong on; None: it has none."""

    def config(self, settings: Settings) -> dict[str, Any]:
        """Return the run's complete config, as its folder and its checkpoints store it."""
        config = settings.to_dict()
        return {**config, "model": self.model, "data": {**config["data"], "name": self.data_name}}


@dataclass(frozen=True)
class Run:
    """Everything that training needs."""

    settings: Settings
    place: Placement
    data: RunData
    module: LMModule
    threads: int
    """Threads of a CPU, in each process."""

    @property
    def config(self) -> dict[str, Any]:
        """The run's complete config."""
        return self.module.config

    @property
    def matrices(self) -> Mapping[nn.Parameter, Sequence[int]]:
        """The matrices of the model's blocks, see `models.matrices`."""
        return models.matrices(self.module.model)

    @property
    def trained_parameters(self) -> int:
        """The number of parameters that are not frozen."""
        return sum(p.numel() for p in self.module.model.parameters() if p.requires_grad)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all devices."""
        return self.settings.data.batch_size * self.data.block_size


def load(settings: Settings, start: Start | None = None) -> tuple[RunData, Model | None, Tokenizer, Decided]:
    """Prepare a run's data, and load its weights if `init_from` names some.

    Args:
        start: the checkpoint that the run resumes from.

    Returns:
        The data; the model, or None if it has to be built; the tokenizer; and what these decide.

    Raises:
        UserError: the text or the model of `init_from` cannot be loaded, or they do not go together.
    """
    model: Model | None = None
    given: Tokenizer | None = None
    base: Base | None = None
    node: dict[str, Any] = settings.resolved["model"]
    known = None
    if settings.init_from:
        source = start.source if start else settings.init_from
        model, given = init_from.load(source, settings.model, settings.data.folder("dir"))
        node = init_from.node(model)
        known = model.config.vocab_size - (start.new_tokens if start else 0)
        if settings.lora:
            base = start.base if start else Base.of(settings.init_from, model)
            assert base is not None
            base.check(model)
    data = _data_module(settings, given, node["block_size"])
    data.prepare_data()
    tokenizer: Tokenizer = data.prepared.tokenizer
    if given and settings.task.name == "pretrain":
        init_from.check_tokenizer(tokenizer, given)
        tokenizer = given
    if model is not None:
        model = init_from.with_tokens(model, tokenizer)
    vocab_size = tokenizer.vocab_size
    return data, model, tokenizer, Decided(data.prepared.name, vocab_size, node, known or vocab_size, base)


def _data_module(settings: Settings, given: Tokenizer | None, block_size: int) -> RunData:
    """Return the data of what the run is to learn.

    Args:
        given: the tokenizer of init_from.
    """
    how = settings.tokenizer or given
    assert how is not None  # checked by `from_config`
    if settings.task.name == "pretrain":
        return LMDataModule(settings.data, how, block_size, settings.seed)
    if given and settings.tokenizer:
        raise UserError(
            f"tokenizer={settings.tokenizer.name}: init_from brings its own, to which "
            f"task={settings.task.name} adds the tokens of a chat; leave it out"
        )
    return ChatDataModule(settings.data, settings.task, how, block_size, settings.seed)


def assemble(settings: Settings, place: Placement, start: Start | None = None) -> Run:
    """Assemble the run of these settings, with its model compiled if they say so; seeds torch.

    Raises:
        UserError: see `load`, `check_resumable` and `Placement.check_graphs`.
    """
    data, model, tokenizer, decided = load(settings, start)
    if start:
        check_resumable(start, settings, data.prepared)
    place.check_graphs(data.config.accumulation(place.world_size))
    seed_torch(settings)
    model = model or models.build(settings.model_config(decided.vocab_size))
    train_part(model, settings, decided.known_tokens)
    compile: dict[str, Any] | None = None
    if settings.compile.backend is not None:
        # Shapes are fixed: there is one graph for training and one for validation.
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
        NextToken(tokenizer, compile),
        data.answers() if isinstance(data, ChatDataModule) else None,
        fused=place.precision != "fp16",  # Lightning does not unscale gradients for a fused optimizer
        skip=settings.trainer.nonfinite == "skip",
        base=decided.base,
    )
    return Run(settings, place, data, module, choose_threads(settings, place, model, data.block_size, start))


def train_part(model: Model, settings: Settings, known: int) -> None:
    """Freeze what the run does not train, and put its adapters in, if it has some; see `lora.train_new_rows`.

    Args:
        known: the number of tokens that are not new to the model.

    Raises:
        UserError: the model has no such part, or no such layers.
    """
    if settings.lora is not None:
        add_adapters(model, settings.lora)  # type: ignore[arg-type]  # which refuses other models
    elif settings.task.train != "all":
        train_only(model, settings.task.train)
    if isinstance(model, GPT):
        train_new_rows(model, known)


def seed_torch(settings: Settings) -> None:
    """Seed torch before the weights are drawn, and set the precision of matrix products."""
    L.seed_everything(settings.seed, verbose=False)
    torch.set_float32_matmul_precision(settings.precision.matmul)
