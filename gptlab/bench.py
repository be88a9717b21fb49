"""`python -m gptlab.bench [group=choice ...] [key=value ...]`: how fast a run is, and what its time goes into.

Only light imports stand up here: this process gives turns to others, which measure.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from gptlab import lightly, train
from gptlab.distributed import processes
from gptlab.runs import directory, environment
from gptlab.system.errors import UserError, command_line
from gptlab.system.files import write_json
from gptlab.system.machine import cores, processor_name
from gptlab.turns import Side, Turn

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = 1
WARMUP = 10  # steps at most before the first round
BATCHES, PROMPT = (1, 16), 32  # of --sampling: texts at once, and tokens that they begin with
STEPS, TOKENS, ROUNDS = 20, 32, 5
RUN, BARE, LOOP, SAMPLING = "gptlab", "bare", "loop", "sampling"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m gptlab.bench",
        description="How fast a run is, and what its time goes into; "
        "python -m gptlab.train --help shows the groups and keys that a run has.",
    )
    p.add_argument("overrides", metavar="key=value", nargs="*", help="or group=choice, as of gptlab.train")
    p.add_argument(
        "--against",
        choices=(LOOP, BARE),
        help="in turn, A B A B, with the eager PyTorch loop that a nanoGPT user has (loop; with --sampling: generation "
        "without a cache), or with a bare loop over the same model, kernels, optimizer and batches (bare)",
    )
    p.add_argument("--sampling", action="store_true", help="measure generation; init_from=MODEL for a trained one")
    p.add_argument(
        "--steps", type=count, metavar="N", help=f"optimizer steps of a round (default: {STEPS}); tokens ({TOKENS})"
    )
    p.add_argument("--rounds", type=count, default=ROUNDS, metavar="N", help=f"(default: {ROUNDS})")
    p.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON, to standard output or into FILE")
    p.add_argument("--side", choices=(RUN, BARE, SAMPLING), help=argparse.SUPPRESS)  # what a child measures
    p.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return p


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of at least 1")
    return int(text)


def checked(args: argparse.Namespace) -> dict[str, Any]:
    """The composed config of the run that is to be measured.

    Raises:
        UserError: flags and overrides are not those of one run, or it cannot be measured so.
    """
    if args.sampling and args.against == BARE:
        raise UserError("--against bare is for training: use --against loop with --sampling, or leave --sampling out")
    if (here := processes.place()) is not None and here.size > 1:
        raise UserError(f"bench starts its processes itself: leave out {here.starter}, and give trainer.devices")
    for word in args.overrides:
        if (key := word.lstrip("+~").partition("=")[0]).split(".")[0] in ("resume", "sweep", "hydra"):
            raise UserError(f"{key}: bench measures one run, which is not kept: leave it out")
    if args.json not in (None, "-") and not (folder := Path(args.json).absolute().parent).is_dir():
        raise UserError(f"--json {args.json}: there is no folder {folder}; make it first")
    with train.refusals():
        config = train.compose(args.overrides)
    if (args.against == BARE or args.sampling) and config["precision"]["name"] == "fp16":
        what = "--sampling" if args.sampling else "--against bare"
        raise UserError(f"precision=fp16: {what} scales no gradients or logits; use precision=bf16 or precision=fp32")
    if args.against == BARE and (ema := config["trainer"]["ema"]):
        raise UserError(f"trainer.ema={ema}: --against bare keeps no average; use trainer.ema=0, or --against loop")
    if args.against == BARE and (devices := config["trainer"]["devices"]) != 1:
        raise UserError(f"trainer.devices={devices}: --against bare is one process; use 1, or --against loop")
    return config


# What is measured


def training(args: argparse.Namespace, config: dict[str, Any], folder: Path, notes: Console) -> dict[str, Any]:
    steps = args.steps or STEPS
    with ExitStack() as stack:
        run = stack.enter_context(side(RUN, args.overrides, folder))
        notes.print("preparing")
        about = run.hear()
        sides, said = [run], {RUN: about}
        if args.against == BARE:
            sides.append(stack.enter_context(side(BARE, args.overrides, folder)))
        if args.against == LOOP:
            sides.append(stack.enter_context(plain(folder)))
            sides[1].tell(**about["plain"])
        for other in sides[1:]:
            said[other.name] = other.hear()
        first = {each.name: each.ask(steps=1) for each in sides}
        for each in sides:
            each.ask(steps=min(WARMUP - 1, steps))
        rounds: dict[str, list[Any]] = {each.name: [] for each in sides}
        for number in range(args.rounds):
            notes.print(f"round {number + 1} of {args.rounds}")
            for each in sides:
                rounds[each.name].append(each.ask(steps=steps))
        shares = run.ask(steps=steps, shares=True)["shares"]
        peaks = run.ask()
    found: dict[str, Any] = {
        "what": "training",
        **names(config),
        **{key: about[key] for key in ("device", "precision", "data", "data_sha256", "parameters")},
        **{key: about[key] for key in ("tokens_per_step", "flops_per_token")},
        **{key: peaks[key] for key in ("measured_peak_flops", "listed_peak_flops")},
        "steps": steps,
        "rounds": args.rounds,
        "sides": {},
    }
    for name, answers in rounds.items():
        memory = peaks["memory"] if name == RUN else answers[-1]["memory"]
        found["sides"][name] = speed(answers, found) | of_process(said[name], memory)
        found["sides"][name]["first_step_seconds"] = first[name]["seconds"][0]
    ours = found["sides"][RUN]
    ours["shares"] = shares
    if config["compile"]["backend"] is not None:
        for one in (found["sides"][name] for name in (RUN, BARE) if name in found["sides"]):
            one["compile_seconds"] = one["first_step_seconds"] - one["step_seconds"]["median"]
    if args.against:
        found["time_ratio"] = ratio(*map(seconds_per_step, rounds.values()))
    return found


def names(config: dict[str, Any]) -> dict[str, Any]:
    return {"name": config["name"], "compile": config["compile"]["name"]}


def side(name: str, overrides: list[str], folder: Path) -> Side:
    command = [sys.executable, "-m", "gptlab.bench", "--side", name, "--folder", str(folder / name)]
    return Side(name, [*command, *overrides], folder)


def of_process(said: dict[str, Any], memory: int | None) -> dict[str, Any]:
    same = {key: said[key] for key in ("threads", "processes")}
    return {"memory_bytes": memory, "memory_before_bytes": said["memory_before"], **same}


def plain(folder: Path) -> Side:
    return Side(LOOP, [sys.executable, "-m", "gptlab.plainloop"], folder)


def speed(answers: list[Any], found: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step over all rounds; tokens and FLOPs per second at their median."""
    each = spread([seconds for answer in answers for seconds in answer["seconds"]])
    tokens = found["tokens_per_step"] / each["median"]
    flops, listed = tokens * found["flops_per_token"], found["listed_peak_flops"]
    return {
        "step_seconds": each,
        "round_seconds_per_step": seconds_per_step(answers),
        "tokens_per_sec": tokens,
        "mfu": flops / found["measured_peak_flops"] if flops else None,
        "mfu_listed": flops / listed if flops and listed else None,
    }


