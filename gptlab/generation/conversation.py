"""A conversation in the terminal, line by line."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from gptlab.data.chat.conversations import Message
from gptlab.formats.opened import OpenedModel
from gptlab.generation.answers import chat_of, check_prompt, stream_of, stream_pieces
from gptlab.generation.context import Context, open_context
from gptlab.generation.decoding import generate, prompt_ids
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.sampling import Sampling
from gptlab.generation.terminal import TokenPrinter, note, note_speed
from gptlab.system.errors import UserError

if TYPE_CHECKING:
    from gptlab.models import Model
    from gptlab.models.arrays import ArrayGPT


def converse(
    opened: OpenedModel[Model | ArrayGPT],
    opening: str,
    max_new_tokens: int,
    sampling: Sampling,
    numbers: RandomNumbers,
    printer: TokenPrinter,
    stops: Sequence[str] = (),
    special: bool = False,
    bf16_cache: bool = False,
) -> None:
    """Answer line after line until there are no more; for the model, the whole conversation is one text.

    A model that has learned to answer in a chat format sees each line as what a user says.

    Args:
        opened: the model.
        opening: text before the first line.
        max_new_tokens: the length of one answer, in tokens.
        sampling: how a token is drawn.
        numbers: decide the draws.
        printer: writes the answers.
        stops: the stop strings, see `TextStream`.
        special: read names of special tokens as those tokens, and keep the end of an answer, as chat models have it.
        bf16_cache: keep keys and values in bf16, see `open_context`.

    Raises:
        UserError: a logit is infinite or not a number.
    """
    tokenizer, block_size = opened.tokenizer, opened.model.config.block_size
    chat, messages = chat_of(opened, special), list[Message]()
    end_of_line = "" if chat or tokenizer.unknown("\n") else "\n"
    if opening:
        opening = opening.removesuffix("\n") + end_of_line
        printer.write(opening)
    context: Context | None = None
    tokens, seconds, cropped = 0, 0.0, False
    encode = tokenizer.encode_special if special else tokenizer.encode
    for line in _lines(opened, special):
        if chat is not None:
            said = Message("user", line if messages else opening + line)
            try:
                ids = chat.prompt([*messages, said]).tolist()
            except UserError as error:
                note(f"error: {error}")
                continue
            messages.append(said)
            context, length = continued(opened.model, context, ids, bf16_cache), len(ids)
        elif context is None:
            ids = prompt_ids(tokenizer, opening + line + end_of_line, special)
            length = len(ids)
            context = open_context(opened.model, [ids], block_size, bf16_cache=bf16_cache)
        else:
            fresh = tokenizer.tokens[context.rows[0][-1]].endswith(b"\n")
            text = ("" if fresh else end_of_line) + line + end_of_line
            ids = encode(text).tolist()
            for token in ids:
                context.append([token])
            length = len(context.rows[0])
        if not ids:
            continue
        if length > block_size and not cropped:
            note(f"{opened.name} sees the last {block_size} tokens of what has been said only")
            cropped = True
        stream, started = stream_of(opened, stops, chat), time.perf_counter()
        with suppress(KeyboardInterrupt):
            steps = generate(context, max_new_tokens, sampling, [numbers])
            for _, pieces in stream_pieces(steps, [stream], printer.probs):
                printer.show(pieces)
        printer.show(stream.close())  # the rest of an interrupted answer
        tokens, seconds = tokens + len(stream.tokens), seconds + time.perf_counter() - started
        messages.append(Message("assistant", stream.text))
        if stream.finish == "end_of_text" and not special and chat is None:
            context.take_back(1)  # the conversation continues
        if not stream.text.endswith("\n"):
            printer.write("\n")
    if sys.stdin.isatty():
        printer.write("\n")
    note_speed(opened.name, tokens, seconds)


def continued(
    model: Model | ArrayGPT, context: Context | None, ids: Sequence[int], bf16_cache: bool = False
) -> Context:
    """Return a context with `ids`: `context` itself, if what it has read is the beginning of them.

    It is not where a chat template writes an answer otherwise than the model did, or the beginning is out of sight.
    """
    if context is None or [*ids[: len(context.rows[0])]] != context.rows[0]:
        return open_context(model, [ids], model.config.block_size, bf16_cache=bf16_cache)
    for token in ids[len(context.rows[0]) :]:
        context.append([token])
    return context


def _lines(opened: OpenedModel[Model | ArrayGPT], special: bool) -> Iterator[str]:
    """Read lines until Ctrl-D or Ctrl-C; a line with characters unknown to the model is reported and skipped."""
    terminal = sys.stdin.isatty()
    if terminal:
        with suppress(ImportError):
            import readline  # noqa: F401 (makes `input` edit lines)
    while True:
        try:
            line = input("> " if terminal else "")
        except (EOFError, KeyboardInterrupt):
            return
        try:
            check_prompt(opened, line, special)
        except UserError as error:
            note(f"error: {error}")
            continue
        yield line
