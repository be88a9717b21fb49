"""Prompts go on, a token at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gptlab.data.tokenizers import Tokenizer
from gptlab.models import Model
from gptlab.models.few_tokens import MOST, FewTokens
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.kv_cache import KVCache
from gptlab.models.layers import sees
from gptlab.system.errors import UserError


def _check(best: Tensor) -> None:
    if not best.isfinite().all():
        raise UserError("the model's logits are no numbers: its weights are damaged, or its training has diverged")


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The filters apply in the order of these fields, as in `transformers`.

    Raises:
        ValueError: a value out of range.
    """

    repetition_penalty: float = 1.0
    """Divides the logits above zero, and multiplies those below, of tokens that have been there (CTRL, Keskar et al.
    2019, https://arxiv.org/abs/1909.05858)."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_k: int | None = None
    """Keep the k most probable tokens."""
    top_p: float | None = None
    """Keep the fewest most probable tokens whose probabilities sum to at least p (Holtzman et al. 2020,
    https://arxiv.org/abs/1904.09751)."""
    min_p: float | None = None
    """Keep the tokens at least p times as probable as the most probable one (Nguyen et al. 2024,
    https://arxiv.org/abs/2407.01082)."""

    def __post_init__(self) -> None:
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty={self.repetition_penalty}: must be above 0 (1 is none)")
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}: must be at least 0 (0 is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p}: must be at least 0 and at most 1")

    def probabilities(self, logits: Tensor, rows: Sequence[Sequence[int]] = ()) -> Tensor:
        """What the next token of each row is drawn from, (B, V) fp64 on the CPU.

        Args:
            logits: (B, V).
            rows: the tokens of each row so far, for the repetition penalty.

        Raises:
            UserError: the logits are no numbers.
        """
        logits = logits.detach().cpu().double()
        if self.repetition_penalty != 1.0:
            logits = logits.clone()
            for row, there in zip(logits, rows, strict=True):
                seen = torch.tensor(sorted(set(there)))
                row[seen] = torch.where(
                    row[seen] > 0, row[seen] / self.repetition_penalty, row[seen] * self.repetition_penalty
                )
        best = logits.max(dim=-1, keepdim=True)
        _check(best.values)
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter(-1, best.indices, 1.0)
        logits = (logits - best.values) / self.temperature  # no overflow, however cold
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kept = logits.topk(self.top_k)
            logits = torch.full_like(logits, float("-inf")).scatter(-1, kept.indices, kept.values)
        probabilities = logits.softmax(dim=-1)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            before = ordered.cumsum(dim=-1) - ordered  # the probability of all that is more probable
            probabilities = probabilities.scatter(-1, order, ordered.masked_fill(before >= self.top_p, 0.0))
        if self.min_p is not None:
            least = self.min_p * probabilities.max(dim=-1, keepdim=True).values
            probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        return probabilities / probabilities.sum(dim=-1, keepdim=True)

    def draw(self, logits: Tensor, generators: Sequence[torch.Generator], rows: Sequence[Sequence[int]] = ()) -> Tensor:
        """One token a row, (B,) int64, each with a number of its own generator: the same whatever rows are beside it.

        Args:
            logits: (B, V).
            generators: B, on the CPU.
            rows: as of `probabilities`.
        """
        if self.temperature == 0 and self.repetition_penalty == 1.0:
            best = logits.max(dim=-1)
            _check(best.values)
            return best.indices.cpu()
        return inverted(self.probabilities(logits, rows), uniform(generators))


def uniform(generators: Sequence[torch.Generator]) -> Tensor:
    """The next number of each generator, (B,) fp64 in [0, 1)."""
    return torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])


def inverted(probabilities: Tensor, u: Tensor) -> Tensor:
    """The tokens (B,) at which the running sum of the probabilities (B, V) exceeds u (B,) of the whole."""
    sums = probabilities.cumsum(dim=-1)
    whole = sums[:, -1:]
    return torch.searchsorted(sums, (u[:, None] * whole).minimum(whole.nextafter(torch.zeros(()))), right=True)[:, 0]


