"""What goes wrong in a run is said, nothing is lost, and nothing wrong is kept."""

from __future__ import annotations

import csv
import itertools
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from gptlab.formats import checkpoint
from gptlab.system.errors import UserError
from gptlab.training.module import LMModule
from tests.conftest import HARD, TINY
from tests.training.runs_compared import assert_same_run, rows
from tests.training.test_resume import Kill, interrupt

LONG = ("schedule.decay_steps=7", "data.micro_batch_size=3", "model.dropout=0.1")


class Spoil(L.Callback):
    """Makes a gradient infinite in optimizer step `step` (counted from 0)."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step in self.steps:
            assert isinstance(pl_module, LMModule)
            pl_module.model.h[1].mlp.c_proj.weight.grad[5, 7] = float("inf")


class Poison(L.Callback):
    """Makes a weight infinite before optimizer step `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            assert isinstance(pl_module, LMModule)
            with torch.no_grad():
                pl_module.model.h[1].mlp.c_proj.weight[5, 7] = float("inf")


def state(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read_checkpoint(path)["state_dict"]


def test_a_step_that_is_not_finite_stops_the_run_with_the_weights_from_before_it(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found out at the next point of the curves, steps later."""
    run(tmp_path / "before", *LONG, "trainer.max_steps=2")
    interrupt(monkeypatch, Spoil(2))
    with pytest.raises(UserError, match=r"the gradients of step 3 are not finite \(learning rate 0.00[0-9]+\)") as told:
        run(tmp_path / "bad", *LONG, "trainer.log_every=5", "trainer.val_every=20")
    file = tmp_path / "bad" / "nonfinite_step_3.ckpt"
    assert str(file) in str(told.value)
    before = state(tmp_path / "before" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(file).items())
    with (tmp_path / "bad" / "metrics.csv").open(newline="") as rows:
        assert [row["step"] for row in csv.DictReader(rows)] == ["0"]  # no point has a number that is none
    assert not (tmp_path / "bad" / "checkpoints" / "last.ckpt").exists()


def test_no_checkpoint_is_made_of_a_run_that_has_halted(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a validation comes before the next point of the curves."""
    interrupt(monkeypatch, Spoil(4))
    with pytest.raises(UserError, match="the gradients of step 5 are not finite"):
        run(tmp_path, *LONG, "trainer.log_every=20")
    assert checkpoint.read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_the_first_layer_that_went_bad_is_named_and_the_batch_is_kept(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, Poison(1))
    with pytest.raises(UserError, match=r"went bad: h.1.mlp.c_proj, forward\."):
        run(tmp_path, *LONG)
    content = checkpoint.read_checkpoint(tmp_path / "nonfinite_step_2.ckpt")
    model, tokenizer, info = checkpoint.load_checkpoint(tmp_path / "nonfinite_step_2.ckpt")
    assert info.step == 1
    assert len(content["batches"]) == 2
    for batch in content["batches"]:
        assert batch["idx"].shape == batch["targets"].shape == (3, 17)
        logits = model.train()(batch["idx"], noise=batch["noise"])
        assert not logits.isfinite().all()
        assert tokenizer.decode(batch["idx"][0].tolist())


def test_such_steps_can_be_left_out_and_are_counted(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(monkeypatch, Spoil(2, 3))
    keep = ("trainer.nonfinite=skip", "trainer.checkpoint_every=1", "trainer.keep_checkpoints=9")
    summary = run(tmp_path, *LONG, *keep)
    assert (summary["status"], summary["steps"], summary["skipped_steps"]) == ("finished", 7, 2)
    assert "step 4: 2 steps so far had no finite gradients and were left out" in caplog.text
    second, third, fourth, fifth = (tmp_path / "checkpoints" / f"step_{step}.ckpt" for step in (2, 3, 4, 5))
    for path in (third, fourth):
        assert all(torch.equal(tensor, state(second)[name]) for name, tensor in state(path).items())
        assert checkpoint.read_checkpoint(path)["optimizer_states"][0]["state"][0]["step"] == 2
    assert not torch.equal(state(fifth)["model.wte.weight"], state(fourth)["model.wte.weight"])
    with (tmp_path / "metrics.csv").open(newline="") as rows:
        losses = [float(row["train/loss"]) for row in csv.DictReader(rows) if row["train/loss"]]
    assert len(losses) == 7
    assert all(0 < loss < 5 for loss in losses)


class Cramped(L.Callback):
    """A device with room for so many sequences, from optimizer step `step` on."""

    def __init__(self, most: int, step: int = 0) -> None:
        self.most, self.step = most, step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, number: int) -> None:
        if len(batch[0]) > self.most and trainer.global_step >= self.step:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


AUTO = (*HARD, "data.micro_batch_size=auto")


@pytest.mark.parametrize("step", [0, 5])
def test_auto_halves_what_does_not_fit_and_the_result_is_the_same(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: int
) -> None:
    run(tmp_path / "known", *HARD, "data.micro_batch_size=1")
    interrupt(monkeypatch, Cramped(2, step))
    summary = run(tmp_path / "auto", *AUTO)
    assert summary["steps"] == 7
    assert "out of memory with 6 sequences at once: going on with 3, accumulated" in caplog.text
    assert "out of memory with 3 sequences at once: going on with 1, accumulated" in caplog.text
    if step == 0:
        assert_same_run(tmp_path / "auto", tmp_path / "known", "micro_batch_size", "config_hash")
    else:  # it went on from step 3, of which the first steps were made in one piece
        with (tmp_path / "auto" / "metrics.csv").open(newline="") as file:
            assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == list("1234567")
        assert summary["val/loss"] == pytest.approx(run(tmp_path / "more", *HARD)["val/loss"], abs=2e-5)


@pytest.mark.parametrize(
    ("micro", "most", "message"),
    [
        ("6", 2, r"out of memory with 6 sequences at once: try data.micro_batch_size=3, or auto"),
        ("null", 2, r"out of memory with 6 sequences at once: try data.micro_batch_size=3, or auto"),
        ("auto", 0, r"out of memory with 1 sequences at once: try a smaller model.block_size"),
    ],
)
def test_too_little_memory_is_said(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: str, most: int, message: str
) -> None:
    interrupt(monkeypatch, Cramped(most))
    with pytest.raises(UserError, match=message):
        run(tmp_path, f"data.micro_batch_size={micro}")


# Leaves a place that holds so many kilobytes a file, and trains there: the curves fit, TensorBoard's events do not.
FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
from gptlab import train
train.main()
"""


def test_a_disk_that_is_full_is_one_message(shell: Any, text_file: Path, tmp_path: Path, cache_dir: Path) -> None:
    words = (*TINY, "model=bigram", "trainer.max_steps=500", "trainer.val_every=400", "hydra.run.dir=run")
    small = [word for word in words if not word.startswith("model.n_")]
    prepared = (f"data.path='{text_file}'", f"data.cache_dir={cache_dir}")
    child = shell("-c", FULL, *small, *prepared)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 1, out + err
    assert err.count(f"error: cannot write in {tmp_path / 'run'}: File too large") == 1
    assert "free some space there, or choose another folder (hydra.run.dir=... for runs" in err
    assert "Traceback" not in out + err
    assert not list(tmp_path.glob("run/**/*.tmp"))


def test_a_clock_that_is_set_back_changes_nothing(
    run: Any,
    untouched: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: next(now))
    run(tmp_path, *HARD, "trainer.checkpoint_minutes=1")
    assert rows(tmp_path) == rows(untouched)
    assert (tmp_path / "samples.txt").read_text() == (untouched / "samples.txt").read_text()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert seconds == sorted(seconds)


def test_prepared_data_that_were_deleted_are_made_again(
    run: Any,
    untouched: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    interrupt(monkeypatch, Kill(7, signal.SIGTERM))
    with pytest.raises(SystemExit):
        run(tmp_path / "run", *HARD, cache)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "cache")
    run(tmp_path / "run", *HARD, cache, resume=True)
    assert_same_run(tmp_path / "run", untouched)


def test_another_tokenizer_is_refused(run: Any, tmp_path: Path) -> None:
    run(tmp_path / "run", f"data.cache_dir={tmp_path / 'cache'}")
    content = checkpoint.read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", mapped=False)
    characters = content["gptlab"]["tokenizer"]["chars"]
    content["gptlab"]["tokenizer"]["chars"] = characters[::-1]
    checkpoint.save_checkpoint(content, tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(
        UserError, match=r"the tokenizer is not the run's own \(tokenizer=char, \d+ in its vocabulary\)"
    ):
        run(tmp_path / "run", "trainer.max_steps=9", f"data.cache_dir={tmp_path / 'cache'}", resume=True)


@pytest.mark.parametrize(
    ("environment", "asked"),
    [({}, "requeue 42"), ({"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 17_3")],
)
def test_slurm_s_signal_puts_the_job_back_into_the_queue(
    run: Any,
    untouched: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    environment: dict[str, str],
    asked: str,
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"SLURM_JOB_ID": "42", **environment}.items():
        monkeypatch.setenv(name, value)
    interrupt(monkeypatch, Kill(7, signal.SIGUSR1))
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "run", *HARD)
    assert stopped.value.code == 138
    assert (tmp_path / "asked").read_text() == f"{asked}\n"
    assert "is back in SLURM's queue" in caplog.text
    monkeypatch.undo()
    run(tmp_path / "run", *HARD, resume=True)
    assert_same_run(tmp_path / "run", untouched)


def test_a_job_that_slurm_does_not_take_back_is_saved_all_the_same(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    interrupt(monkeypatch, Kill(4, signal.SIGUSR1))
    with pytest.raises(SystemExit):
        run(tmp_path / "run")
    assert "job 42 could not be put back into SLURM's queue: " in caplog.text
    assert checkpoint.read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 5
