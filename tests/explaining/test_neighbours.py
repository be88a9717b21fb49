"""Neighbours are by cosine, and the picture has the directions in which the shown tokens differ most."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gptlab.data.tokenizers import ByteTokenizer, CharTokenizer
from gptlab.explaining import neighbours
from gptlab.explaining.neighbours import embedding_neighbours, principal_components
from gptlab.models import GPT, GPTConfig


def model_of(rows: list[list[float]]) -> GPT:
    model = GPT(GPTConfig(len(rows), block_size=9, n_layer=1, n_head=1, n_embd=len(rows[0])))
    model.wte.weight.data = torch.tensor(rows)
    return model


def test_the_nearest_are_those_that_point_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "NEAREST", 2)
    model = model_of([[1.0, 0.0], [7.0, 7.0], [0.0, 3.0], [-2.0, 0.0]])
    found = embedding_neighbours(model, CharTokenizer("abcd"), np.array([0, 2, 0]))
    assert [token["text"] for token in found["tokens"]] == ["a", "c"]
    assert [[near["text"] for near in token["nearest"]] for token in found["tokens"]] == [["b", "c"], ["b", "a"]]
    cosines = [near["cosine"] for token in found["tokens"] for near in token["nearest"]]
    assert cosines == pytest.approx([math.sqrt(0.5), 0, math.sqrt(0.5), 0], abs=1e-6)
    assert {point["text"]: point["of_text"] for point in found["points"]} == {"a": True, "b": False, "c": True}
    assert sum(found["variance"]) == pytest.approx(1)


def test_what_is_left_out_is_counted_and_ids_without_a_text_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MOST_TOKENS", 3)
    tokenizer = ByteTokenizer()
    tokenizer.tokens = [*tokenizer.tokens[:-1], b""]
    model = model_of(torch.randn(256, 4, generator=torch.Generator().manual_seed(1)).tolist())
    model.wte.weight.data[255] = model.wte.weight.data[97]  # the nearest there could be
    found = embedding_neighbours(model, tokenizer, np.array([97, 98, 99, 100, 101]))
    assert [token["id"] for token in found["tokens"]] == [97, 98, 99]
    assert found["left_out"] == 2
    assert {len(token["nearest"]) for token in found["tokens"]} == {5}
    assert 3 < len(found["points"]) <= 9  # the tokens, and two neighbours of each
    assert 255 not in {near["id"] for token in found["tokens"] for near in token["nearest"]}


def test_principal_components_are_those_of_the_covariance() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 6)) * [9, 5, 1, 1, 1, 1]
    places, shares = principal_components(rows)
    values = np.sort(np.linalg.eigvalsh(np.cov(rows.T)))[::-1]
    np.testing.assert_allclose(places.var(axis=0, ddof=1), values[:2])
    np.testing.assert_allclose(shares, values[:2] / values.sum())
    assert principal_components(rows[:1])[0].tolist() == [[0, 0]]
