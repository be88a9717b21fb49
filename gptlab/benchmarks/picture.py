"""The README's picture: validation loss against seconds, the presets beside the plain loop, from recorded runs.

`python -m gptlab.benchmarks.picture` draws it; with `--record` it makes the runs first, a quarter of an hour on two
cores that have nothing else to do. Seconds are wall time from the start of a process, imports and compiling among them;
the plain loop's own validations are left out of its time, those of the presets are not.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from gptlab.benchmarks import time_to_loss
from gptlab.models.gpt import GPT
from gptlab.system.errors import UserError, command_line
from gptlab.system.files import write_atomically

FOLDER = Path("docs/pictures")
LOOP = "plain loop"
RUNS = {  # what is recorded, and the overrides that let a run measure its loss a few times on its way
    "speedrun_cpu": ("trainer.val_every=70",),
    "first": (),
    "laptop_char": ("trainer.val_every=150",),
}
LABEL = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
EVERY = 250  # steps between two validations of the plain loop
LINES = {1.905: "nanoGPT on a CPU, 1.905", 1.4697: "nanoGPT on a GPU, 1.4697"}
VALIDATED = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) .*step \d+ of \d+: val/loss ([\d.]+)")

Point = tuple[float, float]
"""Seconds, and the loss in nats per token over the whole validation split."""


def record_preset(name: str) -> list[Point]:
    """Train an experiment; the points of its validations, by its log."""
    with tempfile.TemporaryDirectory() as folder:
        start = datetime.now().timestamp()
        time_to_loss.train_cold(folder, f"experiment={name}", *RUNS[name])
        log = Path(folder, "run", "train.log").read_text()
    found = []
    for clock, thousandths, loss in VALIDATED.findall(log):
        at = datetime.fromisoformat(clock).timestamp() + int(thousandths) / 1000
        found.append((at - start, float(loss)))
    return found


def record_loop(text: str) -> Iterator[Point]:
    """Make nanoGPT's CPU run by the plain loop, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        loop, held_out = time_to_loss.nanogpt_cpu_run(text, Path(folder), time_to_loss.RATE)
        assert isinstance(loop.model, GPT)
        seconds = 0.0
        for first in range(0, time_to_loss.STEPS, EVERY):
            start = time.perf_counter()
            for _ in range(first, first + EVERY):
                loop.step()
            seconds += time.perf_counter() - start
            yield seconds, time_to_loss.whole_split_loss(loop.model, held_out)


def read(file: Path) -> dict[str, list[Point]]:
    """Return the recorded points of each run."""
    runs: dict[str, list[Point]] = {}
    try:
        with file.open(newline="") as stream:
            for row in csv.DictReader(stream):
                runs.setdefault(row["run"], []).append((float(row["seconds"]), float(row["val_loss"])))
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): make the runs with --record") from error
    return runs


def write(runs: dict[str, list[Point]], file: Path) -> None:
    """Keep the points of each run."""
    rows = [f"{name},{seconds:.1f},{loss:.4f}" for name, points in runs.items() for seconds, loss in points]
    content = "\n".join(["run,seconds,val_loss", *rows, ""]).encode()
    write_atomically(file, lambda stream: stream.write(content))


def draw(runs: dict[str, list[Point]], file: Path) -> None:
    """Draw the points of each run, a line a run."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    from gptlab.reports.plots.style import COLOURS, DARK, STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        for colour, (name, points) in zip(COLOURS, runs.items(), strict=False):
            seconds, losses = zip(*points, strict=True)
            style: dict[str, Any] = {"ls": "--", "color": DARK} if name == LOOP else {"color": colour}
            axes.plot(seconds, losses, marker="o", ms=4, **style)
            place = (7, 6) if name == LOOP else (7, -11)
            axes.annotate(
                f"{name}, {losses[-1]:.3f}", points[-1], place, textcoords="offset points", size=8, bbox=LABEL
            )
        for loss, words in LINES.items():
            axes.axhline(loss, color=DARK, lw=0.8, ls=":")
            axes.annotate(
                words, (0.99, loss), (0, 3), ("axes fraction", "data"), "offset points", size=8, color=DARK, ha="right"
            )
        axes.set(
            xscale="log", xlabel="seconds on two CPU cores, from the command on", ylabel="val/loss, nats per token"
        )
        axes.set_xticks([5, 10, 20, 60, 180, 600, 1800, 3600])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda s, _: f"{s:g} s" if s < 60 else f"{s / 60:g} min"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(4, 4 * max(seconds for points in runs.values() for seconds, _ in points))
        axes.set_ylim(1.35, 2.6)
        write_atomically(file, partial(figure.savefig, format="png"))


def record(folder: Path) -> None:
    """Make all runs, and keep what is recorded of others."""
    text = Path(os.environ.get("GPTLAB_DATA", ""), "tinyshakespeare.txt")
    if not text.is_file():
        raise UserError("--record: GPTLAB_DATA must name a folder with tinyshakespeare.txt")
    file = folder / "seconds.csv"
    runs = read(file) if file.exists() else {}
    for name in RUNS:
        runs[name] = record_preset(name)
        print(f"{name}: {runs[name][-1][1]:.4f} after {runs[name][-1][0]:.1f} s", flush=True)
        write(runs, file)
    runs[LOOP] = list(record_loop(text.read_text()))
    print(f"{LOOP}: {runs[LOOP][-1][1]:.4f} after {runs[LOOP][-1][0]:.1f} s", flush=True)
    write(runs, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="make the runs first")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"of seconds.csv and seconds.png ({FOLDER})")
    args = parser.parse_args()
    with command_line():
        if args.record:
            record(args.folder)
        draw(read(args.folder / "seconds.csv"), args.folder / "seconds.png")
        print(args.folder / "seconds.png")


if __name__ == "__main__":
    main()
