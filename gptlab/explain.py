"""`python -m gptlab.explain MODEL "TEXT"`: a page that shows what a model does with a text, and pictures beside it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gptlab.system.arguments import some_name, some_path
from gptlab.system.errors import UserError, command_line

ORDERS = range(1, 7)  # of a table of counts


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.explain", description=__doc__)
    p.add_argument(
        "model",
        metavar="MODEL",
        type=some_name,
        help="a run directory (its best checkpoint), a checkpoint, a Hugging Face folder or hub name (gpt2), ... "
        "(docs/interop.md lists all)",
    )
    p.add_argument("text", metavar="TEXT", nargs="?", help="the text (default: what comes through a pipe)")
    p.add_argument("--text-file", metavar="FILE", type=some_path, help="its text is the text")
    p.add_argument("--special", action="store_true", help="names of special tokens in the text are those tokens")
    p.add_argument(
        "--data",
        metavar="NAME_OR_FILE",
        type=some_name,
        help="the training text, whose passages are looked for and counted: shakespeare_char, pydoc_char, verdict, a "
        "text file or a folder (default: the run's own)",
    )
    p.add_argument(
        "--ngram",
        type=int,
        choices=ORDERS,
        default=ORDERS[-1],
        metavar="N",
        help="the table of counts beside the model is ngram:N, from 1 to 6 (default: 6)",
    )
    p.add_argument(
        "--out",
        metavar="DIR",
        type=some_path,
        help="where the files go; older ones are replaced (default: explain/ in the run directory, else explain/ here)",
    )
    p.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    p.add_argument("--json", action="store_true", help="the numbers as JSON on standard output; no files without --out")
    return p


def given_text(args: argparse.Namespace) -> str:
    """Return the text from the command line, a file or a pipe.

    Raises:
        UserError: there is none, or two, it is empty, or the file cannot be read.
    """
    from gptlab.data.file_kinds import decoded
    from gptlab.generation.terminal import stdin_is_piped
    from gptlab.system.files import read_bytes

    if args.text is not None and args.text_file:
        raise UserError(f"a TEXT and --text-file {args.text_file}: leave one of them out")
    if args.text is not None:
        name, text = "TEXT", args.text.encode("utf-8", "replace").decode()
    elif args.text_file:
        name = f"--text-file {args.text_file}"
        try:
            content = read_bytes(args.text_file)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        text = decoded(content, name).removesuffix("\n")
    elif stdin_is_piped():
        name, text = "standard input", decoded(sys.stdin.buffer.read(), "standard input").removesuffix("\n")
    else:
        raise UserError('there is no text: give a "TEXT", --text-file FILE, or send it through a pipe')
    if not text:
        raise UserError(f"{name} is empty; give some text")
    return text


def folder_of_files(args: argparse.Namespace) -> Path | None:
    """Return where the files go; None: nowhere."""
    if args.out is not None or args.json:
        return args.out
    return Path(args.model, "explain") if Path(args.model, "checkpoints").is_dir() else Path("explain")


def run(args: argparse.Namespace) -> None:
    """Explain the text, and write the files or print the numbers.

    Raises:
        UserError: the text or the model cannot be read, they do not fit each other, or the files cannot be written.
    """
    text = given_text(args)
    from gptlab.evaluation.candidates import open_candidate
    from gptlab.explaining.explanation import explain
    from gptlab.explaining.files import write_files
    from gptlab.explaining.read_text import read_text
    from gptlab.system import accelerator, terminal

    opened = open_candidate(args.model)
    read = read_text(opened, text, args.special)
    device = accelerator.device(args.device)
    opened.model.to(device)
    found = explain(opened, read, args.data, args.ngram, device)
    folder = folder_of_files(args)
    names = [] if folder is None else write_files(found, folder)
    if args.json:
        print(terminal.as_json(found.content), end="")
        return
    for line in (*found.content["notes"], *(f"{folder}/{name}" for name in names)):
        print(terminal.harmless(line))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 1 after a `UserError`, 2 for wrong flags and 130 after Ctrl-C."""
    with command_line():
        run(parser().parse_intermixed_args(argv))  # TEXT may come after flags


if __name__ == "__main__":
    main()
