"""A GPT as arrays of numpy: what generating on a CPU needs of it, without torch."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gptlab.models.gpt_config import GATED, GPTConfig
from gptlab.models.packed import Array, Packed
from gptlab.system.errors import UserError

EMBEDDING, HEAD, POSITIONS = "wte.weight", "lm_head.weight", "wpe.weight"


@dataclass(frozen=True)
class ArrayGPT:
    """The weights of a GPT by their names in `GPT`, a tied head only as the embedding."""

    config: GPTConfig
    weights: Mapping[str, Array | Packed]
    """In fp32, or in bf16 as uint16 (the upper halves of fp32), or packed but for what `quantise` leaves in fp32.

    As they lie in a file, perhaps transposed or in fp16, until `in_fp32`, `in_bf16` or `quantise` has read them."""
    source: object = field(default=None, repr=False)
    """Has the memory of the weights, if that is not the arrays' own: a mapped file, or the parameters of torch."""

    @property
    def bits(self) -> int | None:
        """Of its matrices, where they are packed."""
        embedding = self.weights[EMBEDDING]
        return embedding.bits if isinstance(embedding, Packed) else None


def expected_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a GPT's weights, as `weights.parameters` has them."""
    c, C = config, config.n_embd
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (c.vocab_size, C)}

    def norm(name: str) -> None:
        if c.norm != "none" and c.norm_weight:
            found[f"{name}.weight"] = (C,)
            if c.norm == "layernorm" and c.bias:
                found[f"{name}.bias"] = (C,)

    def linear(name: str, M: int, N: int, bias: bool) -> None:
        found[f"{name}.weight"] = (M, N)
        if bias:
            found[f"{name}.bias"] = (M,)

    if c.pos == "learned":
        found[POSITIONS] = (c.block_size, C)
    if c.embed_norm:
        norm("ln_e")
    for i in range(c.n_layer):
        if c.has_attention:
            norm(f"h.{i}.ln_1")
            linear(f"h.{i}.attn.c_attn", (c.n_head + 2 * c.kv_heads) * c.head_size, C, c.has_qkv_bias)
            if c.attn_proj:
                linear(f"h.{i}.attn.c_proj", C, c.attn_width, c.bias)
            if c.qk_norm and c.norm_weight:
                found |= {f"h.{i}.attn.{name}.weight": (c.head_size,) for name in ("q_norm", "k_norm")}
        if c.has_mlp and (not c.parallel or c.parallel_norms):
            norm(f"h.{i}.ln_2")
        if c.has_mlp:
            linear(f"h.{i}.mlp.c_fc", c.hidden * (2 if c.mlp in GATED else 1), C, c.bias)
            if c.mlp_proj:
                linear(f"h.{i}.mlp.c_proj", C, c.hidden, c.bias)
        for name, there in (("attn", c.has_attention), ("mlp", c.has_mlp)):
            if c.conv and there:
                found[f"h.{i}.{name}.conv.weight"] = (c.conv, 1, C)
    if c.norm_place == "pre":
        norm("ln_f")
    if not c.tied:
        found[HEAD] = (c.vocab_size, C)
    if c.head_bias:
        found["lm_head.bias"] = (c.vocab_size,)
    return found


def as_floats(array: Array) -> Array:
    """Return an array of fp32, bf16 or fp16 in fp32, side by side in memory; one that is so already is not copied."""
    wide = (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array
    return np.require(wide, np.float32, ("C", "A"))


def as_bf16(array: Array) -> Array:
    """Return an fp32 array in bf16, to the nearest, ties to even."""
    words = array.view(np.uint32)
    rounded = (words + 0x7FFF + (words >> 16 & 1) >> 16).astype(np.uint16)
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded)


def is_matrix(name: str, array: Array) -> bool:
    """Return whether weights multiply what a layer reads, or are looked up by token."""
    return array.ndim == 2 and name != POSITIONS


def quantise(model: ArrayGPT, bits: int) -> ArrayGPT:
    """Return the model with matrices of `bits` bits, as `quantised.quantise` does.

    Raises:
        UserError: a weight is infinite or not a number.
    """
    weights: dict[str, Array | Packed] = {}
    for name, array in _floats(model):
        try:
            if is_matrix(name, array):
                weights[name] = Packed(array, bits)
            elif np.isfinite(array).all():
                weights[name] = array.copy()
            else:
                raise ValueError
        except ValueError:
            raise UserError(f"{name} has numbers that are infinite or none, which {bits} bits cannot hold") from None
    return ArrayGPT(model.config, weights)


def in_fp32(model: ArrayGPT) -> ArrayGPT:
    """Return the model with all weights in fp32; those that lie so in a file stay there."""
    return ArrayGPT(model.config, dict(_floats(model)))


def in_bf16(model: ArrayGPT) -> ArrayGPT:
    """Return the model with all weights in bf16."""
    return ArrayGPT(model.config, {name: as_bf16(array) for name, array in _floats(model)})


def _floats(model: ArrayGPT) -> Iterator[tuple[str, Array]]:
    """Yield the weights in fp32; what has been read of their file then takes no memory any more."""
    for name, array in model.weights.items():
        assert not isinstance(array, Packed)
        yield name, as_floats(array)
        if isinstance(model.source, mmap.mmap):
            model.source.madvise(mmap.MADV_DONTNEED)


def digest(weights: Iterable[tuple[str, str, Sequence[int], Any]], about: str) -> str:
    """Return the sha256 (hex) of weights in the order of their names, and of `about`.

    Args:
        weights: for each its name, its type as torch writes it, its shape, and its memory.
        about: the description of the model that stands in their file.
    """
    found = hashlib.sha256(about.encode())
    for name, kind, shape, memory in weights:
        found.update(f"\n{name} {kind} {list(shape)}\n".encode())
        found.update(memory)
    return found.hexdigest()
