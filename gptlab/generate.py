"""`python -m gptlab.generate MODEL "PROMPT"`: continue the prompt with the model, streamed to the terminal."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gptlab.system.arguments import BITS, check_bits, some_name, some_path
from gptlab.system.errors import UserError, command_line

if TYPE_CHECKING:
    from gptlab.formats.opened import OpenedModel
    from gptlab.generation.sampling import Sampling
    from gptlab.models import Model
    from gptlab.models.arrays import ArrayGPT

AHEAD = 4  # tokens that a draft proposes at once


def at_least(low: float, kind: Callable[[str], Any], below: float = float("inf")) -> Callable[[str], Any]:
    """Return an argparse type: a `kind` from `low` up to and including `below`."""

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
        type=some_name,
        help="a run directory (its best checkpoint), a checkpoint, a Hugging Face folder or hub name (gpt2), a .gguf "
        "file, ... (docs/interop.md lists all)",
    )
    p.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        help="text to go on with (default: what comes through a pipe, else what the run's own samples begin with)",
    )

    prompts = p.add_argument_group("prompts")
    prompts.add_argument("--prompt-file", metavar="FILE", type=some_path, help="its text is the prompt")
    prompts.add_argument("--lines", action="store_true", help="each line of the file or pipe is a prompt of its own")
    prompts.add_argument("--special", action="store_true", help="names of special tokens in a prompt are those tokens")
    prompts.add_argument(
        "--interactive",
        action="store_true",
        help="read line after line, each after all that was said before; Ctrl-C stops an answer, Ctrl-D ends it all",
    )

    add_sampling_flags(p)
    shown = p.add_argument_group("how it is shown")
    shown.add_argument("--json", action="store_true", help="a line of JSON for each sample")
    shown.add_argument("--show-probs", action="store_true", help="how surprising each token was to the model, in bits")
    shown.add_argument(
        "--also",
        action="append",
        default=[],
        type=some_name,
        metavar="MODEL",
        help="another model beside it; can be repeated",
    )

    work = p.add_argument_group("how it is computed")
    work.add_argument(
        "--draft",
        type=some_name,
        metavar="MODEL",
        help="a small model that proposes tokens; what is drawn keeps its distribution",
    )
    work.add_argument(
        "--ahead", type=at_least(1, int), metavar="N", help=f"tokens that --draft proposes at once (default: {AHEAD})"
    )
    work.add_argument(
        "--compile", action="store_true", help="by torch.compile, which takes a while: for long texts on a GPU"
    )
    work.add_argument(
        "--precision",
        choices=("fp32", "bf16", *BITS),
        default="fp32",
        help="of the weights; int8 and int4 on a CPU, int8 with --compile on a GPU, too (default: fp32)",
    )
    work.add_argument(
        "--kv-cache",
        choices=("fp32", "bf16"),
        help="of keys and values, with int8 and int4: bf16 takes half the memory (default there: bf16)",
    )
    work.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    return p


def add_sampling_flags(p: argparse.ArgumentParser) -> None:
    """Add the flags that say what is drawn, and how much of it."""
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


def check_flags(args: argparse.Namespace) -> None:
    """Check that the flags go together.

    Raises:
        UserError: two of them exclude each other, or one lacks another.
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
    if args.precision == "int4" and args.compile:
        raise UserError("--precision int4 is computed by a library of ours: leave --compile out, or use int8")
    if not args.compile:
        check_bits(args.precision, args.device, "int8 with --compile")
    if args.kv_cache and (args.precision not in BITS or args.compile):
        raise UserError(
            f"--kv-cache {args.kv_cache} goes with --precision int8 and int4, without --compile: leave it out"
        )
    if args.ahead and not args.draft:
        raise UserError(f"--ahead {args.ahead} tells --draft how far to look: give --draft MODEL, or leave --ahead out")
    if "" in args.stop:
        raise UserError("--stop '': every text begins with nothing; give some text, or leave --stop out")
    if args.prompt is not None and args.prompt_file:
        raise UserError(f"a PROMPT and --prompt-file {args.prompt_file}: leave one of them out")
    if args.prompt is not None and args.lines:
        raise UserError("--lines is for the lines of --prompt-file FILE or of a pipe: leave it or PROMPT out")


def in_bf16(args: argparse.Namespace) -> bool:
    """Return whether keys and values are kept in bf16."""
    return args.precision in BITS and args.kv_cache != "fp32"


