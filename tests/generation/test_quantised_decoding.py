"""Models of 8 and 4 bits through our own library."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gptlab.generation import cpu_context, cpu_decoder
from gptlab.generation.cpu_context import CPUContext
from gptlab.generation.cpu_decoder import INT4, INT8
from gptlab.generation.cpu_library import load_library
from gptlab.generation.decoding import generate
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.sampling import Sampling
from gptlab.models.arrays import as_bf16
from gptlab.models.packed import Packed
from gptlab.models.quantised import quantise
from gptlab.system.errors import UserError
from tests.generation.contexts import context_for, is_ours, logits_of
from tests.generation.layers import LEVELS, compiled, through
from tests.generation.test_cpu_decoder import needs_library, texts
from tests.models.test_quantised import BITS, SIZES, drawn, reference
from tests.models.test_switches import ROWS, Row, V, each, lively

pytestmark = needs_library


def small(bits: int, **fields: Any) -> Any:
    return quantise(lively(**fields).eval(), bits)


def layer_of(packed: Packed) -> dict[str, Any]:
    kind = INT8 if packed.bits == 8 else INT4
    return {"groups": kind, "w": packed.data.ctypes.data, "v": packed.scales.ctypes.data}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bits", BITS)
def test_a_layer_is_the_float64_one_on_any_processor(
    level: str, bits: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    function = compiled(level, tmp_path_factory.getbasetemp())
    for size in (*SIZES, (40, 416)):
        for n in (1, 2, 3, 7, 8, 13):
            packed, bias = Packed(drawn(*size).numpy(), bits), drawn(size[0], seed=4)
            x = drawn(n, size[1], seed=n)
            x[0] *= 1e-20
            found = through(function, x, size[0], bias, **layer_of(packed))
            torch.testing.assert_close(found.double(), reference(x, packed, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(bits: int) -> None:
    packed, x = Packed(drawn(50, 300).numpy(), bits), drawn(23, 300, seed=2)
    expected = through(load_library(), x, 50, None, **layer_of(packed))
    for threads in (1, 2, 3):
        for first, last in ((0, 23), (3, 4), (5, 13), (1, 16)):
            some = through(load_library(), x[first:last].clone(), 50, None, threads, **layer_of(packed))
            assert torch.equal(some, expected[first:last])


@each([row for row in ROWS if row["attention"] != "none"])
@pytest.mark.parametrize("bits", BITS)
def test_logits_are_torchs_whatever_the_switches(row: Row, bits: int) -> None:
    """But for numbers on the border between two integers, which the last bit of a layer before decides."""
    model, prompts = small(bits, **row), texts(4, 1, 9)
    ours, torchs = (context_for(model, prompts, 9, cache=cache) for cache in (True, False))
    assert is_ours(ours)
    errors = []
    for _ in range(9):
        logits = [logits_of(context) for context in (ours, torchs)]
        errors.append((logits[0] - logits[1]).abs() / logits[1].std())
        for context in (ours, torchs):
            context.append(logits[1][:, -1].argmax(dim=-1))
    found = torch.stack(errors)
    assert found.max() < 0.1
    assert found.median() < 0.01


def trail(model: Any, prompts: list[list[int]], count: int) -> list[Tensor]:
    context = context_for(model, prompts, count)
    found = []
    for step in range(count):
        found.append(logits_of(context)[:, 0])
        context.append([(7 * step + row[0]) % V for row in context.rows])
    return found


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("pos", ["learned", "rope"])
def test_a_prompt_has_the_same_bits_however_it_is_cut_and_whatever_stands_beside_it(
    bits: int, pos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(bits, pos=pos, block_size=64, n_embd=60)
    prompts = texts(40, 1, 17, 3, 3)
    together = trail(model, prompts, 5)
    for most in (6, 32, 256):
        monkeypatch.setattr(cpu_decoder, "MOST", most)
        for i, prompt in enumerate(prompts):
            for a, b in zip(together, trail(model, [prompt], 5), strict=True):
                assert torch.equal(a[i], b[0])


def test_many_rows_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_decoder, "MOST", 4)
    model, prompts = small(8), texts(*[3] * 9)
    together = logits_of(context_for(model, prompts, 2))
    assert together.shape == (9, 1, V)
    for i, prompt in enumerate(prompts):
        assert torch.equal(together[i], logits_of(context_for(model, [prompt], 2))[0])


@pytest.mark.parametrize(
    "fields", [{}, {"pos": "rope", "n_kv_head": 2}, {"conv": 3}, {"n_embd": 192, "n_head": 3}], ids=str
)
def test_keys_and_values_in_bf16_are_half_the_memory_and_nearly_the_same(fields: Row) -> None:
    model = small(8, **fields)
    contexts = [context_for(model, texts(4, 9), 5, bf16_cache=bf16) for bf16 in (False, True)]
    caches = [context.decoder.cache for context in contexts if isinstance(context, CPUContext)]
    assert [cache.keys[0].itemsize for cache in caches] == [4, 2]
    for _ in range(4):
        wide, narrow = (logits_of(context) for context in contexts)
        assert 0 < (wide - narrow).abs().max() < 0.1 * wide.std()
        for context in contexts:
            context.append(wide[:, -1].argmax(dim=-1))
    wide_kept, kept = (np.stack((cache.keys[0], cache.values[0])) for cache in caches)
    assert np.array_equal(as_bf16(wide_kept), kept)  # of the first block, whose inputs are the same


def test_a_model_that_has_diverged_says_so() -> None:
    model = small(8)
    model.h[0].ln_1.weight[3] = float("inf")
    context = context_for(model, texts(4), 5)
    with pytest.raises(UserError, match="the model's logits are no numbers"):
        list(generate(context, 5, Sampling(temperature=0), [RandomNumbers(0)]))


def test_without_a_library_torch_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, found = small(8), []
    for library in (load_library(), None):
        monkeypatch.setattr(cpu_context, "load_library", lambda library=library: library)
        context = context_for(copy.deepcopy(model), texts(4), 5)
        assert is_ours(context) == (library is not None)
        steps = generate(context, 5, Sampling(temperature=0), [RandomNumbers(0)])
        found.append([step.tokens.item() for step in steps])
    assert found[0] == found[1]
