"""One job of a sweep: a run in a folder that is named by what it varies and a hash of its config, and its state."""

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

Point = dict[str, str]  # what a job varies: the key of an override -> its value, as typed
LOG = "job.log"  # what the child prints, to be read when it has failed


def folder(root: Path, point: Point, names: dict[str, str], config_hash: str) -> Path:
    """Where the job lies: below `root`, under whatever name a job with this config has there already.

    The name holds nothing that a shell or Hydra's command line would take apart.
    """
    if root.is_dir():
        for path in root.iterdir():
            if path.name.endswith(f"+{config_hash}"):
                return path
    parts = [f"{names[key]}-{point[key]}" for key in sorted(point, key=lambda key: key == "seed")]  # that last
    if all(key == "seed" for key in point):
        parts.insert(0, "baseline")
    name = "+".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)
    return root / f"{name[:120]}+{config_hash}"


@dataclass(frozen=True, eq=False)
class Job:
    point: Point
    words: tuple[str, ...]
    """Its command line, but for its folder."""
    dir: Path
    max_steps: int

    @property
    def name(self) -> str:
        return self.dir.name.rpartition("+")[0]

    @property
    def config_hash(self) -> str:
        return self.dir.name.rpartition("+")[2]

    def summary(self) -> dict[str, Any] | None:
        """What the finished run says of itself; None if it has not finished."""
        return directory.read_summary(self.dir)

    def command(self) -> list[str]:
        """Goes on where the job was cut off, if it had come to a checkpoint."""
        place = "'" + str(self.dir).replace("\\", "\\\\").replace("'", "\\'") + "'"
        if directory.has_checkpoint(self.dir):
            moved = [word for word in self.words if word.lstrip("+").startswith(("data.dir=", "data.cache_dir="))]
            words = [f"resume={place}", *moved]
        else:
            words = [*self.words, f"hydra.run.dir={place}"]
        return [sys.executable, "-m", "gptlab.train", *words, "hydra.mode=RUN"]

    def prepare(self, about: dict[str, Any]) -> None:
        """Make the folder ready for a start; `about` the sweep goes into job.json, for the report.

        Raises:
            UserError: another process is in it, or it cannot be written.
        """
        with explain_write_errors(self.dir):
            self.dir.mkdir(parents=True, exist_ok=True)
        with directory.locked(self.dir), explain_write_errors(self.dir):
            if not directory.has_checkpoint(self.dir):  # the beginning of a run that cannot go on
                for path in self.dir.iterdir():
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    elif path.name != directory.LOCK:
                        path.unlink()
            (self.dir / "summary.json").unlink(missing_ok=True)  # a broken one
        self.describe(about)

    def describe(self, about: dict[str, Any]) -> None:
        write_json(self.dir / "job.json", {**about, "overrides": self.point})

    def rows(self) -> list[dict[str, str]]:
        """The curves so far; a row that is being written is left out."""
        path = self.dir / "metrics.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if row.get("step") and None not in row.values()]

    def last_lines(self, most: int = 8) -> list[str]:
        """The end of what the child has printed."""
        path = self.dir / LOG
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip()][-most:]
