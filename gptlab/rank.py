"""`python -m gptlab.rank MODEL PROMPTS OUT`: say which of two answers is better; the file is data for training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptlab.system.arguments import some_name, some_path
from gptlab.system.errors import UserError, amount, command_line

if TYPE_CHECKING:
    from gptlab.generation.ranking import Pair

KEYS = {"1": "1", "2": "2", "t": "tie", "tie": "tie", "s": "skip", "skip": "skip", "q": "quit", "quit": "quit"}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.rank", description=__doc__)
    p.add_argument("model", metavar="MODEL", type=some_name, help="a run directory, a checkpoint, a hub name, ...")
    p.add_argument("prompts", metavar="PROMPTS", type=some_path, help="a text file, each line of which is a prompt")
    p.add_argument(
        "out",
        metavar="OUT",
        type=some_path,
        help="the file of rows of prompt, chosen and rejected; if it is there, the command goes on with it",
    )
    p.add_argument("--also", type=some_name, metavar="MODEL", help="who gives the other answer (default: MODEL, too)")
    p.add_argument("--max-new-tokens", type=int, default=100, metavar="N", help="of an answer (default: 100)")
    p.add_argument("--temperature", type=float, default=1.0, metavar="T", help="(default: 1)")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="of answers, and of which is first (default: 0)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    return p


def run(args: argparse.Namespace) -> None:
    """Show pairs of answers, and write which is better, until there are no more prompts.

    Raises:
        UserError: a number is out of range, or a file or a model cannot be read.
    """
    from gptlab.data.file_kinds import decoded
    from gptlab.generation.answers import check_prompt
    from gptlab.generation.opening import open_to_generate
    from gptlab.generation.ranking import Rankings, draw_pair, rank_pairs
    from gptlab.generation.sampling import Sampling
    from gptlab.generation.terminal import note, note_model

    for flag, value, least in (("max-new-tokens", args.max_new_tokens, 1), ("seed", args.seed, 0)):
        if value < least:
            raise UserError(f"--{flag} {value}: must be at least {least}")
    if not 0 < args.temperature < float("inf"):
        raise UserError(f"--temperature {args.temperature:g}: must be above 0, or both answers are the same")
    try:
        text = decoded(args.prompts.read_bytes(), str(args.prompts))
    except OSError as error:
        raise UserError(f"PROMPTS {args.prompts}: {error.strerror}; give a file with a prompt in each line") from error
    prompts = [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"{args.prompts} is empty; give a prompt in each line")
    names = [args.model, *filter(None, [args.also])]
    rankings = Rankings(args.out, prompts, names)
    models = [open_to_generate(name, args.device, "fp32", is_compiled=False) for name in names]
    if len({opened.name for opened in models}) < len(models):
        raise UserError(f"--also {args.also}: it is the same model; leave it out")
    for opened in models:
        note_model(opened)
        for prompt in prompts:
            check_prompt(opened, prompt)
    if rankings.done:
        note(f"going on after {amount(len(rankings.done), 'prompt')} of {len(prompts):,}")
    sampling = Sampling(temperature=args.temperature)
    rank_pairs(
        rankings,
        prompts,
        lambda number, prompt: draw_pair(models, number, prompt, args.max_new_tokens, sampling, args.seed),
        lambda pair: ask(pair, len(prompts)),
    )
    note(f"{args.out}: {rankings.in_words()}" + (wins(rankings.wins, models[0].name) if args.also else ""))


def ask(pair: Pair, prompts: int) -> str:
    """Show two answers side by side, and return what the user says: 1, 2, tie, skip or quit; Ctrl-D quits, too."""
    from rich.columns import Columns
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    from gptlab.system.terminal import harmless

    console = Console()
    width = max((console.width - 1) // 2, 20)
    console.print(Text(f"\n{pair.number + 1} of {prompts}: {harmless(pair.prompt)}", style="bold"))
    console.print(
        Columns([Panel(Text(harmless(text)), title=str(i), width=width) for i, text in enumerate(pair.answers, 1)])
    )
    while True:
        try:
            said = input("the better one: 1, 2, tie, skip, quit? ").strip().lower()
        except EOFError:
            return "quit"
        if said in KEYS:
            return KEYS[said]


def wins(counts: dict[str, int], name: str) -> str:
    """Return in words how often the first model's answer was preferred, with Wilson's 95% interval."""
    from gptlab.reports.statistics import share_interval

    total = sum(counts.values())
    if not total:
        return ""
    won = counts.get(name, 0)
    low, high = share_interval(won, total)
    return f"; {name} wins {won / total:.1%} of {total:,} (95% interval {low:.1%} to {high:.1%})"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 1 after a `UserError`, 2 for wrong flags and 130 after Ctrl-C."""
    with command_line():
        run(parser().parse_args(argv))


if __name__ == "__main__":
    main()
