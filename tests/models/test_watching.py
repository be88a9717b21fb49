"""What is seen of a pass is what it computes, and seeing it changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gptlab.models import GPT
from gptlab.models.watching import attention_maps, watch_blocks
from tests.models.test_switches import ROWS, B, C, H, L, Row, T, config, each, lively, tokens


@each([row for row in ROWS if config(**row).has_attention])
def test_each_row_of_a_map_is_a_distribution_over_what_a_token_may_see(row: Row) -> None:
    model = lively(**row)
    maps = attention_maps(model, tokens(T))
    assert maps.shape == (L, model.config.n_head, T, T)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    t = torch.arange(T)
    distance = t[:, None] - t
    window = model.config.window or T
    assert ((maps > 0) == ((distance >= 0) & (distance < window))).all()


def test_the_maps_are_those_of_transformers() -> None:
    pytest.importorskip("transformers")
    from tests.models import test_parity as parity

    theirs = parity.reference("GPT2LMHeadModel")
    model = parity.ours("GPT2LMHeadModel", theirs, "sdpa")
    idx = tokens(parity.T)
    expected = torch.cat(theirs(idx[None], output_attentions=True).attentions)
    torch.testing.assert_close(attention_maps(model, idx), expected, atol=1e-5, rtol=1e-5)


def test_watching_changes_no_bit_and_leaves_nothing_behind() -> None:
    model, idx = lively(), tokens(B, T)
    expected = model(idx)
    outputs: list[Tensor] = []
    attentions: list[Tensor] = []
    watched = watch_blocks(model, lambda i, x: outputs.append(x), lambda i, weights: attentions.append(weights))
    with watched:
        assert torch.equal(model(idx), expected)
    assert [x.shape for x in outputs] == [(B, T, C)] * L
    assert [weights.shape for weights in attentions] == [(B, H, T, T)] * L
    assert torch.equal(model.head(outputs[-1]), expected)
    model(idx)
    assert len(outputs) == len(attentions) == L


def test_a_model_without_attention_and_a_text_that_is_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="no attention"):
        attention_maps(GPT(config(attention="none")), tokens(T))
    with pytest.raises(ValueError, match=f"a text of {T + 1} tokens is longer than model.block_size={T}"):
        attention_maps(GPT(config()), tokens(T + 1))
