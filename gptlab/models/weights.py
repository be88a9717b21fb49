"""Make models of named tensors: checked, without drawing random weights first, and without a second copy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptlab import models
from gptlab.models import Model, ModelConfig
from gptlab.system.errors import UserError

MISFITS_SHOWN = 10  # in one message
CHEAP_BLOCKS = 1000  # as many are built in a second, whatever a file holds


class _SkipInit(TorchFunctionMode):
    """Skip the drawing of initial weights: for tensors without storage it would import torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return None
        return func(*args, **(kwargs or {}))


def empty_model(config: ModelConfig) -> Model:
    """Return a model without numbers, on the meta device; the random state stays as it is."""
    with torch.device("meta"), _SkipInit():
        return models.build(config)


def check_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that `state` has exactly the names and shapes of `expected`.

    Raises:
        UserError: it has not; the message gives the first misfits and their number.
    """
    misfits = [
        f"{name} is {list(state[name].shape)} and must be {list(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    misfits += [f"{name} is missing" for name in sorted(expected.keys() - state.keys())]
    misfits += [f"{name} is unexpected" for name in sorted(state.keys() - expected.keys())]
    if misfits:
        more = ", ..." if len(misfits) > MISFITS_SHOWN else ""
        raise UserError(
            f"weights that do not fit the model's config ({len(misfits)}): {', '.join(misfits[:MISFITS_SHOWN])}{more}"
        )


def check_sound(config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Check that a model for `state`, read from a file, needs no more memory than the file has content.

    Raises:
        UserError: the config has more blocks than there are tensors; or a tensor does not hold floating-point numbers
            in memory; or the tensors claim more numbers than their storage holds.
    """
    if getattr(config, "n_layer", 0) > max(len(state), CHEAP_BLOCKS):
        raise UserError(f"model.n_layer={config.n_layer}, and there are {len(state)} tensors")  # type: ignore[union-attr]
    claimed, storages = 0, set()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
            raise UserError(f"{name} is no tensor of floating-point numbers")
        if tensor.device.type == "meta":
            raise UserError(f"{name} has a shape and no numbers")
        claimed += tensor.numel() * tensor.element_size()
        storage = tensor.untyped_storage()
        storages.add((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
    held = place = 0
    for begin, end in sorted(storages):
        held += max(0, end - max(begin, place))
        place = max(place, end)
    if claimed > held:
        raise UserError(f"its tensors claim {claimed:,} bytes and hold {held:,}")


def fill(config: ModelConfig, state: dict[str, Tensor]) -> Model:
    """Return the model with these weights, in fp32 and in evaluation mode.

    The weights are copied one at a time, and each copy replaces the original in `state`: so views, other types and
    mapped files may be given, and there are never two copies of all. A tied head may be present or not.

    Raises:
        UserError: see `check_shapes` and `check_sound`.
    """
    if is_tied(config):
        state.pop("lm_head.weight", None)
    check_sound(config, state)
    model = empty_model(config)
    check_shapes(state, parameters(model))
    for name in list(state):
        state[name] = state[name].detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return _assign(model, state)


def digest(state: Mapping[str, Tensor], about: str) -> str:
    """Return the sha256 (hex) of the tensors with their names, types and shapes, and of `about`.

    Args:
        about: the description of the model that stands in the file.
    """
    found = hashlib.sha256(about.encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def parameters(model: Model) -> dict[str, Tensor]:
    """Return the state dict of a model, a tied head only once: as the embedding."""
    state = model.state_dict()
    if is_tied(model.config):
        del state["lm_head.weight"]
    return state


def crop(model: Model, config: ModelConfig) -> Model:
    """Return the model under a different config: fewer positions or tokens, or different switches that have no weights.

    It shares the weights of `model`, except for the tables that are cropped.

    Raises:
        UserError: `config` needs different weights, or larger ones.
    """
    other, state = empty_model(config), parameters(model)
    for name, parameter in parameters(other).items():
        if name in state and state[name].shape != parameter.shape:
            state[name] = state[name][tuple(map(slice, parameter.shape))].clone()
    check_shapes(state, parameters(other))
    return _assign(other, state).train(model.training)


def is_tied(config: ModelConfig) -> bool:
    return getattr(config, "tied", False)


def _assign(model: Model, state: dict[str, Tensor]) -> Model:
    """Put these tensors, not copies, into an empty model."""
    model.load_state_dict(state, strict=False, assign=True)  # `state` lacks a tied head
    if is_tied(model.config):
        model.lm_head.weight = model.wte.weight  # type: ignore[union-attr]
    return model.eval()
