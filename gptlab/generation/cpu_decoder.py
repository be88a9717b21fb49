"""Forward passes of a GPT on a CPU, by our own library: see c/decoder.c, cpu_library.py.

Of one token, nearly all the time goes into reading the weights: torch multiplies one row by a matrix at half the
memory's speed, and the many small operations around it take as long again. The library does all of them in one call.
"""

from __future__ import annotations

import ctypes
import time
from collections import defaultdict
from typing import Any

import numpy as np

from gptlab.generation.cpu_library import load_library
from gptlab.models.arrays import EMBEDDING, HEAD, POSITIONS, ArrayGPT, as_floats
from gptlab.models.gpt_config import GATED, GPTConfig
from gptlab.models.packed import GROUP, Array, Packed
from gptlab.models.positions import (
    alibi_slopes,
    attention_span,
    rotary_frequencies,
    rotary_scale,
    sinusoids,
)
from gptlab.system import threads

MOST = 256  # tokens of a pass, unless there are more rows
SINGLE_THREAD_WEIGHTS = 1 << 21  # up to here one thread is faster than several that wait for each other
TRIAL = 2  # passes with all threads that are compared with as many on one
WARM_UP, FEWEST_BETWEEN, MOST_BETWEEN = 8, 128, 1024  # passes before the first trial, and between two
EMBED, NORM, LINEAR, ROTATE, ATTEND, ACTIVATE, ADD, CONVOLVE = range(8)
ACTIVATIONS = {"gelu": 0, "geglu": 0, "gelu_exact": 1, "relu": 2, "relu2": 3, "swiglu": 4}
CAP = 5
FLOAT, BFLOAT16, INT8, INT4 = range(4)
KEYS, QUERIES = 16, 8  # of attention.h, the latter at most


