"""The logit lens is what the model says: the last row is its output, and each other row that of its first layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from gptlab.explaining import lens
from gptlab.explaining.lens import logit_lens
from gptlab.models import GPT
from tests.models.test_switches import ROWS, L, Row, T, V, each, lively, tokens

K = 3


def first_layers(model: GPT, count: int) -> GPT:
    """The model without its other layers."""
    found = copy.deepcopy(model)
    found.h = found.h[:count]
    return found


@each(ROWS)
@torch.no_grad()
def test_each_row_is_what_a_model_of_the_first_layers_returns(row: Row) -> None:
    model, idx = lively(**row), tokens(T)
    found = logit_lens(model, idx, K)
    assert found.ids.shape == found.probabilities.shape == (L + 1, T, K)
    assert (found.kl.shape, found.nats.shape) == ((L + 1, T), (L + 1, T - 1))
    final = F.log_softmax(model(idx[None])[0], dim=-1)
    for i in range(L + 1):
        log_p = F.log_softmax(first_layers(model, i)(idx[None])[0], dim=-1)
        kl = F.kl_div(log_p, final, log_target=True, reduction="none").sum(-1)
        torch.testing.assert_close(torch.from_numpy(found.kl[i]), kl, atol=1e-5, rtol=1e-4)
        nats = F.nll_loss(log_p[:-1], idx[1:], reduction="none")
        torch.testing.assert_close(torch.from_numpy(found.nats[i]), nats)
        torch.testing.assert_close(torch.from_numpy(found.probabilities[i]), log_p.topk(K).values.exp())


@each(ROWS)
@torch.no_grad()
def test_the_last_row_is_the_models_output_to_the_bit(row: Row) -> None:
    model, idx = lively(**row), tokens(T)
    found = logit_lens(model, idx, V)
    values, ids = F.log_softmax(model(idx[None])[0], dim=-1).topk(V)
    assert torch.equal(torch.from_numpy(found.ids[-1]), ids)
    assert torch.equal(torch.from_numpy(found.probabilities[-1]), values.exp())
    assert (found.kl[-1] == 0).all()


def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, idx = lively(), tokens(T)
    whole = logit_lens(model, idx, K)
    monkeypatch.setattr(lens, "PART", 5)
    parts = logit_lens(model, idx, K)
    assert (parts.ids == whole.ids).all()
    for name in ("probabilities", "kl", "nats"):
        torch.testing.assert_close(*(torch.from_numpy(getattr(found, name)) for found in (parts, whole)))
    assert (parts.probabilities[-1] == whole.probabilities[-1]).all()
