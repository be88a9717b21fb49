"""Against the plain loop that a nanoGPT user has: minutes long, on the real text."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests import reference_loop

pytestmark = pytest.mark.slow


def test_a_step_costs_no_more_than_in_the_plain_loop(data_dir: Path) -> None:
    pairs = [
        (reference_loop.reference_step(data_dir, 200), reference_loop.gptlab_step(data_dir, 200)) for _ in range(3)
    ]
    assert statistics.median(ours / reference for reference, ours in pairs) <= 1.05


def test_nanogpts_cpu_run_reaches_its_loss(command: Any, data_dir: Path, tmp_path: Path) -> None:
    result = command(
        "train", "experiment=nanogpt_char_cpu", f"data.dir={data_dir}", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["val/loss"] <= 1.92
