"""Contexts for tests, whichever kind computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab.formats.array_model import open_arrays
from gptlab.generation.context import Context, open_context
from gptlab.generation.cpu_context import CPUContext
from gptlab.generation.opening import open_to_generate
from gptlab.generation.torch_context import TorchContext
from gptlab.models.arrays import ArrayGPT


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


def check_opens_with_torchs_logits(path: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a model opens as arrays, with the words and the logits of the one that torch opens, to the bit."""
    prompts, found = [[1, 2, 3, 4], [5]], []
    for opens in (open_arrays, lambda name: None):
        monkeypatch.setattr("gptlab.generation.opening.open_arrays", opens)
        opened = open_to_generate(path, "cpu", precision, is_compiled=False)
        assert isinstance(opened.model, ArrayGPT) == (opens is open_arrays)
        found.append((opened.words, logits_of(context_for(opened.model, prompts, 3))))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


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
