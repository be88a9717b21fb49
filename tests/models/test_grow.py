"""A trained model takes tokens that it has not had, and knows what it knew."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gptlab import models
from gptlab.models import Bigram, BigramConfig, Model
from gptlab.models.grow import grow_vocabulary
from tests.models.test_switches import lively

V = lively().config.vocab_size
IDX = torch.randint(V, (2, 7), generator=torch.Generator().manual_seed(1))


def made(kind: str) -> Model:
    if kind == "bigram":
        return Bigram(BigramConfig(vocab_size=V))
    fields: dict[str, dict[str, Any]] = {
        "tied": {"tied": True},
        "untied": {"tied": False, "head_bias": True, "pos": "rope"},
        "bf16": {"tied": False},
    }
    model = lively(**fields[kind])
    return model.bfloat16() if kind == "bf16" else model


@pytest.mark.parametrize("kind", ["tied", "untied", "bf16", "bigram"])
@pytest.mark.parametrize("added", [0, 1, 5])
def test_old_tokens_have_the_logits_that_they_had_and_new_ones_the_average(kind: str, added: int) -> None:
    model = made(kind).eval()
    grown = grow_vocabulary(model, V + added)
    assert models.to_dict(grown.config) == models.to_dict(model.config) | {"vocab_size": V + added}
    assert not grown.training
    old, new = model(IDX), grown(IDX)
    torch.testing.assert_close(new[..., :V], old)
    for i in range(added):
        average = old.float().mean(-1)
        torch.testing.assert_close(new[..., V + i].float(), average, atol=0.05 if kind == "bf16" else 1e-5, rtol=1e-3)
    assert all(a.dtype == b.dtype for a, b in zip(model.parameters(), grown.parameters(), strict=True))


def test_a_new_token_is_read_as_the_average_of_the_others() -> None:
    model = made("untied").eval()
    grown = grow_vocabulary(model, V + 2)
    torch.testing.assert_close(grown.wte.weight[V + 1], model.wte.weight.mean(0))
    assert grown(torch.tensor([[V, V + 1]])).isfinite().all()
    before = model.wte.weight.clone()
    with torch.no_grad():
        grown.wte.weight.zero_()
    assert torch.equal(model.wte.weight, before)  # a copy
