"""One job of a sweep: a run in a folder that is named by the keys it varies and by a hash of its config."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.runs import directory
from gptlab.system.files import explain_write_errors, write_json
from gptlab.system.terminal import single_quoted

Point = dict[str, str]  # the overrides that a job varies: key -> value, as typed
LOG = "job.log"  # the output of the job's process


def job_folder(root: Path, point: Point, names: dict[str, str], config_hash: str) -> Path:
    """Return the job's folder below `root`: an existing one with this config hash, whatever its name, or a new one.

    The name has no characters that a shell or Hydra's command line would interpret.
    """
    if root.is_dir():
        for path in root.iterdir():
            if path.name.endswith(f"+{config_hash}"):
                return path
    parts = [f"{names[key]}-{point[key]}" for key in sorted(point, key=lambda key: key == "seed")]  # seed last
    if all(key == "seed" for key in point):
        parts.insert(0, "baseline")
    name = "+".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)
    return root / f"{name[:120]}+{config_hash}"


@dataclass(frozen=True, eq=False)
class Job:
    """A run of a sweep: the values it varies, its command line and its folder."""

    point: Point
    words: tuple[str, ...]
    """The job's command line without its folder."""
    dir: Path
    max_steps: int

    @property
    def name(self) -> str:
        return self.dir.name.rpartition("+")[0]

    @property
    def config_hash(self) -> str:
        return self.dir.name.rpartition("+")[2]

    def summary(self) -> dict[str, Any] | None:
        """Return the run's summary; None if it has not finished."""
        return directory.read_summary(self.dir)

    def command(self) -> list[str]:
        """Return the command that runs the job, or resumes it if it has a checkpoint."""
        place = single_quoted(str(self.dir))
        if directory.has_checkpoint(self.dir):
            moved = [word for word in self.words if word.lstrip("+").startswith(("data.dir=", "data.cache_dir="))]
            words = [f"resume={place}", *moved]
        else:
            words = [*self.words, f"hydra.run.dir={place}"]
        return [sys.executable, "-m", "gptlab.train", *words, "hydra.mode=RUN"]

    def prepare(self, about: dict[str, Any]) -> None:
        """Prepare the folder for a start.

        Args:
            about: the sweep's name and baseline; job.json keeps them for the report.

        Raises:
            UserError: another process uses the folder, or it cannot be written.
        """
        with explain_write_errors(self.dir):
            self.dir.mkdir(parents=True, exist_ok=True)
        with directory.locked(self.dir), explain_write_errors(self.dir):
            if not directory.has_checkpoint(self.dir):  # leftovers of a run that cannot be resumed
                for path in self.dir.iterdir():
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    elif path.name != directory.LOCK:
                        path.unlink()
            (self.dir / "summary.json").unlink(missing_ok=True)  # an unreadable one
        self.describe(about)

    def describe(self, about: dict[str, Any]) -> None:
        """Write job.json: `about` the sweep, and what this job varies."""
        write_json(self.dir / "job.json", {**about, "overrides": self.point})

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of metrics.csv so far, without a row that is still being written."""
        path = self.dir / "metrics.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if row.get("step") and None not in row.values()]

    def last_lines(self, most: int = 8) -> list[str]:
        """Return the last `most` lines of the job's output that are not blank."""
        path = self.dir / LOG
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip()][-most:]
