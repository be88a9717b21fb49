"""Lightning's strategies for several processes: DDP, or FSDP with the checkpoints of a single process."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from gptlab.distributed import processes
from gptlab.distributed.sharding import gathered_state, shard_like, shard_model
from gptlab.models import Model


def build_strategy(name: str, world_size: int) -> Strategy | str:
    """Return the strategy that trainer.strategy names; "auto" for a single process, which needs none."""
    if world_size == 1:
        return "auto"
    return FullySharded(world_size) if name == "fsdp" else DDPStrategy()


def environment() -> ClusterEnvironment:
    """Return who starts processes, so that Lightning does not detect SLURM and install its signal handlers."""
    here = processes.place()
    return TorchElasticEnvironment() if here is not None and here.size > 1 else LightningEnvironment()


def end_children(trainer: L.Trainer) -> None:
    """Kill the processes that Lightning has started, which may wait for this one."""
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        trainer.strategy.launcher.kill(signal.SIGKILL)


class FullySharded(ModelParallelStrategy):
    """Weights, gradients and optimizer state sharded over all processes, also on CPUs.

    Checkpoints are those of a single process: whole tensors by their plain names, the optimizer's by their index. So
    one process, DDP and this strategy can resume each other's runs.
    """

    lightning_restore_optimizer = True  # by `load_optimizer_state_dict`

    def __init__(self, world_size: int) -> None:
        super().__init__(data_parallel_size=world_size, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup(self, trainer: L.Trainer) -> None:
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        self.model = module = self.precision_plugin.convert_module(self.model)
        shard_model(cast(Model, module.model), self.device_mesh["data_parallel"])
        self.model_to_device()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return gathered_state(self.lightning_module.state_dict(keep_vars=True))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        return gathered_state(optimizer.state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        parameters = self.lightning_module.state_dict(keep_vars=True)
        state = {key: shard_like(value, parameters[key]) for key, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            of_each = {
                number: {key: shard_like(value, parameters[number]) for key, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": of_each})
