"""Find run directories and read each as a record, or say why it cannot be read."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.runs import directory
from gptlab.runs.identity import does, flatten, row
from gptlab.runs.upgrades import NEW
from gptlab.system.errors import UserError
from gptlab.system.files import plain_tree, read_bytes, read_json
from gptlab.system.terminal import harmless, pasteable

if TYPE_CHECKING:
    import pandas as pd

MARKS = {"config.yaml", "summary.json", "job.json"}  # any of them makes a folder a run's
NEEDED = ("val/loss", "train/loss", "steps", "tokens", "parameters", "flops", "train_seconds", "seed")


@dataclass(frozen=True)
class Run:
    """A finished run; the keys of its nested dicts are joined by dots: "model.n_head", "data.sha256".

    Args:
        typed: the overrides from its sweep or its command line, without those that only name or place the run.
        baseline: the overrides of its sweep's baseline; None outside of a sweep.
        searched: whether the run is a trial of a search, which has no baseline.
    """

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    environment: dict[str, Any]
    typed: dict[str, Any]
    baseline: dict[str, Any] | None
    searched: bool = False

    @property
    def task(self) -> str:
        """The name of its task; runs of older versions have one only."""
        return str(self.config.get("task.name", NEW["task"]["name"]))

    @property
    def facts(self) -> dict[str, Any]:
        """The keys that published figures are looked up by: the config and the experiment's name."""
        return {"experiment": self.typed.get("experiment", self.config.get("name")), **self.config}


@dataclass(frozen=True)
class LeftOut:
    """A run directory that the report does not use, and why."""

    path: Path
    why: str


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the run directories among and below `paths`, each once.

    Raises:
        UserError: a path is not a folder.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give run directories, or a folder that has some below it")
        for folder, below, files in os.walk(path):
            if MARKS & set(files):
                below.clear()
                found.setdefault(Path(folder).resolve(), Path(folder))
            below.sort()
    return list(found.values())


def is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in MARKS)


def read_run(path: Path) -> Run:
    """Read one finished run.

    Raises:
        UserError: the run has not finished, or its files cannot be read; the message does not repeat the path.
    """
    if not (path / "config.yaml").is_file():
        raise UserError("has not begun: there is no config.yaml")
    config = flatten(directory.read_config(path / "config.yaml"))
    if not (path / "summary.json").is_file():
        raise UserError(_unfinished(path, config))
    summary = flatten(plain_tree(read_json(path / "summary.json", must_be_sealed=False), "summary.json"))
    made = summary.get("format", 1)
    if not isinstance(made, int) or made > directory.SUMMARY_FORMAT:
        raise UserError(
            f"was written by a newer gptlab (summary format {made}, this one reads {directory.SUMMARY_FORMAT}): "
            f"update gptlab"
        )
    lacking = [key for key in (*NEEDED, "data.sha256") if key not in summary]
    if lacking:
        raise UserError(f"summary.json lacks {', '.join(lacking)}")
    wrong = [key for key in NEEDED if not isinstance(summary[key], int | float) or isinstance(summary[key], bool)]
    if wrong:
        raise UserError(f"summary.json: {wrong[0]} is {summary[wrong[0]]!r}, not a number")
    environment, job = (_read_json_or_empty(path / name) for name in ("environment.json", "job.json"))
    baseline = _comparable_values(job["baseline"], {"data.path"}) if isinstance(job.get("baseline"), dict) else None
    searched = "baseline" in job and job["baseline"] is None
    return Run(path, config, summary, environment, _typed_overrides(job, environment), baseline, searched)


def _read_json_or_empty(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; an empty dict if the file is missing or cannot be read."""
    try:
        return plain_tree(read_json(path, must_be_sealed=False), path.name)
    except UserError:
        return {}


def _unfinished(path: Path, config: dict[str, Any]) -> str:
    curve = read_curves(path)
    where = f"at step {curve.index[-1]} of {config.get('trainer.max_steps', '?')}" if len(curve) else "no step yet"
    if (path / "job.json").is_file():
        return f"has not finished ({where}): the same sweep goes on with it"
    goes_on = f"{pasteable('resume', str(path))} goes on" if directory.has_checkpoint(path) else "start it anew"
    return f"has not finished ({where}): {goes_on}"


def read_curves(path: Path) -> pd.DataFrame:
    """Return the numbers of a run's metrics.csv, indexed by step; an empty frame if none can be read."""
    import pandas as pd  # which the page at the end of a run goes without

    try:
        frame = pd.read_csv(io.BytesIO(read_bytes(path / "metrics.csv")), on_bad_lines="skip")
        frame = frame.apply(pd.to_numeric, errors="coerce").dropna(subset="step")
        return frame.set_index(frame["step"].astype(int)).drop(columns="step")
    except (OSError, ValueError, KeyError):  # pandas' own errors are ValueErrors
        return pd.DataFrame()


def affects_result(key: str) -> bool:
    """Return whether a config key affects what a run computes; recipe keys are skipped, other keys repeat them."""
    group = key.partition(".")[0]
    return key != "seed" and group not in ("recipe", "sweep", "hydra") and (not row(key) or does(key, "computes"))


def _typed_overrides(job: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """Return the overrides of a sweep's job, or else of the command line, as comparable values."""
    if isinstance(job.get("overrides"), dict):
        return _comparable_values(job["overrides"], {"data.path"})  # a sweep over texts varies data.path
    command = environment.get("command")
    words = list(map(str, command[1:])) if isinstance(command, list) else []
    if {"-m", "--multirun"} & set(words):  # the overrides of all jobs, not of this one
        return {}
    return _comparable_values(dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("-")))


def _comparable_values(overrides: dict[str, Any], kept: Collection[str] = ()) -> dict[str, Any]:
    """{"+seed": "1", "model.n_head": "4"} -> {"model.n_head": 4}."""
    plain = {key.lstrip("+~"): text for key, text in overrides.items()}
    relevant = {key for key in plain if affects_result(key) or key in kept or key.startswith("recipe.")}
    return {key: comparable_value(text) for key, text in plain.items() if key in relevant}


def comparable_value(given: Any) -> int | float | str:
    """Return numbers as numbers, however they were written ("1e-3", 0.001), and anything else as it would be typed."""
    if isinstance(given, bool) or given is None:
        return {True: "true", False: "false", None: "null"}[given]
    if isinstance(given, int | float):
        return given
    if isinstance(given, list):
        return f"[{','.join(str(comparable_value(each)) for each in given)}]"
    for kind in (int, float):
        with suppress(ValueError):
            number = kind(given)
            if math.isfinite(number) and "_" not in str(given):  # nan and 1_000 are words
                return number
    return harmless(str(given).replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t"))


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[LeftOut]]:
    """Read the finished runs; the others are left out.

    Raises:
        UserError: there is no such run.
    """
    found: list[Run] = []
    left_out: list[LeftOut] = []
    for path in find_runs(paths):
        try:
            found.append(read_run(path))
        except UserError as error:
            left_out.append(LeftOut(path, str(error)))
    if not found:
        where = ", ".join(map(str, paths[:3])) + (" ..." if len(paths) > 3 else "")
        why = "".join(f"\n  {each.path}: {each.why}" for each in left_out[:10])
        raise UserError(f"{where}: no finished run there; a run lies in outputs/<name>/<time>{why}")
    return found, left_out
