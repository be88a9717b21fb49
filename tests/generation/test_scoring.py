"""The logits of each token of a text, in parts."""

from __future__ import annotations

import pytest
import torch

from gptlab.generation.scoring import text_logits
from tests.generation.test_batch import MODELS
from tests.generation.test_cpu_decoder import texts


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("part", [1, 3, 17, 64])
def test_the_parts_are_what_the_model_says_of_the_whole_text(kind: str, part: int) -> None:
    model, [ids] = MODELS[kind](block_size=17), texts(17)
    found = torch.cat([torch.as_tensor(some) for some in text_logits(model, ids, part)])
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    if kind != "quantised":  # whose activations torch rounds otherwise
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    alone = torch.cat([torch.as_tensor(some) for some in text_logits(model, ids[:5], 5)])
    torch.testing.assert_close(found[:5], alone, rtol=1e-5, atol=1e-5)
