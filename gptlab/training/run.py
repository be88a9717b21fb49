"""Assemble a run from its settings: the data, the model, the tokenizer, and the config that they complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import nn

from gptlab import models
from gptlab.distributed import sharding
from gptlab.models import Model, Network
from gptlab.models.freezing import train_only
from gptlab.models.gpt import GPT
from gptlab.models.heads import HeadedGPT, has_logits
from gptlab.models.lora import add_adapters, train_new_rows
from gptlab.models.other_configs import HeadConfig
from gptlab.system.errors import UserError
from gptlab.training.datamodule import RunData
from gptlab.training.example_datamodule import ExampleDataModule
from gptlab.training.label_datamodule import LabelDataModule
from gptlab.training.loading import Loaded, load
from gptlab.training.module import LMModule
from gptlab.training.objective_of_task import objective_and_answers
from gptlab.training.placement import Placement
from gptlab.training.resume import Start, check_resumable
from gptlab.training.settings import Settings
from gptlab.training.tasks import ClassifyConfig, TaskConfig
from gptlab.training.text_loss import open_text
from gptlab.training.threads import choose_threads


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


def assemble(settings: Settings, place: Placement, start: Start | None = None) -> Run:
    """Assemble the run of these settings, with its model compiled if they say so; seeds torch.

    Raises:
        UserError: see `load`, `check_resumable` and `Placement.check_graphs`.
    """
    loaded = load(settings, start)
    data, tokenizer = loaded.data, loaded.tokenizer
    if start:
        check_resumable(start, settings, data.prepared)
    place.check_graphs(data.config.accumulation(place.world_size))
    seed_torch(settings)
    model = loaded.model or models.build(settings.model_config(loaded.vocab_size))
    network = trained_network(model, settings, loaded)
    compile: dict[str, Any] | None = None
    if settings.compile.backend is not None:
        # Shapes are fixed: there is one graph for training and one for validation.
        compile = {"backend": settings.compile.backend, "mode": settings.compile.mode, "dynamic": False}
        if place.strategy == "fsdp" and place.world_size > 1:  # gathering a block's weights is not compiled
            sharding.compile_blocks(model, **compile)
            compile = None
    objective, answers = objective_and_answers(settings, loaded, compile)
    module = LMModule(
        network,
        tokenizer,
        settings.optim,
        settings.schedule,
        loaded.config(settings),
        data.prepared.sha256,
        objective,
        answers,
        fused=place.precision != "fp16",  # Lightning does not unscale gradients for a fused optimizer
        skip=settings.trainer.nonfinite == "skip",
        origin=loaded.origin,
        chat=data.prepared.chat if isinstance(data, ExampleDataModule) else None,
        text_loss=open_text(settings, loaded),
    )
    return Run(settings, place, data, module, choose_threads(settings, place, network, data.block_size, start))


def trained_network(model: Model, settings: Settings, loaded: Loaded) -> Network:
    """Return what the run trains: the model, or the model with a head for its task.

    What the run does not train is frozen, and its adapters are put in, if it has some; see `lora.train_new_rows`.

    Raises:
        UserError: the model has no such part, or no such layers.
    """
    if settings.lora is not None:
        add_adapters(model, settings.lora)  # type: ignore[arg-type]  # which refuses other models
    network = with_head(model, settings.task, loaded.data)
    if settings.lora is None and (settings.task.train != "all" or isinstance(network, HeadedGPT)):
        train_only(network, settings.task.train)
    if isinstance(model, GPT):
        train_new_rows(model, loaded.known_tokens)
        if not has_logits(network) and not model.config.tied:
            model.lm_head.requires_grad_(False)  # its new rows, too: they would get no gradient, which DDP waits for
    return network


def with_head(model: Model, task: TaskConfig, data: RunData) -> Network:
    """Return the model with the head of its task, if it has one, whose weights are drawn.

    Raises:
        UserError: the model cannot have a head.
    """
    if isinstance(task, ClassifyConfig):
        assert isinstance(data, LabelDataModule)
        head = HeadConfig("classify", data.labels, task.position)
    elif task.name in ("reward", "ppo"):
        head = HeadConfig({"reward": "reward", "ppo": "value"}[task.name])
    else:
        return model
    if not isinstance(model, GPT):
        raise UserError(f"task={task.name}: a head is for a GPT; choose another model than model=bigram")
    return HeadedGPT(model, head)


def seed_torch(settings: Settings) -> None:
    """Seed torch before the weights are drawn, and set the precision of matrix products."""
    L.seed_everything(settings.seed, verbose=False)
    torch.set_float32_matmul_precision(settings.precision.matmul)
