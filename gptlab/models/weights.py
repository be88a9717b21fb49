"""From tensors by name to a model: checked, without drawing random weights first, and without a second copy."""

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

MOST = 10  # misfits that a message lists
BLOCKS = 1000  # built in a second, whatever a file has


class _Undrawn(TorchFunctionMode):
    """Leaves out the drawing of initial weights: for tensors without storage it would import torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return None
        return func(*args, **(kwargs or {}))


def empty(config: ModelConfig) -> Model:
    """The model's shapes, on the meta device; the random state stays as it is."""
    with torch.device("meta"), _Undrawn():
        return models.build(config)


def check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """That `state` has the names and shapes of `expected`, nothing less and nothing more.

    Raises:
        UserError: it has not; the first misfits and their number.
    """
    misfits = [
        f"{name} is {list(state[name].shape)} and must be {list(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    misfits += [f"{name} is missing" for name in sorted(expected.keys() - state.keys())]
    misfits += [f"{name} is unexpected" for name in sorted(state.keys() - expected.keys())]
    if misfits:
        more = ", ..." if len(misfits) > MOST else ""
        raise UserError(
            f"weights that do not fit the model's config ({len(misfits)}): {', '.join(misfits[:MOST])}{more}"
        )


def sound(config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """That a model can be built for `state`, a file's, without asking for more memory than the file has content.

    Raises:
        UserError: the config has more blocks than there are tensors; or a tensor is none of numbers in memory, or
            claims more numbers than its file holds.
    """
    if getattr(config, "n_layer", 0) > max(len(state), BLOCKS):
        raise UserError(f"model.n_layer={config.n_layer}, and there are {len(state)} tensors")  # type: ignore[union-attr]
    claimed, stretches = 0, set()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
            raise UserError(f"{name} is no tensor of floating-point numbers")
        if tensor.device.type == "meta":
            raise UserError(f"{name} has a shape and no numbers")
        claimed += tensor.numel() * tensor.element_size()
        storage = tensor.untyped_storage()
        stretches.add((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
    held = place = 0
    for begin, end in sorted(stretches):
        held += max(0, end - max(begin, place))
        place = max(place, end)
    if claimed > held:
        raise UserError(f"its tensors claim {claimed:,} bytes and hold {held:,}")


def filled(config: ModelConfig, state: dict[str, Tensor]) -> Model:
    """The model with these weights, in fp32 and in evaluation mode.

    The weights are copied, one at a time, each into the place of the old one in `state`: so views, other types and
    mapped files may be given, and there are never two copies of all. A tied head may be there or not.

    Raises:
        UserError: names or shapes differ; see `check` and `sound`.
    """
    if tied(config):
        state.pop("lm_head.weight", None)
    sound(config, state)
    model = empty(config)
    check(state, parameters(model))
    for name in list(state):
        state[name] = state[name].detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return _with(model, state)


def digest(state: Mapping[str, Tensor], about: str) -> str:
    """The sha256 of tensors, their names, types and shapes, and of what a file says of them."""
    found = hashlib.sha256(about.encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def parameters(model: Model) -> dict[str, Tensor]:
    """The state of a model, a tied head once: as the embedding."""
    state = model.state_dict()
    if tied(model.config):
        del state["lm_head.weight"]
    return state


def cropped(model: Model, config: ModelConfig) -> Model:
    """The model under another config: with its first positions or tokens only, or other switches without weights.

    The weights are those of `model` itself but for the tables that are cropped.

    Raises:
        UserError: `config` needs other weights, or more of them.
    """
    other, state = empty(config), parameters(model)
    for name, parameter in parameters(other).items():
        if name in state and state[name].shape != parameter.shape:
            state[name] = state[name][tuple(map(slice, parameter.shape))].clone()
    check(state, parameters(other))
    return _with(other, state).train(model.training)


def tied(config: ModelConfig) -> bool:
    return getattr(config, "tied", False)


def _with(model: Model, state: dict[str, Tensor]) -> Model:
    """An empty model with these tensors themselves."""
    model.load_state_dict(state, strict=False, assign=True)  # a tied head is not among them
    if tied(model.config):
        model.lm_head.weight = model.wte.weight  # type: ignore[union-attr]
    return model.eval()
