"""Jobs of a sweep whose children do not train: they leave what a run leaves, or fail, or wait. Needs no torch."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from gptlab.sweeps.jobs import Job
from gptlab.sweeps.launchers import Local
from gptlab.sweeps.plans import FixedPlan
from gptlab.sweeps.runner import Sweep

# What a training run leaves, without training: a line in `starts`, validations, a summary; or a failure.
CHILD = """
import csv, json, signal, sys, time
from pathlib import Path
folder, ending = Path(sys.argv[1]), sys.argv[2]
with (folder.parent / "starts").open("a") as file:
    file.write(folder.name + "\\n")
if ending == "fails":
    print("loading", flush=True); print("error: it is wrong", file=sys.stderr); sys.exit(1)
if ending == "dies":
    import os; os.kill(os.getpid(), signal.SIGKILL)
def stop(number, frame):
    (folder / "told").write_text(str(number)); sys.exit(128 + number)
signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)
loss = float(ending) if ending != "waits" else 1.0
with (folder / "metrics.csv").open("w") as file:
    file.write("step,val/loss,val/bpb\\n")
    for step in range(1, 4):
        file.write(f"{step},{loss + 3 - step},{2 * (loss + 3 - step)}\\n"); file.flush()
if ending == "waits" or loss > 50:
    if (bell := folder.parent / "bell").exists():
        bell.write_text("!")
    signal.pause()
summary = {"status": "finished", "steps": 3, "val/loss": loss, "val/bpb": 2 * loss, "best_val_loss": loss}
(folder / "summary.json").write_text(json.dumps(summary))
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Fake(Job):
    """A job whose child does what `ending` says."""

    ending: str = "1.0"

    def command(self) -> list[str]:
        return [sys.executable, "-c", CHILD, str(self.dir), self.ending]


def fake(root: Path, name: str, ending: str) -> Fake:
    return Fake({"x": name}, (), root / f"x-{name}+{name}", 3, ending)


def sweep(root: Path, *endings: str, at_once: int = 2) -> Sweep:
    plan = FixedPlan([fake(root, str(number), ending) for number, ending in enumerate(endings)])
    return Sweep(plan, Local(at_once), {"sweep": "test", "baseline": {"x": "0"}}, root)
