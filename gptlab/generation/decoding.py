"""Prompts continued, a token at a time or several by speculation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gptlab.data.tokenizers import Tokenizer
from gptlab.generation.context import Context
from gptlab.generation.sampling import Sampling, inverted, uniform


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
