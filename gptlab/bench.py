"""`python -m gptlab.bench [group=choice ...] [key=value ...]`: how fast a run is, and what its time goes into.

Only light imports stand at the top: this process gives turns to others, which measure.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gptlab.benchmarks import comparison
from gptlab.benchmarks.alternation import Parent, busy
from gptlab.benchmarks.comparison import BARE, LOOP, ROUNDS, RUN, SAMPLING, STEPS, TOKENS, Generation
from gptlab.benchmarks.generation_peers import PEERS
from gptlab.benchmarks.show import print_results
from gptlab.distributed import processes
from gptlab.runs import compose, directory, words
from gptlab.system import threads
from gptlab.system.arguments import BITS, some_name
from gptlab.system.errors import UserError, command_line
from gptlab.system.files import write_json


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m gptlab.bench",
        description="How fast a run is, and what its time goes into; "
        "python -m gptlab.train --help shows the groups and keys that a run has.",
    )
    p.add_argument("overrides", metavar="key=value", nargs="*", help="or group=choice, as of gptlab.train")
    p.add_argument(
        "--against",
        choices=(LOOP, BARE, *PEERS),
        help="in turn, A B A B, with the eager PyTorch loop that a nanoGPT user has (loop; with --sampling: generation "
        "without a cache), with a bare loop over the same model, kernels, optimizer and batches (bare), or, with "
        "--sampling, with another program that has the same weights",
    )
    p.add_argument("--sampling", action="store_true", help="measure generation; init_from=MODEL for a trained one")
    p.add_argument("--weights", choices=("fp32", "bf16", *BITS), help="with --sampling (default: as precision= says)")
    p.add_argument("--batch-sizes", type=count, nargs="+", metavar="B", help="with --sampling (default: 1 16)")
    p.add_argument("--prompt", type=count, metavar="N", help="with --sampling: its tokens (default: 32)")
    p.add_argument("--python", type=some_name, metavar="FILE", help="the Python that has the program of --against")
    p.add_argument(
        "--steps", type=count, metavar="N", help=f"optimizer steps of a round (default: {STEPS}); tokens ({TOKENS})"
    )
    p.add_argument("--rounds", type=count, default=ROUNDS, metavar="N", help=f"(default: {ROUNDS})")
    p.add_argument("--busy", type=count, default=0, metavar="N", help="beside N processes that compute without a pause")
    p.add_argument(
        "--json", nargs="?", const="-", type=some_name, metavar="FILE", help="JSON, to standard output or into FILE"
    )
    p.add_argument("--side", choices=(RUN, BARE, SAMPLING), help=argparse.SUPPRESS)  # what a child measures
    p.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return p


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of at least 1")
    return int(text)


def checked(args: argparse.Namespace) -> dict[str, Any]:
    """Return the composed config of the run that is measured.

    Raises:
        UserError: flags and overrides are not those of one run, or it cannot be measured so.
    """
    for flag in ("weights", "batch_sizes", "prompt"):
        if getattr(args, flag) is not None and not args.sampling:
            raise UserError(f"--{flag.replace('_', '-')} is for --sampling: give that, too, or leave it out")
    if args.against in PEERS and not args.sampling:
        raise UserError(f"--against {args.against} generates text: give --sampling, too, or use --against loop")
    if args.against == LOOP and args.weights in BITS:
        raise UserError(f"--weights {args.weights}: --against loop has none; use bf16, or --against llama.cpp")
    if args.python and args.against not in PEERS:
        raise UserError(f"--python {args.python} is for another program: give --against {' | '.join(PEERS)}, too")
    if args.python and not Path(args.python).is_file():
        raise UserError(f"--python {args.python}: no such file; give the path of a Python")
    if args.sampling and args.against == BARE:
        raise UserError("--against bare is for training: use --against loop with --sampling, or leave --sampling out")
    if (here := processes.place()) is not None and here.size > 1:
        raise UserError(f"bench starts its processes itself: leave out {here.starter}, and give trainer.devices")
    for word in args.overrides:
        if (key := word.lstrip("+~").partition("=")[0]).split(".")[0] in ("resume", "sweep", "hydra"):
            raise UserError(f"{key}: bench measures one run, which is not kept: leave it out")
    if args.json not in (None, "-") and not (folder := Path(args.json).absolute().parent).is_dir():
        raise UserError(f"--json {args.json}: there is no folder {folder}; make it first")
    with compose.refusals():
        config = compose.compose(args.overrides)
    if (args.against == BARE or args.sampling) and config["precision"]["name"] == "fp16":
        what = "--sampling" if args.sampling else "--against bare"
        raise UserError(f"precision=fp16: {what} scales no gradients or logits; use precision=bf16 or precision=fp32")
    if args.against == BARE and (ema := config["trainer"]["ema"]):
        raise UserError(f"trainer.ema={ema}: --against bare keeps no average; use trainer.ema=0, or --against loop")
    if args.against == BARE and (devices := config["trainer"]["devices"]) != 1:
        raise UserError(f"trainer.devices={devices}: --against bare is one process; use 1, or --against loop")
    return config


def child(args: argparse.Namespace) -> None:
    """Measure one side; what it refuses is told to the parent."""
    threads.prepare()
    parent = Parent() if directory.first_process() else None
    try:
        with compose.refusals():
            config = compose.compose(args.overrides)
            logging.basicConfig(level=logging.INFO, format="%(message)s")
            from gptlab.training import lightning_setup

            lightning_setup.import_lightning()
            from gptlab.benchmarks import bare_loop, generation_files, measured_run
            from gptlab.training.settings import from_config

            settings = from_config(config)
            if settings.task.name != "pretrain":
                raise UserError(f"task={settings.task.name}: bench times the training on text only; use task=pretrain")
            if args.side == RUN:
                measured_run.train(settings, args.folder, parent)
            elif parent is not None:
                {BARE: bare_loop.make_bare_steps, SAMPLING: generation_files.write_model}[args.side](settings, parent)
    except UserError as error:
        processes.refuse(error)
        if parent is not None:
            parent.send(error=str(error))
        sys.exit(1)


def run(args: argparse.Namespace) -> None:
    """Measure and print.

    Raises:
        UserError: see `checked`; or a side refuses, or dies.
    """
    from rich.console import Console

    config = checked(args)
    notes = Console(stderr=True, highlight=False, style="dim", quiet=not sys.stderr.isatty())
    measure: Callable[..., dict[str, Any]] = comparison.compare_training
    steps, more = STEPS, dict[str, Any]()
    if args.sampling:
        measure, steps = comparison.compare_generation, TOKENS
        given = {"weights": args.weights, "batches": args.batch_sizes, "prompt": args.prompt, "python": args.python}
        more["generation"] = Generation(**{key: each for key, each in given.items() if each is not None})
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the other processes are ended
    try:
        with tempfile.TemporaryDirectory(prefix="gptlab-bench-", ignore_cleanup_errors=True) as folder:
            how = {"steps": args.steps or steps, "rounds": args.rounds}
            with busy(args.busy):
                found = measure(config, args.overrides, args.against, Path(folder), notes, **how, **more)
    finally:
        signal.signal(signal.SIGTERM, handler)
    machine = comparison.machine_facts(found["device"], found.get("data_sha256"))
    found = {"format": comparison.FORMAT, "machine": machine, "busy": args.busy, **found}
    if args.json == "-":
        print(json.dumps(found, indent=2))
        return
    if args.json:  # before what is printed, whose reader may have gone
        write_json(Path(args.json), found)
    print_results(found, Console(highlight=False))
    if args.json:
        print(f"files: {args.json}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line: a mistake is one message and exit code 1 (2 for flags); Ctrl-C is 130."""
    with command_line(computes=False):
        args = parser().parse_intermixed_args(argv)
        if args.json and "=" in args.json:  # an override that follows the flag
            args.json, args.overrides = "-", [args.json, *args.overrides]
        args.overrides = words.readable(args.overrides)
        if args.side:
            child(args)
        else:
            run(args)


if __name__ == "__main__":
    main()
