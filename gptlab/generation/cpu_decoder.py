"""A forward pass of a few tokens on a CPU, where nearly all the time goes into reading the weights.

torch multiplies one row by a matrix at half the memory's speed, and the many small operations around it take as long
again. cpu_decoder.c does all of them in one call, see cpu_library.py; where there is no library, torch does the work.
"""

from __future__ import annotations

import ctypes
import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.generation.cpu_library import load_library
from gptlab.models.gpt import GPT
from gptlab.models.kv_cache import KVCache
from gptlab.models.layers import (
    GATED,
    CausalConv,
    CausalSelfAttention,
    attention_span,
    rotary_frequencies,
    rotary_scale,
)
from gptlab.models.quantised import GROUP, QuantisedLinear, is_quantised

MAX_TOKENS = 16  # up to here reading the weights takes most of the time
MAX_QUANTISED = 256  # tokens of a pass where products of integers make the rest fast, too
SINGLE_THREAD_WEIGHTS = 1 << 21  # up to here one thread is faster than several that wait for each other
TRIAL = 2  # passes with all threads that are compared with as many on one
WARM_UP, FEWEST_BETWEEN, MOST_BETWEEN = 8, 128, 1024  # passes before the first trial, and between two
NORM, LINEAR, ROTATE, ATTEND, ACTIVATE, ADD, CONVOLVE = range(7)
ACTIVATIONS = {"gelu": 0, "geglu": 0, "gelu_exact": 1, "relu": 2, "relu2": 3, "swiglu": 4}
FLOAT, BFLOAT16, INT8, INT4 = range(4)
LANES = 16  # floats in the widest vector register


class CStep(ctypes.Structure):
    """The struct `Step` of cpu_decoder.c."""

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


