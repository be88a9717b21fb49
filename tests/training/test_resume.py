"""A run that was stopped and goes on is the run that nobody touched."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from gptlab.formats import checkpoint
from gptlab.runs import directory
from gptlab.runs.upgrades import NEW
from gptlab.system.errors import UserError
from gptlab.training.callbacks import checkpoints
from tests.conftest import HARD, TINY
from tests.training.runs_compared import assert_same_run, rows


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

    monkeypatch.setattr(L, "Trainer", trainer)


def goes_on(train: Any, folder: Path, words: Sequence[str], batch_idx: int, number: int = signal.SIGTERM) -> Path:
    """Train a run, and one that is stopped in a micro-batch and goes on: they are the same, to the bit.

    Args:
        train: train(run_dir, *words, resume=...).

    Returns:
        The folder of the first.
    """
    whole, stopped = folder / "whole", folder / "stopped"
    train(whole, *words)
    with pytest.MonkeyPatch.context() as patched:
        interrupt(patched, Kill(batch_idx, number))
        with pytest.raises(SystemExit) as end:
            train(stopped, *words)
    assert end.value.code == 128 + number
    torch.manual_seed(999)  # what the process did before must not matter
    train(stopped, *words, resume=True)
    assert_same_run(stopped, whole)
    return whole


class KillInTest(L.Callback):
    """Sends this process Ctrl-C in the measuring of the test part."""

    def on_test_batch_start(self, *args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_in_the_test_says_how_to_go_on(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("data.test_fraction=0.1", "trainer.max_steps=2", "trainer.val_every=2")
    with monkeypatch.context() as patched:
        interrupt(patched, KillInTest())
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", *words)
    assert "stopped before the test part was measured; go on with: python -m gptlab.train resume=" in caplog.text
    assert not (tmp_path / "run" / "summary.json").exists()
    assert "test/loss" in run(tmp_path / "run", *words, resume=True)


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


VARIANTS = {
    "bf16": ("precision=bf16",),
    "bf16_true": ("precision=bf16_true",),
    "compiled": ("compile=inductor", "compile.backend=aot_eager", "model.n_layer=1"),
    "recomputed": ("model.gradient_checkpointing=true", "arch=modern", "model.n_embd=36"),
    "constant": ("schedule=constant", "optim.grad_clip=0", "model.attention=per_head"),
    "deterministic": ("deterministic=true", "arch=llama", "model.n_embd=36"),
    "overfit": ("data.overfit_batches=2",),
    "muon": ("optim=muon", "schedule=wsd"),
    "muon in bf16": ("optim=muon", "precision=bf16_true", "arch=llama", "model.n_embd=36", "model.n_kv_head=1"),
    "averaged": ("trainer.ema=0.9", "schedule=linear", "data.test_fraction=0.1"),
    "muon averaged": ("optim=muon", "trainer.ema=0.9", "precision=bf16", "trainer.checkpoint_every=1"),
    "one at a time": ("data.micro_batch_size=1", "trainer.checkpoint_every=1"),
}


SLOW = ("bf16", "muon in bf16")  # without bf16 in the processor; two others have it, too


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in VARIANTS])
def test_so_does_every_kind_of_run(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    words = (*HARD, "trainer.max_steps=5", "trainer.val_every=2", "schedule.decay_steps=5", *VARIANTS[name])
    torch._dynamo.reset()
    run(tmp_path / "untouched", *words)
    interrupt(monkeypatch, Kill(17 if name == "one at a time" else 8, signal.SIGTERM))
    with pytest.raises(SystemExit):
        run(tmp_path / "stopped", *words)
    monkeypatch.undo()
    torch._dynamo.reset()
    run(tmp_path / "stopped", *words, resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "untouched")


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


def test_checkpoints_come_every_so_many_steps_and_the_last_ones_are_kept(run: Any, tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_steps=11", "trainer.checkpoint_every=2", "trainer.keep_checkpoints=3")
    folder = tmp_path / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"last.ckpt", "step_10.ckpt", "step_9.ckpt", "best.ckpt"}
    for path, step in (("last.ckpt", 11), ("step_10.ckpt", 10), ("step_9.ckpt", 9)):
        assert checkpoint.read_checkpoint(folder / path)["global_step"] == step


def test_checkpoints_come_after_so_many_minutes(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that nobody sets: here every look at it is a minute."""
    minutes = itertools.count(0, 60)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: next(minutes)))
    written: list[int] = []

    class Watch(L.Callback):
        def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
            written.append(trainer.global_step)

    interrupt(monkeypatch, Watch())
    run(tmp_path, "trainer.val_every=100", "trainer.max_steps=20", "trainer.checkpoint_minutes=5.5")
    assert list(dict.fromkeys(written)) == [6, 12, 18, 20]


