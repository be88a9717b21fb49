"""Tiny Shakespeare as the chapters read it: characters as ids, the first 90% to learn from, the rest to measure on."""

from __future__ import annotations

from functools import cache

import numpy as np

from gptlab.data.tokenizers import Tokenizer, TokenizerConfig, build
from gptlab.evaluation import eval_data


@cache
def shakespeare() -> tuple[Tokenizer, np.ndarray, np.ndarray]:
    """Return a tokenizer of the text's characters, and its ids: (n,) to learn from and (m,) to measure on.

    Raises:
        UserError: the text is not there and cannot be downloaded.
    """
    source = eval_data.named_source("shakespeare_char", {}, {})
    train, val = source.pieces("train"), source.pieces("val")
    texts = (piece.text for piece in train)
    tokenizer = build(TokenizerConfig("char", None), texts, source.corpus.documents, eval_data.data_folders({})[0])
    ids = [source.encode(pieces, tokenizer, part).astype(np.int64) for part, pieces in (("train", train), ("val", val))]
    return tokenizer, ids[0], ids[1]
