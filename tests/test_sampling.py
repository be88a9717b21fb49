"""A token is drawn with the probability that it should have, and never outside the chosen few."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab.models import GPT, GPTConfig
from gptlab.sampling import generate, prompt_ids, sample_next_token
from gptlab.tokenizers import CharTokenizer

V, T, B = 11, 13, 7


def rng(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(*probabilities: float, rows: int = 1) -> Tensor:
    return torch.tensor(probabilities).log().expand(rows, -1)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(7)
    gpt = GPT(GPTConfig(vocab_size=V, block_size=T, n_layer=2, n_head=3, n_embd=33)).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(11)  # opinions, so that positions matter
    return gpt


def tokens(model: GPT, idx: Tensor, count: int, **arguments: Any) -> list[list[int]]:
    drawn = list(generate(model, idx, count, block_size=T, **arguments))
    assert all(token.shape == (len(idx),) and token.dtype == torch.int64 for token in drawn)
    return torch.stack(drawn, dim=1).tolist()


PROMPT = torch.randint(V, (B, 3), generator=rng())


@pytest.mark.parametrize(
    "arguments", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 0, "top_k": 3, "top_p": 0.5}]
)
def test_greedy_takes_the_most_probable(arguments: dict[str, Any]) -> None:
    logits = torch.randn(997, V, generator=rng())
    assert torch.equal(sample_next_token(logits, **arguments), logits.argmax(dim=-1))


@pytest.mark.parametrize("k", [1, 2, 5, V, 101])
def test_top_k_stays_within_the_k_most_probable_and_reaches_them_all(k: int) -> None:
    logits = torch.randn(V, generator=rng())
    best = set(logits.topk(min(k, V)).indices.tolist())
    drawn = sample_next_token(logits.expand(5003, -1), top_k=k, temperature=3.0, generator=rng())
    assert set(drawn.tolist()) == best


def test_top_k_counts_in_every_row_on_its_own() -> None:
    logits = torch.tensor([[8.0, 0, 9], [9, 8, 0], [0, 6, 5]]).repeat(997, 1)
    rows = sample_next_token(logits, top_k=2, generator=rng()).view(997, 3)
    assert [set(column.tolist()) for column in rows.T] == [{0, 2}, {0, 1}, {1, 2}]


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.3, {3}),
        (0.49, {3}),
        (0.51, {3, 0}),
        (0.74, {3, 0}),
        (0.76, {3, 0, 2}),
        (0.92, {3, 0, 2}),
        (0.94, {3, 0, 2, 1}),
        (1.0, {3, 0, 2, 1}),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_are_probable_enough(p: float, kept: set[int]) -> None:
    logits = logits_of(0.25, 0.07, 0.18, 0.5, rows=5003) + 3  # a shift of all changes nothing
    logits = torch.cat((logits, torch.full((5003, 1), -math.inf)), dim=1)
    assert set(sample_next_token(logits, top_p=p, generator=rng()).tolist()) == kept


@pytest.mark.parametrize(("p", "count"), [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_top_p_is_content_with_exactly_p(p: float, count: int) -> None:
    """Four equal tokens: quarters have no rounding errors."""
    drawn = sample_next_token(torch.zeros(5003, 4), top_p=p, generator=rng())
    assert len(set(drawn.tolist())) == count


def test_top_p_comes_after_temperature_and_top_k() -> None:
    logits = logits_of(0.5, 0.3, 0.2, rows=5003)
    assert set(sample_next_token(logits, top_p=0.55, generator=rng()).tolist()) == {0, 1}
    assert set(sample_next_token(logits, top_p=0.55, top_k=2, generator=rng()).tolist()) == {0}  # 5/8 is enough
    assert set(sample_next_token(logits, top_p=0.55, temperature=0.5, generator=rng()).tolist()) == {0}  # 25/38, too
    assert set(sample_next_token(logits, top_p=0.75, temperature=99.0, generator=rng()).tolist()) == {0, 1, 2}


def chi_square_tail(x: float, degrees: int) -> float:
    """P(chi-square > x), in closed form for even degrees of freedom."""
    assert degrees % 2 == 0
    return math.exp(-x / 2) * sum((x / 2) ** i / math.factorial(i) for i in range(degrees // 2))


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [({}, V), ({"temperature": 0.6}, V), ({"temperature": 1.7}, V), ({"top_k": 7}, 7), ({"top_p": 0.8}, None)],
)
def test_tokens_come_as_often_as_they_should(arguments: dict[str, Any], kept: int | None) -> None:
    """A right sampler fails at one seed in a thousand, and the seed is fixed."""
    logits = torch.randn(V, generator=rng())
    expected = (logits.double() / arguments.get("temperature", 1.0)).softmax(dim=-1)
    ordered = expected.sort(descending=True).values
    if kept is None:
        kept = int((ordered.cumsum(0) < 0.8).sum()) + 1
        assert kept == 5  # five, so that the degrees of freedom are even
    expected[expected < ordered[kept - 1]] = 0
    expected *= 20_000 / expected.sum()
    drawn = sample_next_token(logits.expand(20_000, -1), generator=rng(), **arguments)
    counts = drawn.bincount(minlength=V)
    assert not counts[expected == 0].any()
    some = expected > 0
    distance = ((counts[some] - expected[some]) ** 2 / expected[some]).sum().item()
    assert chi_square_tail(distance, kept - 1) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_drawn_from_in_full(dtype: torch.dtype) -> None:
    logits = torch.randn(997, V, generator=rng()).to(dtype)
    half = sample_next_token(logits, temperature=0.7, generator=rng())
    assert torch.equal(half, sample_next_token(logits.float(), temperature=0.7, generator=rng()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, r"temperature=-0.1: must be at least 0 \(0 is greedy\)"),
        ({"temperature": math.nan}, r"temperature=nan: must be at least 0"),
        ({"top_k": 0}, r"top_k=0: must be at least 1"),
        ({"top_p": 0.0}, r"top_p=0.0: must be above 0 and at most 1"),
        ({"top_p": 1.1}, r"top_p=1.1: must be above 0 and at most 1"),
        ({"top_p": math.nan}, r"top_p=nan: must be above 0 and at most 1"),
        ({"temperature": 0, "top_k": -1}, r"top_k=-1: must be at least 1"),  # greedy, too, reads what was typed
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_next_token(torch.zeros(1, V), **arguments)


def test_the_same_seed_gives_the_same_tokens(model: GPT) -> None:
    first = tokens(model, PROMPT, 29, generator=rng(3))
    torch.manual_seed(0)  # what others draw must not matter
    state = torch.get_rng_state()
    assert tokens(model, PROMPT, 29, generator=rng(3)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert tokens(model, PROMPT, 29, generator=rng(4)) != first


def test_each_token_follows_from_all_before_it(model: GPT) -> None:
    idx = PROMPT
    for _ in range(T - 3):
        idx = torch.cat((idx, model(idx)[:, -1].argmax(dim=-1, keepdim=True)), dim=1)
    assert tokens(model, PROMPT, T - 3, temperature=0) == idx[:, 3:].tolist()


def test_a_text_longer_than_a_block_is_seen_from_its_end(model: GPT) -> None:
    seen = []

    def forward(idx: Tensor) -> Tensor:
        seen.append(idx)
        assert not torch.is_grad_enabled()  # or memory would grow with each token
        return model(idx)

    long = torch.randint(V, (B, 31), generator=rng())
    drawn = torch.stack(list(generate(forward, long, 17, block_size=T, generator=rng())), dim=1)
    whole = torch.cat((long, drawn), dim=1)
    for i, idx in enumerate(seen):
        assert torch.equal(idx, whole[:, 31 + i - T : 31 + i])
    assert drawn.tolist() == tokens(model, long[:, -T:], 17, generator=rng())


def test_tokens_come_as_soon_as_they_are_drawn(model: GPT) -> None:
    stream = generate(model, PROMPT, 10**9, block_size=T, temperature=0)
    first = next(stream)
    assert torch.is_grad_enabled()  # between two tokens, too
    assert not first.requires_grad
    assert first.tolist() == [row[0] for row in tokens(model, PROMPT, 1, temperature=0)]


def test_no_new_tokens_are_no_tokens(model: GPT) -> None:
    assert list(generate(model, PROMPT, 0, block_size=T)) == []


def test_a_prompt_of_nothing_known_begins_with_token_zero() -> None:
    tokenizer = CharTokenizer.fit("\nab")
    assert prompt_ids(tokenizer, "ba\n") == [2, 1, 0]
    assert prompt_ids(tokenizer, "") == [0]
    assert prompt_ids(tokenizer, "xyz") == [0]
    assert prompt_ids(tokenizer, "xbz") == [2]
