"""Compare the speed of a run, or of its generation, with another loop: both in turn, A B A B."""

from __future__ import annotations

import os
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gptlab.benchmarks.alternation import Child
from gptlab.benchmarks.generation_peers import PEERS
from gptlab.runs import environment
from gptlab.system.errors import UserError
from gptlab.system.machine import processor_name
from gptlab.system.threads import cores

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = 1
WARMUP = 10  # at most so many steps before the first round
STEPS, TOKENS, ROUNDS = 20, 32, 5
RUN, BARE, LOOP, SAMPLING = "gptlab", "bare", "loop", "sampling"


class Generation(NamedTuple):
    """What is generated, and by what."""

    weights: str | None = None
    """fp32, bf16, int8 or int4; None: as the run's precision."""
    batches: tuple[int, ...] = (1, 16)
    prompt: int = 32
    """The tokens of a prompt, at most half of the block."""
    python: str | None = None
    """The Python of a peer; None: our own."""


def compare_training(
    config: dict[str, Any],
    overrides: list[str],
    against: str | None,
    folder: Path,
    notes: Console,
    *,
    steps: int = STEPS,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Measure how fast a run trains; returns the dict that --json prints.

    Args:
        config: the config composed from `overrides`.
        against: the other side, `LOOP` or `BARE`; None: measure the run alone.
        folder: a temporary folder for the files of the processes.
        notes: where progress is printed.
        steps, rounds: optimizer steps in a round, and rounds of each side.

    Raises:
        UserError: a side refuses the run, or dies.
    """
    with ExitStack() as stack:
        run = stack.enter_context(our_child(RUN, overrides, folder))
        notes.print("preparing")
        about = run.receive()
        sides, said = [run], {RUN: about}
        if against == BARE:
            sides.append(stack.enter_context(our_child(BARE, overrides, folder)))
        if against == LOOP:
            sides.append(stack.enter_context(plain_child(folder)))
            sides[1].send(**about["plain"])
        for other in sides[1:]:
            said[other.name] = other.receive()
        first = {each.name: each.request(steps=1) for each in sides}
        for each in sides:
            each.request(steps=min(WARMUP - 1, steps))
        answers: dict[str, list[Any]] = {each.name: [] for each in sides}
        for number in range(rounds):
            notes.print(f"round {number + 1} of {rounds}")
            for each in sides:
                answers[each.name].append(each.request(steps=steps))
        shares = run.request(steps=steps, shares=True)["shares"]
        peaks = run.request()
    found: dict[str, Any] = {
        "what": "training",
        **run_names(config),
        **{key: about[key] for key in ("device", "precision", "data", "data_sha256", "parameters")},
        **{key: about[key] for key in ("tokens_per_step", "flops_per_token")},
        **{key: peaks[key] for key in ("measured_peak_flops", "listed_peak_flops")},
        "steps": steps,
        "rounds": rounds,
        "sides": {},
    }
    for name, its in answers.items():
        memory = peaks["memory"] if name == RUN else its[-1]["memory"]
        found["sides"][name] = speed(its, found) | process_figures(said[name], memory)
        found["sides"][name]["first_step_seconds"] = first[name]["seconds"][0]
    ours = found["sides"][RUN]
    ours["shares"] = shares
    if config["compile"]["backend"] is not None:
        for one in (found["sides"][name] for name in (RUN, BARE) if name in found["sides"]):
            one["compile_seconds"] = one["first_step_seconds"] - one["step_seconds"]["median"]
    if against:
        found["time_ratio"] = ratio(*map(seconds_per_step, answers.values()))
    return found


def run_names(config: dict[str, Any]) -> dict[str, Any]:
    """Return the names of the run and of its compile choice."""
    return {"name": config["name"], "compile": config["compile"]["name"]}


def our_child(name: str, overrides: list[str], folder: Path) -> Child:
    """Start a process that measures our run or its bare loop, or writes its model; `name` is RUN, BARE or SAMPLING."""
    command = [sys.executable, "-m", "gptlab.bench", "--side", name, "--folder", str(folder / name)]
    return Child(name, [*command, *overrides], folder)


def process_figures(said: dict[str, Any], memory: int | None) -> dict[str, Any]:
    """Return the memory in bytes, threads and processes of one side."""
    same = {key: said[key] for key in ("threads", "processes")}
    return {"memory_bytes": memory, "memory_before_bytes": said["memory_before"], **same}


def generating_child(folder: Path) -> Child:
    """Start a process that generates as `python -m gptlab.generate` does."""
    return Child(RUN, [sys.executable, "-m", "gptlab.benchmarks.generation_speed"], folder)


def plain_child(folder: Path) -> Child:
    """Start a process that measures the plain loop."""
    return Child(LOOP, [sys.executable, "-m", "gptlab.benchmarks.plain_loop"], folder)


def speed(answers: list[Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return the spread of seconds per step over all rounds, and tokens per second and mfu at the median."""
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
    """Return the seconds per step of each round, including the time between steps."""
    return [answer["total"] / len(answer["seconds"]) for answer in answers]


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, and the 10th and 90th percentiles."""
    tenths = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return {"median": statistics.median(values), "p10": tenths[0], "p90": tenths[-1]}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Return the ratio ours / theirs over the rounds: median, its 95% interval (None if unknown), min and max."""
    from gptlab.reports.statistics import median_interval

    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    middle = {"median": statistics.median(each), "interval": median_interval(each)}
    return middle | {"min": min(each), "max": max(each)}


def compare_generation(
    config: dict[str, Any],
    overrides: list[str],
    against: str | None,
    folder: Path,
    notes: Console,
    *,
    steps: int = TOKENS,
    rounds: int = ROUNDS,
    generation: Generation,
) -> dict[str, Any]:
    """Measure how fast a run's model generates; returns the dict that --json prints.

    Args:
        against: the other side, `LOOP` or a peer; None: measure the run alone.
        steps: tokens generated in a round; the other arguments are those of `compare_training`.

    Raises:
        UserError: a side refuses the run, or dies.
    """
    peer = against if against in PEERS else None
    files = {"checkpoint": str(folder / "model.ckpt"), "folder": str(folder / "model") if peer else None}
    notes.print("preparing")
    with our_child(SAMPLING, overrides, folder) as writer:
        about = writer.receive()
        prompt = max(1, min(generation.prompt, about["block_size"] // 2))
        weights = generation.weights or ("fp32" if about["precision"] == "fp32" else "bf16")
        if peer:
            check_peer(peer, weights, about, prompt, steps)
        writer.request(weights=weights, format=PEERS[peer].format if peer else None, **files)
    with ExitStack() as stack:
        ours = stack.enter_context(generating_child(folder))
        how = {"device": about["plain"]["device"], "backend": about["backend"]}
        sides, said = {RUN: ours}, {RUN: ours.request(checkpoint=files["checkpoint"], weights=weights, **how)}
        if against == LOOP:
            sides[LOOP] = stack.enter_context(plain_child(folder))
            said[LOOP] = sides[LOOP].request(**about["plain"])
        elif peer:
            sides[peer] = stack.enter_context(peer_child(peer, generation.python, folder))
            threads = said[RUN]["threads"]
            said[peer] = sides[peer].request(folder=files["folder"], weights=weights, threads=threads)
        found: dict[str, Any] = {
            "what": "sampling",
            **run_names(config),
            **{key: about[key] for key in ("device", "precision", "parameters")},
            **{"weights": weights, "prompt_tokens": prompt, "new_tokens": steps, "rounds": rounds},
        }
        order = {"prompt": prompt, "room": steps, "greedy": peer is not None, "vocabulary": about["vocabulary"]}
        answers: dict[int, dict[str, list[Any]]] = {}
        firsts: dict[int, dict[str, list[float]]] = {}
        for batch in generation.batches:
            answers[batch], firsts[batch] = {name: [] for name in sides}, {name: [] for name in sides}
            for number in range(rounds + 1):  # the first to warm up
                notes.print(f"batch {batch}, round {number} of {rounds}")
                for name, each in sides.items():
                    answers[batch][name].append(each.request(batch=batch, steps=steps, **order))
                    if peer:  # some say only when all of a text is there
                        firsts[batch][name].append(each.request(batch=batch, steps=1, **order)["total"])
    last = answers[generation.batches[-1]]
    found["sides"] = {name: process_figures(said[name], last[name][-1]["memory"]) for name in sides}
    for name in sides:
        found["sides"][name]["resident_bytes"] = last[name][-1].get("resident")
    found["batches"] = {
        str(batch): batch_figures(batch, {name: its[1:] for name, its in each.items()}, firsts[batch])
        for batch, each in answers.items()
    }
    return found


def check_peer(peer: str, weights: str, about: dict[str, Any], prompt: int, steps: int) -> None:
    """Check that another program can do the same as a run.

    Args:
        about: what the run's process says of itself.
        prompt, steps: tokens of a prompt, and after it.

    Raises:
        UserError: it cannot.
    """
    if (device := about["plain"]["device"]) != "cpu":
        raise UserError(
            f"--against {peer}: is measured on a CPU, not on {device}; add trainer=cpu, or use --against loop"
        )
    if weights not in PEERS[peer].weights:
        known = ", ".join(PEERS[peer].weights)
        raise UserError(f"--against {peer} has no weights of {weights} here: use --weights with one of {known}")
    if prompt + steps > (longest := about["block_size"]):
        raise UserError(f"--steps {steps}: a text of {peer} ends at the block_size, {longest}; use {longest - prompt}")


def peer_child(name: str, python: str | None, folder: Path) -> Child:
    """Start a process in which another program generates, perhaps by a Python of its own that lacks gptlab."""
    places = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    command = [python or sys.executable, "-m", "gptlab.benchmarks.generation_peers", name]
    return Child(name, command, folder, {"PYTHONPATH": os.pathsep.join(filter(None, places))})


def batch_figures(batch: int, rounds: dict[str, list[Any]], firsts: dict[str, list[float]]) -> dict[str, Any]:
    """Return the tokens per second of the whole batch, from the start of the prompt to the last token.

    Args:
        firsts: by side, the seconds to the first token of each round, the first of which is to warm up; of peers.
    """
    sides = list(rounds)
    seconds = {name: [answer["total"] for answer in answers] for name, answers in rounds.items()}
    found: dict[str, Any] = {}
    for name, answers in rounds.items():
        speeds = [batch * answer["tokens"] / answer["total"] for answer in answers]
        found[name] = {"tokens_per_sec": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}
        if firsts[name]:
            found[name]["prefill_seconds"] = statistics.median(firsts[name][1:])
    found[RUN].setdefault("prefill_seconds", statistics.median(answer["seconds"][0] for answer in rounds[RUN]))
    if len(sides) > 1:
        found["time_ratio"] = ratio(*(seconds[name] for name in sides))
    if firsts[RUN]:
        found["prefill_ratio"] = ratio(*(firsts[name][1:] for name in sides))
        after = {name: [a - b for a, b in zip(seconds[name], firsts[name][1:], strict=True)] for name in sides}
        if min(map(min, after.values())) > 0:  # else the rounds differ by more than the tokens after the first take
            found["decoding_ratio"] = ratio(*(after[name] for name in sides))
    return found


def machine_facts(device: str, data_sha256: str | None) -> dict[str, Any]:
    """Return the conditions of the figures: processor, versions, commit and command."""
    here = {"processor": processor_name(), "cores": cores()}
    return here | environment.environment(device, data_sha256 or "")
