"""Tokens are drawn with the right probability, and never outside the filters; also those that a draft proposes."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import chi2
from torch import Tensor

from gptlab.data.tokenizers import CharTokenizer
from gptlab.generation import cpu_context
from gptlab.generation.decoding import generate, prompt_ids, speculate
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.sampling import Sampling, invert_cdf
from gptlab.models import GPT, Bigram, BigramConfig, GPTConfig
from gptlab.system.errors import UserError
from tests.generation.contexts import context_for, logits_of, spy

V, T, B = 11, 13, 7


def rng(seed: int = 5) -> RandomNumbers:
    return RandomNumbers(seed)


def logits_for(*probabilities: float, rows: int = 1) -> Tensor:
    return torch.tensor(probabilities).log().expand(rows, -1)


def drawn(logits: Tensor, **options: Any) -> Tensor:
    """Draw a token for each row, (B,), all by the same numbers."""
    numbers = rng()
    return torch.from_numpy(Sampling(**options).draw(logits, [numbers] * len(logits)))


def lively(scale: float = 11, **fields: Any) -> GPT:
    """A small random model with confident predictions (more so the larger `scale`) that depend on positions."""
    torch.manual_seed(7)
    sizes = {"vocab_size": V, "block_size": T, "n_layer": 2, "n_head": 3, "n_embd": 30}
    gpt = GPT(GPTConfig(**(sizes | fields))).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(scale)
    return gpt


@pytest.fixture(scope="module")
def model() -> GPT:
    return lively()


def tokens(
    model: Any, prompts: Sequence[Sequence[int]], count: int, seeds: Sequence[int] = range(B), **options: Any
) -> list[list[int]]:
    """The tokens generated after each prompt."""
    context, generators = (
        context_for(model, prompts, count),
        [rng(seed) for seed, _ in zip(seeds, prompts, strict=False)],
    )
    steps = list(generate(context, count, Sampling(**options), generators))
    assert all(step.tokens.shape == (len(prompts),) and step.tokens.dtype == np.int64 for step in steps)
    found: list[list[int]] = np.stack([step.tokens for step in steps], axis=1).tolist()
    return found


PROMPTS = torch.randint(V, (B, 3), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 0, "top_k": 3, "top_p": 0.5}],
)
def test_greedy_takes_the_most_probable(options: dict[str, Any]) -> None:
    logits = torch.randn(997, V, generator=torch.Generator().manual_seed(5))
    assert torch.equal(drawn(logits, **options), logits.argmax(dim=-1))


@pytest.mark.parametrize("k", [1, 2, 5, V, 101])
def test_top_k_stays_within_the_k_most_probable_and_reaches_them_all(k: int) -> None:
    logits = torch.randn(V, generator=torch.Generator().manual_seed(5))
    best = set(logits.topk(min(k, V)).indices.tolist())
    assert set(drawn(logits.expand(5003, -1), top_k=k, temperature=3.0).tolist()) == best


def test_top_k_counts_in_every_row_on_its_own() -> None:
    logits = torch.tensor([[8.0, 0, 9], [9, 8, 0], [0, 6, 5]]).repeat(997, 1)
    rows = drawn(logits, top_k=2).view(997, 3)
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
    logits = logits_for(0.25, 0.07, 0.18, 0.5, rows=5003) + 3  # a shift of all changes nothing
    logits = torch.cat((logits, torch.full((5003, 1), -math.inf)), dim=1)
    assert set(drawn(logits, top_p=p).tolist()) == kept


@pytest.mark.parametrize(("p", "count"), [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_top_p_is_content_with_exactly_p(p: float, count: int) -> None:
    """Four equal tokens: quarters have no rounding errors."""
    assert len(set(drawn(torch.zeros(5003, 4), top_p=p).tolist())) == count


def test_top_p_comes_after_temperature_and_top_k() -> None:
    logits = logits_for(0.5, 0.3, 0.2, rows=5003)
    assert set(drawn(logits, top_p=0.55).tolist()) == {0, 1}
    assert set(drawn(logits, top_p=0.55, top_k=2).tolist()) == {0}  # 5/8 is enough
    assert set(drawn(logits, top_p=0.55, temperature=0.5).tolist()) == {0}  # 25/38, too
    assert set(drawn(logits, top_p=0.75, temperature=99.0).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("p", "kept"), [(0.0, {0, 1, 2, 3}), (0.13, {0, 1, 2, 3}), (0.15, {0, 2, 3}), (0.37, {0, 3}), (0.51, {3})]
)
def test_min_p_keeps_what_is_probable_beside_the_most_probable(p: float, kept: set[int]) -> None:
    logits = logits_for(0.25, 0.07, 0.18, 0.5, rows=5003)
    assert set(drawn(logits, min_p=p).tolist()) == kept


def test_repetition_makes_a_token_less_probable_whatever_its_sign() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    found = Sampling(repetition_penalty=1.5).probabilities(logits, [[0, 1, 1]])
    expected = torch.tensor([[2 / 1.5, -3.0, 2.0, -2.0]], dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(torch.from_numpy(found), expected)
    assert torch.equal(logits, torch.tensor([[2.0, -2.0, 2.0, -2.0]]))
    assert drawn(logits, repetition_penalty=1.0).shape == (1,)


def test_greedy_does_not_repeat_what_is_penalised() -> None:
    sampling = Sampling(repetition_penalty=3.0, temperature=0)
    assert sampling.draw(torch.tensor([[4.0, 2.0, 1.0]]), [rng()], [[0]]).tolist() == [1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"repetition_penalty": 1.3, "temperature": 1.4, "top_k": 8, "top_p": 0.9, "min_p": 0.08},
        {"repetition_penalty": 1.1, "temperature": 0.7, "top_k": 4, "top_p": 0.7, "min_p": 0.3},
    ],
)
def test_filters_are_those_of_transformers_in_their_order(options: dict[str, Any]) -> None:
    rows = torch.randint(V, (101, 6), generator=torch.Generator().manual_seed(5))
    logits = 2 * torch.randn(101, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    scores = logits
    for name, kind in {
        "repetition_penalty": transformers.RepetitionPenaltyLogitsProcessor,
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }.items():
        if name in options:
            scores = kind(options[name])(rows, scores)
    found = Sampling(**options).probabilities(logits, rows.tolist())
    torch.testing.assert_close(torch.from_numpy(found), scores.softmax(dim=-1), rtol=1e-6, atol=1e-9)


def fits(counts: Tensor, probabilities: Tensor) -> bool:
    """Whether `counts` (n,) are consistent with `probabilities` (n,), by a test that rejects 1 true sample in 1000."""
    some = probabilities > 0
    expected = probabilities[some] / probabilities.sum() * counts.sum()
    assert expected.min() > 5
    distance = ((counts[some] - expected) ** 2 / expected).sum().item()
    return not counts[~some].any() and chi2.sf(distance, int(some.sum()) - 1) > 1e-3


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, V),
        ({"temperature": 0.6}, V),
        ({"temperature": 1.7}, V),
        ({"top_k": 7}, 7),
        ({"top_p": 0.8}, 5),
        ({"min_p": 0.1}, 4),
    ],
)
def test_tokens_come_as_often_as_they_should(options: dict[str, Any], kept: int) -> None:
    """A correct sampler fails at one seed in a thousand; the seed is fixed."""
    logits = torch.randn(V, generator=torch.Generator().manual_seed(5))
    expected = (logits.double() / options.get("temperature", 1.0)).softmax(dim=-1)
    expected[expected < expected.sort(descending=True).values[kept - 1]] = 0
    assert fits(drawn(logits.expand(20_000, -1), **options).bincount(minlength=V), expected)


def test_texts_of_neighbouring_seeds_begin_as_differently_as_others() -> None:
    logits = torch.randn(V, generator=torch.Generator().manual_seed(5))
    found = Sampling().draw(logits.expand(5_000, -1), [rng(seed) for seed in range(5_000)])
    assert fits(torch.from_numpy(found).bincount(minlength=V), logits.double().softmax(dim=-1))


@pytest.mark.parametrize(
    ("u", "token"),
    [(0.0, 1), (0.3, 1), (math.nextafter(0.5, 0), 1), (0.5, 3), (0.7, 3), (math.nextafter(1, 0), 3), (1.0, 3)],
)
@pytest.mark.parametrize("whole", [1.0, 0.25])
def test_an_impossible_token_is_not_drawn_at_the_borders_either(whole: float, u: float, token: int) -> None:
    probabilities = whole * np.array([[0, 0.5, 0, 0.5, 0, 0]])
    assert invert_cdf(probabilities, np.array([u])).tolist() == [token]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_drawn_from_in_full(dtype: torch.dtype) -> None:
    logits = torch.randn(997, V, generator=torch.Generator().manual_seed(5)).to(dtype)
    assert torch.equal(drawn(logits, temperature=0.7), drawn(logits.float(), temperature=0.7))


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_however_cold_it_is_probabilities_are_numbers(temperature: float) -> None:
    found = Sampling(temperature=temperature).probabilities(torch.tensor([[90.0, 91.0, -math.inf]]))
    assert found.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature=-0.1: must be at least 0 \(0 is greedy\)"),
        ({"temperature": math.nan}, r"temperature=nan: must be at least 0"),
        ({"top_k": 0}, r"top_k=0: must be at least 1"),
        ({"top_p": 0.0}, r"top_p=0.0: must be above 0 and at most 1"),
        ({"top_p": 1.1}, r"top_p=1.1: must be above 0 and at most 1"),
        ({"top_p": math.nan}, r"top_p=nan: must be above 0 and at most 1"),
        ({"min_p": -0.1}, r"min_p=-0.1: must be at least 0 and at most 1"),
        ({"min_p": 1.1}, r"min_p=1.1: must be at least 0 and at most 1"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty=0.0: must be above 0 \(1 is none\)"),
        ({"repetition_penalty": math.nan}, r"repetition_penalty=nan: must be above 0"),
        ({"temperature": 0, "top_k": -1}, r"top_k=-1: must be at least 1"),  # greedy, too, reads what was typed
    ],
)
def test_impossible_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_the_same_seed_gives_the_same_tokens(model: GPT) -> None:
    first = tokens(model, PROMPTS, 29)
    torch.manual_seed(0)  # what others draw must not matter
    state = torch.get_rng_state()
    assert tokens(model, PROMPTS, 29) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert tokens(model, PROMPTS, 29, seeds=range(B, 2 * B)) != first


def test_a_text_is_the_same_whatever_texts_are_drawn_beside_it(model: GPT) -> None:
    prompts = [*PROMPTS[:3], [3], [1, 4, 1, 5, 9, 2, 6]]
    together = tokens(model, prompts, 29)
    assert together == [tokens(model, [prompt], 29, seeds=[seed])[0] for seed, prompt in enumerate(prompts)]
    assert len(set(map(tuple, together))) == len(prompts)


def test_each_token_follows_from_all_before_it(model: GPT) -> None:
    idx = torch.tensor(PROMPTS)
    for _ in range(T - 3):
        idx = torch.cat((idx, model(idx)[:, -1].argmax(dim=-1, keepdim=True)), dim=1)
    assert tokens(model, PROMPTS, T - 3, temperature=0) == idx[:, 3:].tolist()


def test_a_step_brings_the_models_own_logits(model: GPT) -> None:
    (step,) = generate(context_for(model, PROMPTS, 1), 1, Sampling(temperature=0.5, top_k=1), [rng()] * B)
    expected = model(torch.tensor(PROMPTS))[:, -1]
    torch.testing.assert_close(torch.as_tensor(step.logits), expected, rtol=1e-3, atol=1e-2)  # of numbers up to 45


def test_a_table_of_pairs_generates_too() -> None:
    table = Bigram(BigramConfig(vocab_size=3, block_size=2)).eval()
    with torch.no_grad():
        next(table.parameters()).copy_(torch.tensor([[0.0, 9, 0], [0, 0, 9], [9, 0, 0]]))
    assert tokens(table, [[0], [2, 1]], 4, temperature=0) == [[1, 2, 0, 1], [2, 0, 1, 2]]


@pytest.mark.parametrize("ours", [True, False])
def test_a_text_longer_than_a_block_is_seen_from_its_end(
    model: GPT, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ours:
        monkeypatch.setattr(cpu_context, "load_library", lambda: None)
    long = torch.randint(V, (B, 31), generator=torch.Generator().manual_seed(5)).tolist()
    found = tokens(model, long, 17, temperature=0)
    for row, new in zip(long, found, strict=True):
        for n, token in enumerate(new):
            assert int(model(torch.tensor([[*row, *new[:n]][-T:]]))[0, -1].argmax()) == token
    assert tokens(model, long, 17) == tokens(model, [row[-T:] for row in long], 17)


def test_tokens_come_as_soon_as_they_are_drawn(model: GPT) -> None:
    stream = generate(context_for(model, PROMPTS, 10**9), 10**9, Sampling(temperature=0), [rng()] * B)
    first = next(stream)
    assert torch.is_grad_enabled()  # between two tokens, too
    assert first.tokens.tolist() == [row[0] for row in tokens(model, PROMPTS, 1, temperature=0)]


def test_no_new_tokens_are_no_tokens(model: GPT) -> None:
    assert list(generate(context_for(model, PROMPTS, 0), 0, Sampling(), [rng()] * B)) == []


def test_a_prompt_of_nothing_known_begins_with_token_zero() -> None:
    tokenizer = CharTokenizer.fit("\nab")
    assert prompt_ids(tokenizer, "ba\n") == [2, 1, 0]
    assert prompt_ids(tokenizer, "") == [0]
    assert prompt_ids(tokenizer, "xyz") == [0]
    assert prompt_ids(tokenizer, "xbz") == [2]


def test_a_prompt_begins_as_the_model_is_used_to() -> None:
    tokenizer = CharTokenizer.fit("\nab")
    tokenizer.begin = (1,)
    assert prompt_ids(tokenizer, "ba") == [1, 2, 1]
    assert prompt_ids(tokenizer, "") == [1]


# What is taken back, and what a draft proposes


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("pos", ["learned", "rope", "alibi"])
@pytest.mark.parametrize("length", [1, T - 2, T + 5])
def test_what_is_taken_back_leaves_no_trace(pos: str, length: int, cache: bool) -> None:
    model, prompt = (
        lively(pos=pos, n_embd=36),
        torch.randint(V, (2, length), generator=torch.Generator().manual_seed(5)),
    )
    context = context_for(model, prompt.tolist(), room=2 * T, ahead=4, cache=cache)
    for _ in range(T):
        logits_of(context)
        wrong = torch.randint(V, (2, 3), generator=torch.Generator().manual_seed(5))
        for column in wrong.T:
            context.append(column.tolist())
        context.logits(3)
        context.take_back(3)
        context.append(wrong[:, 0].flip(0).tolist())
    anew = context_for(model, prompt.tolist(), room=0, cache=False)
    anew.rows = context.rows
    torch.testing.assert_close(logits_of(context), logits_of(anew), rtol=1e-4, atol=1e-4)


def speculated(model: GPT, draft: GPT, prompt: list[int], count: int, ahead: int, seed: int, **options: Any) -> Any:
    pair = [context_for(each, [prompt], room=count + ahead, ahead=ahead + 1) for each in (model, draft)]
    return list(speculate(pair[0], pair[1], count, Sampling(**options), rng(seed), ahead))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row's length at each call of `logits`."""
    found: list[int] = []
    spy(monkeypatch, "logits", lambda context, last=1: found.append(last))
    return found


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 2, "repetition_penalty": 1.4}])
def test_what_a_draft_proposes_has_the_distribution_of_the_model_alone(
    options: dict[str, Any], reads: list[int]
) -> None:
    """Counts all texts of three tokens; a correct sampler fails at one seed in a thousand, and the seeds are fixed."""
    sizes = {"vocab_size": 3, "block_size": 5, "n_layer": 1, "n_head": 1, "n_embd": 4}
    model, draft = lively(2, **sizes), lively(9, **sizes, pos="none")
    prompt, sampling, runs, ahead = [1, 0], Sampling(**options), 800, 2
    texts = list(itertools.product(range(3), repeat=3))
    probabilities = torch.ones(len(texts), dtype=torch.float64)
    with torch.no_grad():
        for i, text in enumerate(texts):
            for n, token in enumerate(text):
                row = [*prompt, *text[:n]]
                probabilities[i] *= sampling.probabilities(model(torch.tensor([row]))[:, -1], [row])[0, token]
    found = [speculated(model, draft, prompt, 3, ahead, seed, **options) for seed in range(runs)]
    counts = Counter(tuple(step.tokens.item() for step in steps) for steps in found)
    assert fits(torch.tensor([counts[text] for text in texts]), probabilities)
    assert runs < reads.count(ahead + 1) + reads.count(ahead) < 2 * runs  # some proposals are kept, others not