def seconds_per_step(answers: list[Any]) -> list[float]:
    """Of each round, with all that is between its steps."""
    return [answer["total"] / len(answer["seconds"]) for answer in answers]


def spread(values: list[float]) -> dict[str, float]:
    """The median, and the 10th and the 90th percentile."""
    tenths = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return {"median": statistics.median(values), "p10": tenths[0], "p90": tenths[-1]}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Ours / theirs by rounds: the median with its 95% interval, if that is known, the least and the most."""
    from gptlab.results import median_interval

    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    middle = {"median": statistics.median(each), "interval": median_interval(each)}
    return middle | {"min": min(each), "max": max(each)}


def sampling(args: argparse.Namespace, config: dict[str, Any], folder: Path, notes: Console) -> dict[str, Any]:
    with ExitStack() as stack:
        ours = stack.enter_context(side(SAMPLING, args.overrides, folder))
        notes.print("preparing")
        about = ours.hear()
        sides, said = {RUN: ours}, {RUN: about}
        if args.against == LOOP:
            sides[LOOP] = stack.enter_context(plain(folder))
            sides[LOOP].tell(**about["plain"])
            said[LOOP] = sides[LOOP].hear()
        prompt = max(1, min(PROMPT, about["block_size"] // 2))
        tokens = args.steps or TOKENS
        found: dict[str, Any] = {
            "what": "sampling",
            **names(config),
            **{key: about[key] for key in ("device", "precision", "parameters")},
            **{"prompt_tokens": prompt, "new_tokens": tokens, "rounds": args.rounds},
        }
        rounds: dict[int, dict[str, list[Any]]] = {}
        for batch in BATCHES:
            rounds[batch] = {name: [] for name in sides}
            for number in range(args.rounds + 1):  # the first to warm up
                notes.print(f"batch {batch}, round {number} of {args.rounds}")
                for name, each in sides.items():
                    rounds[batch][name].append(each.ask(batch=batch, prompt=prompt, steps=tokens))
    found["sides"] = {name: of_process(said[name], rounds[BATCHES[-1]][name][-1]["memory"]) for name in sides}
    found["batches"] = {
        str(batch): of_batch(batch, {name: answers[1:] for name, answers in each.items()})
        for batch, each in rounds.items()
    }
    return found


def of_batch(batch: int, rounds: dict[str, list[Any]]) -> dict[str, Any]:
    """Tokens per second of all texts together, from the beginning of the prompt to the last token."""
    seconds = {name: [answer["total"] for answer in answers] for name, answers in rounds.items()}
    found: dict[str, Any] = {}
    for name, answers in rounds.items():
        speeds = [batch * answer["tokens"] / answer["total"] for answer in answers]
        found[name] = {"tokens_per_sec": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}
    found[RUN]["prefill_seconds"] = statistics.median(answer["seconds"][0] for answer in rounds[RUN])
    if LOOP in rounds:
        found["time_ratio"] = ratio(seconds[RUN], seconds[LOOP])
    return found


def machine(device: str, data_sha256: str | None) -> dict[str, Any]:
    """What the figures hold for: the processor, versions, commit, command."""
    here = {"processor": processor_name(), "cores": cores()}
    return here | environment.environment(device, data_sha256 or "")


# How it is shown


def show(found: dict[str, Any], console: Console) -> None:
    from rich import box
    from rich.table import Table

    if not console.is_terminal:  # nothing is folded in a file or a pipe
        console.width = 200
    here = found["machine"]
    versions = ", ".join(f"{name} {here['versions'][name]}" for name in ("gptlab", "torch", "lightning"))
    console.print(f"{here['device']}; {here['processor']}, {here['cores']} cores; {versions}", markup=False)
    names = list(found["sides"])
    console.print(measured(found), markup=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for heading, cells in (rows_of_training if found["what"] == "training" else rows_of_sampling)(found):
        table.add_row(heading, *cells)
    console.print(table)
    ratios = {"": found} if found["what"] == "training" else {f"batch {b}: ": r for b, r in found["batches"].items()}
    for what, each in ratios.items():
        if "time_ratio" in each:
            r = each["time_ratio"]
            interval = "95% interval {:.3f} to {:.3f}; ".format(*r["interval"]) if r["interval"] else ""
            console.print(
                f"{what}time of {names[0]} / {names[1]}: {r['median']:.3f} ({interval}rounds: {found['rounds']}, from "
                f"{r['min']:.3f} to {r['max']:.3f}), {1 / r['median']:.2f} times as fast"
            )


def measured(found: dict[str, Any]) -> str:
    """What was measured, in a line."""
    tokens = f", {found['tokens_per_step']:,} tokens a step" if "tokens_per_step" in found else ""
    text = f" of {found['data']}" if "data" in found else ""
    how = f"precision={found['precision']} compile={found['compile']}"
    return f"{found['name']}, {found['parameters']:,} parameters{tokens}{text}; {how}"


Rows = list[tuple[str, list[str]]]


def rows_of_training(found: dict[str, Any]) -> Rows:
    sides = list(found["sides"].values())

    def row(heading: str, key: str, form: Callable[[Any], str]) -> tuple[str, list[str]]:
        return heading, ["-" if each.get(key) is None else form(each[key]) for each in sides]

    peak, listed = found["measured_peak_flops"], found["listed_peak_flops"]
    rows = [
        row("step, median", "step_seconds", lambda x: milliseconds(x["median"])),
        row("10% to 90%", "step_seconds", lambda x: f"{milliseconds(x['p10'])} to {milliseconds(x['p90'])}"),
        row("tokens/s", "tokens_per_sec", "{:,.0f}".format),
        row(f"mfu, of {peak / 1e12:.3g} TFLOP/s measured here", "mfu", "{:.1%}".format),
    ]
    if listed:
        rows.append(row(f"mfu, of {listed / 1e12:.3g} TFLOP/s in the data sheet", "mfu_listed", "{:.1%}".format))
    rows += [
        row("memory, peak", "memory_bytes", megabytes),
        row("before the first step", "memory_before_bytes", megabytes),
        row("first step", "first_step_seconds", "{:.2f} s".format),
        row("of it compiling, from an empty cache", "compile_seconds", "{:.2f} s".format),
        ("processes x threads", [f"{each['processes']} x {each['threads']}" for each in sides]),
    ]
    for part, share in found["sides"][RUN]["shares"].items():
        rows.append((f"share of {part}", [f"{share:.1%}", *[""] * (len(sides) - 1)]))
    return [(heading, cells) for heading, cells in rows if set(cells) != {"-"}]


def rows_of_sampling(found: dict[str, Any]) -> Rows:
    names = list(found["sides"])
    rows: Rows = []
    for batch, each in found["batches"].items():
        speeds = [f"{each[n]['tokens_per_sec']:,.1f} ({each[n]['min']:,.1f} to {each[n]['max']:,.1f})" for n in names]
        rows.append((f"batch {batch}, tokens/s", speeds))
        first = f"prefill of {found['prompt_tokens']} tokens"
        rows.append((first, [milliseconds(each[RUN]["prefill_seconds"]), *[""] * (len(names) - 1)]))
    sides = found["sides"].values()
    rows.append(("memory, peak", [megabytes(each["memory_bytes"]) for each in sides]))
    return [*rows, ("threads", [str(each["threads"]) for each in sides])]


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f} ms"


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


# The command line


def child(args: argparse.Namespace) -> None:
    """One side: what it refuses is told to the parent."""
    turn = Turn() if directory.first_process() else None
    try:
        with train.refusals():
            composed = train.compose(args.overrides)
            logging.basicConfig(level=logging.INFO, format="%(message)s")
            lightly.import_lightning()
            from gptlab import config, measuring

            settings = config.settings(OmegaConf.create(composed))
            if args.side == RUN:
                measuring.train(settings, composed, args.folder, turn)
            elif turn is not None:
                {BARE: measuring.bare, SAMPLING: measuring.sample}[args.side](settings, composed, turn)
    except UserError as error:
        processes.refuse(error)
        if turn is not None:
            turn.tell(error=str(error))
        sys.exit(1)


def run(args: argparse.Namespace) -> None:
    from rich.console import Console

    config = checked(args)
    notes = Console(stderr=True, highlight=False, style="dim", quiet=not sys.stderr.isatty())
    measure = sampling if args.sampling else training
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the other processes are ended
    try:
        with tempfile.TemporaryDirectory(prefix="gptlab-bench-", ignore_cleanup_errors=True) as folder:
            found = measure(args, config, Path(folder), notes)
    finally:
        signal.signal(signal.SIGTERM, handler)
    found = {"format": FORMAT, "machine": machine(found["device"], found.get("data_sha256")), **found}
    if args.json is None:
        show(found, Console(highlight=False))
    elif args.json == "-":
        print(json.dumps(found, indent=2))
    else:
        write_json(Path(args.json), found)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: a mistake is one message and exit code 1 (2 for flags); Ctrl-C is 130."""
    p = parser()
    args = p.parse_intermixed_args(argv)
    if args.json and "=" in args.json:  # an override that follows the flag
        args.json, args.overrides = "-", [args.json, *args.overrides]
    if args.side:
        child(args)
        return
    with command_line():
        run(args)


if __name__ == "__main__":
    main()
