"""Weights that are sharded over processes, each holding a part of every tensor (torch's fully_shard)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gptlab.models import Model, Network, weights
from gptlab.models.gpt import GPT
from gptlab.models.lora import merged

AnyModel = TypeVar("AnyModel", bound=Network)


def shard_model(model: Model, mesh: DeviceMesh) -> None:
    """Shard the weights over `mesh`, in place: each block is gathered when its turn comes.

    Embeddings, last norm and head are one group, so that a tied weight stays tied.
    """
    if isinstance(model, FSDPModule):
        return
    for block in getattr(model, "h", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def compile_blocks(model: Model, **options: Any) -> None:
    """Compile each block of a model that will be sharded; gathering its weights is not compiled.

    Args:
        options: arguments of torch.compile.
    """
    for block in getattr(model, "h", ()):
        block.forward = torch.compile(block.forward, **options)


@contextmanager
def gathered_model(model: AnyModel) -> Iterator[AnyModel]:
    """Provide a model with all weights for this process alone: an unsharded twin, if `model` is sharded.

    Of a model with adapters it is the merged one, which is faster.
    All processes must call this, whether they use the twin or not. (Forward passes of the sharded model itself would
    have to be the same in all processes.)
    """
    groups = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not groups:
        yield merged(model) if isinstance(model, GPT) else model  # type: ignore[misc]
        return
    for group in groups:
        group.unshard()
    try:
        twin = weights.empty_model(model.config)  # type: ignore[arg-type]  # heads are not sharded
        twin.load_state_dict(dict(model.named_parameters(remove_duplicate=False)), assign=True)
        yield twin.train(model.training)  # type: ignore[misc]
    finally:
        reshard(model)


def reshard(model: nn.Module) -> None:
    """Drop the weights that a forward pass has gathered, once the shards have changed."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded; all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all tensors together, (), also of sharded ones; all processes must call this.

    As torch's get_total_norm, which takes three times as long for the few tensors of a small model.
    """
    if not tensors or any(isinstance(tensor, DTensor) for tensor in tensors):
        return full_tensor(torch.nn.utils.get_total_norm(tensors))
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


def gathered_state(state: dict[str, Any]) -> dict[str, Any]:
    """Gather a state dict as a single process would have it, on the CPU; tensors under two names stay shared.

    Only process 0, which writes it, gets the numbers; in the others the tensors are empty. All must call this.
    """
    known: dict[int, Tensor] = {}
    first = torch.distributed.get_rank() == 0

    def gather(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: gather(each) for key, each in value.items()}
        if isinstance(value, list):
            return [gather(each) for each in value]
        if not isinstance(value, Tensor):
            return value
        if id(value) not in known:
            tensor = full_tensor(value.detach())
            known[id(value)] = tensor.cpu() if first else torch.empty(0)
        return known[id(value)]

    return gather(state)


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return this process's shard of `tensor` if `parameter` is sharded and of the same shape; else `tensor`."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
