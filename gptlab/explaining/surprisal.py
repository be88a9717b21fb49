"""How surprising each token of a text is to a model, and what it would rather have read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from gptlab.data.batches import Windows
from gptlab.evaluation.loss import Measurement, measure
from gptlab.evaluation.ngrams import NGrams
from gptlab.explaining.lens import log_probabilities
from gptlab.explaining.read_text import token_text
from gptlab.formats.opened import OpenedModel
from gptlab.models import Model

LIKELIEST = 5  # alternatives to a token


def measure_text(opened: OpenedModel[Model | NGrams], ids: np.ndarray, device: torch.device) -> Measurement:
    """Measure a model on `device`, or a table of counts, on a text of at most a block as `evaluate` does."""
    windows = None
    if not isinstance(opened.model, NGrams):
        count = min(opened.model.config.block_size, len(ids) - 1)  # a longer window would be padded
        windows = Windows(count, count)
    return measure(opened.model, ids, opened.tokenizer, "all", windows, device)


def bits_by_token(measured: Measurement, count: int) -> list[float | None]:
    """Return the surprisal of each of `count` tokens in bits; None where a token is given and not predicted."""
    assert measured.places is not None
    bits: list[float | None] = [None] * count
    for place, nats in zip(measured.places.tolist(), measured.nats.tolist(), strict=True):
        bits[place + 1] = nats / math.log(2)
    return bits


def totals(measured: Measurement) -> dict[str, Any]:
    """Return what `evaluate` says of a text, and the sums.

    Raises:
        UserError: the loss is infinite or not a number.
    """
    values, nats = measured.values(), math.fsum(measured.nats)
    return {
        "tokens": measured.tokens,
        "bytes": measured.bytes,
        "nats": nats,
        "bits": nats / math.log(2),
        "bits_per_token": values["nats_per_token"] / math.log(2),
        **values,
    }


@torch.inference_mode()
def alternatives(opened: OpenedModel[Model], ids: np.ndarray, device: torch.device) -> list[dict[str, Any]]:
    """Return for each token its rank among all, from 1, and the likeliest tokens in its place; of the first nothing."""
    idx = torch.from_numpy(ids).to(device)
    log_p = log_probabilities(opened.model(idx[None])[0, :-1])  # (T - 1, V)
    actual = log_p.gather(1, idx[1:, None])
    ranks = (log_p > actual).sum(-1) + 1
    top = log_p.topk(min(LIKELIEST, log_p.shape[-1]))
    found: list[dict[str, Any]] = [{}]
    for rank, tokens, values in zip(ranks.tolist(), top.indices.tolist(), top.values.exp().tolist(), strict=True):
        likely = [
            {"id": token, "text": token_text(opened.tokenizer, token), "probability": p}
            for token, p in zip(tokens, values, strict=True)
        ]
        found.append({"rank": rank, "likely": likely})
    return found
