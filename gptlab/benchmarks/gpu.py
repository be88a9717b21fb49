"""All that is measured of a GPU, in under ten minutes, into one file: `python -m gptlab.benchmarks.gpu`.

Each measurement is a process of its own with a time limit; what fails or takes too long is named and leaves the others
as they are. The file is written anew after each.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptlab.system.files import read_json, write_json

GOAL = 1.4697  # the val/loss of gpt10m to which time is measured
LAST_LINES = 8  # lines of a failed process's output that its error shows


@dataclass(frozen=True)
class Measurement:
    """One process to measure: a verb of gptlab, the words of its command line, and its time limit."""

    verb: str
    words: tuple[str, ...]
    limit: float
    """Time limit in seconds."""


def measurements(memory: float) -> dict[str, Measurement]:
    """Return all measurements by name for a GPU with `memory` bytes; the limits add up to ten minutes."""
    fast = ("compile=inductor", "precision=bf16")
    graphs = ("compile=reduce_overhead", "precision=bf16")
    gpt10m = ("model=gpt10m", "data=shakespeare_char")
    gpt124m = ("model=gpt124m", "data=shakespeare_char", "tokenizer=gpt2")
    at_once = f"data.micro_batch_size={32 if memory > 60e9 else 8}"
    few = ("--steps", "2", "--rounds", "3")
    return {
        "gpt10m against loop": Measurement("bench", (*gpt10m, *fast, "--against", "loop"), 70),
        "gpt10m against bare": Measurement("bench", (*gpt10m, *fast, "--against", "bare"), 80),
        "gpt10m by CUDA graphs": Measurement("bench", (*gpt10m, *graphs), 45),
        f"gpt10m to val/loss {GOAL}": Measurement("train", ("experiment=speedrun",), 85),
        "the lowest val/loss of gpt10m": Measurement("train", ("experiment=best_char",), 95),
        "gpt124m": Measurement("bench", (*gpt124m, *fast, at_once, *few), 105),
        "gpt10m sampling": Measurement("bench", (*gpt10m, "precision=bf16", "--sampling", "--against", "loop"), 35),
        "gpt10m sampling compiled": Measurement("bench", (*gpt10m, *fast, "--sampling"), 50),
        "gpt124m sampling": Measurement("bench", (*gpt124m, "precision=bf16", "--sampling", "--against", "loop"), 35),
    }


def measure(measurement: Measurement, folder: Path) -> dict[str, Any]:
    """Run one process; returns its results or its `error`, and `wall_seconds` from its start to its end."""
    last = f"hydra.run.dir={folder / 'run'}" if measurement.verb == "train" else f"--json={folder / 'found.json'}"
    command = [sys.executable, "-m", f"gptlab.{measurement.verb}", *measurement.words, last]
    start = time.perf_counter()
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            code: int | str = process.wait(measurement.limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # so that it can end its own children
            code = f"none within {measurement.limit:g} seconds"
        finally:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        log.seek(0)
        lines = log.read().splitlines()
    found: dict[str, Any] = {"command": command[1:], "wall_seconds": time.perf_counter() - start}
    if code != 0:
        return {**found, "error": "\n".join([f"exit code: {code}", *lines[-LAST_LINES:]])}
    if measurement.verb == "train":
        return {**found, **time_to_goal(folder / "run")}
    return {**found, **read_json(folder / "found.json")}


def time_to_goal(run_dir: Path) -> dict[str, Any]:
    """Return the `seconds` of training until a run's val/loss reached GOAL, None if it never did, and its summary.

    `compile_seconds` is how much longer the first interval of the curves took than the others; `seconds` includes it.
    """
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    seconds = [float(row["seconds"]) for row in rows if row["val/loss"] and float(row["val/loss"]) <= GOAL]
    points = [float(row["seconds"]) for row in rows if row["train/loss"]]
    usual = statistics.median(b - a for a, b in itertools.pairwise(points))
    summary = read_json(run_dir / "summary.json")
    keys = ("val/loss", "best_val_loss", "train_seconds", "total_seconds", "tokens_per_sec", "mfu", "device")
    return {"what": "training to a loss", "goal": GOAL, "seconds": min(seconds, default=None)} | {
        "compile_seconds": points[0] - usual,
        **{key: summary[key] for key in keys},
    }


def run(chosen: dict[str, Measurement], out: Path) -> bool:
    """Make the measurements and write them to `out` after each; returns whether all succeeded."""
    found: dict[str, Any] = {}
    for name, measurement in chosen.items():
        with tempfile.TemporaryDirectory(prefix="gptlab-gpu-bench-") as folder:
            found[name] = measure(measurement, Path(folder))
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, found)
        print(f"{name}: {found[name].get('error', 'measured')} ({found[name]['wall_seconds']:.0f} s)", flush=True)
    return not any("error" in each for each in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu-bench.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA GPU is visible, which this measures; make bench measures whatever there is")
    done = run(measurements(torch.cuda.get_device_properties(0).total_memory), args.out)
    print(f"written: {args.out}")
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
