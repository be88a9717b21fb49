"""Which tokens a model embeds in nearly the same direction as those of a text."""

from __future__ import annotations

from typing import Any

import numpy as np

from gptlab.data.tokenizers import Tokenizer
from gptlab.explaining.read_text import token_text
from gptlab.models.gpt import GPT

MOST_TOKENS, NEAREST = 48, 5  # tokens of the text, and neighbours of each
MAPPED = 2  # neighbours of each on the map, where more would lie on each other


def embedding_neighbours(model: GPT, tokenizer: Tokenizer, ids: np.ndarray) -> dict[str, Any]:
    """Find the neighbours of a text's tokens by the cosine of their rows of wte, without positions.

    Returns:
        "tokens", the distinct tokens of the text in their order, up to `MOST_TOKENS`, each with its "nearest" ones;
        "points", the tokens and the `MAPPED` nearest of each on the two principal components of their rows (PCA), with
        "variance", the shares of the variance that these have; and "left_out", the number of further tokens.
    """
    rows = model.wte.weight.detach().float().cpu().numpy()[: tokenizer.vocab_size]  # (V, C)
    directions = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    distinct = [*dict.fromkeys(ids.tolist())]
    of_text = distinct[:MOST_TOKENS]
    cosines = directions[of_text] @ directions.T  # (tokens, V)
    cosines[range(len(of_text)), of_text] = -np.inf
    unused = [i for i, token in enumerate(tokenizer.tokens[: len(rows)]) if not token]
    cosines[:, unused] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]
    tokens = []
    for token, its_cosines, near in zip(of_text, cosines, order.tolist(), strict=True):
        nearest = [
            {"id": i, "text": token_text(tokenizer, i), "cosine": float(its_cosines[i])}
            for i in near
            if np.isfinite(its_cosines[i])
        ]
        tokens.append({"id": token, "text": token_text(tokenizer, token), "nearest": nearest})
    shown = [*dict.fromkeys([*of_text, *(near["id"] for token in tokens for near in token["nearest"][:MAPPED])])]
    places, variance = principal_components(rows[shown].astype(np.float64))
    points = [
        {"id": i, "text": token_text(tokenizer, i), "x": x, "y": y, "of_text": i in of_text}
        for i, (x, y) in zip(shown, places.tolist(), strict=True)
    ]
    return {"tokens": tokens, "points": points, "variance": variance, "left_out": len(distinct) - len(of_text)}


def principal_components(rows: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Return rows (n, C) on their first two principal components, (n, 2), and the shares of the variance of these."""
    left, values, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    places = np.zeros((len(rows), 2))
    count = min(2, len(values))
    places[:, :count] = left[:, :count] * values[:count]
    shares = values**2 / max(float((values**2).sum()), 1e-12)
    return places, [float(share) for share in shares[:2]]