class Context:
    """Rows of tokens, and what a model makes of them: the logits of their next tokens.

    What stands more than block_size before a token is out of its sight. With learned or sinusoidal positions the rest
    is then read anew for every token, as in the lessons; with others the window slides (see `KVCache`).

    Args:
        model: in evaluation mode.
        prompts: the tokens of each row, at least one; the last block_size of them are taken.
        room: how many tokens are going to be appended to a row.
        ahead: how many of them at once, to be taken back perhaps.
        cache: keep keys and values; without, everything is read anew for every token, to the same end.
        backend: let torch compile the reading of single tokens, by "inductor" (on a GPU as CUDA graphs).
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        room: int,
        *,
        ahead: int = 1,
        cache: bool = True,
        backend: str | None = None,
    ) -> None:
        c = model.config
        self.model = model
        self.rows = [list(prompt[-c.block_size :]) for prompt in prompts]
        self.device = next(model.parameters()).device
        self.cache: KVCache | None = None
        self.few: FewTokens | None = None
        self.backend = backend
        self.passes = 0  # how many times tokens were read
        self.compiled: Callable[[Tensor], Tensor] | None = None
        if cache and isinstance(model, GPT) and isinstance(c, GPTConfig) and c.has_attention:
            longest = max(map(len, self.rows))
            whole = longest + room
            columns = max(longest, min(whole, sees(c))) + ahead if c.slides else min(whole, c.block_size)
            dtype = model.wte.weight.dtype
            if self.device.type == "cpu" and dtype == torch.bfloat16:
                dtype = torch.float32  # torch's attention over bf16 is several times as slow there
            self.cache = KVCache(c, len(self.rows), columns, dtype=dtype, device=self.device)
            if backend is None and FewTokens.serves(model, self.cache):
                self.few = FewTokens(model, self.cache)

    def append(self, tokens: Tensor | Sequence[int]) -> None:
        """Add a token to each row, (B,)."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(int(token))

    def take_back(self, count: int) -> None:
        """Remove the last tokens of each row."""
        for row in self.rows:
            del row[len(row) - count :]
        if self.cache is not None:
            self.cache.forget([len(row) for row in self.rows])

    @torch.no_grad()
    def logits(self, last: int = 1) -> Tensor:
        """Logits after each of the `last` tokens of every row, (B, last, V); some token of each row has not been read.

        Where there is a cache, what is unread has at least `last` tokens.

        Raises:
            ValueError: more was appended than there is room for.
        """
        self.passes += 1
        c = self.model.config
        slides = isinstance(c, GPTConfig) and c.slides
        if self.cache is not None and not slides and max(map(len, self.rows)) > self.cache.columns:
            self.cache = None
        if self.cache is None:
            ends = []
            for back in reversed(range(last)):
                rows = [row[: len(row) - back] for row in self.rows]
                rows = rows if slides else [row[-c.block_size :] for row in rows]
                x = self.model.features(self._padded(rows))  # (B, T, C)
                ends.append(torch.stack([x[i, len(row) - 1 : len(row)] for i, row in enumerate(rows)]))
            return self.model.head(torch.cat(ends, dim=1))
        found: dict[int, Tensor] = {}
        while any(rest := [row[n:] for row, n in zip(self.rows, self.cache.lengths, strict=True)]):
            if (room := self.cache.room()) < 1:
                raise ValueError(f"the context was made for {self.cache.columns} tokens, and more have been appended")
            part = [row[:room] for row in rest]
            ended = [i for i, row in enumerate(part) if row and len(row) == len(rest[i])]
            found |= zip(ended, self._read(part, ended, last), strict=True)
            self.cache.advance([len(row) for row in part])
        return torch.stack([found[i] for i in range(len(self.rows))])

    def _read(self, part: list[list[int]], ended: list[int], last: int) -> Iterable[Tensor]:
        """Read tokens of each row into the cache; logits (last, V) of the rows that end with them."""
        assert isinstance(self.model, GPT)
        assert self.cache is not None
        if self.backend and max(self.cache.lengths) and all(len(row) == 1 for row in part):
            return self._compiled()(self._padded(part)).clone()
        if self.few is None or sum(map(len, part)) > MOST:
            x = self.model.features(self._padded(part), self.cache)  # (B, T, C)
            return self.model.head(torch.stack([x[i, len(part[i]) - last : len(part[i])] for i in ended]))
        tokens = [token for row in part for token in row]
        sequence = [i for i, row in enumerate(part) for _ in row]
        position = [self.cache.lengths[i] + j for i, row in enumerate(part) for j in range(len(row))]
        x = self.model.embed(torch.tensor(tokens), torch.tensor(position))  # (N, C)
        logits = self.model.capped(self.few(x, sequence, position))  # (N, V)
        each = logits.split([len(row) for row in part])
        return [each[i][-last:] for i in ended]

    def _compiled(self) -> Callable[[Tensor], Tensor]:
        """Tokens (B, 1) to logits (B, 1, V), with static shapes and addresses."""
        if self.compiled is None:
            model, cache = self.model, self.cache
            assert self.backend is not None
            assert cache is not None
            cache.fixed()
            mode = "reduce-overhead" if self.backend == "inductor" and self.device.type == "cuda" else None
            self.compiled = torch.compile(lambda idx: model(idx, cache), backend=self.backend, mode=mode, dynamic=False)
        return self.compiled

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(B, T) on the model's device, filled up on the right."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)


