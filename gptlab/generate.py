"""`python -m gptlab.generate MODEL "PROMPT"`: the model goes on with the prompt, streamed to the terminal."""

from __future__ import annotations

import argparse
import json
import math
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.system.errors import UserError, command_line, quoted

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from gptlab.data.tokenizers import Tokenizer
    from gptlab.formats.checkpoint import Info
    from gptlab.models import Model
    from gptlab.page import Page
    from gptlab.sampling import Sampling, Step
    from gptlab.streams import Piece, Stream

ROWS = 64  # texts that are drawn at once
AHEAD = 4


def at_least(low: float, kind: Callable[[str], Any], below: float = float("inf")) -> Callable[[str], Any]:
    """An argparse type: `kind`, from `low` up to `below`."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value <= below:
            limit = f"at least {low:g}" + (f" and at most {below:g}" if below < float("inf") else "")
            raise argparse.ArgumentTypeError(f"{text}: must be {limit}")
        return value

    parse.__name__ = kind.__name__
    return parse


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.generate", description=__doc__)
    p.add_argument(
        "model",
        metavar="MODEL",
        help="a run directory (its best checkpoint), a checkpoint, a Hugging Face directory or hub name (gpt2)",
    )
    p.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        help="text to go on with (default: what comes through a pipe, else a new line)",
    )

    prompts = p.add_argument_group("prompts")
    prompts.add_argument("--prompt-file", metavar="FILE", type=Path, help="its text is the prompt")
    prompts.add_argument("--lines", action="store_true", help="each line of the file or pipe is a prompt of its own")
    prompts.add_argument(
        "--interactive",
        action="store_true",
        help="read line after line, each after all that was said before; Ctrl-C stops an answer, Ctrl-D ends it all",
    )

    draw = p.add_argument_group("what is drawn")
    draw.add_argument("--max-new-tokens", type=at_least(0, int), default=500, metavar="N", help="(default: 500)")
    draw.add_argument(
        "--temperature", type=at_least(0, float), default=0.8, metavar="T", help="0 is greedy (default: 0.8)"
    )
    draw.add_argument("--top-k", type=at_least(1, int), metavar="K", help="draw among the K most probable tokens")
    draw.add_argument(
        "--top-p",
        type=at_least(1e-9, float, 1),
        metavar="P",
        help="draw among the fewest tokens of probability P",
    )
    draw.add_argument(
        "--min-p",
        type=at_least(0, float, 1),
        metavar="P",
        help="draw among the tokens at least P times as probable as the most probable one",
    )
    draw.add_argument(
        "--repetition-penalty",
        type=at_least(1e-9, float),
        default=1.0,
        metavar="R",
        help="above 1: make tokens that have been there less probable (default: 1)",
    )
    draw.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; can be repeated")
    draw.add_argument("--num-samples", type=at_least(1, int), default=1, metavar="N", help="of a prompt (default: 1)")
    draw.add_argument(
        "--seed",
        type=at_least(0, int, 2**63 - 2**32),
        metavar="S",
        help="of the first sample, the next one has S + 1: the same text for the same seed, whatever is drawn with it",
    )

    shown = p.add_argument_group("how it is shown")
    shown.add_argument("--json", action="store_true", help="a line of JSON for each sample")
    shown.add_argument("--show-probs", action="store_true", help="how surprising each token was to the model, in bits")
    shown.add_argument(
        "--also", action="append", default=[], metavar="MODEL", help="another model beside it; can be repeated"
    )

    work = p.add_argument_group("how it is computed")
    work.add_argument(
        "--draft", metavar="MODEL", help="a small model that proposes tokens; what is drawn keeps its distribution"
    )
    work.add_argument(
        "--ahead", type=at_least(1, int), metavar="N", help=f"tokens that --draft proposes at once (default: {AHEAD})"
    )
    work.add_argument(
        "--compile", action="store_true", help="by torch.compile, which takes a while: for long texts on a GPU"
    )
    work.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(default: fp32)")
    work.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    return p


def check(args: argparse.Namespace) -> None:
    """Whether the flags go together.

    Raises:
        UserError: they do not.
    """
    asked = {"--json": args.json, "--also": args.also, "--draft": args.draft, "--lines": args.lines}
    asked |= {"--num-samples": args.num_samples > 1, "--compile": args.compile}
    for flag, given in asked.items():
        if args.interactive and given:
            raise UserError(f"--interactive answers line by line with one text: leave {flag} out, or --interactive")
    if args.draft and args.also:
        raise UserError("--draft speeds up one model: leave --also out, or --draft")
    if args.draft and args.compile:
        raise UserError("--compile reads one token at a time, --draft several: leave one of them out")
    if args.ahead and not args.draft:
        raise UserError(f"--ahead {args.ahead} tells --draft how far to look: give --draft MODEL, or leave --ahead out")
    if "" in args.stop:
        raise UserError("--stop '': every text begins with nothing; give some text, or leave --stop out")
    if args.prompt is not None and args.prompt_file:
        raise UserError(f"a PROMPT and --prompt-file {args.prompt_file}: leave one of them out")
    if args.prompt is not None and args.lines:
        raise UserError("--lines is for the lines of --prompt-file FILE or of a pipe: leave it or PROMPT out")


# Prompts


def prompts(args: argparse.Namespace) -> list[str]:
    """The texts that are asked for.

    Raises:
        UserError: a file cannot be read, or there is none.
    """
    if args.prompt is not None:
        return [args.prompt.encode("utf-8", "replace").decode()]
    name, file = f"--prompt-file {args.prompt_file}", args.prompt_file
    if not file and piped() and not args.interactive:
        name, file = "standard input", sys.stdin.fileno()
    if file is None:
        if args.lines:
            raise UserError("--lines: give --prompt-file FILE, or send them through a pipe")
        return ["" if args.interactive else "\n"]
    try:
        with open(file, encoding="utf-8-sig", closefd=file is args.prompt_file) as opened:
            text = opened.read()
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})") from error
    if not text and args.prompt_file is None and not args.lines:
        return ["\n"]  # whatever started this has left a pipe open
    texts = [line for line in text.split("\n") if line] if args.lines else [text.removesuffix("\n")]
    if not any(texts):
        raise UserError(f"{name} is empty; give some text")
    return texts


def piped() -> bool:
    """Whether standard input is a pipe or a file."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or none
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


