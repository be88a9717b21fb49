"""Write a run's page, index.html in its folder, from the files that the run has left there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gptlab.reports.pages import facts, presets, samples
from gptlab.reports.pages.charts import charts_of
from gptlab.reports.pages.files import page_of
from gptlab.reports.pages.points import embedded, read_points
from gptlab.reports.records import Run, read_run
from gptlab.reports.units import loss_is_trained
from gptlab.runs import directory
from gptlab.runs.closing import next_commands
from gptlab.system.errors import UserError
from gptlab.system.files import plain_tree, read_bytes, read_json, unseal, write_atomically
from gptlab.system.terminal import harmless, shell_quoted

PLACES = ("hydra.", "resume=")  # words that say where a run was, and not what it is
SPEECHLESS = ("classify", "reward")  # tasks whose models write no text


def write_run_page(run_dir: Path) -> Path:
    """Write the page of a finished run; returns its path.

    Raises:
        UserError: the run has not finished, its files cannot be read, or the page cannot be written.
    """
    content = run_page(run_dir).encode()
    path = run_dir / directory.PAGE
    write_atomically(path, lambda file: file.write(content))
    return path


def run_page(run_dir: Path) -> str:
    """Return the page of a finished run.

    Raises:
        UserError: the run has not finished, or its files cannot be read.
    """
    data = run_data(read_run(run_dir))
    return page_of("run", f"{data['name']}, {data['status']}", data)


def run_data(run: Run) -> dict[str, Any]:
    """Return what the page shows, in texts and in the numbers of its curves."""
    points = read_points(run.path)
    drawn = samples.read_samples(run.path, set(points.steps("val/loss").tolist()))
    folder = folder_as_typed(run.path)
    about = {"status": run.summary.get("status"), "steps": run.summary["steps"], "speaks": run.task not in SPEECHLESS}
    again = repeating(run.environment)
    return {
        "name": harmless(str(run.config.get("name", run.path.name))),
        "folder": harmless(folder),
        "status": facts.status(run),
        "headline": facts.headline(run),
        "numbers": facts.numbers(run),
        "notes": facts.notes(run, points),
        "curves": embedded(points),
        "charts": charts_of(points.lines, run.task, loss_is_trained((run.task,))),
        "samples": samples.some(drawn),
        "allSamples": len(drawn),
        "presets": presets.compared(run.config, _recorded_presets(run.path)),
        "config": config_text(run.path),
        "commands": [
            *([("repeats it, into another folder", again)] if again else []),
            *((what, command) for what, command in next_commands(about, folder).items()),
        ],
        "surroundings": facts.surroundings(run),
    }


def folder_as_typed(path: Path) -> str:
    """Return a folder as it is typed here: relative, if it is not above."""
    relative = os.path.relpath(path)
    return str(path.absolute()) if relative.startswith("..") else relative


def repeating(environment: dict[str, Any]) -> str | None:
    """Return the command that makes a run again; None if it was not made by one."""
    command = environment.get("command")
    if not isinstance(command, list) or not command or Path(str(command[0])).name not in ("train.py", "gptlab"):
        return None
    words = [str(word) for word in command[1:]]
    kept = [shell_quoted(word) for word in words if not word.lstrip("+").startswith(PLACES)]
    return harmless(" ".join(["python -m gptlab.train", *kept]))


def config_text(run_dir: Path) -> str:
    """Return the run's config.yaml without its checksum."""
    content = read_bytes(run_dir / "config.yaml", directory.MAX_CONFIG_BYTES)
    return harmless(unseal(content, "config.yaml").decode(errors="replace"))


def _recorded_presets(run_dir: Path) -> dict[str, Any]:
    """Return the content of presets.json; empty if there is none, or it cannot be read."""
    try:
        return plain_tree(read_json(run_dir / directory.PRESETS), directory.PRESETS)
    except UserError:
        return {}
