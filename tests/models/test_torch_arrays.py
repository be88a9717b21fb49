"""A model of torch on arrays computes what the model computes that they come from, in the same memory."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from gptlab.models import GPT
from gptlab.models.arrays import in_bf16
from gptlab.models.quantised import quantise
from gptlab.models.torch_arrays import arrays_of, gpt_of, twin_of
from gptlab.models.watching import attention_maps
from tests.models.test_switches import ROWS, B, Row, T, each, lively, tokens


@each(ROWS)
@pytest.mark.parametrize("bits", [None, 8])
def test_the_model_of_a_models_arrays_is_that_model(row: Row, bits: int | None) -> None:
    model = lively(**row).eval()
    if bits:
        model = quantise(model, bits)
    arrays = arrays_of(model)
    assert arrays is not None
    for array in arrays.weights.values():
        if hasattr(array, "flags"):
            array.flags.writeable = False  # as those of a file
    again = gpt_of(arrays)
    assert not again.training
    assert torch.equal(again(tokens(B, T)), model(tokens(B, T)))
    assert again.config == model.config


def test_a_twin_shares_the_memory_and_is_watched_alone() -> None:
    model = lively().eval()
    idx = tokens(T)
    expected, maps = model(idx[None]), attention_maps(model, idx)
    twin = twin_of(model)
    ours, theirs = ([each.data_ptr() for each in some.parameters()] for some in (model, twin))
    assert ours == theirs
    attend = model.h[0].attn.attention
    watching, done = threading.Event(), threading.Event()

    def wait(*arguments: torch.Tensor) -> torch.Tensor:
        watching.set()
        assert done.wait(60)
        return attend(*arguments)

    twin.h[-1].attn.attention = wait
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(attention_maps(twin, idx)))
    thread.start()
    assert watching.wait(60)
    assert torch.equal(model(idx[None]), expected)  # while the twin is being watched
    done.set()
    thread.join()
    assert torch.equal(found[0], maps)


def test_a_twin_outlives_the_arrays_that_it_was_made_of() -> None:
    model = lively().eval()
    arrays = arrays_of(model)
    assert arrays is not None
    twin = twin_of(in_bf16(arrays))
    assert next(twin.parameters()).dtype == torch.bfloat16
    assert torch.equal(twin(tokens(B, T)), copy.deepcopy(model).bfloat16()(tokens(B, T)))


def test_a_model_that_numpy_cannot_have_has_a_twin_too() -> None:
    model = lively().double().eval()
    assert arrays_of(model) is None
    twin = twin_of(model)
    assert isinstance(twin, GPT)
    assert torch.equal(twin(tokens(B, T)), model(tokens(B, T)))