# Models


@dataclass(frozen=True)
class Voice:
    """A MODEL of the command line."""

    name: str
    model: Model
    tokenizer: Tokenizer
    info: Info

    @property
    def words(self) -> str:
        loss = f", val/loss {self.info.metrics['val/loss']:.4f}" if "val/loss" in self.info.metrics else ""
        return self.info.words + loss

    def check(self, text: str) -> None:
        """Whether there are tokens for all characters of a prompt.

        Raises:
            UserError: there are not.
        """
        if unknown := self.tokenizer.unknown(text):
            raise UserError(
                f"{self.name}: the prompt has characters that the model has never seen: {quoted(unknown)}; "
                f"leave them out"
            )


def opened(name: str, where: torch.device, precision: str) -> Voice:
    import torch

    from gptlab.formats import open_model

    model, tokenizer, info = open_model.load(name)
    return Voice(name, model.to(where, torch.bfloat16 if precision == "bf16" else torch.float32), tokenizer, info)


# What they say


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
    stream: Stream
    passes: int = 0
    """How many times the model has read; of several answers drawn at once, the first has the number."""

    def record(self, model: str, probs: bool) -> dict[str, Any]:
        """For --json."""
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


def answers(voice: Voice, texts: list[str], args: argparse.Namespace, seed: int) -> list[Answer]:
    """All that are to be drawn of a model, nothing in them yet."""
    from gptlab.sampling import prompt_ids
    from gptlab.streams import Stream

    encoded = [prompt_ids(voice.tokenizer, text) for text in texts]
    if max(map(len, encoded)) > (seen := voice.model.config.block_size):
        note(f"{voice.name} sees the last {seen} tokens of the prompt only")
    return [
        Answer(number, text, ids, sample + 1, seed + sample, Stream(voice.tokenizer, args.stop))
        for number, (text, ids) in enumerate(zip(texts, encoded, strict=True), 1)
        for sample in range(args.num_samples)
    ]


