"""Chapter 7: steps to a loss are read off a run's curve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptlab.lessons import chapter_07_speed as chapter
from gptlab.system.errors import UserError


def run_with(folder: Path, name: str, losses: dict[int, float]) -> None:
    """Make a finished run of these validation losses by step."""
    (folder / name).mkdir(parents=True)
    rows = [f"{step},{loss}" for step, loss in losses.items()]
    (folder / name / "metrics.csv").write_text("\n".join(["step,val/loss", *rows, ""]))
    last = [*losses.values()][-1]
    summary = {"status": "finished", "steps": [*losses][-1], "val/loss": last, "best_val_loss": min(losses.values())}
    (folder / name / "summary.json").write_text(json.dumps(summary))


def test_steps_to_the_goal_lie_on_the_line_between_two_validations(tmp_path: Path) -> None:
    run_with(tmp_path, "muon", {100: 2.1, 200: 1.95, 300: 1.85, 400: 1.95})
    assert chapter.steps_to_goal("muon")(tmp_path) == pytest.approx(250)


def test_the_first_validation_may_be_below_already(tmp_path: Path) -> None:
    run_with(tmp_path, "muon", {100: 1.8, 200: 1.7})
    assert chapter.steps_to_goal("muon")(tmp_path) == 100


def test_a_run_that_does_not_get_there_is_an_error_that_says_where_it_ended(tmp_path: Path) -> None:
    run_with(tmp_path, "muon", {100: 2.1, 200: 1.9512})
    with pytest.raises(UserError, match=r"val/loss does not come down to 1\.9; the last is 1\.9512"):
        chapter.steps_to_goal("muon")(tmp_path)


def test_seconds_are_steps_times_seconds_a_step(tmp_path: Path) -> None:
    run_with(tmp_path, "muon", {100: 2.0, 200: 1.8})
    run_with(tmp_path, "adamw", {300: 2.0, 400: 1.8})
    for name, seconds in (("manual", 0.06), ("bf16", 0.02)):
        content = {"sides": {"gptlab": {"step_seconds": {"p10": seconds}}}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert chapter.RUNGS["bf16"].seconds(tmp_path, "bf16") == pytest.approx(150 * 0.02)
    assert chapter.seconds_saved(tmp_path) == pytest.approx(350 * 0.06 / (150 * 0.02))
    assert chapter.times_as_long("bf16", "manual")(tmp_path) == pytest.approx(1 / 3)
