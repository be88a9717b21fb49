"""The logits of a model for each token of a given text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gptlab.generation.context import Logits, open_context

if TYPE_CHECKING:
    from gptlab.models import Model
    from gptlab.models.arrays import ArrayGPT

PART = 64  # tokens at a time, so that whoever shares the machine need not wait for a long text


def text_logits(model: Model | ArrayGPT, ids: Sequence[int], part: int = PART) -> Iterator[Logits]:
    """Yield the logits after each token of a text, in parts of (n, V).

    Args:
        model: a model in evaluation mode.
        ids: the text, at least one token and at most block_size.
        part: the most tokens of a part.
    """
    part = min(part, model.config.block_size)  # a bigram sees one
    context = open_context(model, [ids[:part]], max(len(ids) - part, 0), ahead=part)
    for begin in range(0, len(ids), part):
        some = ids[begin : begin + part]
        if begin:
            for token in some:
                context.append([token])
        yield context.logits(len(some))[0]
