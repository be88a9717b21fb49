"""`python -m gptlab.evaluate MODEL`: the exact loss of a model on a whole text, or how well a run does its task."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gptlab.data.text_options import FORMATS
from gptlab.system.arguments import BITS, check_bits, some_name, some_path
from gptlab.system.errors import UserError, command_line

if TYPE_CHECKING:
    import torch

    from gptlab.formats.opened import OpenedModel
    from gptlab.models import Model

OF_LOSS = ("context", "stride", "tokenizer", "memorised", "batch_size", "precision")  # flags that do not go with --task
READING = ("text_key", "format", "separator", "named_parts")  # flags that say how --data is read


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.evaluate", description=__doc__)
    p.add_argument(
        "model",
        metavar="MODEL",
        type=some_name,
        help="a run directory (its best checkpoint), a checkpoint, a Hugging Face directory or hub name (gpt2); or "
        "ngram:1 to ngram:6, counted on the train part (Kneser-Ney), or uniform",
    )
    p.add_argument(
        "--data",
        metavar="NAME_OR_FILE",
        type=some_name,
        help="shakespeare_char, pydoc_char, verdict, auto, or a text file or a folder of them (default: the run's own; "
        "of ngram:N and uniform shakespeare_char)",
    )
    p.add_argument("--text-key", metavar="KEY", help="with --data: which of a row is the text (default: the run's)")
    p.add_argument("--format", choices=FORMATS, help="with --data: what a file is, whatever it looks like")
    p.add_argument(
        "--separator", metavar="TEXT", help="with --data: what stands between documents in a file; null: nothing"
    )
    p.add_argument(
        "--named-parts",
        choices=("true", "false", "auto"),
        help="with --data: whether files named train, valid and test are those parts",
    )
    p.add_argument(
        "--split",
        choices=("train", "val", "test", "all"),
        help="the part that counts (default: val; of a file all, unless the model has learned from it)",
    )
    p.add_argument("--context", type=int, metavar="N", help="tokens in a window (default: the model's block_size)")
    p.add_argument(
        "--stride",
        type=int,
        metavar="S",
        help="from one window to the next: the last S tokens of each count (default: the context)",
    )
    p.add_argument(
        "--compare", metavar="OTHER", type=some_name, help="another MODEL on the same text, and whether they differ"
    )
    p.add_argument(
        "--tokenizer",
        choices=("char", "byte", "gpt2", "cl100k_base"),
        help="of ngram:N (default: that of the model beside it, else char) and uniform (else byte)",
    )
    p.add_argument(
        "--task",
        action="store_true",
        help="instead of the loss: how well a run of task=sft and the like does on its held-out part, beside another "
        "one with --compare; and what it has forgotten of the text of its base, or of --data",
    )
    p.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="with --task: answers sampled to a prompt (default: task.samples of the run)",
    )
    p.add_argument(
        "--memorised",
        action="store_true",
        help="instead of the loss: the longest strings of a sample that stand word for word in the train part",
    )
    p.add_argument(
        "--sample", metavar="FILE", type=some_path, help="with --memorised: a text to take for the model's sample"
    )
    p.add_argument("--seed", type=int, default=1337, metavar="S", help="of samples and bootstrap (default: 1337)")
    p.add_argument("--batch-size", type=int, metavar="N", help="windows at a time (default: 8192 tokens' worth)")
    p.add_argument(
        "--precision",
        choices=("fp32", "bf16", *BITS),
        default="fp32",
        help="int8 and int4: weights of so few bits, on a CPU, beside MODEL in fp32, or OTHER (default: fp32)",
    )
    p.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    p.add_argument("--json", action="store_true", help="JSON on standard output")
    return p


def run(args: argparse.Namespace) -> None:
    """Measure the models, and print the results.

    Raises:
        UserError: a flag is out of range, a model or its text cannot be had, or they do not fit together.
    """
    from rich.console import Console

    from gptlab.data.batches import Windows
    from gptlab.evaluation import show
    from gptlab.evaluation.candidates import choose_text, count_table, open_candidate
    from gptlab.evaluation.measurements import measure_copies, measure_losses
    from gptlab.evaluation.ngrams import ngram_order
    from gptlab.formats.open_model import quantised
    from gptlab.system import accelerator, terminal

    def windows(name: str, block_size: int) -> Windows:
        return Windows.of(args.context, args.stride, block_size, name)

    check_numbers(args)
    bits = BITS.get(args.precision)
    device = accelerator.device("cpu" if bits else args.device)
    names = [args.model] if args.compare is None else [args.model, args.compare]
    orders = {name: n for name in names if (n := ngram_order(name)) is not None}
    refuse_flags(args, names, orders)
    flags = reading(args)
    models = {name: open_candidate(name) for name in names if name not in orders}
    for each in models.values():
        windows(each.name, each.model.config.block_size)
    text = choose_text(args.data, args.split, [*models.values()], orders, args.memorised, args.model, flags)
    if args.memorised:
        content = measure_copies(models.get(args.model), args.sample, args.model, text, device, args.seed)
    else:
        default = "char" if any(orders.values()) else "byte"
        tokenizer = args.tokenizer or next((each.tokenizer for each in models.values()), default)
        both = [models.get(name) or count_table(name, orders[name], text, tokenizer) for name in names]
        if bits:  # beside another model, or the same one as it is
            other = both[1] if args.compare not in (None, args.model) else open_candidate(args.model)
            both = [quantised(models[args.model], bits), other]
        bf16 = args.precision == "bf16"
        content = measure_losses(both, text, device, windows, seed=args.seed, batch_size=args.batch_size, bf16=bf16)
    if args.json:
        print(terminal.as_json(content), end="")
    else:
        (show.show_copies if args.memorised else show.show_losses)(content, Console(highlight=False))


def run_task(args: argparse.Namespace) -> None:
    """Measure how well a run does its task, and print it.

    Raises:
        UserError: a flag is out of range, a model or its data cannot be had, or they do not fit together.
    """
    from rich.console import Console

    from gptlab.evaluation.candidates import open_candidate
    from gptlab.evaluation.ngrams import ngram_order
    from gptlab.reports import performance
    from gptlab.system import accelerator, terminal
    from gptlab.training import judges, task_evaluation

    check_numbers(args)
    device = accelerator.device(args.device)
    names = [args.model] if args.compare is None else [args.model, args.compare]
    for name in names:
        if ngram_order(name) is not None:
            raise UserError(f"--task: {name} is a table of counts, which answers nothing; give runs that have a task")
    notes: list[str] = []
    lost: dict[str, Any] = {}
    if judges.has_scores(args.model):
        refuse_answers(args)
        readers = [judges.open_judge(name) for name in names]
        held_out = task_evaluation.held_out(readers[0], readers[0].model.config.block_size, args.split)
        found = [task_evaluation.judge(held_out, each, device) for each in readers]
    else:
        models = [open_candidate(name) for name in names]
        ours, others = models[0], models[1:]
        block_size = min(each.model.config.block_size for each in models)
        held_out = task_evaluation.held_out(ours, block_size, args.split)
        if block_size < ours.model.config.block_size:
            notes.append(f"prompts are cut to the {block_size:,} tokens that {args.compare} reads at once")
        lost = forgetting(args, ours, device)
        notes += lost.pop("notes", [])
        samples = held_out.settings.task.samples if args.samples is None else args.samples
        for each in models:
            each.model.to(device)
        theirs = [(each, task_evaluation.answer(held_out, each, samples, args.seed + 1)) for each in others]
        found = [task_evaluation.answer(held_out, ours, samples, args.seed, *theirs), *(each for _, each in theirs)]
    content = (
        performance.content(found, held_out.settings.task.name, held_out.facts)
        | lost
        | ({"notes": notes} if notes else {})
    )
    if args.json:
        print(terminal.as_json(content), end="")
    else:
        performance.show(content, Console(highlight=False))


def forgetting(args: argparse.Namespace, opened: OpenedModel[Model], device: torch.device) -> dict[str, Any]:
    """Measure what a run has forgotten of the text of the model that it goes back to.

    Returns:
        "forgetting", if there is such a model, and "notes": why it is not known, or what a reader should know of it.

    Raises:
        UserError: it was asked for, by --data, and that model is not there, or is another than it was.
    """
    from gptlab.evaluation.candidates import text_base

    reading(args)
    try:
        base = text_base(opened)
        if base is None:
            if args.data is not None:
                raise UserError(f"{args.model} began with random weights, and has no text to forget")
            return {}
        if args.data is None and not base.data:
            raise UserError(f"{base.name} brings no text; give one with --data FILE")
        return measured_forgetting(args, opened, base, device)
    except UserError as error:
        if args.data is not None:
            raise UserError(f"--data {args.data}: {error}") from error
        return {"notes": [f"what has been forgotten is not known: {error}"]}


def measured_forgetting(
    args: argparse.Namespace, opened: OpenedModel[Model], base: OpenedModel[Model], device: torch.device
) -> dict[str, Any]:
    """Measure what a run has forgotten of a text since it was `base`; see `forgetting`.

    Raises:
        UserError: the text cannot be had.
    """
    from gptlab.data.batches import Windows
    from gptlab.evaluation.candidates import choose_text
    from gptlab.evaluation.measurements import measure_losses
    from gptlab.reports import performance

    shorter = min(each.model.config.block_size for each in (opened, base))
    text = choose_text(args.data, None, [base], {}, False, base.name, reading(args))
    measured = measure_losses(
        [opened, base], text, device, lambda name, _: Windows.of(shorter, None, shorter, name), seed=args.seed
    )
    return {"forgetting": performance.forgetting(measured), "notes": measured["notes"]}


def check_numbers(args: argparse.Namespace) -> None:
    """Check the flags that are numbers; raises UserError if one is too small."""
    for flag, least in (("batch_size", 1), ("seed", 0), ("samples", 0)):
        value = getattr(args, flag)
        if value is not None and value < least:
            raise UserError(f"--{flag.replace('_', '-')} {value}: must be at least {least}")


def refuse_answers(args: argparse.Namespace) -> None:
    """Check that no flag is about answers or forgetting; raises UserError if one is."""
    for flag in ("data", "samples", *READING):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag.replace('_', '-')}: {args.model} judges and does not answer; leave it out")


def reading(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that say how --data is read; raises UserError if there is none to read."""
    given = {name: getattr(args, name) for name in READING if getattr(args, name) is not None}
    for flag in given if args.data is None else ():
        raise UserError(f"--{flag.replace('_', '-')} says how --data FILE is read: give one, or leave it out")
    return given


