"""Heads whose weights are set by hand have the scores that they were made for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gptlab.data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from gptlab.explaining.heads import (
    LONGEST,
    SEQUENCES,
    Repeated,
    even_attention,
    repeated_sequences,
    score_heads,
    scores_of,
)
from gptlab.models import GPT, GPTConfig

CPU = torch.device("cpu")
N = 8  # tokens that are repeated
LETTERS = CharTokenizer("\n abcdefgh")
CERTAIN = 99.0  # a score beside which a softmax sees nothing else


def circuit() -> GPT:
    """Two heads, as Olsson et al. describe them: the first copies each token's predecessor beside it, and the second
    looks where the predecessor is the token that it stands on."""
    V, T = LETTERS.vocab_size, 2 * N
    sizes = {"block_size": T, "n_layer": 2, "n_head": 1, "head_dim": T, "n_embd": V + T + V}
    plain = {"norm": "none", "mlp": "none", "bias": False, "tied": False, "attn_scale": False}
    model = GPT(GPTConfig(V, **sizes, **plain)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    token, position, before = (
        torch.eye(V + T + V)[begin:end] for begin, end in ((0, V), (V, V + T), (V + T, 2 * V + T))
    )
    model.wte.weight.copy_(token)
    assert model.wpe is not None
    model.wpe.weight.copy_(position)

    def rows(*parts: Tensor) -> Tensor:
        """Queries, keys and values of T columns each, as rows of c_attn."""
        return torch.cat([torch.cat((part, torch.zeros(T - len(part), part.shape[1]))) for part in parts])

    shifted = torch.cat((position[1:], torch.zeros(1, V + T + V)))  # at t the one of t - 1
    model.h[0].attn.c_attn.weight.copy_(rows(CERTAIN * shifted, position, token))
    model.h[0].attn.c_proj.weight[V + T :, :V].copy_(torch.eye(V))
    keys = before - position[:1]  # the first token has no predecessor, and copied itself
    model.h[1].attn.c_attn.weight.copy_(rows(CERTAIN * token, keys, torch.zeros(1, V + T + V)))
    return model


def test_a_circuit_made_by_hand_has_its_scores() -> None:
    model = circuit()
    repeated = repeated_sequences(LETTERS, model)
    assert repeated is not None
    assert (repeated.length, repeated.begin, repeated.idx.shape) == (N, 0, (SEQUENCES, 2 * N))
    scores = score_heads(model, repeated, CPU)
    assert scores.previous.shape == scores.induction.shape == scores.first.shape == (2, 1)
    assert scores.previous[0, 0] == pytest.approx(1)
    assert scores.induction[0, 0] == pytest.approx(0)
    assert scores.first[0, 0] == pytest.approx(0)
    assert scores.induction[1, 0] == pytest.approx(1)
    assert scores.previous[1, 0] < 0.2  # in the first copy it finds nothing, and looks at all


@pytest.mark.parametrize("window", [None, 9])
def test_what_a_head_has_that_looks_at_all_evenly(window: int | None) -> None:
    sizes = {"block_size": 2 * N, "n_layer": 1, "n_head": 2, "n_embd": 8}
    model = GPT(GPTConfig(LETTERS.vocab_size, **sizes, window=window)).eval()
    model.h[0].attn.c_attn.weight.data.zero_()
    repeated = repeated_sequences(LETTERS, model)
    assert repeated is not None
    scores = score_heads(model, repeated, CPU)
    for name, expected in even_attention(repeated, window or 2 * N).items():
        assert getattr(scores, name)[0] == pytest.approx([expected] * 2)


@pytest.mark.parametrize("begin", [0, 2])
def test_each_score_sees_its_own_places_and_no_other(begin: int) -> None:
    length = begin + 2 * N
    repeated = Repeated(torch.zeros(1, length, dtype=torch.int64).numpy(), begin, N)
    t = torch.arange(length)
    looks = {
        "induction": torch.where(t >= begin + N, t - N + 1, t),
        "previous": (t - 1).clamp(min=0),
        "first": torch.zeros(length, dtype=torch.int64),
        "the same token": torch.where(t >= begin + N, t - N, t),
        "after the next": torch.where(t >= begin + N, t - N + 2, t),
    }
    for name, place in looks.items():
        weights = torch.nn.functional.one_hot(place, length).float()[None, None]  # (1, 1, T, T)
        scores = scores_of(weights, repeated)
        found = {each for each in ("induction", "previous", "first") if getattr(scores, each)[0] == 1}
        assert found == {name} & {"induction", "previous", "first"}


def test_the_sequences_are_tokens_that_differ_twice_after_what_begins_a_text() -> None:
    model = GPT(GPTConfig(259, block_size=257, n_layer=1, n_head=1, n_embd=8))
    tokenizer = ByteTokenizer(end_of_text=True)
    tokenizer.begin = (256,)
    repeated = repeated_sequences(tokenizer, model)
    assert repeated is not None
    assert (repeated.length, repeated.begin) == (LONGEST, 1)
    assert (repeated.idx[:, 0] == 256).all()
    for row in repeated.idx[:, 1:]:
        assert (row[:LONGEST] == row[LONGEST:]).all()
        assert len(set(row.tolist())) == LONGEST
        assert not {256, *b" \n\t\r"} & {*row.tolist()}
    again = repeated_sequences(tokenizer, model)
    assert again is not None
    assert (again.idx == repeated.idx).all()


@pytest.mark.parametrize(
    ("tokenizer", "fields", "length"),
    [
        (LETTERS, {}, 8),
        (LETTERS, {"block_size": 11}, 5),
        (LETTERS, {"window": 4}, 4),
        (LETTERS, {"block_size": 5}, None),
        (LETTERS, {"window": 2}, None),
        (CharTokenizer("ab"), {}, None),
    ],
)
def test_they_fit_the_block_the_window_and_the_tokens(
    tokenizer: Tokenizer, fields: dict[str, int], length: int | None
) -> None:
    sizes = {"block_size": 64, "n_layer": 1, "n_head": 1, "n_embd": 8}
    model = GPT(GPTConfig(tokenizer.vocab_size, **(sizes | fields)))
    repeated = repeated_sequences(tokenizer, model)
    assert (None if repeated is None else repeated.length) == length
