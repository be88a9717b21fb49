"""Answers to prompts: drawn in batches, with their text piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab.data.chat.chat_format import Format
from gptlab.formats.opened import OpenedModel
from gptlab.generation.batch import Batch
from gptlab.generation.context import open_context
from gptlab.generation.decoding import Step, prompt_ids, speculate
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.sampling import Sampling, log_probabilities
from gptlab.generation.text_stream import Piece, TextStream
from gptlab.system.errors import UserError, quoted

if TYPE_CHECKING:
    from gptlab.models import Model
    from gptlab.models.arrays import ArrayGPT

WIDTH = 64  # answers that are drawn side by side


@dataclass
class Answer:
    """One sample for a prompt."""

    number: int
    """The prompt's number, from 1."""
    prompt: str
    ids: list[int]
    """The prompt's ids."""
    sample: int
    """The sample's number among those of the prompt, from 1."""
    seed: int
    stream: TextStream
    passes: int = 0
    """Forward passes of the model; of several answers drawn side by side, only the first has the number."""

    def record(self, model: str, probs: bool) -> dict[str, Any]:
        """Return this answer as plain data for --json.

        Args:
            model: the model's name.
            probs: include the text and the surprisal of each token.
        """
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
            texts = self.stream.tokenizer.tokens
            content["token_texts"] = [texts[token].decode("utf-8", "backslashreplace") for token in tokens]
            content["bits"] = self.stream.bits
        return content


def check_special(opened: OpenedModel[Model | ArrayGPT]) -> None:
    """Check that a model has special tokens whose names a prompt can have.

    Raises:
        UserError: it has none.
    """
    if not opened.tokenizer.special_names:
        raise UserError(
            f"--special: {opened.name} has no special tokens (its tokenizer is {opened.tokenizer.name}, learned from "
            f"one text); leave it out"
        )


def check_prompt(opened: OpenedModel[Model | ArrayGPT], text: str, special: bool = False) -> None:
    """Check that the model has tokens for all characters of a prompt; with `special`, beside names of special tokens.

    Raises:
        UserError: it has no token for some of them.
    """
    for name in opened.tokenizer.special_names if special else ():
        text = text.replace(name, "")
    if unknown := opened.tokenizer.unknown(text):
        raise UserError(
            f"{opened.name}: the prompt has characters that the model has never seen: {quoted(unknown)}; leave them out"
        )


def chat_of(opened: OpenedModel[Model | ArrayGPT], special: bool = False) -> Format | None:
    """Return the format in which a model is asked; None: it continues the prompt.

    Args:
        special: the prompt has the special tokens of a chat itself, see `empty_answers`.

    Raises:
        UserError: the model brings a chat template that is broken.
    """
    if special:
        return None
    try:
        return opened.chat
    except UserError as error:
        raise UserError(f"{opened.name}: {error}. generate --special asks it without its template") from error


def default_prompt(opened: OpenedModel[Model | ArrayGPT]) -> str:
    """Return what the samples of a run begin with: trainer.sample_prompt, a new line by default.

    Characters that the model has never seen are left out. Where nothing is left it is the token that `prompt_ids` takes
    in its place, as text.
    """
    tokenizer, trainer = opened.tokenizer, opened.config.get("trainer")
    prompt = str(trainer.get("sample_prompt", "\n")) if isinstance(trainer, dict) else "\n"
    unknown = set(tokenizer.unknown(prompt))
    prompt = "".join(character for character in prompt if character not in unknown)
    if tokenizer.begin or len(tokenizer.encode(prompt)):
        return prompt
    first = prompt_ids(tokenizer, "")
    text = tokenizer.decode(first)
    return text if tokenizer.encode(text).tolist() == first else prompt


