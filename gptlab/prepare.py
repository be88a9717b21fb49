"""`python -m gptlab.prepare [group=choice ...] [key=value ...]`: turn a text into ids, as a run would."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from gptlab.runs import compose, words
from gptlab.system.arguments import some_path
from gptlab.system.errors import UserError, command_line
from gptlab.system.files import refuse_taken, whole_folder


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m gptlab.prepare",
        description="Turn a text into ids, as a run would, and write them for other programs; "
        "python -m gptlab.train --help shows the groups and keys.",
    )
    p.add_argument("overrides", metavar="key=value", nargs="*", help="or group=choice, as of gptlab.train")
    p.add_argument(
        "--to",
        choices=("bin",),
        help="bin: train.bin and val.bin, as nanoGPT and data=bin read them, with meta.pkl where the tokens are "
        "characters; shards of llm.c where there are more than 65,536 tokens (default: keep them in data.cache_dir)",
    )
    p.add_argument(
        "--out",
        type=some_path,
        metavar="DIR",
        help="the folder to make; it must not be there yet, or be empty (default: outputs/ids/<data>-<tokenizer>)",
    )
    return p


def run(args: argparse.Namespace) -> None:
    """Prepare the ids, and write them.

    Raises:
        UserError: the text cannot be had or prepared, flags do not go together, or DIR is taken.
    """
    if args.out and not args.to:
        raise UserError(f"--out {args.out}: is where other programs find the ids; add --to bin, or leave it out")
    if args.out:
        refuse_taken(args.out)
    for word in args.overrides:
        if (key := word.lstrip("+~").partition("=")[0]).split(".")[0] in ("resume", "sweep", "hydra"):
            raise UserError(f"{key}: nothing is trained here: leave it out")
    with compose.refusals():
        config = compose.compose(args.overrides)
        if (task := config["task"]["name"]) != "pretrain":
            raise UserError(f"task={task}: only texts are prepared as ids alone; use task=pretrain")
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        from gptlab.training import lightning_setup

        lightning_setup.import_lightning()
        from gptlab.data.write_bin import write_bin
        from gptlab.training.loading import load
        from gptlab.training.settings import from_config

        loaded = load(from_config(config))
    prepared = loaded.data.prepared
    print(loaded.data.in_words())
    if not args.to:
        print(prepared.folder or "they stay where they lie")
        return
    out = args.out or Path("outputs", "ids", f"{prepared.name}-{prepared.tokenizer.name}")
    refuse_taken(out)
    with whole_folder(out) as folder:
        write_bin(prepared, folder)
        names = " ".join(sorted(path.name for path in folder.iterdir()))
    print(f"{out}: {names}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 1 after a `UserError`, 2 for wrong flags and 130 after Ctrl-C."""
    with command_line():
        args = parser().parse_intermixed_args(argv)
        args.overrides = words.readable(args.overrides)
        run(args)


if __name__ == "__main__":
    main()
