"""With the keys and values of what has been read, a token costs one token's work, and its logits stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gptlab.generation import cpu_context
from gptlab.generation.cpu_decoder import CPUDecoder
from gptlab.generation.decoding import generate
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.sampling import Sampling
from gptlab.generation.torch_context import TorchContext
from gptlab.models import GPT, Bigram, BigramConfig, GPTConfig
from gptlab.models.kv_cache import KVCache
from tests.generation.contexts import context_for, logits_of

V, T, C = 37, 13, 36
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "sinusoidal": {"pos": "sinusoidal"},
    "llama": {"pos": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False, "tied": False},
    "grouped": {"pos": "rope", "n_kv_head": 2, "qk_norm": True},
    "multi-query": {"n_kv_head": 1},
    "alibi": {"pos": "alibi", "attention": "manual"},
    "window": {"pos": "rope", "window": 5},
    "alibi window": {"pos": "alibi", "window": 5, "n_kv_head": 3},
    "learned window": {"window": 5, "attention": "per_head"},
    "none": {"pos": "none"},
}
SLIDING = [name for name, fields in KINDS.items() if fields.get("pos", "learned") not in ("learned", "sinusoidal")]


@pytest.fixture(params=["torch", "cpu_decoder"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test with torch's operations, and with our own library where there is one."""
    if request.param == "torch":
        monkeypatch.setattr(cpu_context, "load_library", lambda: None)


def lively(**fields: Any) -> GPT:
    """A model with weights of a size at which every part shows in the logits."""
    torch.manual_seed(7)
    sizes = {"vocab_size": V, "block_size": T, "n_layer": 2, "n_head": 6, "n_embd": C}
    model = GPT(GPTConfig(**(sizes | fields))).eval()
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.15)
    return model


def texts(*lengths: int, seed: int = 3) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (length,), generator=draw).tolist() for length in lengths]


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(1,), (4,), (4, 1, 9), (T, 3), (T + 6, T + 6)])
def test_a_cache_changes_no_logit_within_a_block_and_beyond(kind: str, lengths: tuple[int, ...]) -> None:
    model, prompts, steps = lively(**KINDS[kind]), texts(*lengths), 2 * T
    kept, anew = context_for(model, prompts, steps), context_for(model, prompts, steps, cache=False)
    assert not isinstance(kept, TorchContext) or kept.cache is not None
    for tokens in zip(*texts(*[steps] * len(lengths), seed=5), strict=True):
        assert_close(logits_of(kept), logits_of(anew))
        kept.append(tokens)
        anew.append(tokens)
    assert_close(logits_of(kept), logits_of(anew))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_may_be_added_several_at_once_and_looked_back_on(kind: str) -> None:
    """As in a dialogue, and as a draft's proposals are read."""
    model, prompts = lively(**KINDS[kind]), texts(5, 2)
    kept, anew = context_for(model, prompts, 40, ahead=7), context_for(model, prompts, 40, cache=False)
    assert_close(logits_of(kept, 2), logits_of(anew, 2))
    for count in (1, 3, 7, 2, 7, 7):
        for tokens in zip(*texts(count, count, seed=count), strict=True):
            kept.append(tokens)
            anew.append(tokens)
        assert_close(logits_of(kept, count), logits_of(anew, count))


@pytest.mark.parametrize("kind", SLIDING)
def test_a_text_that_slides_is_seen_as_in_one_pass_over_all_of_it(kind: str) -> None:
    model, (text,) = lively(**KINDS[kind]), texts(3 * T)
    context = context_for(model, [text[:4]], 3 * T)
    with torch.no_grad():
        whole = model(torch.tensor([text]))[0]  # (3T, V)
    for n in range(4, 3 * T + 1):
        assert_close(logits_of(context)[0, 0], whole[n - 1])
        context.append(text[n : n + 1] or [0])


@pytest.mark.parametrize("kind", ["gpt2", "sinusoidal", "multi-query"])
@pytest.mark.parametrize("length", [3, T, 2 * T])
def test_learned_positions_go_on_past_a_block_as_in_the_lessons(kind: str, length: int) -> None:
    model, prompts = lively(**KINDS[kind]), texts(length, length)
    idx = torch.tensor(prompts)
    for _ in range(2 * T):
        with torch.no_grad():
            logits = model(idx[:, -T:])[:, -1]
        idx = torch.cat((idx, logits.argmax(dim=-1, keepdim=True)), dim=1)
    steps = generate(context_for(model, prompts, 2 * T), 2 * T, Sampling(temperature=0), [RandomNumbers(0)] * 2)
    assert np.array_equal(np.stack([step.tokens for step in steps], axis=1), idx[:, length:])


@pytest.mark.parametrize("kind", ["gpt2", "llama", "alibi window"])
def test_half_precision_is_as_exact_with_a_cache_as_without(kind: str) -> None:
    model, prompts = lively(**KINDS[kind]), texts(5, 9)
    exact = context_for(lively(**KINDS[kind]), prompts, T, cache=False)
    kept, anew = (context_for(model.bfloat16(), prompts, T, cache=cache) for cache in (True, False))
    for tokens in zip(*texts(T, T, seed=5), strict=True):
        found = logits_of(exact)
        errors = [(logits_of(context).float() - found).abs().max() for context in (kept, anew)]
        assert errors[0] < 2 * errors[1] + 0.01 < 0.15
        for context in (exact, kept, anew):
            context.append(tokens)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "window"])