def read_prompts(args: argparse.Namespace) -> list[str] | None:
    """Return the prompts from the command line, a file or a pipe; None if there are none.

    Raises:
        UserError: the prompt is empty, the file cannot be read, or it has no text.
    """
    from gptlab.data.file_kinds import decoded
    from gptlab.generation.terminal import note, stdin_is_piped

    if args.prompt == "":
        raise UserError(
            "PROMPT is empty (a variable that the shell does not know?): give some text, or leave it out to begin as "
            "the samples of a run do"
        )
    if args.prompt is not None:
        return [args.prompt.encode("utf-8", "replace").decode()]
    name, file = f"--prompt-file {args.prompt_file}", args.prompt_file
    if not file and stdin_is_piped() and not args.interactive:
        name, file = "standard input", sys.stdin.fileno()
    if file is None:
        if args.lines:
            raise UserError("--lines: give --prompt-file FILE, or send them through a pipe")
        return None
    try:
        with open(file, "rb", closefd=file is args.prompt_file) as opened:
            text = decoded(opened.read(), name)
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error
    if not text and args.prompt_file is None and not args.lines:
        note("standard input is empty: beginning as without it")  # a pipe that the calling program left open
        return None
    texts = [line for line in text.split("\n") if line] if args.lines else [text.removesuffix("\n")]
    if not any(texts):
        raise UserError(f"{name} is empty; give some text")
    return texts


def run(args: argparse.Namespace) -> None:
    """Write the prompts and their answers to stdout, as they are drawn.

    Raises:
        UserError: flags do not go together, a prompt or a model cannot be read, or they do not fit each other.
    """
    from gptlab.generation.answers import check_prompt, check_special, default_prompt
    from gptlab.generation.conversation import converse
    from gptlab.generation.opening import open_to_generate
    from gptlab.generation.random_numbers import RandomNumbers
    from gptlab.generation.sampling import Sampling
    from gptlab.generation.terminal import TokenPrinter, note_model

    check_flags(args)
    texts = read_prompts(args)
    sampling = Sampling(args.repetition_penalty, args.temperature, args.top_k, args.top_p, args.min_p)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    how = args.device, args.precision, args.compile
    models = [open_to_generate(name, *how) for name in (args.model, *args.also)]
    draft = open_to_generate(args.draft, *how) if args.draft else None
    if draft is not None and draft.tokenizer.to_dict() != models[0].tokenizer.to_dict():
        ours, other = (f"{each.tokenizer.name}, {each.tokenizer.vocab_size:,} tokens" for each in (models[0], draft))
        raise UserError(
            f"--draft {draft.name} has another tokenizer ({other}) than {args.model} ({ours}): give a draft that was "
            f"trained with the same one"
        )
    if texts is None:
        texts = [""] if args.interactive else [default_prompt(models[0])]
    for opened in models:
        if args.special:
            check_special(opened)
        for text in texts:
            check_prompt(opened, text, args.special)
    for opened in models if draft is None else (*models, draft):
        note_model(opened)
    if args.interactive:
        numbers, printer = RandomNumbers(seed), TokenPrinter(args.show_probs)
        options = {"stops": args.stop, "special": args.special, "bf16_cache": in_bf16(args)}
        converse(models[0], texts[0], args.max_new_tokens, sampling, numbers, printer, **options)
    else:
        answer_prompts(args, models, draft, texts, sampling, seed)


def answer_prompts(
    args: argparse.Namespace,
    models: list[OpenedModel[Model | ArrayGPT]],
    draft: OpenedModel[Model | ArrayGPT] | None,
    texts: list[str],
    sampling: Sampling,
    seed: int,
) -> None:
    """Write the answers of each model to each prompt."""
    from gptlab.generation import terminal
    from gptlab.generation.answers import draw_answers, empty_answers

    printer = terminal.TokenPrinter(args.show_probs and not args.json)
    all_answers = []
    for opened in models:
        options: dict[str, Any] = {"samples": args.num_samples, "seed": seed, "stops": args.stop}
        answers = empty_answers(opened, texts, special=args.special, **options)
        if max(len(each.ids) for each in answers) > (seen := opened.model.config.block_size):
            terminal.note(f"{opened.name} sees the last {seen} tokens of the prompt only")
        all_answers.append(answers)

    for opened, answers in zip(models, all_answers, strict=True):
        started = time.perf_counter()
        drawn = draw_answers(
            opened,
            answers,
            args.max_new_tokens,
            sampling,
            draft=draft,
            ahead=args.ahead or AHEAD,
            backend="inductor" if args.compile else None,
            bf16_cache=in_bf16(args),
            probs=args.show_probs,
        )
        if args.json:
            terminal.print_json(opened.name, answers, drawn, args.show_probs)
        elif args.also:
            deque(drawn, maxlen=0)  # the table follows
        else:
            terminal.print_answers(answers, drawn, printer, len(texts), args.num_samples)
        count, passes = sum(len(each.stream.tokens) for each in answers), sum(each.passes for each in answers)
        more = f", {count / max(passes, 1):.2f} a pass with --ahead {args.ahead or AHEAD}" if draft else ""
        more += f", --seed {seed}" if args.temperature else ""
        terminal.note_speed(opened.name, count, time.perf_counter() - started, more)
    if args.also and not args.json:
        printer.console.print(terminal.comparison_table([each.name for each in models], all_answers, printer))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 1 after a `UserError`, 2 for wrong flags and 130 after Ctrl-C."""
    with command_line():
        run(parser().parse_intermixed_args(argv))  # PROMPT may come after flags


if __name__ == "__main__":
    main()
