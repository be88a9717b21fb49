"""Rows of tokens, and a model's logits for their next tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gptlab.models.arrays import ArrayGPT

if TYPE_CHECKING:
    from gptlab.models import Model

Logits = Any
"""Of torch or of numpy."""


class Context(ABC):
    """Rows of tokens, and a model's logits for their next tokens.

    A token sees at most the last block_size tokens. Once a row is longer, a model with learned or sinusoidal positions
    reads the whole window again for every token; with other positions the window slides.
    """

    passes: int = 0
    """Forward passes so far."""

    def __init__(self, block_size: int, prompts: Sequence[Sequence[int]]) -> None:
        self.rows = [list(prompt[-block_size:]) for prompt in prompts]
        """The tokens of each row."""

    def append(self, tokens: Sequence[int | None]) -> None:
        """Append a token to each row.

        Args:
            tokens: one for each row, (B,); None: the row gets none.
        """
        for row, token in zip(self.rows, tokens, strict=True):
            if token is not None:
                row.append(int(token))

    @abstractmethod
    def take_back(self, count: int) -> None:
        """Remove the last `count` tokens of each row."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows alone."""

    @abstractmethod
    def logits(self, last: int = 1) -> Logits:
        """Return the logits after each of the last tokens of every row, (B, last, V).

        Args:
            last: the number of tokens; at most as many as were appended since the last call.

        Raises:
            ValueError: more tokens were appended than the context has room for.
        """


def open_context(
    model: Model | ArrayGPT,
    prompts: Sequence[Sequence[int]],
    room: int,
    *,
    ahead: int = 1,
    longest: int = 1,
    rows: int | None = None,
    bf16_cache: bool = False,
    backend: str | None = None,
) -> Context:
    """Return a context of the fastest kind that can have the model: by our library where it is, or else by torch.

    Args:
        model: a model in evaluation mode.
        prompts: the tokens of each row, at least one; only the last block_size are used.
        room: the number of tokens that will be appended to a row.
        ahead: the largest number of tokens appended before `logits` is called; `take_back` can remove them.
        longest: the length of the longest prompt that `CPUContext.join` will bring.
        rows: how many rows there will be at most, with those that join; None: as many as prompts.
        bf16_cache: keep keys and values in bf16, half the memory; does something where our library computes.
        backend: the torch.compile backend for single tokens, e.g. "inductor" (on a GPU with CUDA graphs).
    """
    from gptlab.generation.cpu_context import CPUContext, arrays_for

    arrays = arrays_for(model) if backend is None else None
    if arrays is not None:
        options: dict[str, Any] = {"longest": longest, "rows": rows, "bf16_cache": bf16_cache}
        return CPUContext(arrays, prompts, room, ahead=ahead, **options)
    from gptlab.generation.torch_context import TorchContext

    assert not isinstance(model, ArrayGPT)
    return TorchContext(model, prompts, room, ahead=ahead, backend=backend)
