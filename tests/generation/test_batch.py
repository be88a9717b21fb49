"""Prompts side by side: rows leave as their texts end, others take their place, and no text changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gptlab.generation import cpu_context
from gptlab.generation.batch import Batch
from gptlab.generation.cpu_context import shares
from gptlab.models import build
from gptlab.models.bigram import BigramConfig
from gptlab.models.quantised import quantise
from tests.generation.contexts import context_for, logits_of
from tests.generation.test_cpu_decoder import texts
from tests.models.test_switches import V, lively

LENGTHS = (9, 1, 4, 12, 2, 7, 3, 3, 5, 1, 8)
ROOM = 6
MODELS = {
    "torch": lambda **fields: lively(**fields).double().eval(),
    "cpu_decoder": lambda **fields: lively(**fields).eval(),
    "quantised": lambda **fields: quantise(lively(**fields).eval(), 8),
    "bigram": lambda **fields: build(BigramConfig(V)).eval(),
}


def alone(model: Any, prompt: list[int], count: int) -> list[int]:
    context = context_for(model, [prompt], count)
    for _ in range(count):
        context.append(logits_of(context)[:, -1].argmax(dim=-1).tolist())
    return context.rows[0][-count:]


def continued(model: Any, prompts: list[list[int]], width: int, **options: Any) -> tuple[list[list[int]], list[int]]:
    """The greedy texts of each prompt, of 1 to ROOM tokens, and how many rows each pass had."""
    batch, found = Batch(model, prompts, ROOM, width, **options), [[] for _ in prompts]  # type: ignore[var-annotated]
    widths = []
    while numbers := batch.numbers:
        widths.append(len(numbers))
        tokens = batch.logits().argmax(-1).tolist()
        for number, token, row in zip(numbers, tokens, batch.rows, strict=True):
            assert row[-1] == (found[number] or prompts[number])[-1]
            found[number].append(token)
        batch.append(tokens, [len(found[number]) > number % ROOM for number in numbers])
    assert batch.passes == len(widths)
    return found, widths


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("width", [1, 3, 4, 64])
@pytest.mark.parametrize("fields", [{}, {"pos": "rope"}, {"conv": 3, "pos": "rope"}], ids=str)
def test_each_text_is_the_one_that_it_is_alone(kind: str, width: int, fields: dict[str, Any]) -> None:
    model, prompts = MODELS[kind](block_size=20, **fields), texts(*LENGTHS)
    found, widths = continued(model, prompts, width)
    assert found == [alone(model, prompt, number % ROOM + 1) for number, prompt in enumerate(prompts)]
    assert max(widths) == min(width, len(prompts))


def test_rows_are_always_taken_where_a_pass_costs_what_its_tokens_do() -> None:
    prompts = texts(*LENGTHS)
    total = sum(number % ROOM + 1 for number in range(len(prompts)))
    _, widths = continued(MODELS["quantised"](block_size=20), prompts, 3)
    assert widths[: total // 3 - 2] == [3] * (total // 3 - 2)
    _, others = continued(MODELS["torch"](block_size=20), prompts, 3)
    assert len(others) > len(widths)


@pytest.mark.parametrize("kind", ["torch", "quantised"])
def test_a_window_that_is_full_goes_on_beside_others(kind: str) -> None:
    """With learned positions the last block is read anew for every token then."""
    model, prompts = MODELS[kind](block_size=8), texts(*LENGTHS)
    found, _ = continued(model, prompts, 4)
    assert found == [alone(model, prompt, number % ROOM + 1) for number, prompt in enumerate(prompts)]
    cropped = context_for(model, [prompts[3]], ROOM, cache=False)
    for token in found[3]:
        assert int(logits_of(cropped)[:, -1].argmax()) == token
        cropped.append([token])


def test_tokens_can_be_taken_back_from_a_window_that_has_moved() -> None:
    model = MODELS["quantised"](block_size=8)
    context = context_for(model, texts(7), 6)
    for token in (3, 1, 4, 1):
        logits_of(context)
        context.append([token])
    logits_of(context)
    context.take_back(2)
    context.append([5])
    fresh = context_for(model, [[*texts(7)[0], 3, 1, 5][-8:]], 1)
    assert torch.equal(logits_of(context), logits_of(fresh))


@pytest.mark.parametrize("kind", MODELS)
def test_prompts_that_come_later_and_are_read_in_parts_change_no_text(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_context, "PART", 4)
    model, prompts = MODELS[kind](block_size=20), texts(*LENGTHS)
    batch = Batch(model, [], ROOM, 3, longest=20)
    found: dict[int, list[int]] = {}
    left = [*enumerate(prompts)]
    while left or batch.all:
        if left and batch.free:
            number, prompt = left.pop(0)
            assert [*batch.add([prompt])] == [number]
            found[number] = []
        logits = batch.logits()
        numbers = batch.numbers
        tokens = logits.argmax(-1).tolist()
        assert len(tokens) == len(numbers) <= 3
        for number, token in zip(numbers, tokens, strict=True):
            found[number].append(token)
        batch.append(tokens, [len(found[number]) > number % ROOM for number in numbers])
    assert found == {i: alone(model, prompt, i % ROOM + 1) for i, prompt in enumerate(prompts)}


def test_a_long_prompt_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_context, "PART", 4)
    batch = Batch(MODELS["quantised"](block_size=20), texts(2), 9, 2, longest=20)
    batch.logits()
    batch.append([1], [False])
    batch.add([texts(17)[0]])
    for _ in range(5):
        assert len(batch.logits()) == len(batch.numbers) == 1
        batch.append([1], [False])
    assert len(batch.logits()) == len(batch.numbers) == 2


@pytest.mark.parametrize("kind", ["torch", "quantised"])
def test_a_prompt_that_leaves_makes_room_at_once(kind: str) -> None:
    batch = Batch(MODELS[kind](block_size=20), texts(2, 3), 9, 2, longest=20)
    assert batch.free == 0
    batch.leave([0])
    assert batch.numbers == [1]
    assert batch.free == (1 if kind == "quantised" else 0)  # torch takes the next when all have ended
    batch.leave([1])
    assert batch.free == 2


def test_a_pass_is_shared_so_that_nobody_waits_for_the_longest() -> None:
    assert shares([1, 100, 1, 1], 64) == [1, 61, 1, 1]
    assert shares([100, 100, 0, 2], 10) == [4, 4, 0, 2]
    assert shares([], 10) == []


def test_rows_that_are_compiled_stay_until_all_have_ended() -> None:
    torch._dynamo.reset()
    model, prompts = MODELS["cpu_decoder"](), texts(3, 3, 3, 3)
    found, widths = continued(model, prompts, 2, backend="eager")
    assert found == [alone(model, prompt, number % ROOM + 1) for number, prompt in enumerate(prompts)]
    assert len(widths) == 2 + 4


def test_without_prompts_there_is_nothing_to_do() -> None:
    assert Batch(MODELS["torch"](), [], ROOM, 4).numbers == []