class CPUDecoder:
    """Computes `model.head(model.features(...))` for up to `most` tokens over a KV cache, with fp32 activations.

    The weights may be fp32, bf16 or quantised; they must not move or be replaced while the decoder is used.

    Args:
        model: a model for which `supports` holds.
        cache: its KV cache, in fp32; of a quantised model perhaps in bf16.
    """

    def __init__(self, model: GPT, cache: KVCache) -> None:
        c = self.config = model.config
        self.cache = cache
        self.most = max(MAX_QUANTISED, len(cache.lengths)) if is_quantised(model) else MAX_TOKENS
        self.referenced: list[Tensor] = []  # tensors that the steps point to
        self.steps: list[CStep] = []
        H, K, D = c.n_head, c.kv_heads, c.head_size
        self.x, self.h, self.h2, self.mixed = (self._buffer(c.n_embd) for _ in range(4))
        self.y = self._buffer(c.attn_width)
        self.qkv, self.fc = self._buffer((H + 2 * K) * D), self._buffer(c.hidden * (2 if c.mlp in GATED else 1))
        self.hidden = self._buffer(c.hidden)
        self.widest = -(-max(c.n_embd, c.attn_width, c.hidden) // GROUP) * GROUP
        self.scratch = torch.empty(0)
        for i, block in enumerate(model.h):
            self._block(i, block)
        self.body = len(self.steps)  # the steps before the head's
        last = self._norm(model.ln_f, self.x, self.h)
        self._linear(model.lm_head, last, self.x)  # `__call__` puts its output elsewhere
        self.weights = sum(step.n * step.m for step in self.steps if step.kind == LINEAR)
        self.program = (CStep * len(self.steps))(*self.steps)
        self.teamwork: dict[int, Teamwork] = defaultdict(Teamwork)  # by the number of tokens of a pass

    @staticmethod
    def supports(model: GPT, cache: KVCache) -> bool:
        """Return whether the model can run here.

        It needs contiguous fp32 or bf16 weights on a CPU, or quantised ones; no adapters, an fp32 cache, and a library.
        """
        if cache.device.type != "cpu" or model.lora is not None:
            return False
        if not is_quantised(model):
            dtype = model.wte.weight.dtype
            if dtype not in (torch.float32, torch.bfloat16) or cache.k[0].dtype != torch.float32:
                return False
            if not all(p.dtype == dtype and p.is_contiguous() for p in model.parameters()):
                return False
        return load_library() is not None

    def __call__(self, x: Tensor, sequence: list[int], position: list[int], wanted: list[int]) -> Tensor:
        """Return the logits of tokens before any softcap, (n, V) fp32.

        Args:
            x: the embedded tokens, (N, C); those of one row in their order.
            sequence: the cache row of each token.
            position: the position of each token in its row.
            wanted: the n tokens whose logits are returned, in ascending order.
        """
        n = len(wanted)
        logits = torch.empty(n, self.config.vocab_size, dtype=torch.float32)
        self.x[: len(x)] = x
        self.program[-1].y = logits.data_ptr()
        threads = torch.get_num_threads()
        room = len(x) * self.widest + threads * (self.cache.columns + LANES)
        if len(self.scratch) < room:
            self.scratch = torch.empty(room, dtype=torch.float32)
        where = torch.tensor([sequence, position])
        places = [t.data_ptr() for t in (*where, self.scratch)]
        teamwork = self.teamwork[len(x)]
        together = self.weights > SINGLE_THREAD_WEIGHTS and teamwork.together()
        run, count = load_library(), len(self.program)
        begin = time.perf_counter()
        if n == len(x):
            run(self.program, count, *places, len(x), threads if together else 1)
        else:
            run(self.program, self.body, *places, len(x), threads if together else 1)
            self.x[:n] = self.x[wanted]
            head = ctypes.byref(self.program, self.body * ctypes.sizeof(CStep))
            run(head, count - self.body, *places, n, threads if together else 1)
        teamwork.took(time.perf_counter() - begin)
        return logits

    def _buffer(self, width: int) -> Tensor:
        return torch.zeros(self.most, width, dtype=torch.float32)

    def _pointer(self, t: Tensor | None) -> int | None:
        if t is None:
            return None
        self.referenced.append(t)
        return t.data_ptr()

    def _wide(self, t: Tensor | None) -> int | None:
        return self._pointer(None if t is None else t.detach().float().contiguous())

    def _add(self, kind: int, x: Tensor, y: Tensor, **fields: Any) -> None:
        self.steps.append(CStep(kind=kind, x=self._pointer(x), y=self._pointer(y), **fields))

    def _norm(self, module: nn.Module, x: Tensor, y: Tensor, groups: int = 1) -> Tensor:
        """Add a norm of x into y; returns y, or x itself where the model has no norm."""
        if not isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            return x
        self._add(
            NORM,
            x,
            y,
            how=int(isinstance(module, nn.RMSNorm)),
            n=module.normalized_shape[0],
            groups=groups,
            stride=x.stride(0),
            number=module.eps,
            w=self._wide(module.weight),
            b=self._wide(getattr(module, "bias", None)),
        )
        return y

    def _linear(self, module: nn.Module, x: Tensor, y: Tensor, add: bool = False) -> None:
        """Write a linear layer of x, or x itself where the model has no such layer, into y; with `add`, add it to y."""
        if isinstance(module, QuantisedLinear):
            packed = module.packed
            kind, weight, scales = INT8 if packed.bits == 8 else INT4, packed.data, packed.scales
        elif isinstance(module, nn.Linear):
            weight, scales = module.weight.detach(), None
            kind = BFLOAT16 if weight.dtype == torch.bfloat16 else FLOAT
        else:
            self._add(ADD, x, y, how=int(add), n=y.shape[1])
            return
        n, m = module.in_features, module.out_features
        w, v, b = self._pointer(weight), self._pointer(scales), self._wide(module.bias)
        self._add(LINEAR, x, y, how=int(add), groups=kind, n=n, m=m, w=w, v=v, b=b)

    def _block(self, i: int, block: Any) -> None:
        c = self.config
        pre = c.norm_place == "pre"
        if c.parallel:
            source = self._norm(block.ln_1, self.x, self.h) if pre else self.x
            if source is self.x:  # attention changes x before the MLP reads it
                self._add(ADD, self.x, self.h, n=c.n_embd)
            has_norm = c.parallel_norms and c.norm != "none"
            read_by_mlp = self._norm(block.ln_2, self.x, self.h2) if has_norm else self.h
            self._attend(i, block.attn, self.h, c.residual)
            self._mlp(i, block.mlp, read_by_mlp, add=True)
            if not pre:
                self._norm(block.ln_1, self.x, self.x)
            return
        if c.has_attention:
            self._attend(i, block.attn, self._norm(block.ln_1, self.x, self.h) if pre else self.x, c.residual)
            if not pre:
                self._norm(block.ln_1, self.x, self.x)
        if c.has_mlp:
            self._mlp(i, block.mlp, self._norm(block.ln_2, self.x, self.h) if pre else self.x, c.residual)
            if not pre:
                self._norm(block.ln_2, self.x, self.x)

    def _attend(self, i: int, attn: CausalSelfAttention, x: Tensor, add: bool) -> None:
        c = self.config
        H, K, D = c.n_head, c.kv_heads, c.head_size
        self._linear(attn.c_attn, self._conv(i, attn.conv, x), self.qkv)
        keys = self.qkv[:, H * D :]
        self._norm(attn.q_norm, self.qkv, self.qkv, groups=H)
        self._norm(attn.k_norm, keys, keys, groups=K)
        if c.pos == "rope":
            b, number = self._wide(rotary_frequencies(c)), rotary_scale(c)
            sizes = {"n": D, "m": c.rotary_size, "groups": H + K, "stride": self.qkv.stride(0)}
            self._add(ROTATE, self.qkv, self.qkv, **sizes, number=number, b=b)
        self._add(
            ATTEND,
            self.qkv,
            self.y,
            how=int(self.cache.k[i].dtype == torch.bfloat16),
            n=D,
            m=H,
            groups=K,
            stride=self.qkv.stride(0),
            columns=self.cache.columns,
            window=attention_span(c),
            number=attn.scale,
            w=self._pointer(self.cache.k[i]),
            v=self._pointer(self.cache.v[i]),
            b=self._wide(self.cache.slopes),
        )
        self._linear(attn.c_proj, self.y, self.x, add)

    def _conv(self, i: int, conv: CausalConv | None, x: Tensor) -> Tensor:
        """Add a causal convolution of x; returns its output, or x itself where the model has no convolution."""
        if conv is None:
            return x
        read, weight = self.cache.conv_inputs[i, conv.name], conv.weight[:, 0]
        w, v = self._wide(weight), self._pointer(read)
        self._add(CONVOLVE, x, self.mixed, n=read.shape[2], m=len(weight), columns=read.shape[1], w=w, v=v)
        return self.mixed

    def _mlp(self, i: int, mlp: Any, x: Tensor, add: bool) -> None:
        self._linear(mlp.c_fc, self._conv(i, mlp.conv, x), self.fc)
        how, groups = ACTIVATIONS[self.config.mlp], 2 if mlp.gated else 1
        self._add(
            ACTIVATE, self.fc, self.hidden, how=how, n=self.config.hidden, groups=groups, stride=self.fc.stride(0)
        )
        self._linear(mlp.c_proj, self.hidden, self.x, add)
