"""Weights of 8 bits for torch's compiler."""

from __future__ import annotations

import copy

import pytest
import torch

from gptlab.models.gpt import GPT
from gptlab.models.lora import LoRAConfig, add_adapters, merged
from gptlab.models.weight_only import WeightOnlyLinear, place_of, weight_only
from gptlab.system.errors import UserError
from tests.generation.contexts import context_for, logits_of
from tests.generation.test_cpu_decoder import texts
from tests.models.test_quantised import matrix
from tests.models.test_switches import ROWS, Row, V, each, lively


def rounded(model: GPT) -> GPT:
    """The model with what 8 bits make of its matrices, in fp32."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and name != "wpe.weight":
                parameter.copy_(matrix(parameter, 8))
    return model


@each([row for row in ROWS if row["attention"] != "none"])
def test_logits_are_those_of_the_rounded_weights(row: Row) -> None:
    model, idx = lively(**row).eval(), torch.randint(V, (2, 9))
    expected = rounded(model)(idx)
    torch.testing.assert_close(weight_only(model, torch.float32)(idx), expected, rtol=1e-4, atol=1e-4)


def test_in_bf16_it_is_about_as_exact_as_bf16() -> None:
    model, idx = lively(n_embd=64, n_head=4).eval(), torch.randint(V, (4, 9))
    exact, plain = model(idx), copy.deepcopy(model).bfloat16()(idx)
    few = weight_only(model, torch.bfloat16)
    assert place_of(few) == (torch.device("cpu"), torch.bfloat16)
    found = few(idx)
    assert found.dtype == torch.bfloat16
    errors = [(logits.float() - exact).square().mean().sqrt() for logits in (found, plain)]
    assert errors[0] < 3 * errors[1]


@pytest.mark.parametrize("tied", [True, False])
def test_a_weight_takes_a_byte(tied: bool) -> None:
    model = lively(tied=tied, n_embd=64, n_head=4, bias=False).eval()
    before = sum(p.nbytes for p in model.parameters())
    few = weight_only(model, torch.float32)
    tensors = {id(t): t for t in (*few.parameters(), *few.buffers())}
    assert sum(t.nbytes for t in tensors.values()) < 0.35 * before


def test_adapters_are_merged_first() -> None:
    model = lively().eval()
    add_adapters(model, LoRAConfig(rank=2, alpha=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.1)
    idx = torch.randint(V, (1, 5))
    found = weight_only(model, torch.float32)
    assert isinstance(found.h[0].attn.c_attn, WeightOnlyLinear)
    torch.testing.assert_close(found(idx), rounded(merged(model))(idx), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", [torch.inf, torch.nan])
def test_weights_that_are_no_numbers_are_refused(number: float) -> None:
    model = lively().eval()
    with torch.no_grad():
        model.h[0].mlp.c_fc.weight[0, 0] = number
    with pytest.raises(
        UserError, match=r"^h\.0\.mlp\.c_fc\.weight has numbers that are infinite or none, which 8 bits"
    ):
        weight_only(model, torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", [None, "eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_tokens_one_by_one_have_the_logits_of_the_whole_text(backend: str | None) -> None:
    model = weight_only(lively(pos="rope", block_size=64).eval(), torch.float32)
    context = context_for(model, texts(4), 6, backend=backend)
    for token in (3, 1, 2, 5, 4):
        found = logits_of(context)[0, -1]
        whole = model(torch.tensor([context.rows[0]]))[0, -1]
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)
        context.append([token])