def empty_answers(
    opened: OpenedModel[Model | ArrayGPT],
    prompts: Sequence[str],
    *,
    samples: int,
    seed: int,
    stops: Sequence[str],
    special: bool = False,
) -> list[Answer]:
    """Return the answers of a model that are not drawn yet, each with an empty stream.

    Args:
        opened: the model.
        prompts: the texts to continue.
        samples: the number of samples for each prompt.
        seed: the seed of each prompt's first sample; the next one has seed + 1.
        stops: the stop strings, see `TextStream`.
        special: read names of special tokens in the prompts as those tokens.
    """
    chat = chat_of(opened, special)
    encoded = [prompt_ids(opened.tokenizer, text, special, chat) for text in prompts]
    return [
        Answer(number, text, ids, sample + 1, seed + sample, stream_of(opened, stops, chat))
        for number, (text, ids) in enumerate(zip(prompts, encoded, strict=True), 1)
        for sample in range(samples)
    ]


def stream_of(opened: OpenedModel[Model | ArrayGPT], stops: Sequence[str], chat: Format | None) -> TextStream:
    """Return an empty stream for what a model says, as an answer in a chat or as the end of a text."""
    return TextStream(opened.tokenizer, stops, chat is not None, opened.ends)


def draw_answers(
    opened: OpenedModel[Model | ArrayGPT],
    answers: list[Answer],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    draft: OpenedModel[Model | ArrayGPT] | None = None,
    ahead: int = 4,
    backend: str | None = None,
    bf16_cache: bool = False,
    probs: bool = False,
    width: int = WIDTH,
) -> Iterator[tuple[Answer, list[Piece]]]:
    """Draw answers, and yield the pieces of each as soon as they are known.

    Args:
        opened: the model.
        answers: the answers; with a draft they are drawn one after the other.
        max_new_tokens: the length of an answer, in tokens.
        sampling: how a token is drawn.
        draft: a smaller model for `speculate`.
        ahead: the number of tokens that the draft proposes at a time.
        backend: the torch.compile backend, see `open_context`.
        bf16_cache: keep keys and values in bf16, see `open_context`.
        probs: compute the surprisal of each token.
        width: the most answers that are drawn side by side.

    Raises:
        UserError: a logit is infinite or not a number.
    """
    if draft is not None:
        for answer in answers:
            random_numbers = RandomNumbers(answer.seed)
            context, proposer = (
                open_context(each.model, [answer.ids], max_new_tokens, ahead=ahead + 1, bf16_cache=bf16_cache)
                for each in (opened, draft)
            )
            steps = speculate(context, proposer, max_new_tokens, sampling, random_numbers, ahead)
            for _, pieces in stream_pieces(steps, [answer.stream], probs):
                yield answer, pieces
            answer.passes = context.passes
        return
    if not max_new_tokens:
        yield from ((answer, answer.stream.close()) for answer in answers)
        return
    numbers_of = [RandomNumbers(answer.seed) for answer in answers]
    batch = Batch(opened.model, [answer.ids for answer in answers], max_new_tokens, width, backend, bf16_cache)
    while numbers := batch.numbers:
        logits = batch.logits()
        tokens = sampling.draw(logits, [numbers_of[number] for number in numbers], batch.rows)
        bits = surprisal(Step(tokens, logits)) if probs else [0.0] * len(numbers)
        streams = [answers[number].stream for number in numbers]
        for number, stream, token, each in zip(numbers, streams, tokens.tolist(), bits, strict=True):
            pieces = stream.add(token, each)
            if len(stream.tokens) == max_new_tokens:
                pieces += stream.close()
            yield answers[number], pieces
        batch.append(tokens.tolist(), [stream.finish is not None for stream in streams])
    answers[0].passes = batch.passes


def stream_pieces(steps: Iterator[Step], streams: list[TextStream], probs: bool) -> Iterator[tuple[int, list[Piece]]]:
    """Yield row numbers and their new pieces, until all rows have ended.

    Args:
        steps: the tokens as they are drawn.
        streams: the texts of the rows, to which the tokens are added.
        probs: compute the surprisal of each token.
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
    """-log2 of the model's own probability of each row's token, before any filter: bits, a number for each row."""
    log_probs = log_probabilities(step.logits)
    nats = 0 - log_probs[np.arange(len(log_probs)), step.tokens]  # not -0.0 where a token was certain
    found: list[float] = (nats / math.log(2)).tolist()
    return found
