"""Several processes are one run: the same losses, the same files, one voice."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab import checkpoint, processes
from gptlab.errors import UserError
from tests.conftest import ROOT, TINY

TWO = ("trainer.accelerator=cpu", "trainer.diagnose_every=3")
STRATEGIES = {"one": (), "ddp": ("trainer.devices=2", "trainer.strategy=ddp"), "fsdp": ("trainer.strategy=fsdp",)}


def curve(run_dir: Path, key: str = "train/loss") -> list[float]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row[key]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def assert_same_run(a: Path, b: Path) -> None:
    """To 1e-5, which is what the order of summation may change."""
    for key in ("train/loss", "val/loss", "grad_norm", "lr"):
        assert curve(a, key) == pytest.approx(curve(b, key), abs=1e-5)
    assert (a / "samples.txt").read_text() == (b / "samples.txt").read_text()
    one, two = (checkpoint.read(path / "checkpoints" / "last.ckpt") for path in (a, b))
    assert list(one["state_dict"]) == list(two["state_dict"])
    for key, tensor in one["state_dict"].items():
        assert type(two["state_dict"][key]) is torch.Tensor
        torch.testing.assert_close(two["state_dict"][key], tensor, atol=1e-4, rtol=0)
    mine, other = one["optimizer_states"][0], two["optimizer_states"][0]
    assert mine["param_groups"] == other["param_groups"]
    assert mine["state"].keys() == other["state"].keys()
    for number, values in mine["state"].items():
        assert values.keys() == other["state"][number].keys()
        for key, tensor in values.items():
            torch.testing.assert_close(other["state"][number][key], tensor, atol=1e-4, rtol=0)


@pytest.fixture
def arguments(text_file: Path, cache_dir: Path) -> tuple[str, ...]:
    """Of a tiny run on the small text."""
    return (*TINY, f"data.path='{text_file}'", f"data.cache_dir='{cache_dir}'", *TWO)


@pytest.fixture
def together(tmp_path: Path) -> Any:
    """together([[0, "model=..."], ...]) makes these runs in two processes of torchrun; returns (code, stdout, stderr)."""

    def together(runs: list[list[Any]], srun: bool = False, seconds: int = 200) -> tuple[int, str, str]:
        (tmp_path / "runs.json").write_text(json.dumps(runs))
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
        torchrun += ["--rdzv-endpoint=localhost:0", "-m", "tests.several_runs", "runs.json"]
        done = subprocess.run(torchrun, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=seconds)
        return done.returncode, done.stdout, done.stderr

    return together


def test_ddp_and_fsdp_compute_what_one_process_does(
    together: Any, run: Any, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """And go on with each other's checkpoints."""
    run(tmp_path / "one", *TWO)
    half = ("trainer.max_steps=3", "schedule.decay_steps=7")
    run(tmp_path / "half", *TWO, *half)
    for name in ("one-ddp", "one-fsdp"):
        shutil.copytree(tmp_path / "half", tmp_path / name)
    code, stdout, stderr = together(
        [
            [0, *arguments, "trainer=ddp", "hydra.run.dir=ddp"],
            [0, *arguments, "trainer=fsdp", "hydra.run.dir=fsdp"],
            [0, *arguments, "trainer=fsdp", "hydra.run.dir=fsdp-one", *half],
            [0, "resume=one-ddp", "trainer.max_steps=7", "trainer.devices=auto", "trainer.strategy=ddp"],
            [0, "resume=one-fsdp", "trainer.max_steps=7", "trainer.devices=auto", "trainer.strategy=fsdp"],
        ]
    )
    assert code == 0, stderr
    run(tmp_path / "fsdp-one", *TWO, resume=True)
    for name in ("ddp", "fsdp", "one-ddp", "one-fsdp", "fsdp-one"):
        assert_same_run(tmp_path / name, tmp_path / "one")
    assert stdout.count("finished after 7 steps") == 4  # one process speaks
    summary = json.loads((tmp_path / "fsdp" / "summary.json").read_text())
    assert (summary["devices"], summary["tokens"]) == (2, 7 * 6 * 17)
    model, _, _ = checkpoint.load(tmp_path / "fsdp")
    assert model.lm_head.weight is model.wte.weight
