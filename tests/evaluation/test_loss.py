"""Every token is predicted once with the context that the protocol names; intervals have their coverage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gptlab.data.batches import IGNORED, EvalBatches, Share, Windows
from gptlab.data.tokenizers import ByteTokenizer, CharTokenizer
from gptlab.evaluation import comparison
from gptlab.evaluation.comparison import Difference, compare_losses
from gptlab.evaluation.loss import Measurement, measure, token_nats
from gptlab.evaluation.ngrams import NGrams
from gptlab.models import GPT, Bigram, BigramConfig, GPTConfig
from gptlab.system.errors import UserError

V, T = 11, 13
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(7)
    gpt = GPT(GPTConfig(vocab_size=V, block_size=T, n_layer=2, n_head=3, n_embd=42)).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(5)  # opinions, so that context matters
    return gpt


def ids(count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, count)


@torch.no_grad()
def one_by_one(model: GPT, ids: np.ndarray, context: int, stride: int) -> list[float]:
    """The protocol spelled out: a forward pass for each token over the part of its window before it."""
    found = []
    for i in range(1, len(ids)):
        window = max(-(-(i - context) // stride), 0)  # the first one that reaches token i
        shown = torch.tensor(ids[window * stride : i])[None]
        found.append(F.cross_entropy(model(shown)[0, -1], torch.tensor(ids[i])).item())
    return found


@pytest.mark.parametrize(("context", "stride"), [(T, T), (T, 1), (T, 5), (7, 7), (7, 3), (1, 1)])
@pytest.mark.parametrize("count", [2, 3, T, T + 1, T + 2, 97])
def test_each_token_is_predicted_once_as_by_a_naive_loop(model: GPT, context: int, stride: int, count: int) -> None:
    text, windows = ids(count), Windows(context, stride)
    expected = one_by_one(model, text, context, stride)
    for batch_size in (1, 3, None):
        found = token_nats(model, text, windows, CPU, batch_size=batch_size)
        assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    first = list(windows.positions(count - 1)[:context])
    assert first == list(range(min(context, count - 1)))
    assert windows.positions(count - 1).min() >= 0
    assert set(windows.positions(count - 1)[context:].tolist()) <= set(range(context - stride, context))


@pytest.mark.parametrize("count", [2, T, T + 1, 5 * T + 1, 97])
def test_windows_as_far_apart_as_long_are_those_of_validation(count: int) -> None:
    text = ids(count)
    theirs = EvalBatches(text, batch_size=3, block_size=T, share=Share(0, 1, 1), device=CPU)

    def counted(batches: Any) -> list[tuple[Tensor, Tensor]]:
        rows = [(x, y) for idx, targets, *_ in batches for x, y in zip(idx, targets, strict=True)]
        return [(x, y) for x, y in rows if (y != IGNORED).any()]

    ours = counted(Windows(T, T).batches(text, 5))
    for (x, y), (idx, targets) in zip(counted(theirs), ours, strict=True):
        assert torch.equal(y, targets)
        assert torch.equal(x[y != IGNORED], idx[y != IGNORED])


def test_more_context_is_counted_by_a_shorter_stride(model: GPT) -> None:
    """The scored positions of a window, with their counts: the first window scores all of its positions."""
    result = measure(model, ids(T + 4 * 5 + 1), ByteTokenizer(), "val", Windows(T, 5), CPU)
    means, counts = result.by_position()
    assert counts.tolist() == [1] * (T - 5) + [5] * 5
    assert (means * counts).sum() == pytest.approx(result.nats.sum(), rel=1e-6)
    assert result.protocol == "context 13, stride 5"


def test_places_that_no_token_had_have_no_loss(model: GPT) -> None:
    means, counts = measure(model, ids(5), ByteTokenizer(), "val", Windows(T, T), CPU).by_position()
    assert counts.tolist() == [1] * 4 + [0] * (T - 4)
    assert np.isnan(means).tolist() == [False] * 4 + [True] * (T - 4)


def test_evaluation_leaves_no_gradients_and_no_dropout(model: GPT) -> None:
    token_nats(model, ids(31), Windows(T, 3), CPU)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_bf16_is_near_and_not_equal(model: GPT) -> None:
    text = ids(97)
    full, half = (token_nats(model, text, Windows(T, T), CPU, bf16=bf16) for bf16 in (False, True))
    assert full.dtype == half.dtype == np.float32
    assert 0 < np.abs(full - half).mean() < 0.05 * full.mean()


# Closed forms


def test_a_bigram_table_has_the_loss_that_can_be_read_from_it() -> None:
    tokenizer = CharTokenizer("abé")
    table = Bigram(BigramConfig(vocab_size=3, block_size=2)).eval()
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    with torch.no_grad():
        table.wte.weight.copy_(p.log() + 3)
    text = tokenizer.encode("aabéa")
    result = measure(table, text, tokenizer, "all", Windows(2, 2), CPU)
    expected = [-math.log(x) for x in (0.5, 0.25, 0.1, 0.2)]
    assert result.nats == pytest.approx(expected, rel=1e-6)
    values = result.values()
    assert values["nats_per_token"] == pytest.approx(sum(expected) / 4, rel=1e-6)
    assert values["perplexity"] == pytest.approx((0.5 * 0.25 * 0.1 * 0.2) ** (-1 / 4), rel=1e-6)
    assert values["bits_per_byte"] == pytest.approx(-math.log2(0.5 * 0.25 * 0.1 * 0.2) / 5, rel=1e-6)  # é has two bytes
    assert (result.tokens, result.bytes) == (4, 5)
    assert result.protocol == "whole text, windows of 2"


def test_all_bytes_equally_probable_are_eight_bits_each() -> None:
    tokenizer = ByteTokenizer()
    for count in (2, 997, 100_003):
        text = np.random.default_rng(count).integers(0, 256, count)
        result = measure(NGrams(text[:0], 256, 0), text, tokenizer, "val", None, CPU)
        assert result.values()["bits_per_byte"] == pytest.approx(8, rel=1e-15)
        assert result.values()["perplexity"] == pytest.approx(256, rel=1e-13)


def test_a_token_for_the_end_of_a_text_has_nats_and_no_bytes() -> None:
    tokenizer = CharTokenizer("ab", end_of_text=True)
    result = measure(NGrams(np.zeros(0), 3, 0), np.array([0, 1, 2, 0]), tokenizer, "val", None, CPU)
    assert (result.tokens, result.bytes) == (3, 2)
    assert result.values()["bits_per_byte"] == pytest.approx(3 * math.log2(3) / 2)


def test_a_loss_that_is_no_number_is_refused() -> None:
    broken = Measurement("", np.array([1, math.nan]), np.array([1, 1, 1]), None, 0.0)
    with pytest.raises(UserError, match=r"the loss is nan: the weights are broken, or the run .* has diverged"):
        broken.values()


# Comparison


def measured(nats: np.ndarray, sizes: np.ndarray | None = None) -> Measurement:
    return Measurement("", nats, np.ones(len(nats) + 1, np.int64) if sizes is None else sizes, None, 0.0)


def test_the_interval_is_that_of_the_normal_distribution() -> None:
    """For independent differences of known spread, the interval is 1.96 standard errors on either side."""
    draw = np.random.default_rng(3)
    count, spread = 300_007, 0.5
    a = draw.normal(2, 1, count)
    b = a + 0.003 + draw.normal(0, spread, count)
    found = compare_losses(measured(a), measured(b), True, seed=1)
    assert found.mean == pytest.approx(-0.003, abs=4 * spread / math.sqrt(count))
    half = 1.96 * spread / math.sqrt(count)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)  # the spread of 292 blocks is known to 4%
    assert found.blocks == 292
    assert found == compare_losses(measured(a), measured(b), True, seed=1)
    assert found != compare_losses(measured(a), measured(b), True, seed=2)


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """95% of 200 texts with dependent neighbours are 190; below 175, or 200, has a probability under 1 in 10,000."""
    monkeypatch.setattr(comparison, "RESAMPLES", 500)
    draw, count = np.random.default_rng(5), 50_000
    held = 0
    for seed in range(200):
        smooth = np.convolve(draw.normal(0, 1, count // 25), np.ones(5)).repeat(25)[:count]  # 125 tokens long
        found = compare_losses(measured(smooth), measured(np.zeros(len(smooth))), True, seed)
        held += found.low <= 0 <= found.high
    assert 175 <= held < 200


@pytest.mark.parametrize(("shift", "words"), [(-0.1, "A is better by 0.1"), (0.1, "B is better by 0.1")])
def test_the_words_name_the_better_one(shift: float, words: str) -> None:
    a = np.random.default_rng(1).normal(2, 1, 4001)
    found = compare_losses(measured(a + shift), measured(a), True, 1)
    assert found.words().startswith(f"{words}000 nats per token: A - B is {shift:+.4f}, 95% interval")
    b = a + np.random.default_rng(2).normal(0, 1, 4001)
    b += a.mean() - b.mean()
    assert compare_losses(measured(a), measured(b), True, 1).words().startswith("no difference is shown: A - B is")


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (
            -7.3e-5,
            -2.1e-5,
            "A is better by 0.00005 nats per token: A - B is -0.00005, 95% interval -0.00007 to -0.00002",
        ),
        (0.0019, 0.0025, "B is better by 0.0022 nats per token: A - B is +0.0022, 95% interval +0.0019 to +0.0025"),
        (0.0, 0.0, "no difference is shown: A - B is +0.0000, 95% interval +0.0000 to +0.0000"),
    ],
)
def test_an_interval_is_shown_with_as_many_digits_as_its_width_needs(low: float, high: float, words: str) -> None:
    assert Difference((low + high) / 2, low, high, "nats per token", 108, 1033.0, 1337).words() == words


def test_a_models_difference_from_itself_is_nothing() -> None:
    a = measured(np.random.default_rng(1).normal(2, 1, 997))
    found = compare_losses(a, a, True, 1)
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_other_tokens_are_compared_by_the_bytes_that_both_predict() -> None:
    """A: 600 tokens of 2 bytes, 3 bits each. B: 3 bytes first, then 399 of 3 bytes, 6 bits each: 1.5 against 2."""
    bit = math.log(2)
    a = measured(np.full(599, 3 * bit), np.full(600, 2))
    b = measured(np.full(399, 6 * bit), np.full(400, 3))
    found = compare_losses(a, b, False, 1)
    assert (found.mean, found.low, found.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert found.unit == "bits per byte"
    assert found.blocks * found.block == pytest.approx(1200 - 3)
    assert "A is better by 0.5000 bits per byte" in found.words()
    assert "20 blocks of about 60 bytes" in found.method()
    assert "10,000 resamples" in found.method()
    assert "seed 1" in found.method()


def test_the_mean_of_the_blocks_is_that_of_the_whole() -> None:
    draw = np.random.default_rng(9)
    a, b = measured(draw.normal(2, 1, 5003)), measured(draw.normal(2, 1, 5003))
    assert compare_losses(a, b, True, 1).mean == pytest.approx(a.nats.mean() - b.nats.mean())


def test_what_cannot_be_compared_is_refused() -> None:
    a = measured(np.ones(100))
    with pytest.raises(
        UserError, match=r"A's tokens stand for 101 bytes of the text and B's for 100, as those of words"
    ):
        compare_losses(a, measured(np.ones(100), np.arange(101) % 2 * 2), False, 1)
    with pytest.raises(UserError, match="too short for a comparison: both models predict 19 tokens or bytes"):
        compare_losses(measured(np.ones(19)), measured(np.ones(19)), True, 1)


@pytest.mark.parametrize(
    ("context", "stride", "message"),
    [
        (17, None, "--context 17: must be at least 1 and at most my run's block_size=13"),
        (0, None, "--context 0: must be at least 1"),
        (7, 8, "--stride 8: must be at least 1 and at most the context, 7, or it skips tokens"),
        (None, 14, "--stride 14: must be at least 1 and at most the context, 13"),
        (7, 0, "--stride 0: must be at least 1"),
    ],
)
def test_windows_out_of_range_are_refused(context: int | None, stride: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Windows.of(context, stride, T, "my run")


def test_windows_left_open_are_those_of_training() -> None:
    assert Windows.of(None, None, T) == Windows(T, T)
    assert Windows.of(7, None, T) == Windows(7, 7)
    assert Windows.of(None, 5, T) == Windows(T, 5)
