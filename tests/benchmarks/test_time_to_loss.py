"""Against the plain loop that a nanoGPT user has: minutes long, on the real text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptlab.benchmarks import time_to_loss

pytestmark = pytest.mark.slow


def test_a_step_costs_no_more_than_in_the_plain_loop(command: Any, data_dir: Path) -> None:
    result = command("bench", "experiment=nanogpt_char_cpu", f"data.dir={data_dir}", "--against", "loop", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["time_ratio"]["median"] <= 1.05


def test_nanogpts_cpu_run_reaches_its_loss(command: Any, data_dir: Path, tmp_path: Path) -> None:
    result = command(
        "train", "experiment=nanogpt_char_cpu", f"data.dir={data_dir}", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["val/loss"] <= 1.92


@pytest.mark.usefixtures("data_dir")
def test_a_speedrun_is_there_in_a_third_of_the_loops_time() -> None:
    ((ratio, loss, reference),) = time_to_loss.race(time_to_loss.RATE, 1)
    assert loss <= reference <= 1.93
    assert ratio <= 1 / 3
