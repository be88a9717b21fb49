"""What a program that runs llama2.c's files computes, written from the format's description, in fp64 without torch."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np

Array = np.ndarray


class Model:
    """A file of version 0: seven int32, then the weights in fp32."""

    def __init__(self, file: Path) -> None:
        content = file.read_bytes()
        C, hidden, L, H, K, V, T = struct.unpack_from("<7i", content)
        self.heads, self.kv_heads, self.size, self.positions = H, K, C // H, T
        shared, self.vocab = V > 0, abs(V)
        numbers = np.frombuffer(content, "<f4", offset=28).astype(np.float64)
        self.place = 0

        def take(*shape: int) -> Array:
            count = int(np.prod(shape))
            self.place += count
            return numbers[self.place - count : self.place].reshape(shape)

        kv = K * self.size
        self.embedding, self.norm_1 = take(self.vocab, C), take(L, C)
        self.q, self.k, self.v, self.o = take(L, C, C), take(L, kv, C), take(L, kv, C), take(L, C, C)
        self.norm_2 = take(L, C)
        self.w1, self.w2, self.w3 = take(L, hidden, C), take(L, C, hidden), take(L, hidden, C)
        self.last = take(C)
        self.cosines, self.sines = take(T, self.size // 2), take(T, self.size // 2)
        self.head = self.embedding if shared else take(self.vocab, C)
        assert self.place == len(numbers)

    def logits(self, ids: list[int]) -> Array:
        """The logits after each of the ids, (T, V)."""
        x = self.embedding[ids]
        for layer in range(len(self.q)):
            h = normed(x, self.norm_1[layer])
            q, k, v = (h @ w[layer].T for w in (self.q, self.k, self.v))
            heads = [self.attend(turned(q, self.size), turned(k, self.size), v, head) for head in range(self.heads)]
            x = x + np.concatenate(heads, axis=1) @ self.o[layer].T
            h = normed(x, self.norm_2[layer])
            gate = h @ self.w1[layer].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ self.w3[layer].T)) @ self.w2[layer].T
        return normed(x, self.last) @ self.head.T

    def attend(self, q: Array, k: Array, v: Array, head: int) -> Array:
        own, its = head * self.size, head * self.kv_heads // self.heads * self.size
        scores = q[:, own : own + self.size] @ k[:, its : its + self.size].T / np.sqrt(self.size)
        scores[np.triu_indices(len(q), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True) @ v[:, its : its + self.size]


def normed(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * weight


def turned(x: Array, size: int) -> Array:
    """Neighbours (2i, 2i + 1) of each head as complex numbers, turned by position times 10000^(-2i / size)."""
    T, width = x.shape
    pairs = x.reshape(T, width // size, size // 2, 2)
    angles = np.arange(T)[:, None] * 10_000.0 ** (-np.arange(0, size, 2) / size)
    numbers = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)[:, None]
    return np.stack((numbers.real, numbers.imag), axis=-1).reshape(T, width)


class Tokenizer:
    """A tokenizer.bin: the longest token's bytes, then for each token a score, its number of bytes, and those."""

    def __init__(self, file: Path) -> None:
        content, place = file.read_bytes(), 4
        self.texts, self.scores = list[bytes](), list[float]()
        while place < len(content):
            score, size = struct.unpack_from("<fI", content, place)
            self.scores.append(score)
            self.texts.append(content[place + 8 : place + 8 + size])
            place += 8 + size
        assert struct.unpack_from("<I", content)[0] == max(map(len, self.texts))
        self.ids = {text: i for i, text in enumerate(self.texts)}
        assert len(self.ids) == len(self.texts)

    def encode(self, text: str) -> list[int]:
        """1, a space, and the characters or their bytes; then the neighbours of the best score are merged, again and
        again, the first of equal ones."""
        ids = [1] + ([self.ids[b" "]] if text else [])
        for character in text:
            raw = character.encode()
            ids += [self.ids[raw]] if raw in self.ids else [byte + 3 for byte in raw]
        while True:
            pairs = [self.ids.get(self.texts[a] + self.texts[b], -1) for a, b in pairwise(ids)]
            best = max((self.scores[i] for i in pairs if i >= 0), default=-1e10)
            if best <= -1e10:
                return ids
            place = next(place for place, i in enumerate(pairs) if i >= 0 and self.scores[i] == best)
            ids[place : place + 2] = [pairs[place]]

    def decode(self, ids: list[int]) -> bytes:
        """The texts of ids after a 1, without the space that follows it."""
        found = b"".join(
            bytes([int(text[3:5], 16)]) if text.startswith(b"<0x") and len(text) == 6 else text
            for text in (self.texts[i] for i in ids)
        )
        return found.removeprefix(b" ")