def test_a_token_costs_one_tokens_work(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = lively(**KINDS[kind]), texts(7)
    seen: list[int] = []
    handle = model.wte.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].numel()))
    call = CPUDecoder.__call__
    monkeypatch.setattr(
        CPUDecoder, "__call__", lambda self, ids, *where: seen.append(len(ids)) or call(self, ids, *where)
    )
    steps = T - 7 if kind == "gpt2" else 2 * T
    list(generate(context_for(model, prompts, steps), steps, Sampling(), [RandomNumbers(0)]))
    handle.remove()
    assert seen == [7] + [1] * (steps - 1)


@pytest.mark.parametrize("model", [lively(attention="none"), Bigram(BigramConfig(vocab_size=V, block_size=T))])
def test_what_attends_to_nothing_needs_no_cache(model: GPT | Bigram) -> None:
    context = context_for(model.eval(), texts(3, 5), 4)
    assert isinstance(context, TorchContext)
    assert context.cache is None
    expected = [model(torch.tensor([row]))[0, -1] for row in context.rows]
    assert_close(logits_of(context)[:, 0], torch.stack(expected))


# The cache alone


def config(**fields: Any) -> GPTConfig:
    return lively(**fields).config


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [(T,), (1,) * T, (4, 1, 5, 3)])
def test_a_text_read_in_parts_has_the_logits_of_the_whole(kind: str, cuts: Sequence[int]) -> None:
    model, idx = lively(**KINDS[kind]), torch.tensor(texts(T, T))
    cache = KVCache(model.config, 2, T)
    found = []
    with torch.no_grad():
        for part in idx.split(list(cuts), dim=1):
            found.append(model(part, cache))
            cache.advance([part.shape[1]] * 2)
        assert_close(torch.cat(found, dim=1), model(idx))
    assert cache.lengths == [T, T]


@pytest.mark.parametrize(
    ("fields", "columns", "rooms"),
    [
        ({}, T, [T, T - 5, 0]),
        ({"pos": "rope"}, T, [T, T - 5, 1]),
        ({"pos": "rope"}, T + 3, [T + 3, T - 2, 4]),
        ({"pos": "rope", "window": 5}, 9, [9, 5, 5]),
    ],
)
def test_a_cache_says_how_many_tokens_it_takes(fields: dict[str, Any], columns: int, rooms: list[int]) -> None:
    cache, found = KVCache(config(**fields), 2, columns), []
    for counts in ([5, 2], [columns - 5, 2]):
        found.append(cache.room())
        cache.advance(counts)
    assert [*found, cache.room()] == rooms
    assert cache.lengths == [columns, 4]


@pytest.mark.parametrize(("fields", "columns", "more"), [({}, T, 1), ({"pos": "rope"}, T + 2, 4)])
def test_more_than_a_cache_holds_is_refused(fields: dict[str, Any], columns: int, more: int) -> None:
    model = lively(**fields)
    cache = KVCache(model.config, 1, columns)
    cache.advance([columns])
    with pytest.raises(ValueError, match=rf"{more} tokens after {columns} are more than the cache holds: {columns}"):
        model(torch.zeros(1, more, dtype=torch.int64), cache)


def test_what_is_forgotten_is_read_again() -> None:
    model, idx = lively(pos="rope"), torch.tensor(texts(9, 9))
    cache = KVCache(model.config, 2, T)
    with torch.no_grad():
        model(idx, cache)
        cache.advance([9, 4])  # of the second row only four tokens are none of the filling
        cache.forget([6, 7])
        assert cache.lengths == [6, 4]
        idx[0, 6:], idx[1, 4:] = 1, 2
        part = torch.stack((idx[0, 6:9], idx[1, 4:7]))
        whole = model(idx)
        assert_close(model(part, cache), torch.stack((whole[0, 6:9], whole[1, 4:7])))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler itself
@pytest.mark.parametrize("pos", ["learned", "rope", "alibi"])
def test_a_compiled_reading_is_the_same_and_compiled_once(pos: str) -> None:
    model, prompts = lively(pos=pos), texts(3, 1, 5)
    compiled, plain = (
        context_for(model, prompts, 2 * T, backend="aot_eager"),
        context_for(model, prompts, 2 * T, cache=False),
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for _ in range(T + 3 if pos != "learned" else T - 5):
        logits = logits_of(plain)
        assert_close(logits_of(compiled), logits)
        for context in (compiled, plain):
            context.append(logits[:, -1].argmax(dim=-1))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_context_without_room_says_so() -> None:
    context = context_for(lively(pos="rope"), texts(3), room=2)
    for token in range(3):
        logits_of(context)
        context.append([token])
    logits_of(context)
    context.append([0])
    with pytest.raises(ValueError, match="the context was made for 6 tokens, and more have been appended"):
        logits_of(context)
