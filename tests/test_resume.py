"""A run that was stopped and goes on is the run that nobody touched."""

from __future__ import annotations

import csv
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gptlab import fit as fit_module
from gptlab.errors import UserError

HARD = ("model.dropout=0.2", "data.micro_batch_size=2", "trainer.patience=50", "trainer.diagnose_every=2")
VOLATILE = {"seconds", "tokens_per_sec", "mfu"}


class Kill(L.Callback):
    """Sends this process a signal in the middle of micro-batch `batch_idx`."""

    def __init__(self, batch_idx: int, number: int) -> None:
        self.batch_idx = batch_idx
        self.number = number

    def on_before_backward(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx == self.batch_idx:
            os.kill(os.getpid(), self.number)


def interrupt(monkeypatch: pytest.MonkeyPatch, callback: L.Callback) -> None:
    """Let `callback` into the next run."""
    real = L.Trainer

    def trainer(**arguments: Any) -> L.Trainer:
        return real(**{**arguments, "callbacks": [*arguments["callbacks"], callback]})

    monkeypatch.setattr(fit_module.L, "Trainer", trainer)


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in VOLATILE} for row in csv.DictReader(file)]


def points(run_dir: Path) -> dict[str, Any]:
    """Of each tag what TensorBoard shows: (step, value), without what depends on the clock."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tags, shown = events.Tags(), {}
    for tag in tags["scalars"]:  # two files of one second may be read in either order
        series = sorted(events.Scalars(tag), key=lambda event: event.wall_time)
        shown[tag] = [(event.step, event.value) for event in series]
    for tag in tags["tensors"]:
        shown[tag] = [(event.step, event.tensor_proto.string_val[:]) for event in events.Tensors(tag)]
    for tag, series in shown.items():
        if tag in VOLATILE:
            shown[tag] = [step for step, _ in series]
        if tag.endswith("_by_seconds"):
            assert [x for x, _ in series] == sorted(x for x, _ in series)
            shown[tag] = [value for _, value in series]
    return shown


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same_run(a: Path, b: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        left, right = (torch.load(d / "checkpoints" / name, weights_only=True) for d in (a, b))
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "training"):
            assert equal(left[key], right[key]), (name, key)
    assert rows(a) == rows(b)
    assert points(a) == points(b)
    assert (a / "samples.txt").read_text() == (b / "samples.txt").read_text()


@pytest.fixture(scope="module")
def untouched(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("untouched")
    run(run_dir, *HARD)
    return run_dir


# Three micro-batches a step and a validation after steps 3, 6 and 7: batch 4 is mid-accumulation before a step that
# does not validate, batch 7 before one that does, 12 the first of a step.
@pytest.mark.parametrize(("batch_idx", "number"), [(4, signal.SIGINT), (7, signal.SIGTERM), (12, signal.SIGTERM)])
def test_a_stopped_run_goes_on_bit_for_bit(
    run: Any,
    untouched: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_idx: int,
    number: int,
) -> None:
    interrupt(monkeypatch, Kill(batch_idx, number))
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, *HARD)
    assert stopped.value.code == 128 + number
    assert not (tmp_path / "summary.json").exists()
    monkeypatch.undo()

    torch.manual_seed(999)  # what the process did before must not matter
    run(tmp_path, *HARD, resume=True)
    assert_same_run(tmp_path, untouched)


def test_a_run_that_lost_its_last_steps_writes_no_step_twice(
    run: Any, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after SIGKILL: curves and samples are ahead of the checkpoint, and the last line is torn."""

    class PowerCut(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 5:
                with (tmp_path / "metrics.csv").open("a") as file:
                    file.write("1")
                with (tmp_path / "samples.txt").open("a") as file:
                    file.write("--- step 6\nof a valida")
                raise RuntimeError("the power is out")

    interrupt(monkeypatch, PowerCut())
    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path, *HARD)
    monkeypatch.undo()
    assert rows(tmp_path)[-2]["step"] == "5"

    run(tmp_path, *HARD, resume=True)
    assert_same_run(tmp_path, untouched)


def test_a_finished_run_can_go_further(run: Any, tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match=r"has made its 7 steps; add trainer.max_steps=N"):
        run(tmp_path, resume=True)
    summary = run(tmp_path, "trainer.max_steps=9", resume=True)
    assert summary["steps"] == 9
    assert [row["step"] for row in rows(tmp_path) if row["val/loss"]] == ["0", "3", "6", "7", "9"]


def test_a_signal_in_the_last_step_lets_the_run_finish(
    run: Any, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, Kill(19, signal.SIGTERM))
    assert run(tmp_path, *HARD)["status"] == "finished"
    assert_same_run(tmp_path, untouched)


def test_a_run_killed_before_its_summary_gets_it_when_resumed(run: Any, tmp_path: Path) -> None:
    first = run(tmp_path)
    (tmp_path / "summary.json").unlink()
    again = run(tmp_path, resume=True)
    for key in ("status", "val/loss", "best_val_loss", "best_step", "train/loss", "steps", "train_seconds"):
        assert again[key] == first[key]


def test_a_stopped_resume_leaves_no_old_summary(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    interrupt(monkeypatch, Kill(7, signal.SIGTERM))
    with pytest.raises(SystemExit):
        run(tmp_path, "trainer.max_steps=9", resume=True)
    assert not (tmp_path / "summary.json").exists()


def test_another_text_is_refused_and_the_run_stays_as_it_was(run: Any, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    other = tmp_path / "other.txt"
    other.write_text("something else entirely\n" * 99)
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"the text has changed since .* give the run's own text as data.path="):
        run(tmp_path / "run", f"data.path='{other}'", "trainer.max_steps=9", "model.dropout=0.1", resume=True)
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    assert (tmp_path / "run" / "summary.json").exists()
