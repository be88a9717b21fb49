"""A run that was killed at random moments is the run that nobody touched; and the comparison would notice if not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.system.files import read_json, write_json
from tests.training.runs_compared import differences

FORKS = pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has imported torch")


def assert_survives(shell: Any, kills: int, variant: str, seed: int) -> None:
    words = "--kills", str(kills), "--variant", variant, "--seed", str(seed)
    process = shell("-m", "tests.training.torture", *words)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, out + err
    assert f"\n{kills} kills" in out
    assert "the same run as the untouched one, to the bit" in out


@FORKS
def test_a_run_killed_eight_times_is_the_untouched_run(shell: Any) -> None:
    assert_survives(shell, 8, "gpt", 6)


@FORKS
@pytest.mark.slow
@pytest.mark.parametrize("task", ["sft", "lora", "dpo", "ppo", "grpo"])
def test_a_run_of_a_task_killed_twenty_times_is_the_untouched_run(shell: Any, task: str) -> None:
    assert_survives(shell, 20, task, 3)


def one_bit(run_dir: Path) -> None:
    path = run_dir / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["model.wpe.weight"].view(torch.int32)[3, 5] ^= 1
    torch.save(content, path)


def one_moment(run_dir: Path) -> None:
    path = run_dir / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    content["optimizer_states"][0]["state"][0]["exp_avg"][0] += 1
    torch.save(content, path)


def one_digit(run_dir: Path) -> None:
    lines = (run_dir / "metrics.csv").read_text().split("\n")
    lines[3] = lines[3].replace(".", ".1", 2)
    (run_dir / "metrics.csv").write_text("\n".join(lines))


def one_row_twice(run_dir: Path) -> None:
    lines = (run_dir / "metrics.csv").read_text().split("\n")
    (run_dir / "metrics.csv").write_text("\n".join([*lines[:3], lines[2], *lines[3:]]))


def a_torn_event(run_dir: Path) -> None:
    (path,) = run_dir.glob("events.out.*")
    path.write_bytes(path.read_bytes()[:-9])


def one_letter(run_dir: Path) -> None:
    path = run_dir / "samples.txt"
    path.write_text(path.read_text().replace("step 3", "step 4"))


def the_summary(run_dir: Path) -> None:
    write_json(run_dir / "summary.json", read_json(run_dir / "summary.json") | {"best_step": 6})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (one_bit, "last.ckpt.state_dict.model.wpe.weight: 1 of 561 numbers differ"),
        (one_moment, "best.ckpt.optimizer_states[0].state.0.exp_avg: "),
        (one_digit, "metrics.csv[2]."),
        (one_row_twice, "metrics.csv: "),
        (a_torn_event, "TensorBoard."),
        (one_letter, "samples.txt["),
        (the_summary, "summary.json.best_step: 7 and 6"),
    ],
)
def test_the_smallest_difference_is_seen(
    trained: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    assert list(differences(trained, tmp_path / "run")) == []
    damage(tmp_path / "run")
    found = list(differences(trained, tmp_path / "run"))
    assert found
    assert found[0].startswith(said)