def drawn(
    voice: Voice, draft: Voice | None, some: list[Answer], args: argparse.Namespace, sampling: Sampling
) -> Iterator[tuple[Answer, list[Piece]]]:
    """Draw some answers at once; their pieces as soon as they are known. With a draft, one answer."""
    import torch

    from gptlab.sampling import Context, generate, speculate

    n, ahead = args.max_new_tokens, args.ahead or AHEAD
    generators = [torch.Generator().manual_seed(answer.seed) for answer in some]
    idx = [answer.ids for answer in some]
    if draft is None:
        context = Context(voice.model, idx, n, backend="inductor" if args.compile else None)
        steps = generate(context, n, sampling, generators)
    else:
        context, its = (Context(each.model, idx, n, ahead=ahead + 1) for each in (voice, draft))
        steps = speculate(context, its, n, sampling, generators[0], ahead)
    for row, pieces in follow(steps, [answer.stream for answer in some], args.show_probs):
        yield some[row], pieces
    some[0].passes = context.passes


def follow(steps: Iterator[Step], streams: list[Stream], probs: bool) -> Iterator[tuple[int, list[Piece]]]:
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


# On the screen


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def spent(name: str, tokens: int, seconds: float, more: str = "") -> None:
    note(f"{name}: {tokens:,} tokens in {seconds:.2f} s, {tokens / max(seconds, 1e-9):,.1f} tokens/s{more}")


def heading(answer: Answer, prompts: int, samples: int) -> str:
    """What stands above one of several texts."""
    parts = [f"prompt {answer.number} of {prompts}"] if prompts > 1 else []
    parts += [f"sample {answer.sample} of {samples}", f"--seed {answer.seed}"] if samples > 1 else []
    return f"--- {', '.join(parts)}\n" if parts else ""


def tell(
    model: str,
    batch: list[Answer],
    draws: Iterator[tuple[Answer, list[Piece]]],
    args: argparse.Namespace,
    page: Page,
    prompts: int,
) -> None:
    """Write answers as they are drawn: the first piece by piece, then the others; with --also they are drawn only."""
    if args.json or args.also:
        for _ in draws:
            pass
        for answer in batch if args.json else ():
            print(json.dumps(answer.record(model, args.show_probs), ensure_ascii=False), flush=True)
        return
    for answer in batch:
        page.write(heading(answer, prompts, args.num_samples) + answer.prompt)
        if answer is batch[0]:
            for each, pieces in draws:
                page.show(pieces if each is answer else [])
        else:
            page.show(answer.stream.pieces)
        page.write("\n")


