"""A sweep runs each of its jobs to the end, once, whatever happens to it or to them."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from omegaconf import OmegaConf
from rich.console import Console

from gptlab.runs import directory, identity
from gptlab.runs.compose import CONF
from gptlab.sweeps import jobs, launchers, plans
from gptlab.sweeps.jobs import Job
from gptlab.sweeps.launchers import JobProgress, Local, Slurm
from gptlab.sweeps.live_table import LiveTable
from gptlab.sweeps.plans import Axis, FixedPlan, Search
from gptlab.sweeps.runner import Sweep, closing_words
from gptlab.system.errors import UserError
from gptlab.system.files import read_json
from gptlab.system.streams import Stream
from tests.conftest import ROOT, Bell
from tests.sweeps.fakes import Fake, fake, sweep


def starts(root: Path) -> list[str]:
    return (root / "starts").read_text().split()


def states(swept: Sweep) -> list[str]:
    return [swept.progress[job].state for job in swept.plan.jobs]  # type: ignore[union-attr]


def test_a_failing_job_stops_no_other_and_is_shown_with_its_last_lines(tmp_path: Path) -> None:
    swept = sweep(tmp_path, "2.5", "fails", "1.5", "dies")
    swept.run()
    assert states(swept) == ["finished", "failed", "finished", "failed"]
    words = closing_words(swept)
    assert "failed (exit code 1): " in words
    assert f"{tmp_path}/x-1+1/job.log\n    loading\n    error: it is wrong" in words
    assert "failed (killed by signal 9)" in words


def test_the_same_sweep_again_runs_only_what_has_not_finished(tmp_path: Path) -> None:
    sweep(tmp_path, "2.5", "fails", "1.5").run()
    again = sweep(tmp_path, "2.5", "0.5", "1.5")
    again.run()
    assert states(again) == ["finished"] * 3
    assert sorted(starts(tmp_path)) == ["x-0+0", "x-1+1", "x-1+1", "x-2+2"]
    assert [again.progress[job].loss for job in again.plan.jobs] == [2.5, 0.5, 1.5]  # type: ignore[union-attr]


def test_jobs_say_what_they_vary_and_what_the_baseline_is(tmp_path: Path) -> None:
    sweep(tmp_path, "2.5").run()
    other = sweep(tmp_path, "2.5")
    other.about["baseline"] = {"x": "7"}
    other.run()  # finished before, but the report is to follow the newest command
    content = read_json(tmp_path / "x-0+0" / "job.json")
    assert content == {"sweep": "test", "baseline": {"x": "7"}, "overrides": {"x": "0"}}


def test_a_job_that_runs_elsewhere_is_waited_for_and_not_started(tmp_path: Path) -> None:
    """As after SIGKILL of a sweep, whose jobs run on."""
    folder = tmp_path / "x-0+0"
    folder.mkdir()
    elsewhere = FileLock(folder / directory.LOCK)
    elsewhere.acquire()
    swept = sweep(tmp_path, "2.5", "1.5")
    swept.fill()
    swept.look(swept.plan.jobs[0])  # type: ignore[union-attr]
    view = LiveTable(swept)
    assert view.state(swept.plan.jobs[0]) == "running elsewhere"  # type: ignore[union-attr]
    (folder / "summary.json").write_text('{"status": "finished", "steps": 3, "val/loss": 9.0, "best_val_loss": 9.0}')
    elsewhere.release()
    swept.run()
    assert states(swept) == ["finished", "finished"]
    assert starts(tmp_path) == ["x-1+1"]


def test_a_job_that_was_cut_off_elsewhere_is_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "x-0+0"
    folder.mkdir()
    with FileLock(folder / directory.LOCK):
        swept = sweep(tmp_path, "2.5")
        swept.fill()
    swept.run()
    assert states(swept) == ["finished"]
    assert starts(tmp_path) == ["x-0+0"]


def test_a_sweep_that_cannot_write_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write in"):
        sweep(tmp_path / "file", "1.0").run()


def test_a_beginning_without_a_checkpoint_is_cleared_and_one_with_it_resumed(tmp_path: Path) -> None:
    job = Job({"x": "1"}, ("x=1",), tmp_path / "x-1+ab", 3)
    (job.dir / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "samples.txt", "summary.json"):
        (job.dir / name).write_text("{half")
    assert job.summary() is None
    assert job.command()[3:] == ["x=1", f"hydra.run.dir='{job.dir}'", "hydra.mode=RUN"]
    job.prepare({})
    assert {path.name for path in job.dir.iterdir()} - {directory.LOCK} == {"job.json"}

    (job.dir / "checkpoints").mkdir()
    for name in ("config.yaml", "checkpoints/last.ckpt", "samples.txt", "summary.json"):
        (job.dir / name).write_text("{half")
    job.prepare({})
    assert (job.dir / "samples.txt").exists()
    assert not (job.dir / "summary.json").exists()
    assert job.command()[3:] == [f"resume='{job.dir}'", "hydra.mode=RUN"]


SWEEP = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.sweeps.fakes import sweep
swept = sweep(Path(sys.argv[1]), "waits", "waits", "1.0")
swept.run()
print(swept.signal)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGTERM, signal.SIGHUP))]
)
def test_a_signal_reaches_the_jobs_once_and_nothing_more_is_started(tmp_path: Path, bell: Bell, number: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", SWEEP, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    bell.heard(2)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert output.splitlines()[-3:] == [
        "1/3 x-0: stopped, val/loss 1.0000",
        "2/3 x-1: stopped, val/loss 1.0000",
        str(int(number)),
    ]
    told = [(tmp_path / f"x-{i}+{i}" / "told").read_text() for i in range(2)]
    assert told == ["2", "2"]  # SIGINT, with which a run saves
    assert len(starts(tmp_path)) == 2


def test_a_closed_terminal_does_not_hurt_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `| tee` that Ctrl-C has ended, or a window that is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Stream(writer, essential=False))))
    swept = sweep(tmp_path, "2.5", "1.5")
    swept.run()
    print("and nothing more is printed")
    sys.stdout.close()
    os.close(writer)
    assert states(swept) == ["finished", "finished"]


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with sweep(tmp_path).listening():
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, before)


def test_cores_are_shared_out_and_each_job_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "cores", lambda: 11)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    four = Local(None, 1, on_gpu=True)
    assert four.jobs == 4
    assert [four.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["3", "5", "6", "7"]
    assert four.environment(0)["OMP_NUM_THREADS"] == "2"
    assert Local(None, 2, on_gpu=True).environment(1)["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert Local(None, 1, on_gpu=False).jobs == 1
    assert "OMP_NUM_THREADS" not in Local(1).environment(0)  # alone: all cores
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert Local(3).environment(0)["OMP_NUM_THREADS"] == "4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Local(None, 1, on_gpu=True).jobs == 1


def test_submitit_runs_the_jobs(tmp_path: Path) -> None:
    """By its own stand-in for a cluster; SLURM itself is not here."""
    plan = FixedPlan([fake(tmp_path, str(number), ending) for number, ending in enumerate(("2.5", "fails"))])
    swept = Sweep(plan, Slurm(None, tmp_path / "slurm", {"timeout_min": 3}, cluster="local"), {}, tmp_path)
    swept.run()
    assert states(swept) == ["finished", "failed"]
    assert "error: it is wrong" in closing_words(swept)


def test_what_is_submitted_to_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands are stand-ins; the keys are those of train.yaml."""
    for name, prints in (("srun", ""), ("sbatch", "Submitted batch job 7"), ("sacct", ""), ("scancel", "")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\necho {prints}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    given = OmegaConf.load(CONF / "train.yaml").sweep.slurm
    launcher = Slurm(None, tmp_path / "slurm", {**given, "partition": "gpu", "mem_gb": 7, "qos": "long"})
    launcher.start(Fake({}, (), tmp_path / "n_head-4+seed-1+ab", 3), tmp_path / "log")
    script = tmp_path / "slurm" / "7_submission.sh"
    for line in ("partition=gpu", "time=60", "cpus-per-task=4", "mem=7GB", "qos=long", "job-name=n_head-4+seed-1"):
        assert f"#SBATCH --{line}\n" in script.read_text()


def test_a_job_that_waited_in_the_queue_is_not_made_twice(tmp_path: Path) -> None:
    sweep(tmp_path, "2.5").run()
    assert launchers.run_logged(fake(tmp_path, "0", "2.5"), tmp_path / "log") == 0
    assert launchers.run_logged(fake(tmp_path, "1", "fails"), tmp_path / "log") == 1
    assert starts(tmp_path) == ["x-0+0", "x-1+1"]


def test_submitit_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sweep.launcher=slurm: .*'local_speed'"):
        Slurm(None, tmp_path, {"speed": 3}, cluster="local")
    with pytest.raises(UserError, match=r"sweep.launcher=slurm: "):  # no srun here
        Slurm(None, tmp_path, {})


HEADS, SEEDS = Axis("model.n_head", ("4", "1")), Axis("seed", ("1", "2"))


def test_a_grid_is_every_combination_and_one_at_a_time_a_baseline_and_each_value_alone() -> None:
    assert plans.grid([HEADS, SEEDS]) == [
        {"model.n_head": "4", "seed": "1"},
        {"model.n_head": "4", "seed": "2"},
        {"model.n_head": "1", "seed": "1"},
        {"model.n_head": "1", "seed": "2"},
    ]
    assert plans.one_at_a_time([SEEDS, HEADS, Axis("model.norm", ("rmsnorm",))]) == [
        {"seed": "1"},
        {"seed": "2"},
        {"model.n_head": "4", "seed": "1"},
        {"model.n_head": "4", "seed": "2"},
        {"model.n_head": "1", "seed": "1"},
        {"model.n_head": "1", "seed": "2"},
        {"model.norm": "rmsnorm", "seed": "1"},
        {"model.norm": "rmsnorm", "seed": "2"},
    ]
    assert plans.one_at_a_time([HEADS])[0] == {}


def test_folders_read_well_and_a_config_has_one_only(tmp_path: Path) -> None:
    names = identity.short_names(["model.n_head", "+trainer.x", "data.x", "optim.name", "seed"])
    assert list(names.values()) == ["n_head", "trainer.x", "data.x", "optim", "seed"]
    point = {"model.n_head": "4", "data.x": "'a b/c,=d'", "seed": "1"}
    path = jobs.job_folder(tmp_path, point, names, "0123abcd")
    assert path.name == "n_head-4+data.x-_a_b_c_d_+seed-1+0123abcd"
    path.mkdir()
    assert jobs.job_folder(tmp_path, {"model.n_head": "4"}, names, "0123abcd") == path  # told otherwise, the same run
    assert jobs.job_folder(tmp_path, {"seed": "1"}, names, "ffffffff").name == "baseline+seed-1+ffffffff"


def test_bits_per_byte_can_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swept = sweep(tmp_path, "2.5", "1.5")
    swept.metric = "val/bpb"
    swept.run()
    assert [progress.loss for progress in swept.progress.values()] == [5.0, 3.0]
    assert [progress.best for progress in swept.progress.values()] == [5.0, 3.0]
    assert "finished, val/bpb 5.0000" in capsys.readouterr().out


def test_a_search_can_minimise_bits_per_byte(tmp_path: Path) -> None:
    plan = Search(
        [Axis("x", ("1", "2"))], tmp_path, "a", 2, False, 7, lambda p: fake(tmp_path, p["x"], p["x"]), "val/bpb"
    )
    Sweep(plan, Local(1), {"sweep": "search"}, tmp_path, "val/bpb").run()
    assert "(val/bpb 2.0000)" in plan.closing_words() or "(val/bpb 4.0000)" in plan.closing_words()
    assert [trial.value for trial in plan.study.trials] == [2 * float(trial.params["x"]) for trial in plan.study.trials]


def search(root: Path, trials: int, loss: Any, prune: bool = False, name: str = "a") -> Sweep:
    """A search over x in [0, 10]; `loss` of it is what a trial ends with."""

    def make(point: dict[str, str]) -> Job:
        value = point["x"]
        return Fake(point, (), root / f"x-{value}+{value}", 3, str(loss(float(value))))

    plan = Search([Axis("x", low=0.0, high=10.0)], root, name, trials, prune, 7, make)
    return Sweep(plan, Local(1), {"sweep": "search"}, root)


def test_a_search_comes_near_the_minimum_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = search(tmp_path, 6, lambda x: (x - 3) ** 2)
    first.run()
    assert len(first.having("finished")) == 6
    again = search(tmp_path, 16, lambda x: (x - 3) ** 2)
    assert again.plan.total == 10
    again.run()
    assert len(set(starts(tmp_path))) == 16
    words = again.plan.closing_words()
    assert abs(float(words.split("x=")[1].split()[0]) - 3) < 1
    assert "confirm it with several seeds" in words
    assert search(tmp_path, 16, lambda x: x, name="another").plan.total == 16


def test_a_trial_that_was_cut_off_is_finished_first(tmp_path: Path) -> None:
    first = search(tmp_path, 3, lambda x: x)
    cut_off = first.plan.ask()
    assert cut_off is not None
    again = search(tmp_path, 3, lambda x: x)
    again.run()
    assert starts(tmp_path)[0] == cut_off.dir.name
    assert len(starts(tmp_path)) == 3


def test_a_hopeless_trial_is_stopped(tmp_path: Path) -> None:
    """The first four end well; then one comes whose curve is far above theirs, and which would never end."""
    good = search(tmp_path, 5, lambda x: x / 10, prune=True)
    good.run()
    bad = search(tmp_path, 6, lambda x: 99 + x, prune=True)
    bad.run()
    assert [bad.progress[job].state for job in bad.progress] == ["pruned"]
    assert next(iter(bad.progress)).dir.joinpath("told").read_text() == str(int(signal.SIGTERM))
    assert search(tmp_path, 6, lambda x: x, prune=True).plan.total == 0  # a pruned trial is done


def test_the_table_fits_on_the_terminal_and_keeps_what_runs_or_failed(tmp_path: Path) -> None:
    swept = sweep(tmp_path, *["1.0"] * 40)
    for number in range(40):
        job = swept.plan.ask()
        assert job is not None
        swept.progress[job] = dataclasses.replace(swept_progress(number), seconds=60.0)
    view = LiveTable(swept)
    view.console = Console(width=70, height=12, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115, PTH123
    with view.console.capture() as captured:
        view.console.print(*view.content(), sep="\n")
    view.console.file.close()
    text = captured.get()
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) <= 12
    assert "40 jobs: 37 finished, 2 running, 1 failed" in lines[0]
    for name in ("x-3 ", "x-38", "x-39", "x-37"):  # failed, running, running, the newest
        assert name in text
    assert "x-20" not in text


def swept_progress(number: int) -> Any:
    state = "failed" if number == 3 else "running" if number > 37 else "finished"
    return JobProgress(state=state, step=3 if number < 38 else 1, loss=2.0 + number, best=2.0 + number)
