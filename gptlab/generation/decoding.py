"""Decoding: one token at a time, or several by speculation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gptlab.data.chat.chat_format import Format
from gptlab.data.chat.conversations import Message
from gptlab.data.tokenizers import Tokenizer
from gptlab.generation.context import Context, Logits
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.sampling import Array, Sampling, invert_cdf


class Step(NamedTuple):
    """A new token for each row."""

    tokens: Array
    """The tokens, (B,) int64."""
    logits: Logits
    """The model's logits for them before any filter, (B, V)."""


def generate(
    context: Context, max_new_tokens: int, sampling: Sampling, numbers: Sequence[RandomNumbers]
) -> Iterator[Step]:
    """Append up to `max_new_tokens` tokens to each row, and yield them as soon as they are drawn.

    Args:
        numbers: for each row, so that a seed gives the same draws on every device and in any batch.

    Raises:
        UserError: a logit is infinite or not a number.
    """
    for _ in range(max_new_tokens):
        logits = context.logits()[:, -1]
        tokens = sampling.draw(logits, numbers, context.rows)
        context.append(tokens.tolist())
        yield Step(tokens, logits)


def speculate(
    context: Context,
    draft: Context,
    max_new_tokens: int,
    sampling: Sampling,
    numbers: RandomNumbers,
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
            proposed.append(_draw(q[-1], numbers))
            draft.append(proposed[-1:])
        before = len(context.rows[0])
        for token in proposed:
            context.append([token])
        logits = context.logits(count + 1)[0]  # (count + 1, V)
        for i in range(count + 1):
            p = sampling.probabilities(logits[i, None], [context.rows[0][: before + i]])[0]
            accepted = i < count and bool(numbers.draw() * q[i][proposed[i]] < p[proposed[i]])
            rest = (p - q[i]).clip(0) if i < count else p
            token = proposed[i] if accepted else _draw(rest, numbers)
            if not accepted:
                for each in (context, draft):
                    each.take_back(count - i)
                    each.append([token])
            done += 1
            yield Step(np.array([token]), logits[i, None])
            if not accepted:
                break


def _draw(probabilities: Array, numbers: RandomNumbers) -> int:
    return int(invert_cdf(probabilities[None], np.array([numbers.draw()]))[0])


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
