"""`python -m gptlab.serve MODEL [MODEL ...]`: a server that other programs speak to as they do to OpenAI's."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence

from gptlab.system.arguments import BITS, check_bits, some_name, some_path, some_text
from gptlab.system.errors import UserError, command_line

KEY = "GPTLAB_API_KEY"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.serve", description=__doc__)
    p.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        type=some_name,
        help="a run directory (its best checkpoint), a checkpoint, a Hugging Face directory or hub name (gpt2); "
        "clients call it by this name",
    )
    place = p.add_argument_group("where it listens, and to whom")
    place.add_argument("--host", default="127.0.0.1", type=some_text, help="(default: 127.0.0.1, this machine alone)")
    place.add_argument("--port", type=int, default=8000, metavar="N", help="0 is any free one (default: 8000)")
    place.add_argument(
        "--api-key",
        type=some_text,
        metavar="KEY",
        help=f"who calls /v1 must have it; better in the variable {KEY}, which other users of this machine cannot see",
    )
    place.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        type=some_text,
        metavar="URL",
        help="let web pages of this origin call it, e.g. https://my.org; can be repeated",
    )
    p.add_argument(
        "--votes",
        type=some_path,
        metavar="FILE",
        help="which answers people prefer is written to this file, a line each, for task=reward and task=dpo "
        "(default: they download it from the page)",
    )
    limits = p.add_argument_group("limits")
    limits.add_argument(
        "--width", type=int, default=32, metavar="N", help="answers that are drawn at once (default: 32)"
    )
    limits.add_argument("--queue", type=int, default=128, metavar="N", help="answers that wait at most (default: 128)")
    limits.add_argument(
        "--max-tokens", type=int, metavar="N", help="of an answer (default: what the block has room for)"
    )
    limits.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds of a request (default: 600)")
    limits.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds that running answers have after SIGTERM or Ctrl-C (default: 30)",
    )
    work = p.add_argument_group("how it is computed")
    work.add_argument(
        "--precision",
        choices=("fp32", "bf16", *BITS),
        default="fp32",
        help="of the weights; int8 and int4 on a CPU (default: fp32)",
    )
    work.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    return p


def check_flags(args: argparse.Namespace) -> None:
    """Check the values of the flags.

    Raises:
        UserError: one is out of range.
    """
    least = {"width": 1, "queue": 0, "max_tokens": 1, "timeout": 1e-3, "grace": 0, "port": 0}
    most = {"width": 1024, "port": 65535}
    for name, low in least.items():
        value, high = getattr(args, name), most.get(name, 10**9)
        if value is not None and not low <= value <= high:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {value:g}: must be at least {low:g} and at most {high:,}")
    check_bits(args.precision, args.device)
    if len({*args.models}) < len(args.models):
        raise UserError(f"{' '.join(args.models)}: clients call each model by its name: give each once")
    for library in ("starlette", "uvicorn"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"{library} is missing; install it by: pip install 'gptlab[serve]'")


def run(args: argparse.Namespace) -> None:
    """Serve the models until SIGTERM or Ctrl-C.

    Raises:
        UserError: a flag is out of range, the address is taken, a model cannot be read, or the votes cannot be written.
    """
    check_flags(args)
    from gptlab.generation.opening import open_to_generate
    from gptlab.generation.terminal import note, note_model
    from gptlab.serving.app import Options, build_app
    from gptlab.serving.engine import Engine
    from gptlab.serving.server import address, is_local, listen, serve
    from gptlab.serving.votes import Votes

    votes = None if args.votes is None else Votes(args.votes)
    key = args.api_key or os.environ.get(KEY) or None
    with listen(args.host, args.port) as bound:
        engines = {}
        for name in args.models:
            opened = open_to_generate(name, args.device, args.precision, is_compiled=False)
            note_model(opened)
            engines[opened.name] = Engine(opened, args.width, args.queue, bf16_cache=args.precision in BITS)
        if key is None and not is_local(args.host):
            note(f"--host {args.host} without --api-key: whoever reaches this machine can use the models")
        alone = key is None and is_local(args.host)
        options = Options(key, alone, args.allow_origin, args.max_tokens, args.timeout, votes)
        note(f"serving at {address(bound)}/v1 (Ctrl-C stops it)")
        serve(build_app(engines, options), bound, args.grace)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 0 after a signal, 1 after a `UserError` and 2 for wrong flags."""
    with command_line():
        run(parser().parse_args(argv))


if __name__ == "__main__":
    main()
