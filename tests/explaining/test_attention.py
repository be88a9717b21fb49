"""The attention maps of a page."""

from __future__ import annotations

import math

import pytest
import torch

from gptlab.explaining.attention import map_attention
from gptlab.system.errors import UserError
from tests.models.test_switches import lively, tokens


@torch.no_grad()
def test_attention_that_is_no_number_is_refused() -> None:
    """Of so short a text torch makes zeros of it, and the loss is a number."""
    model, idx = lively(), tokens(4)
    map_attention(model, idx)
    model.h[1].attn.c_attn.weight[: model.config.n_embd] = math.nan  # queries
    with pytest.raises(UserError, match="the attention of layer 2 is nan: the weights are broken"):
        map_attention(model, idx)
