"""Weights that are spread over processes, each holding a part of every tensor (torch's fully_shard)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gptlab.models import Model, weights


def shard(model: Model, mesh: DeviceMesh) -> None:
    """Spread the weights over `mesh`, in place: each block is gathered when its turn comes, the rest stays together.

    The rest, which are embeddings, last norm and head, is one group, so that a tied weight stays tied.
    """
    if isinstance(model, FSDPModule):
        return
    for block in getattr(model, "h", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def compile_blocks(model: Model, **how: Any) -> None:
    """torch.compile for a model that is to be spread: a block is compiled, gathering its weights is not."""
    for block in getattr(model, "h", ()):
        block.forward = torch.compile(block.forward, **how)


@contextmanager
def gathered_model(model: Model) -> Iterator[Model]:
    """A model that has all weights, for this process alone to use inside: of one that is spread a plain twin.

    All must come here, whether they use it or not. (Through the model itself a forward pass would have to be made by
    all alike: fully_shard remembers each.)
    """
    groups = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not groups:
        yield model
        return
    for group in groups:
        group.unshard()
    try:
        twin = weights.empty_model(model.config)
        twin.load_state_dict(dict(model.named_parameters(remove_duplicate=False)), assign=True)
        yield twin.train(model.training)
    finally:
        reshard(model)


def reshard(model: Model) -> None:
    """Forget the whole weights that a forward pass has gathered: the parts have changed."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor, of which each process may hold a part; all must come here."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict as one process alone would have it, on the CPU; what is one tensor under two names stays one.

    For the first process, which writes it; in the others the tensors are empty. All must come here.
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
    """This process's part of a whole tensor, where `parameter` is spread and has the same shape; else the tensor."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