def refuse_flags(args: argparse.Namespace, names: list[str], orders: dict[str, int]) -> None:
    """Check that the flags apply to these models.

    Args:
        args: the command line.
        names: the names of the models.
        orders: the names and orders of the n-gram tables among them.

    Raises:
        UserError: a flag does not apply.
    """
    if args.memorised and args.model in orders and not args.sample:
        raise UserError(
            f"--memorised: {args.model} writes nothing here; give its sample, or any text, with --sample FILE"
        )
    if args.precision in BITS and args.model in orders:
        raise UserError(f"--precision {args.precision}: {args.model} is a table of counts; leave it out")
    check_bits(args.precision, args.device)
    if args.precision in BITS and args.memorised:
        raise UserError(f"--precision {args.precision} and --memorised do not go together: leave one of them out")
    if len(orders) == len(set(names)) and (args.context or args.stride):
        raise UserError(f"--context and --stride are for models with windows, which {args.model} has not")
    if not orders and args.tokenizer:
        raise UserError(f"--tokenizer {args.tokenizer} is for ngram:N and uniform; {args.model} has its own")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 1 after a `UserError`, 2 for wrong flags and 130 after Ctrl-C."""
    with command_line():
        p = parser()
        args = p.parse_args(argv)
        if args.memorised and args.compare:
            p.error("--memorised and --compare do not go together")
        if args.sample and not args.memorised:
            p.error("--sample FILE goes with --memorised")
        if args.samples is not None and not args.task:
            p.error("--samples N goes with --task")
        for flag in OF_LOSS if args.task else ():
            if getattr(args, flag) != p.get_default(flag):
                p.error(f"--task and --{flag.replace('_', '-')} do not go together")
        (run_task if args.task else run)(args)


if __name__ == "__main__":
    main()
