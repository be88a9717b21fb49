"""Make models of named tensors: checked, without drawing random weights first, and without a second copy."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptlab import models
from gptlab.models import Model, ModelConfig, arrays
from gptlab.models.arrays import EMBEDDING, HEAD
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.heads import HeadedGPT
from gptlab.models.low_rank import Adapted
from gptlab.models.other_configs import HeadConfig, HeadedConfig
from gptlab.system.errors import UserError

log = logging.getLogger(__name__)

OF_GPT = "gpt."  # begins the names of a GPT's weights where it has another head
SCORE = "score.weight"  # is that one's
SHARED_BYTES = 1 << 30  # that tensors of one storage may take, each with a copy of its own
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # others are quantised weights without a scale
MISFITS_SHOWN = 10  # in one message
CHEAP_BLOCKS = 100  # as many are built in a tenth of a second, whatever a file holds


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
    other_shapes = [
        f"{name} is {list(state[name].shape)} and must be {list(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    missing = [f"{name} is missing" for name in sorted(expected.keys() - state.keys())]
    unexpected = [f"{name} is unexpected" for name in sorted(state.keys() - expected.keys())]
    misfits = [each for three in zip_longest(other_shapes, missing, unexpected) for each in three if each]
    if misfits:
        more = ", ..." if len(misfits) > MISFITS_SHOWN else ""
        raise UserError(
            f"weights that do not fit the model's config ({len(misfits)}): {', '.join(misfits[:MISFITS_SHOWN])}{more}"
        )


def check_sound(config: ModelConfig | HeadedConfig, state: Mapping[str, Tensor]) -> None:
    """Check that a model for `state`, read from a file, needs no more memory than the file has content.

    Raises:
        UserError: the config has more blocks than there are tensors; or a tensor does not hold floating-point numbers
            in memory; or the tensors claim more numbers than their storage holds. A tensor under several names, as a
            tied head, counts once, unless its copies would fill the memory.
    """
    if getattr(config, "n_layer", 0) > max(len(state), CHEAP_BLOCKS):
        raise UserError(f"model.n_layer={config.n_layer}, and there are {len(state)} tensors")  # type: ignore[union-attr]
    views, storages, copies = {}, set(), 0
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype not in FLOATS:
            raise UserError(f"{name} is no tensor of floating-point numbers of 16, 32 or 64 bits")
        if tensor.device.type == "meta":
            raise UserError(f"{name} has a shape and no numbers")
        size = tensor.numel() * tensor.element_size()
        views[tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype] = size
        copies += size
        storage = tensor.untyped_storage()
        storages.add((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
    held = place = 0
    for begin, end in sorted(storages):
        held += max(0, end - max(begin, place))
        place = max(place, end)
    claimed = sum(views.values())
    if copies > max(2 * held, SHARED_BYTES):
        claimed = copies
    if claimed > held:
        raise UserError(f"its tensors claim {claimed:,} bytes and hold {held:,}")


def fill(config: ModelConfig, state: dict[str, Tensor]) -> Model:
    """Return the model with these weights, in fp32 and in evaluation mode.

    The weights are copied one at a time, and each copy replaces the original in `state`: so views, other types and
    mapped files may be given, and there are never two copies of all. For a tied head see `settle_head`.

    Raises:
        UserError: see `check_shapes` and `check_sound`.
    """
    check_sound(config, state)
    config = settle_head(config, state)
    model = empty_model(config)
    check_shapes(state, parameters(model))
    for name in list(state):
        state[name] = state[name].detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return assign(model, state)


def fill_headed(config: HeadedConfig, state: dict[str, Tensor]) -> HeadedGPT:
    """Return the GPT with a head that has these weights, see `fill`.

    Raises:
        UserError: see `check_shapes` and `check_sound`.
    """
    of_gpt = {name.removeprefix(OF_GPT): state.pop(name) for name in list(state) if name.startswith(OF_GPT)}
    gpt = fill(config.gpt, of_gpt)
    assert isinstance(gpt, GPT)
    return put_head(gpt, config.head, state)


def put_head(gpt: GPT, head: HeadConfig, state: dict[str, Tensor]) -> HeadedGPT:
    """Return a GPT, not copied, with a head that has these weights.

    Raises:
        UserError: see `check_shapes` and `check_sound`.
    """
    with torch.device("meta"), _SkipInit():
        model = HeadedGPT(gpt, head)
    check_sound(model.config, state)
    check_shapes(state, {SCORE: model.score.weight})
    score = state[SCORE].detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    model.score.load_state_dict({"weight": score}, assign=True)
    return model.eval()


def settle_head(config: ModelConfig, state: dict[str, Tensor]) -> ModelConfig:
    """Return the config that fits the embedding and the head in `state`, and leave there what a model of it has.

    Of a tied model the two are one matrix, under either name. If both are there and differ, the head stays: the config
    returned is untied, and a warning says so.
    """
    if not isinstance(config, GPTConfig) or not config.tied or HEAD not in state:
        return config
    if EMBEDDING not in state:
        state[EMBEDDING] = state.pop(HEAD)
    elif same_numbers(state[HEAD], state[EMBEDDING]):
        del state[HEAD]
    else:
        log.warning("the head is not the embedding, though the config says so: it is kept, as with model.tied=false")
        return dataclasses.replace(config, tied=False)
    return config


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal, of whatever types."""
    if a.shape != b.shape:
        return False
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride() and a.dtype == b.dtype:
        return True
    return torch.equal(a, b) if a.dtype == b.dtype else torch.equal(a.float(), b.float())


def digest(state: Mapping[str, Tensor], about: str) -> str:
    """Return the sha256 (hex) of the tensors with their names, types and shapes, and of `about`: `arrays.digest`."""

    def each(name: str) -> tuple[str, str, Sequence[int], Any]:
        tensor = state[name].detach().cpu().contiguous()
        return name, str(tensor.dtype), tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().data

    return arrays.digest(map(each, sorted(state)), about)


def parameters(model: Model) -> dict[str, Tensor]:
    """Return the state dict of a model, a tied head only once: as the embedding.

    Raises:
        ValueError: the model has adapters, which are no part of what its config describes.
    """
    if any(isinstance(each, Adapted) for each in model.modules()):
        raise ValueError("the model has adapters: take lora.merged, lora.without_adapters or lora.adapter_state")
    state = model.state_dict()
    if is_tied(model.config):
        del state[HEAD]
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
    return assign(other, state).train(model.training)


def is_tied(config: ModelConfig) -> bool:
    return getattr(config, "tied", False)


def assign(model: Model, state: dict[str, Tensor]) -> Model:
    """Put these tensors, not copies, into an empty model."""
    model.load_state_dict(state, strict=False, assign=True)  # `state` lacks a tied head
    if is_tied(model.config):
        model.lm_head.weight = model.wte.weight  # type: ignore[union-attr]
    return model.eval()
