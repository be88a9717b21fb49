"""What a page holds of a model: its sizes, its weights in 8 bits, its tokenizer, and words about it."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from gptlab.data.chat.chat_format import end_tokens
from gptlab.data.tokenizers import (
    CL100K_PATTERN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
)
from gptlab.formats.description import ModelInfo
from gptlab.formats.html.shared import chat_of
from gptlab.formats.model_card import training_facts
from gptlab.formats.writing import chat_format
from gptlab.models.arrays import EMBEDDING, ArrayGPT, quantise
from gptlab.models.gpt_config import GATED, GPTConfig
from gptlab.models.packed import Array, Packed
from gptlab.models.positions import (
    alibi_slopes,
    attention_span,
    rotary_frequencies,
    rotary_scale,
    sinusoids,
)
from gptlab.system.errors import UserError

MOST_BYTES = 1 << 28  # of weights; a browser holds them four times while it opens a page
HIDDEN = {"sha256 of the text", "seed", "device", "precision", "train/loss, the run's last"}  # of the facts
OTHERWISE = "use --format gguf, or --format onnx --kv-cache for transformers.js in a browser"


def sizes_of(config: GPTConfig) -> dict[str, Any]:
    """Return the sizes and switches that model.js reads."""
    c = config
    return {
        "vocabSize": c.vocab_size,
        "blockSize": c.block_size,
        "layers": c.n_layer,
        "heads": c.n_head,
        "kvHeads": c.kv_heads,
        "headSize": c.head_size,
        "padded": -(-c.head_size // 4) * 4,
        "width": c.n_embd,
        "hidden": c.hidden,
        "mlp": c.mlp,
        "gated": c.mlp in GATED,
        "hasAttention": c.has_attention,
        "hasMlp": c.has_mlp,
        "norm": c.norm,
        "pre": c.norm_place == "pre",
        "eps": c.norm_eps,
        "embedNorm": c.embed_norm,
        "embeddingScale": float(np.float32(np.sqrt(c.n_embd))) if c.pos == "sinusoidal" else 1.0,
        "rotary": {"size": c.rotary_size, "scale": rotary_scale(c)} if c.pos == "rope" else None,
        "qkNorm": c.qk_norm,
        "scoreScale": float(np.float32(c.head_size**-0.5)) if c.attn_scale else 1.0,
        "span": attention_span(c),
        "slides": c.slides,
        "columns": attention_span(c) if c.slides else c.block_size,
        "conv": c.conv or 0,
        "residual": c.residual,
        "parallel": c.parallel,
        "parallelNorms": c.parallel_norms and c.norm != "none",
        "softcap": c.logit_softcap,
    }


def tensors_of(model: ArrayGPT) -> dict[str, Array | Packed]:
    """Return the weights in 8 bits, and what depends on positions, by the names that model.js looks for.

    Raises:
        UserError: a weight is infinite or not a number, or they are too many for a page.
    """
    c = model.config
    size = sum(array.size for array in model.weights.values() if not isinstance(array, Packed))
    if size > MOST_BYTES:
        raise UserError(
            f"--format html: {size:,} weights, and a page holds {MOST_BYTES:,} at most; {OTHERWISE} for this model"
        )
    found = dict(quantise(model, 8).weights)
    if c.pos == "learned":
        found["positions"] = found.pop("wpe.weight")
    if c.pos == "sinusoidal":
        found["positions"] = sinusoids(c.block_size, c.n_embd)
    if c.pos == "rope":
        found["frequencies"] = rotary_frequencies(c)
    if c.pos == "alibi":
        found["slopes"] = alibi_slopes(c.n_head)
    assert EMBEDDING in found
    return found


def described(model: ArrayGPT) -> tuple[dict[str, Any], str]:
    """Return the description that model.js's `openModel` reads, and the weights in base64, in the order it names."""
    names, parts = [], []
    for name, tensor in sorted(tensors_of(model).items(), key=lambda pair: not isinstance(pair[1], Packed)):
        if isinstance(tensor, Packed):
            names.append([name, "int8", list(tensor.shape)])
            parts += [tensor.scales.reshape(-1)[: tensor.shape[0]].astype("<f4").tobytes(), tensor.integers().tobytes()]
        else:
            names.append([name, "float32", list(tensor.shape)])
            parts.append(np.asarray(tensor, "<f4").tobytes())
    return {"config": sizes_of(model.config), "tensors": names}, base64.b64encode(b"".join(parts)).decode()


def tokenizer_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a tokenizer as tokenizer.js reads it.

    Raises:
        UserError: the page cannot have it.
    """
    special = tokenizer.special_tokens
    found = {"end_of_text": tokenizer.end_of_text, "begin": [*tokenizer.begin], "special": special}
    letters = tokenizer.chars if isinstance(tokenizer, CharTokenizer) else "".join(getattr(tokenizer, "words", ()))
    if surrogates := [c for c in letters if 0xD800 <= ord(c) < 0xE000]:
        raise UserError(f"--format html: its tokens have lone surrogates, which no page can hold: {surrogates[:7]}")
    if isinstance(tokenizer, CharTokenizer):
        return found | {"kind": "char", "tokens": tokenizer.chars}
    if isinstance(tokenizer, ByteTokenizer):
        return found | {"kind": "byte"}
    if isinstance(tokenizer, WordTokenizer):
        return found | {"kind": "word", "tokens": tokenizer.words}
    if isinstance(tokenizer, BPETokenizer):
        tokens = " ".join(base64.b64encode(token).decode() for token in tokenizer.merges)
        pattern = "cl100k" if tokenizer.pattern == CL100K_PATTERN else "gpt2"
        return found | {"kind": "bpe", "tokens": tokens, "pattern": pattern, "special": special | tokenizer.special}
    raise UserError(
        f"--format html: its tokenizer is a {tokenizer.name} of another kind, and a page has characters, bytes, words "
        f"and byte-level BPE; {OTHERWISE} for this model"
    )


def card_of(config: GPTConfig, parameters: int, tokenizer: Tokenizer, info: ModelInfo, name: str) -> dict[str, Any]:
    """Return what the page says of the model, and what its controls need to know.

    Args:
        config: the model's.
        parameters: their number.
        tokenizer: its tokenizer.
        info: its info.
        name: the file's, for a model without a name of its own.
    """
    given = info.config.get("name")
    return {
        "name": given if isinstance(given, str) and given else name,
        "facts": facts_of(parameters, tokenizer, info, weights="8 bits", shape=shape_words(config)),
        "blockSize": config.block_size,
        "layers": config.n_layer if config.has_attention else 0,
        "heads": config.n_head,
        "chat": chat_of(chat_format(info)),
        "ends": sorted(end_tokens(tokenizer)),
    }


def shape_words(config: GPTConfig) -> str:
    return f"{config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, sees {config.block_size:,} tokens"


def facts_of(parameters: int, tokenizer: Tokenizer, info: ModelInfo, **more: str) -> list[list[str]]:
    """Return what a page says of a model, as pairs of a fact's name and its words; `more` comes last."""
    facts = {"parameters": parameters, **training_facts(tokenizer, info), **more}
    return [[key, _words(key, value)] for key, value in facts.items() if key not in HIDDEN]


def _words(name: str, value: Any) -> str:
    """Return a fact as the page shows it."""
    if isinstance(value, float):
        return f"{value:.4f}{' nats a token' if name == 'val/loss' else ''}"
    return f"{value:,}" if isinstance(value, int) else str(value)
