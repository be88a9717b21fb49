"""How fast `python -m gptlab.serve` answers many clients at once, alone or beside another server, A B A B.

Prompts are random tokens, a new one for each request, and answers have a fixed length. Before the first round each
server answers some requests to warm up. Afterwards some of our answers are asked for again, one by one: they must be
the same.

python -m gptlab.benchmarks.serving MODEL --clients 1 64 --requests 10000
python -m gptlab.benchmarks.serving MODEL --precision int8 --against llama-server --program FILE
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.benchmarks.clients import Answer, Body, ask_all
from gptlab.benchmarks.comparison import ratio
from gptlab.benchmarks.generation_files import QUANTS
from gptlab.benchmarks.servers import COMMANDS, OURS, Load, Server, find_program
from gptlab.data.tokenizers.base import Tokenizer
from gptlab.generation.opening import open_to_generate
from gptlab.system import terminal
from gptlab.system.arguments import some_name
from gptlab.system.errors import UserError, command_line
from gptlab.system.files import write_json
from gptlab.system.machine import processor_name
from gptlab.system.threads import cores

WARMUP = 2  # requests of each client
AGAIN = 64  # answers that are asked for once more


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m gptlab.benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("model", metavar="MODEL", type=some_name, help="as of gptlab.serve")
    p.add_argument("--precision", choices=QUANTS, default="fp32", help="of the weights (default: fp32)")
    p.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="(default: 1 8 32)")
    p.add_argument("--requests", type=int, metavar="N", help="of a round (default: 4 of each client)")
    p.add_argument("--rounds", type=int, default=5, metavar="N", help="(default: 5)")
    p.add_argument("--prompt", type=int, default=32, metavar="N", help="its tokens (default: 32)")
    p.add_argument("--tokens", type=int, default=32, metavar="N", help="of an answer (default: 32)")
    p.add_argument("--against", choices=sorted(COMMANDS.keys() - {OURS}), help="another server, of the same weights")
    p.add_argument("--program", type=some_name, metavar="FILE", help="llama-server, or the Python that has the server")
    p.add_argument("--json", type=some_name, metavar="FILE", help="write all figures into FILE")
    return p


def check_flags(args: argparse.Namespace) -> None:
    """Check the values of the flags.

    Raises:
        UserError: one is out of range.
    """
    for name in ("clients", "requests", "rounds", "prompt", "tokens"):
        value = getattr(args, name)
        if value is not None and min(value if isinstance(value, list) else [value]) < 1:
            raise UserError(f"--{name}: must be at least 1")
    if args.program and not args.against:
        raise UserError(f"--program {args.program} is for another server: give --against, too")
    if args.json and not (folder := Path(args.json).absolute().parent).is_dir():
        raise UserError(f"--json {args.json}: there is no folder {folder}; make it first")


def random_bodies(tokenizer: Tokenizer, args: argparse.Namespace, count: int, name: str) -> list[Body]:
    """Return requests whose prompts are random; `name` stands for the draw."""
    numbers = random.Random(name)
    texts = [token.decode() for token in tokenizer.tokens if token.isascii() and token.decode().isprintable()]
    return [
        {
            "prompt": "".join(numbers.choices(texts, k=args.prompt)),
            "max_tokens": args.tokens,
            "seed": numbers.getrandbits(31),
            "temperature": 1,
        }
        for _ in range(count)
    ]


def figures(rounds: Sequence[tuple[list[Answer], float]]) -> dict[str, Any]:
    """Return what clients have seen, over all rounds, each of which is its answers and their seconds."""
    answers = [answer for found, _ in rounds for answer in found]
    good = [answer for answer in answers if answer.error is None]
    first, speed = ([getattr(each, of) for each in good] for of in ("first", "tokens_per_sec"))
    return {
        "requests": len(answers),
        "lost": len(answers) - len(good),
        "errors": sorted({answer.error for answer in answers if answer.error is not None})[:10],
        "tokens_per_sec": [
            sum(answer.tokens for answer in found if answer.error is None) / seconds for found, seconds in rounds
        ],
        "first_token_seconds": quantiles(first),
        "tokens_per_sec_of_a_client": quantiles(speed),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    shares = {"p1": 0.01, "p50": 0.5, "p99": 0.99}
    return {name: float(np.quantile(values, share)) if values else float("nan") for name, share in shares.items()}


def compare(args: argparse.Namespace, folder: Path, notes: Any) -> dict[str, Any]:
    """Measure, and return what --json writes.

    Raises:
        UserError: a server does not start, or the model cannot be written for it.
    """
    opened = open_to_generate(args.model, "cpu", "fp32", is_compiled=False)
    tokenizer, block_size = opened.tokenizer, opened.model.config.block_size
    if args.prompt + args.tokens > block_size:
        raise UserError(f"--prompt {args.prompt} --tokens {args.tokens}: the model's block has {block_size} tokens")
    found: dict[str, Any] = {
        "machine": {"processor": processor_name(), "cores": cores()},
        **{name: getattr(args, name) for name in ("model", "precision", "prompt", "tokens", "rounds")},
        "clients": {},
    }
    load = Load(args.model, args.precision, cores(), max(args.clients), args.prompt + args.tokens)
    program = find_program(args.against, args.program) if args.against else ""
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(OURS, sys.executable, load, folder))]
        if args.against:
            theirs = load._replace(model=str(gguf_of(args, folder)))
            servers.append(stack.enter_context(Server(args.against, program, theirs, folder)))
        for clients in args.clients:
            its: dict[str, list[tuple[list[Answer], float]]] = {server.name: [] for server in servers}
            before: dict[str, int | None] = {}
            requests = args.requests or 4 * clients
            for number in range(args.rounds + 1):  # the first to warm up
                count = WARMUP * clients if not number else requests
                bodies = random_bodies(tokenizer, args, count, f"{clients} {number}")
                for server in servers:
                    notes(f"{clients} clients, round {number} of {args.rounds}: {server.name}")
                    its[server.name].append(ask_all(server.address, bodies, clients))
                    if not number:
                        before[server.name] = server.memory
            sides = {server.name: figures(its[server.name][1:]) for server in servers}
            for server in servers:
                sides[server.name]["memory_bytes"] = [before[server.name], server.memory]
            sides[OURS]["different"] = asked_again(servers[0], bodies, its[OURS][-1][0])
            if args.against:
                ours, other = (1 / np.array(side["tokens_per_sec"]) for side in sides.values())
                sides[OURS]["time_ratio"] = ratio(ours.tolist(), other.tolist())
            found["clients"][str(clients)] = sides
    return found


def gguf_of(args: argparse.Namespace, folder: Path) -> Path:
    """Write the model as GGUF, in the precision that comes nearest.

    Raises:
        UserError: it cannot be written so.
    """
    words = [args.model, str(folder / "gguf"), "--format", "gguf", "--quant", QUANTS[args.precision]]
    done = subprocess.run([sys.executable, "-m", "gptlab.export", *words], capture_output=True, text=True)
    if done.returncode:
        raise UserError(done.stderr.strip())
    return folder / "gguf" / "model.gguf"


def asked_again(server: Server, bodies: list[Body], answers: list[Answer]) -> int:
    """Return how many of some answers are others when one client asks for them alone."""
    some = range(0, len(bodies), max(1, len(bodies) // AGAIN))
    again, _ = ask_all(server.address, [bodies[i] for i in some], 1)
    return sum(one.text != answers[i].text for i, one in zip(some, again, strict=True))


def print_figures(found: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    what = f"{found['model']}, {found['precision']}, {found['prompt']} + {found['tokens']} tokens"
    here = found["machine"]
    console.print(f"{here['processor']}, {here['cores']} cores; {terminal.harmless(what)}", markup=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("clients", "server", "requests", "lost", "different", "tokens/s, median"):
        table.add_column(heading, justify="right")
    for heading in ("first token, p50 and p99", "tokens/s of a client, p1 and p50", "memory, MB", "times as fast"):
        table.add_column(heading, justify="right")
    for clients, sides in found["clients"].items():
        for name, side in sides.items():
            first, speed = side["first_token_seconds"], side["tokens_per_sec_of_a_client"]
            memory = [each / 1e6 for each in side["memory_bytes"] if each is not None]
            times = side.get("time_ratio")
            table.add_row(
                *(clients, name, f"{side['requests']:,}", f"{side['lost']:,}", str(side.get("different", ""))),
                f"{np.median(side['tokens_per_sec']):,.0f}",
                f"{1e3 * first['p50']:,.0f} ms, {1e3 * first['p99']:,.0f} ms",
                f"{speed['p1']:,.0f}, {speed['p50']:,.0f}",
                " to ".join(f"{each:,.0f}" for each in memory),
                f"{1 / times['median']:.2f} ({1 / times['max']:.2f} to {1 / times['min']:.2f})" if times else "",
            )
    console.print(table)
    for error in sorted(
        {error for sides in found["clients"].values() for side in sides.values() for error in side["errors"]}
    ):
        console.print(terminal.harmless(error), markup=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 1 after a `UserError`, an answer that is lost or one that is different."""
    with command_line():
        args = parser().parse_args(argv)
        check_flags(args)
        with tempfile.TemporaryDirectory(prefix="gptlab-serving-") as folder:
            found = compare(args, Path(folder), lambda text: print(text, file=sys.stderr))
        if args.json:
            write_json(Path(args.json), found)
        print_figures(found)
        ours = [sides[OURS] for sides in found["clients"].values()]
        if any(side["lost"] or side["different"] for side in ours):
            raise UserError("answers were lost, or were different when they were asked for alone: see the table")


if __name__ == "__main__":
    main()
