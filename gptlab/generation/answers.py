"""Answers to prompts: drawn in batches, their text as soon as it is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gptlab.formats.open_model import OpenedModel
from gptlab.generation.context import Context
from gptlab.generation.decoding import Step, generate, prompt_ids, speculate
from gptlab.generation.sampling import Sampling
from gptlab.generation.text_stream import Piece, TextStream
from gptlab.models import Model
from gptlab.system.errors import UserError, quoted


@dataclass
class Answer:
    """One sample of a prompt."""

    number: int
    """The prompt's, from 1 on."""
    prompt: str
    ids: list[int]
    sample: int
    """From 1 on."""
    seed: int
    stream: TextStream
    passes: int = 0
    """How many times the model has read; of several answers drawn at once, the first has the number."""

    def record(self, model: str, probs: bool) -> dict[str, Any]:
        """This answer for --json; `probs`: with the surprisal of each token."""
        tokens = self.stream.tokens
        content = {
            "model": model,
            "prompt": self.prompt,
            "sample": self.sample,
            "seed": self.seed,
            "text": self.stream.text,
            "tokens": tokens,
            "new_tokens": len(tokens),
            "finish": self.stream.finish,
        }
        if probs:
            there = self.stream.tokenizer.tokens
            content["token_texts"] = [there[token].decode("utf-8", "backslashreplace") for token in tokens]
            content["bits"] = self.stream.bits
        return content


def check_prompt(opened: OpenedModel[Model], text: str) -> None:
    """That there are tokens for all characters of a prompt.

    Raises:
        UserError: there are not.
    """
    if unknown := opened.tokenizer.unknown(text):
        raise UserError(
            f"{opened.name}: the prompt has characters that the model has never seen: {quoted(unknown)}; leave them out"
        )


def unanswered(
    opened: OpenedModel[Model], prompts: Sequence[str], *, samples: int, seed: int, stops: Sequence[str]
) -> list[Answer]:
    """All answers that are to be drawn of a model, nothing in them yet.

    Args:
        samples: of each prompt.
        seed: of each prompt's first sample; the next one has seed + 1.
        stops: see `TextStream`.
    """
    encoded = [prompt_ids(opened.tokenizer, text) for text in prompts]
    return [
        Answer(number, text, ids, sample + 1, seed + sample, TextStream(opened.tokenizer, stops))
        for number, (text, ids) in enumerate(zip(prompts, encoded, strict=True), 1)
        for sample in range(samples)
    ]


def draw(
    opened: OpenedModel[Model],
    answers: list[Answer],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    draft: OpenedModel[Model] | None = None,
    ahead: int = 4,
    backend: str | None = None,
    probs: bool = False,
) -> Iterator[tuple[Answer, list[Piece]]]:
    """Draw some answers at once; yields the pieces of each as soon as they are known.

    Args:
        draft: a smaller model that proposes `ahead` tokens at a time, see `speculate`; then there is one answer.
        backend: see `Context`.
        probs: with the surprisal of each token.
    """
    generators = [torch.Generator().manual_seed(answer.seed) for answer in answers]
    ids = [answer.ids for answer in answers]
    if draft is None:
        context = Context(opened.model, ids, max_new_tokens, backend=backend)
        steps = generate(context, max_new_tokens, sampling, generators)
    else:
        context, its = (Context(each.model, ids, max_new_tokens, ahead=ahead + 1) for each in (opened, draft))
        steps = speculate(context, its, max_new_tokens, sampling, generators[0], ahead)
    for row, pieces in follow(steps, [answer.stream for answer in answers], probs):
        yield answers[row], pieces
    answers[0].passes = context.passes


def follow(steps: Iterator[Step], streams: list[TextStream], probs: bool) -> Iterator[tuple[int, list[Piece]]]:
    """Rows and their new pieces, until all rows have ended.

    Args:
        probs: with the surprisal of each token.
    """
    for step in steps:
        bits = surprisal(step) if probs else [0.0] * len(streams)
        for row, (stream, token) in enumerate(zip(streams, step.tokens.tolist(), strict=True)):
            yield row, stream.add(token, bits[row])
        if all(stream.finish for stream in streams):
            return
    for row, stream in enumerate(streams):
        yield row, stream.close()


def surprisal(step: Step) -> list[float]:
    """-log2 of the probability that the model itself gives each row's token."""
    chosen = step.tokens[:, None].to(step.logits.device)
    nats = 0 - step.logits.detach().float().log_softmax(dim=-1).gather(1, chosen)[:, 0]  # (B,)
    return (nats / math.log(2)).tolist()