@pytest.mark.parametrize("pos", ["learned", "rope"])
@pytest.mark.parametrize("ahead", [1, 4])
def test_a_draft_changes_no_greedy_token_within_a_block_and_beyond(pos: str, ahead: int) -> None:
    model, draft = lively(pos=pos), lively(pos=pos, n_layer=1, block_size=7)
    prompt = [3, 1, 4]
    alone = tokens(model, [prompt], 2 * T, temperature=0)[0]
    steps = speculated(model, draft, prompt, 2 * T, ahead, seed=1, temperature=0)
    assert [step.tokens.item() for step in steps] == alone
    for n, step in enumerate(steps[: T - 3]):
        expected = model(torch.tensor([[*prompt, *alone[:n]]]))[:, -1]
        torch.testing.assert_close(torch.as_tensor(step.logits), expected, rtol=1e-3, atol=1e-2)


def test_a_model_that_is_its_own_draft_keeps_all_proposals(model: GPT, reads: list[int]) -> None:
    steps = speculated(model, model, [3, 1, 4], 9, 2, seed=1)
    assert len(steps) == 9
    assert reads == [1, 1, 3] * 3


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_draft_makes_no_more_tokens_than_are_asked_for(model: GPT, count: int) -> None:
    assert len(speculated(model, model, [3], count, 4, seed=1)) == count


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_said(bad: float) -> None:
    logits = torch.zeros(2, 7)
    logits[1, 3] = bad
    with pytest.raises(UserError, match="the model's logits are no numbers"):
        Sampling().draw(logits, [RandomNumbers(0), RandomNumbers(0)])
