"""Contexts for tests, whichever kind computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab.generation.context import Context, open_context
from gptlab.generation.cpu_context import CPUContext
from gptlab.generation.torch_context import TorchContext


def context_for(
    model: Any, prompts: Sequence[Sequence[int]], room: int, *, cache: bool = True, **options: Any
) -> Context:
    """As `open_context`; without a cache, torch computes all tokens anew each time."""
    if cache:
        return open_context(model, prompts, room, **options)
    return TorchContext(model, prompts, room, cache=False, **options)


def logits_of(context: Context, last: int = 1) -> Tensor:
    return torch.as_tensor(context.logits(last))


def is_ours(context: Context) -> bool:
    """Whether our library computes."""
    return isinstance(context, CPUContext)


def spy(monkeypatch: pytest.MonkeyPatch, method: str, look: Callable[..., None]) -> None:
    """Let `look` see a context and the arguments each time that a method of it has been called."""
    for kind in (CPUContext, TorchContext):
        monkeypatch.setattr(kind, method, _seen(getattr(kind, method), look))


def _seen(method: Callable[..., Any], look: Callable[..., None]) -> Callable[..., Any]:
    def call(context: Context, *arguments: Any) -> Any:
        found = method(context, *arguments)
        look(context, *arguments)
        return found

    return call


def watch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of the talk, as they are after each that is appended."""
    watched: list[int] = []
    spy(monkeypatch, "append", lambda context, tokens: watched.__setitem__(slice(None), context.rows[0]))
    return watched
