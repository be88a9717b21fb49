"""Decoding: one token at a time, or several by speculation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gptlab.data.chat.chat_format import Format
from gptlab.data.chat.conversations import Message
from gptlab.data.tokenizers import Tokenizer
from gptlab.generation.context import Context
from gptlab.generation.sampling import Sampling, invert_cdf, uniform_numbers


class Step(NamedTuple):
    """A new token for each row."""

    tokens: Tensor
    """The tokens, (B,) int64 on the CPU."""
    logits: Tensor
    """The model's logits for them before any filter, (B, V)."""


def generate(
    context: Context, max_new_tokens: int, sampling: Sampling, generators: Sequence[torch.Generator]
) -> Iterator[Step]:
    """Append up to `max_new_tokens` tokens to each row, and yield them as soon as they are drawn.

    Args:
        generators: one for each row, on the CPU, so that a seed gives the same draws on every device and in any batch.

    Raises:
        UserError: a logit is infinite or not a number.
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
    """Speculative decoding of one row: the draft proposes `ahead` tokens, and the model checks them in one pass.

    A proposal x is accepted with probability min(1, p(x) / q(x)), where p is the model's distribution and q the
    draft's. In place of the first rejected one, a token is drawn from max(p - q, 0). So each token has exactly the
    model's distribution (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192).

    Args:
        context: the model's context, with one row and its `ahead` one larger than this one.
        draft: the draft's context, with the same prompt and `ahead`.

    Raises:
        UserError: a logit is infinite or not a number.
    """
    done = 0
    while done < max_new_tokens:
        count = min(ahead, max_new_tokens - done - 1)
        proposed, q = [], []
        for _ in range(count):
            q.append(sampling.probabilities(draft.logits()[:, -1], draft.rows)[0])
            proposed.append(int(invert_cdf(q[-1][None], uniform_numbers([generator]))))
            draft.append(proposed[-1:])
        before = len(context.rows[0])
        for token in proposed:
            context.append([token])
        logits = context.logits(count + 1)[0]  # (count + 1, V)
        for i in range(count + 1):
            p = sampling.probabilities(logits[i, None], [context.rows[0][: before + i]])[0]
            accepted = i < count and bool(uniform_numbers([generator]) * q[i][proposed[i]] < p[proposed[i]])
            rest = (p - q[i]).clamp(min=0) if i < count else p
            token = proposed[i] if accepted else int(invert_cdf(rest[None], uniform_numbers([generator])))
            if not accepted:
                for each in (context, draft):
                    each.take_back(count - i)
                    each.append([token])
            done += 1
            yield Step(torch.tensor([token]), logits[i, None])
            if not accepted:
                break


def prompt_ids(tokenizer: Tokenizer, prompt: str, special: bool = False, chat: Format | None = None) -> list[int]:
    """Return the ids of a prompt, after the tokenizer's beginning of text; if there are none, its end of text, else 0.

    With most character tokenizers, id 0 is the newline.

    Args:
        special: read names of special tokens as those tokens; a prompt that begins with the beginning of text keeps it.
        chat: the format in which the prompt is what a user says, to whom the model answers; None: it is a text.
    """
    if chat is not None and not special:
        return chat.prompt([Message("user", prompt)]).tolist()
    begin = list(tokenizer.begin)
    ids = (tokenizer.encode_special if special else tokenizer.encode)(prompt).tolist()
    if special and begin and ids[: len(begin)] == begin:
        return ids
    return begin + ids or [tokenizer.end_of_text or 0]
