"""Weights of 8 and 4 bits: what they become, and what a layer of them computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from gptlab.models.gpt import GPT
from gptlab.models.lora import LoRAConfig, add_adapters, merged
from gptlab.models.packed import GROUP, Packed
from gptlab.models.quantised import READ_TOGETHER, QuantisedLinear, is_quantised, quantise
from gptlab.system.errors import UserError
from tests.models.test_switches import lively

BITS = (8, 4)
SIZES = ((1, 1), (16, 32), (17, 33), (50, 70), (3, 129))


def matrix(weight: Tensor, bits: int) -> Tensor:
    return torch.from_numpy(Packed(weight.numpy(), bits).matrix())


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", SIZES)
def test_weights_that_have_so_few_bits_come_back_as_they_were(bits: int, size: tuple[int, int]) -> None:
    most = 127 if bits == 8 else 7
    integers = drawn(*size).mul(most).round().clamp(-most, most)
    integers[:, ::GROUP] = -most - (bits == 4)  # so that the scale is known
    weight = integers * 0.25
    packed = Packed(weight.numpy(), bits)
    assert torch.equal(torch.from_numpy(packed.matrix()), weight)
    idx = torch.tensor([[0, size[0] - 1], [size[0] // 2, 0]])
    assert torch.equal(torch.from_numpy(packed.rows(idx.numpy())), weight[idx])


@pytest.mark.parametrize("size", SIZES)
def test_8_bits_are_at_most_half_a_step_away(size: tuple[int, int]) -> None:
    weight = drawn(*size)
    steps = weight.abs().amax(1, keepdim=True) / 127
    assert ((matrix(weight, 8) - weight).abs() <= steps * 0.5001).all()


def test_4_bits_have_less_error_than_by_the_largest_number_alone() -> None:
    weight = drawn(64, 320)
    groups = weight.view(64, 10, GROUP)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    plain = (groups / (largest / -8)).round().clamp(-8, 7) * (largest / -8)
    errors = [(found - weight).square().mean() for found in (matrix(weight, 4), plain.view(64, 320))]
    assert errors[0] < 0.97 * errors[1]
    assert errors[0].sqrt() < 0.1


@pytest.mark.parametrize("bits", BITS)
def test_zeros_and_very_large_and_very_small_weights(bits: int) -> None:
    for size in (0.0, 1e-30, 1e30):
        weight = torch.full((3, 40), size)
        found = matrix(weight, bits)
        assert found.isfinite().all()
        if bits == 8:
            torch.testing.assert_close(found, weight, rtol=1e-6, atol=0)
    weight = drawn(20, 64)
    weight[5] = 0
    weight[:, GROUP:] = 0
    found = matrix(weight, bits)
    assert not found[5].any()
    assert not found[:, GROUP:].any()


def reference(x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
    """x (n, N) through a quantised layer, in float64, group by group."""
    weight, size = torch.from_numpy(packed.matrix()).double(), READ_TOGETHER[packed.bits]
    total = torch.zeros(len(x), packed.shape[0], dtype=torch.float64)
    for first in range(0, packed.shape[1], size):
        some = x[:, first : first + size]
        largest = some.abs().amax(1, keepdim=True)
        integers = torch.where(largest == 0, 0, some.double() * (127 / largest)).round()
        total += (integers * (largest / 127)) @ weight[:, first : first + size].T
    return total if bias is None else total + bias


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", SIZES)
def test_a_layer_is_its_integers_by_what_is_read_in_8_bits(bits: int, size: tuple[int, int]) -> None:
    M, N = size
    x, bias = drawn(7, N, seed=2), drawn(M, seed=3)
    x[0], x[1] = 0, x[1] * 1e-20
    layer = QuantisedLinear(Packed(drawn(M, N).numpy(), bits), bias)
    expected = reference(x, layer.packed, bias)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert layer(x.view(7, 1, N)).shape == (7, 1, M)
    exact = x @ drawn(M, N).T + bias
    assert (layer(x) - exact).std() < (0.02 if bits == 8 else 0.2) * max(1.0, float(exact.std()))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "fields", [{"tied": True}, {"tied": False, "head_bias": True}, {"mlp": "swiglu", "bias": False}]
)
def test_a_model_keeps_its_shape_and_nearly_its_logits(bits: int, fields: dict[str, object]) -> None:
    plain = lively(n_embd=66, **fields).eval()
    model = quantise(copy.deepcopy(plain), bits)
    assert is_quantised(model)
    assert not is_quantised(plain)
    assert (model.lm_head.packed is model.wte.packed) == (plain.lm_head.weight is plain.wte.weight)
    assert not any(isinstance(each, torch.nn.Linear) for each in model.modules())
    idx = torch.arange(8)[None]
    found, expected = model(idx), plain(idx)
    assert (found - expected).std() < (0.05 if bits == 8 else 0.5) * expected.std()
    assert not torch.equal(found, expected)


def test_adapters_are_merged_first() -> None:
    model = lively(n_embd=66).eval()
    add_adapters(model, LoRAConfig(rank=2, alpha=4.0, targets=("q", "v")))
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):
            torch.nn.init.normal_(parameter)
    plain = copy.deepcopy(merged(model))
    idx = torch.arange(8)[None]
    assert torch.equal(quantise(model, 8)(idx), quantise(plain, 8)(idx))


def test_weights_that_are_no_numbers_are_refused() -> None:
    model: GPT = lively()
    with torch.no_grad():
        model.h[0].mlp.c_fc.weight[3, 2] = float("nan")
    with pytest.raises(UserError, match=r"h\.0\.mlp\.c_fc\.weight has numbers that are infinite or none, which 8 bits"):
        quantise(model, 8)
