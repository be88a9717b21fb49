"""Masks that are a function of where they stand fall as if they had been drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from gptlab.data.batches import row_noise
from gptlab.models import GPT, GPTConfig
from gptlab.models.dropout import Drop, make_dropouts, mix_bits

P = 0.2


def masks(steps: int = 20, rows: int = 12, places: int = 13, size: int = 64 * 32) -> Tensor:
    """What stays, (steps, places, rows, size), as a run has it."""
    found = []
    for step in range(steps):
        noise = torch.from_numpy(row_noise(1337, step, rows))
        found.append(
            torch.stack(
                [drop(torch.ones(rows, size)) != 0 for drop in make_dropouts([P] * places, noise, noise[:, None])]
            )
        )
    return torch.stack(found)


def test_as_many_fall_out_as_should_and_as_evenly() -> None:
    """Of 3,120 masks the counts are binomial: in mean, in variance, in the shape of their distribution."""
    kept = masks().flatten(0, 2)
    counts = kept.sum(-1).double()
    n = kept.shape[-1]
    z = (counts - n * (1 - P)) / (n * P * (1 - P)) ** 0.5
    assert abs(z.mean().item()) * len(z) ** 0.5 < 3.3
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    low, high = stats.chi2.ppf([5e-4, 1 - 5e-4], len(z) - 1) / (len(z) - 1)
    assert low < z.var().item() < high
    by_position = (kept.double().mean(0) - (1 - P)) / (P * (1 - P) / len(kept)) ** 0.5
    assert by_position.abs().max() < 5


@pytest.mark.parametrize("axis", ["step", "place", "row", "position"])
def test_no_mask_knows_its_neighbour(axis: str) -> None:
    x = (masks().float() - (1 - P)) / (P * (1 - P)) ** 0.5
    dim = ["step", "place", "row", "position"].index(axis)
    for distance in (1, 2, 3, 8):
        length = x.shape[dim] - distance
        product = x.narrow(dim, 0, length) * x.narrow(dim, distance, length)
        assert abs(product.mean().item()) * product.numel() ** 0.5 < 4, distance


def test_the_hash_is_a_bijection_that_reaches_the_high_bits() -> None:
    x = torch.arange(1 << 20, dtype=torch.int32)
    assert len(mix_bits(x).unique()) == 1 << 20
    for bit in range(32):  # each bit of x turns each of the highest five about half of the time
        flipped = mix_bits(x[:65536]) ^ mix_bits(x[:65536] ^ torch.tensor(1 << bit).to(torch.int32))
        for high in range(27, 32):
            assert 0.4 < (flipped >> high & 1).float().mean() < 0.6, (bit, high)


def test_a_row_has_its_mask_whatever_stands_beside_it() -> None:
    noise = torch.tensor([5, -7, 2**31 - 1], dtype=torch.int32)
    x = torch.randn(3, 11, 7)
    whole = Drop(P, noise)(x)
    assert torch.equal(torch.cat([Drop(P, noise[i : i + 1])(x[i : i + 1]) for i in range(3)]), whole)
    parts = [Drop(P, noise).at((11, 7), slice(i, i + 1))(x[:, i : i + 1])[:, 0] for i in range(11)]
    assert torch.equal(torch.stack(parts, dim=1), whole)


def test_bf16_stays_bf16_and_gradients_fall_with_the_values() -> None:
    x = (1 + torch.rand(5, 101)).bfloat16().requires_grad_()
    y = Drop(0.5, torch.arange(5, dtype=torch.int32))(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)
    assert set(x.grad.unique().tolist()) == {0.0, 2.0}


SMALL = {"n_layer": 2, "n_head": 3, "n_embd": 33, "block_size": 17, "dropout": 0.3}


@pytest.mark.parametrize("attention", ["sdpa", "manual", "per_head"])
def test_a_model_drops_the_same_alone_and_in_a_batch_and_in_any_attention(attention: str) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(29, **SMALL)).train()
    same = GPT(GPTConfig(29, **SMALL, attention=attention)).train()
    same.load_state_dict(model.state_dict())
    idx = torch.randint(29, (4, 17))
    noise = torch.from_numpy(row_noise(1, 2, 4))
    whole = model(idx, noise=noise)
    rows = torch.cat([same(idx[i : i + 1], noise=noise[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(rows, whole, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(model(idx, noise=noise + 1), whole)


def test_without_noise_a_model_draws_from_torch() -> None:
    model = GPT(GPTConfig(29, **SMALL)).train()
    idx = torch.randint(29, (4, 17))
    torch.manual_seed(3)
    first, second = model(idx), model(idx)
    torch.manual_seed(3)
    assert torch.equal(model(idx), first)
    assert not torch.equal(first, second)


def test_noise_is_that_of_seed_and_step() -> None:
    # Other versions of numpy must not change anybody's runs.
    assert row_noise(1337, 0, 3).tolist() == [-821117741, 537847279, 1642220281]
    assert np.array_equal(row_noise(1337, 0, 7)[:3], row_noise(1337, 0, 3))
    assert len({int(x) for seed in (0, 1, 2**32 - 1) for step in range(50) for x in row_noise(seed, step, 7)}) == 1050


def test_attention_weights_may_have_a_rate_of_their_own() -> None:
    torch.manual_seed(0)
    idx, noise = torch.randint(29, (4, 17)), torch.from_numpy(row_noise(1, 2, 4))

    def logits(**fields: float) -> Tensor:
        torch.manual_seed(0)
        return GPT(GPTConfig(29, **SMALL | fields)).train()(idx, noise=noise)

    assert torch.equal(logits(attn_dropout=0.3), logits())
    assert not torch.equal(logits(attn_dropout=0.0), logits())
    only, none = logits(dropout=0.0, attn_dropout=0.3), logits(dropout=0.0)
    assert not torch.equal(only, none)
    assert torch.equal(logits(dropout=0.0, attn_dropout=0.0), none)