def broken(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 64
    path.write_bytes(data)


def test_a_broken_checkpoint_is_passed_over_for_the_one_before_it(
    run: Any, untouched: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(untouched, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    broken(tmp_path / "checkpoints" / "last.ckpt")
    run(tmp_path, *HARD, resume=True)
    assert f"{tmp_path / 'checkpoints' / 'last.ckpt'} is broken: its contents do not have the checksum" in caplog.text
    assert f"going on from {tmp_path / 'checkpoints' / 'step_6.ckpt'}, of step 6" in caplog.text
    assert_same_run(tmp_path, untouched)


def test_where_no_checkpoint_is_whole_nothing_is_done(run: Any, untouched: Path, tmp_path: Path) -> None:
    shutil.copytree(untouched, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "checkpoints").iterdir():
        broken(path)
    before = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(UserError, match=r"last.ckpt is broken.*\n.*step_6.ckpt is broken.*\n.*best.ckpt is broken"):
        run(tmp_path, *HARD, resume=True)
    assert (tmp_path / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("moment", ["on_sanity_check_start", "on_train_start"])
def test_a_run_killed_before_its_first_checkpoint_begins_anew_in_its_folder(
    run: Any, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def die(self: L.Callback, *args: Any) -> None:
        raise RuntimeError("the power is out")

    interrupt(monkeypatch, type("PowerCut", (L.Callback,), {moment: die})())
    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path, *HARD)
    monkeypatch.undo()
    run(tmp_path, *HARD, resume=True)
    assert_same_run(tmp_path, untouched)


@pytest.mark.parametrize("micro", [(2, 6), (6, 1), (3, 2)])
def test_a_run_goes_on_with_other_micro_batches(
    run: Any, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: tuple[int, int]
) -> None:
    """The same data and the same dropout in the same order: losses differ by the order of sums."""
    first, then = (f"data.micro_batch_size={size}" for size in micro)
    interrupt(monkeypatch, Kill(6 // micro[0] * 4, signal.SIGTERM))
    with pytest.raises(SystemExit):
        run(tmp_path, *HARD, first)
    monkeypatch.undo()
    run(tmp_path, *HARD, then, resume=True)
    assert [row["step"] for row in rows(tmp_path)] == [row["step"] for row in rows(untouched)]
    for ours, theirs in zip(rows(tmp_path), rows(untouched), strict=True):
        for key in ("train/loss", "val/loss", "grad_norm"):
            assert (ours[key] == theirs[key] == "") or float(ours[key]) == pytest.approx(float(theirs[key]), abs=2e-5)


def test_a_run_killed_when_it_had_stopped_early_stays_stopped(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = ("trainer.patience=1", "trainer.max_steps=99", "optim.lr=0.3", "trainer.log_every=2")
    run(tmp_path / "untouched", *early)

    class PowerCut(L.Callback):
        def on_train_end(self, *args: Any) -> None:
            raise RuntimeError("the power is out")

    interrupt(monkeypatch, PowerCut())
    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path / "killed", *early)
    monkeypatch.undo()
    summary = run(tmp_path / "killed", *early, resume=True)
    assert summary["status"] == "stopped_early"
    assert_same_run(tmp_path / "killed", tmp_path / "untouched")
    with pytest.raises(UserError, match=r"has stopped early after \d+ steps; add trainer.patience=null, or more"):
        run(tmp_path / "killed", *early, resume=True)
    further = run(tmp_path / "killed", *early[1:], "trainer.max_steps=30", resume=True)
    assert further["steps"] == 30


def test_another_machine_is_said(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path)
    content = checkpoint.read_checkpoint(tmp_path / "checkpoints" / "last.ckpt", mapped=False)
    content["machine"]["threads"] = 97
    checkpoint.save_checkpoint(content, tmp_path / "checkpoints" / "last.ckpt")
    run(tmp_path, "trainer.max_steps=8", resume=True)
    assert "threads is 1 here and was 97: the same run to rounding, not to the bit" in caplog.text


def test_a_run_of_an_older_version_is_opened_and_not_gone_on_with(run: Any, tmp_path: Path) -> None:
    run(tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        content = checkpoint.read_checkpoint(path, mapped=False)
        content["gptlab"]["format"] = 1
        torch.save(content, path)
    checkpoint.load_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"which this version opens but does not go on from; begin .* init_from="):
        run(tmp_path, "trainer.max_steps=9", resume=True)


def of_old(config: dict[str, Any]) -> dict[str, Any]:
    """A config as it was before there were the keys of `NEW`."""
    return config | {group: {k: v for k, v in config[group].items() if k not in NEW[group]} for group in NEW}


def make_old(run: Path) -> None:
    """Take the keys of `NEW` from a run's config, and from those in its checkpoints."""
    (run / "config.yaml").write_text(yaml.safe_dump(of_old(directory.read_config(run / "config.yaml"))))
    for path in (run / "checkpoints").iterdir():
        content = checkpoint.read_checkpoint(path, mapped=False)
        content["gptlab"]["config"] = of_old(content["gptlab"]["config"])
        checkpoint.save_checkpoint(content, path)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_goes_on_whose_config_lacks_later_keys(command: Any, text_file: Path, damaged: bool) -> None:
    words = (*TINY, f"data.path='{text_file}'", "data.cache_dir=cache", "hydra.run.dir=run")
    before = ("data.separator=null", "data.named_parts=false", "data.line_ends=kept")
    assert command("train", *words, *before).returncode == 0
    shutil.copytree("run", "whole")

    make_old(Path("run"))
    if damaged:
        Path("run/config.yaml").write_text(f"# sha256 of what follows: {'0' * 64}\n")

    for folder in ("run", "whole"):
        further = command("train", f"resume={folder}", "trainer.max_steps=9")
        assert further.returncode == 0, further.stderr
        assert ("config in" in further.stdout + further.stderr) is (damaged and folder == "run")
    assert_same_run(Path("run"), Path("whole"))
    hashes = {directory.read_summary(Path(folder))["config_hash"] for folder in ("run", "whole")}
    assert len(hashes) == 1


COMMAND = (*TINY, "name=here", "data.cache_dir=cache", "hydra.job_logging.root.level=INFO")


def run_dirs() -> list[Path]:
    return sorted(Path("outputs/here").iterdir())


def test_auto_starts_goes_on_and_starts_again(command: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*COMMAND, f"data.path='{text_file}'", "resume=auto")
    interrupt(monkeypatch, Kill(4, signal.SIGTERM))
    first = command("train", *words)
    assert first.returncode == 143
    assert "resume=auto: nothing to go on with, a new run" in first.stdout + first.stderr
    monkeypatch.setattr(L, "Trainer", L.Trainer)

    other = command("train", *words, "seed=5", "trainer.max_steps=1")
    assert "resume=auto: nothing to go on with" in other.stdout + other.stderr
    assert len(run_dirs()) == 2

    for number, another in enumerate(("schedule=constant", "optim.grad_clip=0.1", "model.dropout=0.1"), 3):
        result = command("train", *words, another)
        assert "resume=auto: nothing to go on with" in result.stdout, another
        assert len(run_dirs()) == number

    again = command("train", *words, "data.micro_batch_size=3")  # which is the same run
    assert again.returncode == 0, again.stderr
    assert f"resume=auto: going on with {run_dirs()[0]}" in again.stdout + again.stderr
    assert len(run_dirs()) == 5
    assert [row["step"] for row in rows(run_dirs()[0]) if row["val/loss"]] == ["0", "3", "6", "7"]
    assert OmegaConf.load(run_dirs()[0] / "config.yaml").resume is None

    third = command("train", *words)  # nothing is left to be done: a finished run is not touched
    assert "resume=auto: nothing to go on with, a new run" in third.stdout + third.stderr
    assert len(run_dirs()) == 6


def test_auto_in_a_folder_of_one_s_own(command: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*COMMAND, f"data.path='{text_file}'", "resume=auto", "hydra.run.dir=mine")
    interrupt(monkeypatch, Kill(4, signal.SIGTERM))
    assert command("train", *words).returncode == 143
    monkeypatch.setattr(L, "Trainer", L.Trainer)
    other = command("train", *words, "seed=5", "optim.lr=0.01")
    assert other.returncode == 1
    assert "mine is another run, which does not have seed=5, optim.lr=0.01: choose another folder" in other.stderr
    assert command("train", *words).returncode == 0
    assert rows(Path("mine"))[-1]["step"] == "7"
    kept = [path for path in Path("mine").rglob("*") if path.name not in ("train.log", ".lock")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    finished = command("train", *words)
    assert finished.returncode == 0
    assert "resume=auto: nothing to do" in finished.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_config_that_was_changed_does_not_count(
    command: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether by hand or by a failing disk: the one in the checkpoint is as it was."""
    words = (*COMMAND, f"data.path='{text_file}'", "hydra.run.dir=mine")
    interrupt(monkeypatch, Kill(4, signal.SIGTERM))
    assert command("train", *words).returncode == 143
    monkeypatch.setattr(L, "Trainer", L.Trainer)
    config = Path("mine/config.yaml")
    whole = config.read_text()
    assert "\n  lr: 0.001\n" in whole
    config.write_text(whole.replace("\n  lr: 0.001\n", "\n  lr: 0.009\n"))
    result = command("train", "resume=mine", "data.cache_dir=cache")
    assert result.returncode == 0, result.stderr
    assert "config.yaml has changed since gptlab wrote it" in result.stdout
    assert "The config in mine/checkpoints/last.ckpt is taken" in result.stdout
    assert config.read_text() == whole

    config.write_text(whole.replace("\n  lr: 0.001\n", "\n  lr: 0.009\n"))
    for path in Path("mine/checkpoints").iterdir():
        path.unlink()
    result = command("train", "resume=mine")
    assert result.returncode == 1
    assert "error: mine: config.yaml has changed since gptlab wrote it" in result.stderr


def test_a_checkpoint_that_has_lost_its_curves_is_passed_over(
    run: Any, untouched: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a process was killed when it had cut them to go on from an older one."""
    shutil.copytree(untouched, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    lengths = checkpoint.read_checkpoint(tmp_path / "checkpoints" / "step_6.ckpt")["lengths"]
    os.truncate(tmp_path / "metrics.csv", lengths["metrics.csv"])
    run(tmp_path, *HARD, resume=True)
    assert "last.ckpt is newer than metrics.csv, which would lack what came before it" in caplog.text
    assert_same_run(tmp_path, untouched)


def test_curves_that_somebody_has_deleted_do_not_stop_a_run(
    run: Any, untouched: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(untouched, tmp_path, dirs_exist_ok=True)
    (tmp_path / "metrics.csv").unlink()
    run(tmp_path, *HARD, "trainer.max_steps=8", resume=True)
    assert f"going on from {tmp_path / 'checkpoints' / 'last.ckpt'}, of step 7" in caplog.text
    assert [row["step"] for row in rows(tmp_path)] == ["8", "8"]


def test_what_a_killed_process_was_writing_is_removed(run: Any, untouched: Path, tmp_path: Path) -> None:
    shutil.copytree(untouched, tmp_path, dirs_exist_ok=True)
    rest = [
        tmp_path / ".config.yaml.7.tmp",
        *(tmp_path / "checkpoints" / x for x in (".last.ckpt.7.tmp", "step_6.new")),
    ]
    for path in rest:
        path.touch()
    (tmp_path / "summary.json").unlink()
    run(tmp_path, *HARD, resume=True)
    assert not any(path.exists() for path in rest)


def test_fewer_steps_than_were_made_are_refused(run: Any, untouched: Path, tmp_path: Path) -> None:
    shutil.copytree(untouched, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"the run has made 7 steps: trainer.max_steps=5 must be above that"):
        run(tmp_path, *HARD, "trainer.max_steps=5", resume=True)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_run_is_not_written_over_and_its_log_has_its_errors(command: Any, text_file: Path) -> None:
    words = (*COMMAND, f"data.path='{text_file}'", "hydra.run.dir=mine")
    assert command("train", *words).returncode == 0
    before = Path("mine/metrics.csv").read_bytes()
    again = command("train", *words)
    assert again.returncode == 1
    assert "mine holds a run: go on with it by resume=" in again.stderr
    assert Path("mine/metrics.csv").read_bytes() == before
    assert "ERROR gptlab.train: " in Path("mine/train.log").read_text()


def test_a_run_that_goes_on_may_have_more_patience(run: Any, tmp_path: Path) -> None:
    early = ("trainer.max_steps=99", "optim.lr=0.3")
    first = run(tmp_path, *early, "trainer.patience=1")
    again = run(tmp_path, *early, "trainer.patience=4", resume=True)
    assert again["status"] == "stopped_early"
    assert again["steps"] >= first["steps"] + 3 * 3


def test_losses_between_two_points_count_alike_whatever_the_micro_batches(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("trainer.log_every=7", "model.dropout=0.1")
    run(tmp_path / "untouched", *words)
    interrupt(monkeypatch, Kill(4, signal.SIGTERM))
    with pytest.raises(SystemExit):
        run(tmp_path / "moved", *words)
    monkeypatch.undo()
    run(tmp_path / "moved", *words, "data.micro_batch_size=1", resume=True)
    ours, theirs = (float(rows(tmp_path / name)[-2]["train/loss"]) for name in ("moved", "untouched"))
    assert ours == pytest.approx(theirs, abs=2e-6)


def test_a_run_killed_before_its_end_gets_its_embeddings_all_the_same(
    run: Any, untouched: Path, tmp_path: Path
) -> None:
    shutil.copytree(untouched, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "plugins")
    (tmp_path / "summary.json").unlink()
    run(tmp_path, *HARD, resume=True)
    for path in (untouched / "plugins").rglob("*.*"):
        assert (tmp_path / path.relative_to(untouched)).read_bytes() == path.read_bytes()


def test_a_run_of_a_csv_that_was_read_as_prose_names_the_way_to_go_on(command: Any, tmp_path: Path) -> None:
    Path("my.csv").write_text("id,text\n" + "".join(f"{i},row {i}\n" for i in range(99)))
    words = (*TINY, "data.path=my.csv", "data.cache_dir=cache", "hydra.run.dir=run")
    assert command("train", *words, "data.format=text").returncode == 0
    make_old(Path("run"))
    for told, way in (
        (command("train", "resume=run", "trainer.max_steps=9"), "data.format=text"),
        (command("evaluate", "run"), "--format text"),
    ):
        assert told.returncode == 1
        assert f"the version of then read CSV and lists of JSON as prose: {way}" in told.stderr
    assert command("evaluate", "run", "--data", "my.csv", "--format", "text").returncode == 0
    assert command("train", "resume=run", "trainer.max_steps=9", "data.format=text").returncode == 0