class Step(NamedTuple):
    tokens: Tensor
    """(B,) int64, on the CPU."""
    logits: Tensor
    """(B, V): the model's, before any filter."""


def generate(
    context: Context, max_new_tokens: int, sampling: Sampling, generators: Sequence[torch.Generator]
) -> Iterator[Step]:
    """Append up to `max_new_tokens` tokens to each row, and yield them as soon as they are drawn.

    Args:
        generators: one a row, on the CPU; draws are made there, the same on every device and in every batch.
    """
    for _ in range(max_new_tokens):
        logits = context.logits()[:, -1]
        tokens = sampling.draw(logits, generators, context.rows)
        context.append(tokens)
        yield Step(tokens, logits)


def speculate(
    context: Context,
    draft: Context,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator,
    ahead: int = 4,
) -> Iterator[Step]:
    """As `generate`, for one row: the draft proposes `ahead` tokens, which the model reads at once.

    A proposal x is kept with probability min(1, p(x) / q(x)), p the model's and q the draft's; instead of the first
    that is not, a token is drawn from max(p - q, 0): so each token has the model's distribution exactly (Leviathan et
    al. 2023, https://arxiv.org/abs/2211.17192).

    Args:
        context, draft: of one row each, the same prompt, made with `ahead` + 1 for their `ahead`.
    """
    done = 0
    while done < max_new_tokens:
        count = min(ahead, max_new_tokens - done - 1)
        proposed, q = [], []
        for _ in range(count):
            q.append(sampling.probabilities(draft.logits()[:, -1], draft.rows)[0])
            proposed.append(int(inverted(q[-1][None], uniform([generator]))))
            draft.append(proposed[-1:])
        before = len(context.rows[0])
        for token in proposed:
            context.append([token])
        logits = context.logits(count + 1)[0]  # (count + 1, V)
        for i in range(count + 1):
            p = sampling.probabilities(logits[i, None], [context.rows[0][: before + i]])[0]
            kept = i < count and bool(uniform([generator]) * q[i][proposed[i]] < p[proposed[i]])
            left = (p - q[i]).clamp(min=0) if i < count else p
            token = proposed[i] if kept else int(inverted(left[None], uniform([generator])))
            if not kept:
                for each in (context, draft):
                    each.take_back(count - i)
                    each.append([token])
            done += 1
            yield Step(torch.tensor([token]), logits[i, None])
            if not kept:
                break


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of `prompt`, after those that begin a text; if there are none, the end of the text before, or token 0.

    Token 0 is the newline, in most characters.
    """
    return [*tokenizer.begin, *tokenizer.encode(prompt).tolist()] or [tokenizer.end_of_text or 0]