def beside(voices: list[Voice], asked: list[list[Answer]], page: Page) -> Table:
    """A row for each prompt and sample, a column for each model."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from gptlab.system.terminal import harmless

    several = len({answer.seed for answer in asked[0]}) > 1
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_lines=True)
    for name in ("prompt", *["--seed"] * several, *(voice.name for voice in voices)):
        table.add_column(Text(name), overflow="fold")
    for row in zip(*asked, strict=True):
        texts = [Text().join(map(page.painted, answer.stream.pieces)) for answer in row]
        table.add_row(Text(harmless(row[0].prompt)), *[Text(str(row[0].seed))] * several, *texts)
    return table


def talk(
    voice: Voice, opening: str, args: argparse.Namespace, sampling: Sampling, generator: torch.Generator, page: Page
) -> None:
    """Line after line, each with its answer, until there are no more; to the model all of it is one text.

    Args:
        opening: stands before the first line.
    """
    from gptlab.sampling import Context, generate, prompt_ids
    from gptlab.streams import Stream

    terminal = sys.stdin.isatty()
    if terminal:
        with suppress(ImportError):
            import readline  # noqa: F401 (lines can be edited)
    tokenizer, block_size = voice.tokenizer, voice.model.config.block_size
    end_of_line = "" if tokenizer.unknown("\n") else "\n"
    if opening:
        opening = opening.removesuffix("\n") + end_of_line
        page.write(opening)
    context: Context | None = None
    tokens, seconds, cropped = 0, 0.0, False
    while True:
        try:
            line = input("> " if terminal else "")
        except (EOFError, KeyboardInterrupt):
            break
        try:
            voice.check(line)
        except UserError as error:
            note(f"error: {error}")
            continue
        if context is None:
            ids = prompt_ids(tokenizer, opening + line + end_of_line)
            length = len(ids)
            context = Context(voice.model, [ids], block_size)
        else:
            fresh = tokenizer.tokens[context.rows[0][-1]].endswith(b"\n")
            ids = tokenizer.encode(("" if fresh else end_of_line) + line + end_of_line).tolist()
            for token in ids:
                context.append([token])
            length = len(context.rows[0])
        if not ids:
            continue
        if length > block_size and not cropped:
            note(f"{voice.name} sees the last {block_size} tokens of what has been said only")
            cropped = True
        stream, started = Stream(tokenizer, args.stop), time.perf_counter()
        with suppress(KeyboardInterrupt):
            for _, pieces in follow(
                generate(context, args.max_new_tokens, sampling, [generator]), [stream], args.show_probs
            ):
                page.show(pieces)
        page.show(stream.close())  # of an answer that was stopped
        tokens, seconds = tokens + len(stream.tokens), seconds + time.perf_counter() - started
        if stream.finish == "end_of_text":
            context.take_back(1)  # the talk goes on
        if not stream.text.endswith("\n"):
            page.write("\n")
    if terminal:
        page.write("\n")
    spent(voice.name, tokens, seconds)


def run(args: argparse.Namespace) -> None:
    """Write prompts and what follows to stdout, as it is drawn.

    Raises:
        UserError: flags do not go together, a prompt or a model cannot be read, or they do not fit each other.
    """
    import torch

    from gptlab.page import Page
    from gptlab.sampling import Sampling
    from gptlab.system.accelerator import device

    check(args)
    texts = prompts(args)
    where = device(args.device)
    sampling = Sampling(args.repetition_penalty, args.temperature, args.top_k, args.top_p, args.min_p)
    seed = torch.seed() % 2**32 if args.seed is None else args.seed
    voices = [opened(name, where, args.precision) for name in (args.model, *args.also)]
    draft = opened(args.draft, where, args.precision) if args.draft else None
    if draft is not None and draft.tokenizer.to_dict() != voices[0].tokenizer.to_dict():
        ours, its = (f"{each.tokenizer.name}, {each.tokenizer.vocab_size:,} tokens" for each in (voices[0], draft))
        raise UserError(
            f"--draft {draft.name} has another tokenizer ({its}) than {args.model} ({ours}): give a draft that was "
            f"trained with the same one"
        )
    for voice in voices:
        for text in texts:
            voice.check(text)
    for voice in voices if draft is None else (*voices, draft):
        note(voice.words)
    if args.interactive:
        talk(voices[0], texts[0], args, sampling, torch.Generator().manual_seed(seed), Page(args.show_probs))
        return
    asked = [answers(voice, texts, args, seed) for voice in voices]
    page = Page(args.show_probs and not args.json)
    for voice, some in zip(voices, asked, strict=True):
        started = time.perf_counter()
        at_once = ROWS if draft is None else 1
        for first in range(0, len(some), at_once):
            batch = some[first : first + at_once]
            tell(voice.name, batch, drawn(voice, draft, batch, args, sampling), args, page, len(texts))
        count, passes = sum(len(each.stream.tokens) for each in some), sum(each.passes for each in some)
        more = f", {count / max(passes, 1):.2f} a pass with --ahead {args.ahead or AHEAD}" if draft else ""
        more += f", --seed {seed}" if args.temperature else ""
        spent(voice.name, count, time.perf_counter() - started, more)
    if args.also and not args.json:
        page.console.print(beside(voices, asked, page))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: a mistake is one message and exit code 1 (2 for flags); Ctrl-C is 130."""
    args = parser().parse_intermixed_args(argv)  # PROMPT may come after flags
    with command_line():
        run(args)


if __name__ == "__main__":
    main()
