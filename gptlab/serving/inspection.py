"""What one may ask about a text, beside its continuation: its tokens, and where the heads of a model look in it."""

from __future__ import annotations

import asyncio
import base64
import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab.formats.opened import OpenedModel
from gptlab.generation.attention_reader import AttentionReader, Heads, heads_of
from gptlab.serving.bodies import token_name
from gptlab.serving.errors import ApiError, do_not_retry, retry_later
from gptlab.serving.fields import Fields
from gptlab.serving.requests import Limits, read_prompts

if TYPE_CHECKING:
    from gptlab.models import Model
    from gptlab.models.arrays import ArrayGPT

MOST_WEIGHTS = 1 << 22  # of a response, 5.6 MB
MOST_WAITING = 16  # texts whose attention is wanted


def one_prompt(body: dict[str, Any], opened: OpenedModel[Model | ArrayGPT], context_size: int) -> list[int]:
    """Return the ids of the only prompt of a body that has nothing else.

    Raises:
        ApiError: there is something else, or the prompt cannot be read.
    """
    fields = Fields(body)
    fields.value("model")
    [ids], _ = read_prompts(fields, opened, Limits(context_size, None, answers=1))
    fields.end()
    return ids


def tokens_body(opened: OpenedModel[Model | ArrayGPT], ids: list[int]) -> dict[str, Any]:
    """Return what /v1/tokens answers."""
    tokenizer = opened.tokenizer
    tokens = [{"id": id, "token": token_name(tokenizer, id), "bytes": [*tokenizer.tokens[id]]} for id in ids]
    return {"object": "list", "model": opened.name, "data": tokens}


class Attention:
    """Reads the attention weights that clients ask for, one text after another, beside the engines' threads."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "attention")
        self.waiting = 0
        self.readers: dict[str, AttentionReader] = {}

    def stop(self) -> None:
        """Forget the texts that wait, and wait for the one that is being read."""
        self.thread.shutdown(cancel_futures=True)

    async def body(self, opened: OpenedModel[Model | ArrayGPT], ids: list[int], seconds: float) -> dict[str, Any]:
        """Return what /v1/attention answers.

        Args:
            seconds: how long it may take.

        Raises:
            ApiError: the model has no attention, or none that is a number, the time is up, or too many wait.
        """
        heads = heads_of(opened.model)
        if heads is None:
            raise ApiError(400, f"model: {opened.name} has no attention", "model", "no_attention")
        if self.waiting == MOST_WAITING:
            raise retry_later(429, f"{MOST_WAITING} texts wait for their attention; try again soon", "queue_full")
        reader = self.readers.setdefault(opened.name, AttentionReader(opened.model))
        ids = ids[-most_tokens(heads) :]
        self.waiting += 1
        try:
            read = asyncio.get_running_loop().run_in_executor(self.thread, lambda: packed_weights(reader(ids)))
            weights = await asyncio.wait_for(read, seconds)
        except (TimeoutError, asyncio.TimeoutError) as error:
            message = f"the attention was not there after {seconds:g} seconds; ask for that of a shorter text"
            raise do_not_retry(408, message, "timeout") from error
        finally:
            self.waiting -= 1
        shape = {"layers": heads.layers, "heads": heads.per_layer, "count": len(ids)}
        return {"object": "attention", "model": opened.name, **shape, "weights": weights}


def most_tokens(heads: Heads) -> int:
    """Return of how many tokens a response has the weights."""
    return math.isqrt(MOST_WEIGHTS // (heads.layers * heads.per_layer)) or 1


def packed_weights(maps: np.ndarray[Any, Any]) -> str:
    """Return attention weights (L, H, T, T) in base64: of each layer and head the rows, each up to its own token, in
    16 bits, of which 65535 is 1; the lower byte first.

    Raises:
        ApiError: one is not a number.
    """
    if not np.isfinite(maps).all():
        raise do_not_retry(500, "the attention is nan: the weights of the model are broken", "generation_failed")
    rows, columns = np.tril_indices(maps.shape[-1])
    return base64.b64encode(np.rint(maps[..., rows, columns] * 65535).astype("<u2").tobytes()).decode()