class CStep(ctypes.Structure):
    """The struct `Step` of c/step.h."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("kind", "how", "n", "m", "groups", "stride", "columns", "window")),
        ("number", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("w", "v", "b", "x", "y")),
    )


class Teamwork:
    """Decides for each of many like passes whether all threads take part; the numbers are the same either way.

    Beside other processes several threads wait again and again for one that has lost its core, and one alone is twice
    as fast. So both ways are tried now and then, ever more rarely, and the faster is taken until the next trial.
    """

    def __init__(self) -> None:
        self.faster = True
        self.left, self.next_left = WARM_UP, FEWEST_BETWEEN  # passes until the next trial, and after that until another
        self.trial: list[float] = []  # seconds of its passes: half of them with all threads, then half with one

    def together(self) -> bool:
        """Return whether all threads should take part in the next pass."""
        return self.faster if self.left else len(self.trial) < TRIAL

    def took(self, seconds: float) -> None:
        """Take note of how long that pass took."""
        if self.left:
            self.left -= 1
            return
        self.trial.append(seconds)
        if len(self.trial) == 2 * TRIAL:
            self.faster = sum(self.trial[:TRIAL]) <= sum(self.trial[TRIAL:])
            self.left, self.next_left, self.trial = self.next_left, min(2 * self.next_left, MOST_BETWEEN), []


class Cache:
    """What the library keeps of the tokens that it has read: position p of a row lies in column p modulo `columns`.

    Args:
        rows: how many texts there are.
        columns: for texts that are longer, at least `attention_span`, plus one for each token of a pass but its first.
        is_bf16: keep keys and values in bf16.
    """

    def __init__(self, config: GPTConfig, rows: int, columns: int, is_bf16: bool = False) -> None:
        c = config
        self.columns = -(-columns // KEYS) * KEYS
        shape = (rows, c.kv_heads, self.columns, c.head_size)
        kind = np.uint16 if is_bf16 else np.float32
        self.keys, self.values = ([np.zeros(shape, kind) for _ in range(c.n_layer)] for _ in range(2))
        ring = self.columns + (c.conv or 1) - 1
        self.conv_inputs = {
            (block, name): np.zeros((rows, ring, c.n_embd), np.float32)
            for block in range(c.n_layer if c.conv else 0)
            for name in ("attn", "mlp")
        }


class CPUDecoder:
    """Computes the logits of up to `most` tokens, with fp32 activations, and keeps what later ones need of them.

    The weights must not move or be replaced while the decoder is used.
    """

    def __init__(self, model: ArrayGPT, cache: Cache, rows: int) -> None:
        self.model = model  # which has the memory of the weights
        c = self.config = model.config
        self.cache, self.most = cache, max(MOST, rows)
        self.referenced: list[Array] = []  # arrays that the steps point to
        self.steps: list[CStep] = []
        H, K, D = c.n_head, c.kv_heads, c.head_size
        self.x, self.h, self.h2, self.mixed = (self._buffer(c.n_embd) for _ in range(4))
        self.y = self._buffer(c.attn_width)
        self.qkv, self.fc = self._buffer((H + 2 * K) * D), self._buffer(c.hidden * (2 if c.mlp in GATED else 1))
        self.hidden = self._buffer(c.hidden)
        self.widest = -(-max(c.n_embd, c.attn_width, c.hidden) // GROUP) * GROUP
        self.scratch = np.empty(0, np.float32)
        self._embed()
        for i in range(c.n_layer):
            self._block(i)
        self.body = len(self.steps)  # the steps before the head's
        last = self._norm("ln_f", self.x, self.h) if c.norm_place == "pre" else self.x
        self._linear("lm_head", last, self.x)  # `__call__` puts its output elsewhere
        self.outputs = [(len(self.steps) - 1, "y")]
        if c.logit_softcap is not None:
            self.outputs += [(len(self.steps), "x"), (len(self.steps), "y")]
            sizes = {"n": c.vocab_size, "groups": 1, "stride": c.vocab_size}
            self._add(ACTIVATE, self.x, self.x, how=CAP, number=c.logit_softcap, **sizes)
        self.weights = sum(step.n * step.m for step in self.steps if step.kind == LINEAR)
        self.program = (CStep * len(self.steps))(*self.steps)
        self.teamwork: dict[int, Teamwork] = defaultdict(Teamwork)  # by the number of tokens of a pass

    def __call__(self, tokens: list[int], sequence: list[int], position: list[int], wanted: list[int]) -> Array:
        """Return the logits of tokens, (n, V) fp32.

        Args:
            tokens: at most `most`; those of one row in their order.
            sequence: the cache row of each token.
            position: the position of each token in its row.
            wanted: the n tokens whose logits are returned, in ascending order.
        """
        N, n = len(tokens), len(wanted)
        logits = np.empty((n, self.config.vocab_size), np.float32)
        for step, name in self.outputs:
            setattr(self.program[step], name, logits.ctypes.data)
        most = threads.in_use()
        room = max(N * self.widest, most * QUERIES * (self.cache.columns + 2 * KEYS))
        if len(self.scratch) < room:
            self.scratch = np.empty(room, np.float32)
        where = np.array([tokens, sequence, position], np.int64)
        first = where.ctypes.data
        places = [first, first + where.strides[0], first + 2 * where.strides[0], self.scratch.ctypes.data]
        teamwork = self.teamwork[N]
        together = most if self.weights > SINGLE_THREAD_WEIGHTS and teamwork.together() else 1
        run, count = load_library(), len(self.program)
        begin = time.perf_counter()
        if n == N:
            run(self.program, count, *places, N, together)
        else:
            run(self.program, self.body, *places, N, together)
            self.x[:n] = self.x[wanted]
            head = ctypes.byref(self.program, self.body * ctypes.sizeof(CStep))
            run(head, count - self.body, *places, n, together)
        teamwork.took(time.perf_counter() - begin)
        return logits

    def _buffer(self, width: int) -> Array:
        return np.zeros((self.most, width), np.float32)

    def _pointer(self, array: Array | None) -> int | None:
        if array is None:
            return None
        self.referenced.append(array)
        return array.ctypes.data

    def _wide(self, name: str) -> int | None:
        """Point to weights in fp32; to nothing where the model has none of this name."""
        weights = self.model.weights.get(name)
        assert not isinstance(weights, Packed)
        return self._pointer(None if weights is None else as_floats(weights))

    def _add(self, kind: int, x: Array, y: Array, **fields: Any) -> None:
        self.steps.append(CStep(kind=kind, x=self._pointer(x), y=self._pointer(y), **fields))

    def _matrix(self, name: str) -> dict[str, Any]:
        """Return the fields of a step that say what a matrix is, and where."""
        weight = self.model.weights[name]
        if isinstance(weight, Packed):
            kind, scales = INT8 if weight.bits == 8 else INT4, self._pointer(weight.scales)
            return {"groups": kind, "w": self._pointer(weight.data), "v": scales}
        return {"groups": FLOAT if weight.dtype == np.float32 else BFLOAT16, "w": self._pointer(weight)}

    def _embed(self) -> None:
        c, number, b = self.config, 1.0, self._wide(POSITIONS)
        if c.pos == "sinusoidal":
            number, b = float(np.sqrt(c.n_embd)), self._pointer(sinusoids(c.block_size, c.n_embd))
        self._add(EMBED, self.x, self.x, n=c.n_embd, number=number, b=b, **self._matrix(EMBEDDING))
        if c.embed_norm:
            self._norm("ln_e", self.x, self.x)

    def _norm(self, name: str, x: Array, y: Array, groups: int = 1, rms: bool = False) -> Array:
        """Add a norm of x into y; returns y, or x itself where the model has no norm.

        Args:
            groups: vectors of a row, each of which has a norm of its own: heads.
            rms: of root mean squares, whatever the model's other norms are.
        """
        c = self.config
        if c.norm == "none" and not rms:
            return x
        n, how = c.head_size if groups > 1 or rms else c.n_embd, int(rms or c.norm == "rmsnorm")
        w, b = self._wide(f"{name}.weight"), self._wide(f"{name}.bias")
        strides = {"stride": x.strides[0] // x.itemsize, "groups": groups}
        self._add(NORM, x, y, how=how, n=n, number=c.norm_eps, w=w, b=b, **strides)
        return y

    def _linear(self, name: str, x: Array, y: Array, add: bool = False) -> None:
        """Write a linear layer of x, or x itself where the model has no such layer, into y; with `add`, add it to y."""
        matrix = f"{name}.weight"
        if matrix == HEAD and matrix not in self.model.weights:
            matrix = EMBEDDING
        if matrix not in self.model.weights:
            self._add(ADD, x, y, how=int(add), n=y.shape[1])
            return
        m, n = self.model.weights[matrix].shape
        self._add(LINEAR, x, y, how=int(add), n=n, m=m, b=self._wide(f"{name}.bias"), **self._matrix(matrix))

    def _block(self, i: int) -> None:
        c, name = self.config, f"h.{i}"
        pre = c.norm_place == "pre"
        if c.parallel:
            source = self._norm(f"{name}.ln_1", self.x, self.h) if pre else self.x
            if source is self.x:  # attention changes x before the MLP reads it
                self._add(ADD, self.x, self.h, n=c.n_embd)
            has_norm = c.parallel_norms and c.norm != "none"
            read_by_mlp = self._norm(f"{name}.ln_2", self.x, self.h2) if has_norm else self.h
            self._attend(i, self.h, c.residual)
            self._mlp(i, read_by_mlp, add=True)
            if not pre:
                self._norm(f"{name}.ln_1", self.x, self.x)
            return
        if c.has_attention:
            self._attend(i, self._norm(f"{name}.ln_1", self.x, self.h) if pre else self.x, c.residual)
            if not pre:
                self._norm(f"{name}.ln_1", self.x, self.x)
        if c.has_mlp:
            self._mlp(i, self._norm(f"{name}.ln_2", self.x, self.h) if pre else self.x, c.residual)
            if not pre:
                self._norm(f"{name}.ln_2", self.x, self.x)

    def _attend(self, i: int, x: Array, add: bool) -> None:
        c, name = self.config, f"h.{i}.attn"
        H, K, D = c.n_head, c.kv_heads, c.head_size
        self._linear(f"{name}.c_attn", self._conv(i, "attn", x), self.qkv)
        keys, stride = self.qkv[:, H * D :], self.qkv.shape[1]
        if c.qk_norm:
            self._norm(f"{name}.q_norm", self.qkv, self.qkv, groups=H, rms=True)
            self._norm(f"{name}.k_norm", keys, keys, groups=K, rms=True)
        if c.pos == "rope":
            b = self._pointer(rotary_frequencies(c))
            sizes = {"n": D, "m": c.rotary_size, "groups": H + K, "stride": stride}
            self._add(ROTATE, self.qkv, self.qkv, **sizes, number=rotary_scale(c), b=b)
        kept = self.cache.keys[i], self.cache.values[i]
        sizes = {"n": D, "m": H, "groups": K, "stride": stride, "columns": self.cache.columns}
        sizes |= {"how": int(kept[0].dtype == np.uint16), "window": attention_span(c)}
        number = D**-0.5 if c.attn_scale else 1.0
        w, v = map(self._pointer, kept)
        b = self._pointer(np.float32(alibi_slopes(H))) if c.pos == "alibi" else None
        self._add(ATTEND, self.qkv, self.y, number=number, w=w, v=v, b=b, **sizes)
        self._linear(f"{name}.c_proj", self.y, self.x, add)

    def _conv(self, i: int, name: str, x: Array) -> Array:
        """Add a causal convolution of x; returns its output, or x itself where the model has no convolution."""
        if not self.config.conv:
            return x
        read, w = self.cache.conv_inputs[i, name], self._wide(f"h.{i}.{name}.conv.weight")
        sizes = {"n": read.shape[2], "m": self.config.conv, "columns": read.shape[1]}
        self._add(CONVOLVE, x, self.mixed, w=w, v=self._pointer(read), **sizes)
        return self.mixed

    def _mlp(self, i: int, x: Array, add: bool) -> None:
        c, name = self.config, f"h.{i}.mlp"
        self._linear(f"{name}.c_fc", self._conv(i, "mlp", x), self.fc)
        sizes = {"n": c.hidden, "groups": 2 if c.mlp in GATED else 1, "stride": self.fc.shape[1]}
        self._add(ACTIVATE, self.fc, self.hidden, how=ACTIVATIONS[c.mlp], **sizes)
        self._linear(f"{name}.c_proj", self.hidden, self.x, add)
