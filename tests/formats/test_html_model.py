"""The page's model in JavaScript beside gptlab's own of 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from gptlab.formats.html.content import described
from gptlab.generation.context import open_context
from gptlab.models.arrays import quantise
from gptlab.models.torch_arrays import arrays_of
from tests.formats.javascript import needs_node, run_node
from tests.generation.test_cpu_decoder import needs_library
from tests.models.test_switches import ROWS, T, V, lively

pytestmark = [needs_node, needs_library]

ANSWER = """
async function answer(cases) {
  const found = [];
  for (const { description, weights, prompt, tokens } of cases) {
    for (const plain of [false, true]) {
      const context = new Context(openModel(description, weights, plain), prompt);
      const logits = [];
      for (const token of tokens) {
        logits.push([...(await context.next())]);
        context.append(token);
      }
      found.push(logits);
    }
  }
  return found;
}
"""
NEW = 50
ALONE: list[dict[str, Any]] = [
    {"pos": "rope linear"},
    {"n_embd": 300, "n_head": 3, "mlp": "swiglu"},  # several groups of a row, the last shorter
    {"block_size": 64},
    {"conv": 13, "pos": "none"},
]


def greedy(model: Any, prompt: list[int]) -> tuple[list[int], np.ndarray]:
    """gptlab's greedy ids as `generate --precision int8` draws them, and the logits for each, (NEW, V)."""
    context = open_context(quantise(arrays_of(model), 8), [prompt], NEW, bf16_cache=True)
    found, logits = [], []
    for _ in range(NEW):
        logits.append(context.logits()[0, -1])
        found.append(int(logits[-1].argmax()))
        context.append(found[-1:])
    return found, np.stack(logits)


def test_logits_and_greedy_ids_are_gptlabs_whatever_the_switches() -> None:
    """But for numbers on the border between two integers, which the last bit of a layer before decides."""
    rows = [row for row in ROWS if row["attention"] != "none"] + ALONE
    cases, expected = [], []
    for i, row in enumerate(rows):
        model = lively(**row).eval().requires_grad_(False)
        prompt = np.random.default_rng(i).integers(0, V, 1 + i % (T + 3)).tolist()
        ids, logits = greedy(model, prompt)
        description, weights = described(arrays_of(model))
        cases.append({"description": description, "weights": weights, "prompt": prompt, "tokens": ids})
        expected += [(row, ids, logits)] * 2
    found = run_node(ANSWER, cases)
    assert found[::2] == found[1::2]  # to the bit, with WebAssembly and without
    for (row, ids, ours), theirs in zip(expected, np.array(found, np.float32), strict=True):
        errors = np.abs(theirs - ours) / ours.std()
        assert errors.max() < 0.1, row
        assert np.median(errors) < 1e-5, row
        best, second = np.sort(ours, axis=1)[:, :-3:-1].T
        is_clear = best - second > 0.1 * ours.std()
        assert is_clear.sum() > NEW / 3, row
        assert (theirs.argmax(1) == ids)[is_clear].all(), row
