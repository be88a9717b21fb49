"""Several processes are one run: the same losses, the same files, one voice."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.distributed import processes
from gptlab.formats import checkpoint
from gptlab.system.errors import UserError
from tests.conftest import ROOT, TINY

HARD = ("model.dropout=0.2", "trainer.diagnose_every=2", "trainer.patience=50", "trainer.accelerator=cpu")
HALF = ("trainer.max_steps=3", "schedule.decay_steps=7")
ON = ("trainer.max_steps=7", "trainer.devices=auto")
STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def curve(run_dir: Path, key: str) -> list[float]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row[key]]


def assert_same_run(a: Path, b: Path) -> None:
    """But for the order of summation; and the checkpoints are of one form, whoever wrote them."""
    for key in ("train/loss", "val/loss", "grad_norm", "lr"):
        assert curve(a, key) == pytest.approx(curve(b, key), abs=1e-5), f"{key} of {a.name}"
    assert (a / "samples.txt").read_text() == (b / "samples.txt").read_text()
    one, two = (checkpoint.read_checkpoint(path / "checkpoints" / "last.ckpt") for path in (a, b))
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert one["loops"].keys() == two["loops"].keys()
    mine, other = one["optimizer_states"][0], two["optimizer_states"][0]
    assert mine["param_groups"] == other["param_groups"]
    pairs = [(one["state_dict"][key], two["state_dict"][key]) for key in one["state_dict"]]
    assert mine["state"].keys() == other["state"].keys()
    for number, values in mine["state"].items():
        assert values.keys() == other["state"][number].keys()
        pairs += [(values[key], other["state"][number][key]) for key in values]
    for tensor, same in pairs:
        assert type(tensor) is type(same) is torch.Tensor
        torch.testing.assert_close(tensor, same, atol=1e-4, rtol=0)
    size, other_size = ((path / "checkpoints" / "last.ckpt").stat().st_size for path in (a, b))
    assert size == pytest.approx(other_size, rel=0.05)  # a tied weight is one


@pytest.fixture
def arguments(text_file: Path, cache_dir: Path) -> tuple[str, ...]:
    """Of a tiny run on the small text."""
    return (*TINY, *HARD, f"data.path='{text_file}'", f"data.cache_dir='{cache_dir}'")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """start(environment, *arguments) is a process of Python of its own, which does not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, *arguments], cwd=tmp_path, env=env, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def torchrun(tmp_path: Path, start: Any) -> Any:
    """torchrun([code, *arguments], ...) makes these runs, each in two processes, until one ends with another code."""

    def torchrun(*runs: list[Any]) -> tuple[int, str, str]:
        (tmp_path / "runs.json").write_text(json.dumps(runs))
        command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
        process = start({}, *command, "-m", "tests.distributed.several_runs", "runs.json")
        stdout, stderr = process.communicate(timeout=400)
        return process.returncode, stdout, stderr

    return torchrun


def slurm(task: int) -> dict[str, str]:
    """What srun --ntasks=2 gives its task number `task` on one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        slurm.port = getattr(slurm, "port", probe.getsockname()[1])  # type: ignore[attr-defined]
    return {
        **{"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1"},
        **{"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
        **{"SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_STEP_NODELIST": "localhost"},
        "MASTER_PORT": str(slurm.port),  # type: ignore[attr-defined]
    }


def test_two_processes_compute_what_one_does_and_go_on_with_each_other(
    torchrun: Any, run: Any, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    run(tmp_path / "one", *HARD)
    run(tmp_path / "one-fsdp", *HARD, *HALF, "data.micro_batch_size=3")
    code, stdout, stderr = torchrun(
        [0, *arguments, *HALF, "trainer=ddp", "hydra.run.dir=ddp-one", "data.micro_batch_size=1"],
        [0, *arguments, *HALF, "trainer=fsdp", "hydra.run.dir=fsdp-ddp"],
        [0, "resume=one-fsdp", *ON, "trainer.strategy=fsdp", "data.micro_batch_size=1"],
        [0, "resume=fsdp-ddp", *ON, "trainer.strategy=ddp"],
    )
    assert code == 0, stderr
    run(tmp_path / "ddp-one", *HARD, resume=True)
    for name in ("one-fsdp", "ddp-one", "fsdp-ddp"):
        assert_same_run(tmp_path / name, tmp_path / "one")
    assert stdout.count("finished after 3 steps") == stdout.count("finished after 7 steps") == 2  # one process speaks
    assert "on 2 x cpu (fsdp)" in stdout
    summary = json.loads((tmp_path / "one-fsdp" / "summary.json").read_text())
    assert (summary["devices"], summary["tokens"]) == (2, 7 * 6 * 17)
    model, _, _ = checkpoint.load_checkpoint(tmp_path / "one-fsdp")
    assert model.lm_head.weight is model.wte.weight


def test_tasks_of_srun_are_one_run_and_a_refused_one_ends_in_all(
    start: Any, arguments: tuple[str, ...], text_file: Path, cache_dir: Path, tmp_path: Path
) -> None:
    arguments = (*arguments, "trainer=ddp")
    runs = [
        [1, *arguments, "data.batch_size=5"],
        [1, *arguments, "trainer.devices=3"],
        [1, *arguments, "trainer.max_step=3"],
        [1, *arguments, "-m", "seed=1,2"],
        [1, *arguments, "data.cache_dir=${oc.env:CACHE}", "hydra.run.dir=refused"],
        [0, *arguments, "--cfg", "job"],
        [0, *arguments],
    ]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    caches = (cache_dir, text_file)  # the second task has a file where a folder should be
    command = ("-m", "tests.distributed.several_runs", "runs.json")
    tasks = [start(slurm(task) | {"CACHE": str(cache)}, *command) for task, cache in enumerate(caches)]
    (stdout, stderr), others = tasks[0].communicate(timeout=300), tasks[1].communicate(timeout=300)
    assert [task.returncode for task in tasks] == [0, 0], stderr + others[1]
    assert others == ("", "")  # one process speaks, for the others too
    errors = [line for line in stderr.splitlines() if "error: " in line]
    reasons = ("2 device(s)", "srun has started 2", "did you mean", "a sweep", "process 1, on ")
    for error, reason in zip(errors, reasons, strict=True):
        assert reason in error
    assert stdout.count("finished after 7 steps") == 1
    (made,) = (tmp_path / "outputs" / "gpt800k").iterdir()  # the refused have left none, the second process neither
    assert (made / "summary.json").is_file()
    assert not list(made.glob("process_*"))


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ("gpu-07", "gpu-07"),
        ("gpu-07,gpu-09", "gpu-07"),
        ("gpu-[07-09,12],login1", "gpu-07"),
        ("rack3n[2,5]-ib", "rack3n2-ib"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_the_first_machine_of_slurms_list(names: str, first: str) -> None:
    assert processes.first_machine(names) == first


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """environment(NAME=value, ...): these variables, and none of other starters."""
    for name in [*STARTED, *(name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_")))]:
        monkeypatch.setenv(name, "")  # so that what is set later is taken away again
        monkeypatch.delenv(name)

    def environment(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return environment


def test_slurms_variables_name_the_place_of_a_process(environment: Any) -> None:
    environment(SLURM_JOB_ID=123456, SLURM_NTASKS=8, SLURM_NNODES=2, SLURM_PROCID=5, SLURM_LOCALID=1, SLURM_NODEID=1)
    environment(SLURM_STEP_NODELIST="gpu[3-4]")
    assert processes.place() == processes.Place(rank=5, size=8, local_size=4, starter="srun")
    assert processes.machines() == 2
    assert (os.environ["LOCAL_RANK"], os.environ["GROUP_RANK"], os.environ["MASTER_ADDR"]) == ("1", "1", "gpu3")


def test_one_task_of_slurm_is_no_run_of_several_processes(environment: Any) -> None:
    environment(SLURM_JOB_ID=1, SLURM_NTASKS=1, SLURM_NNODES=1, SLURM_PROCID=0, SLURM_LOCALID=0, SLURM_NODEID=0)
    assert processes.place() is None
    assert processes.devices("auto", visible=4) == 4


def test_devices_that_contradict_what_was_started_are_an_error(environment: Any) -> None:
    environment(RANK=0, WORLD_SIZE=2, LOCAL_RANK=0, LOCAL_WORLD_SIZE=2, MASTER_ADDR="localhost", MASTER_PORT=1)
    assert processes.devices("auto", visible=8) == processes.devices(2, visible=8) == 2
    with pytest.raises(UserError, match=r"trainer.devices=1, but torchrun has started 2 .* give trainer.devices=auto"):
        processes.devices(1, visible=8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.strategy=zero"], "trainer.strategy=zero: must be one of auto, ddp, fsdp"),
        (["trainer.devices=0"], "trainer.devices=0: must be at least 1, or auto"),
        (["trainer.devices=all"], "trainer.devices=all: must be at least 1, or auto"),
        (["trainer=fsdp", "precision=fp16"], "precision=fp16 does not go with trainer.strategy=fsdp"),
        (["trainer=fsdp", "optim=muon"], "optim=muon needs whole matrices, which trainer.strategy=fsdp spreads"),
        (["trainer=fsdp", "compile=max_autotune"], "CUDA graphs, which do not go with trainer.strategy=fsdp"),
    ],
)
def test_what_several_devices_cannot_do_is_refused(
    overrides: list[str], message: str, compose: Any, tmp_path: Path
) -> None:
    from gptlab.training.fit import fit

    with pytest.raises(UserError, match=message):
        fit(compose(*overrides, "trainer.accelerator=cpu"), tmp_path)


@pytest.mark.slow
def test_checkpoints_move_between_one_process_ddp_and_fsdp(
    torchrun: Any, run: Any, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    run(tmp_path / "whole", *HARD)
    run(tmp_path / "one-one", *HARD, *HALF, "data.micro_batch_size=2")
    for second in ("ddp", "fsdp"):
        shutil.copytree(tmp_path / "one-one", tmp_path / f"one-{second}")
    names = ("one", "ddp", "fsdp")
    begin = [
        [0, *arguments, *HALF, "trainer=" + x, "data.micro_batch_size=1", f"hydra.run.dir={x}-{y}"]
        for x in names[1:]
        for y in names
    ]
    go_on = [
        [0, f"resume={x}-{y}", *ON, f"trainer.strategy={y}", "data.micro_batch_size=3"]
        for x in names
        for y in names[1:]
    ]
    code, _, stderr = torchrun(*begin, *go_on)
    assert code == 0, stderr
    for x in names:
        run(tmp_path / f"{x}-one", *HARD, resume=True)
        for y in names:
            assert_same_run(tmp_path / f"{x}-{y}", tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_average_and_turn_as_one(
    torchrun: Any, run: Any, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """And a run moves from one process to FSDP and back with its average."""
    ways = {"ema": ("trainer.ema=0.9",), "muon": ("trainer.ema=0.9", "optim=muon")}
    for name, words in ways.items():
        run(tmp_path / name, *HARD, *words)
    run(tmp_path / "one-fsdp", *HARD, *HALF, *ways["ema"])
    code, _, stderr = torchrun(
        [0, *arguments, *ways["ema"], "trainer=ddp", "hydra.run.dir=ema-ddp"],
        [0, *arguments, *ways["muon"], "trainer=ddp", "hydra.run.dir=muon-ddp"],
        [0, *arguments, *ways["ema"], "trainer=fsdp", "trainer.sample_tokens=0", "hydra.run.dir=ema-fsdp"],
        [0, *arguments, *ways["ema"], *HALF, "trainer=fsdp", "hydra.run.dir=fsdp-one"],
        [0, "resume=one-fsdp", *ON, "trainer.strategy=fsdp"],
    )
    assert code == 0, stderr
    run(tmp_path / "fsdp-one", *HARD, *ways["ema"], resume=True)
    for name in ("ema-ddp", "one-fsdp", "fsdp-one"):
        assert_same_run(tmp_path / name, tmp_path / "ema")
    assert_same_run(tmp_path / "muon-ddp", tmp_path / "muon")
    for key in ("train/loss", "val/loss", "grad_norm"):
        assert curve(tmp_path / "ema-fsdp", key) == pytest.approx(curve(tmp_path / "ema", key), abs=1e-5)


@pytest.mark.slow
def test_every_precision_compiler_and_model_in_two_processes(
    torchrun: Any, run: Any, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    aot = ("compile=inductor", "compile.backend=aot_eager")
    ways: dict[str, tuple[str, ...]] = {
        "bf16": ("precision=bf16",),
        "bf16_true": ("precision=bf16_true",),
        "compiled": aot,
        "recomputed": ("model.gradient_checkpointing=true", "data.micro_batch_size=1"),
        "llama": ("arch=llama", "model.n_embd=36", "model.tied=false"),
        "bigram": ("model=bigram", "data.batch_size=6"),
        "skipping": ("trainer.nonfinite=skip", "optim.lr=1e30", "optim.grad_clip=0", "trainer.val_every=100"),
        "impatient": ("trainer.patience=1", "optim.lr=1.0", "trainer.val_every=1", "trainer.max_steps=20"),
        "tested": ("data.test_fraction=0.1",),
    }
    smaller = [word for word in arguments if not word.startswith("model.")]
    runs = []
    for name, words in ways.items():
        words = (*words, *(("arch=none",) if name == "bigram" else ()))
        base = smaller if name == "bigram" else arguments
        runs += [[0, *base, f"trainer={s}", *words, f"hydra.run.dir={name}-{s}"] for s in ("ddp", "fsdp")]
    code, _, stderr = torchrun(*runs)
    assert code == 0, stderr
    for name, words in ways.items():
        if name != "bigram":
            run(tmp_path / name, *HARD, *words)
        for strategy in ("ddp", "fsdp"):
            a, b = tmp_path / f"{name}-{strategy}", tmp_path / (name if name != "bigram" else "bigram-ddp")
            near = {"bf16": 0.02, "bf16_true": 0.02, "impatient": 1e-3}.get(name, 1e-5)
            for key in ("train/loss", "val/loss"):
                assert curve(a, key) == pytest.approx(curve(b, key), abs=near), f"{key} of {a.name}"


@pytest.mark.slow
def test_a_step_that_is_not_finite_ends_all_and_keeps_the_batches_of_all(
    torchrun: Any, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    broken = ("optim.lr=1e30", "optim.grad_clip=0", "trainer.val_every=100")
    ways = ("ddp", "fsdp")
    code, _, stderr = torchrun(*([1, *arguments, *broken, f"trainer={way}", f"hydra.run.dir={way}"] for way in ways))
    assert code == 0, stderr
    assert stderr.count("error: the gradients of step 2 are not finite") == 2
    for way in ways:
        content = torch.load(tmp_path / way / "nonfinite_step_2.ckpt", weights_only=True)
        assert [len(batch["idx"]) for batch in content["batches"]] == [3, 3]


def reached(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run has made so many steps."""
    while process.poll() is None:
        if (run_dir / "metrics.csv").exists() and len(curve(run_dir, "train/loss")) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(process.communicate())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_to_one_process_stops_and_saves_all(
    strategy: str, start: Any, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """Started by Lightning's launcher."""
    long = ("trainer.max_steps=100000", "trainer.val_every=100000", "trainer.devices=2", f"trainer={strategy}")
    process = start({}, "-m", "gptlab.train", *arguments, *long, "hydra.run.dir=run")
    reached(tmp_path / "run", 3, process)
    process.terminate()
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 143, stderr
    step = checkpoint.read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    assert stdout.count(f"stopped after step {step}") == 1


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_ends_the_other(dies: int, start: Any, arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Where nobody kills what is left: srun without --kill-on-bad-exit."""
    long = ("trainer.max_steps=100000", "trainer.val_every=100000", "trainer=ddp", "hydra.run.dir=run")
    tasks = [start(slurm(task), "-m", "gptlab.train", *arguments, *long) for task in (0, 1)]
    reached(tmp_path / "run", 3, tasks[0])
    tasks[dies].kill()
    tasks[1 - dies].communicate(timeout=60)
    assert tasks[1 - dies].returncode not in (0, None)


@pytest.mark.slow
def test_auto_goes_on_in_one_folder_with_what_lightning_starts(
    shell: Any, text_file: Path, tmp_path: Path, cache_dir: Path
) -> None:
    words = (*TINY, "trainer.devices=2", "trainer.max_steps=3", "name=here", "resume=auto", f"data.path='{text_file}'")
    command = ("-m", "gptlab.train", *words, f"data.cache_dir={cache_dir}")
    for _ in range(2):
        child = shell(*command)
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, out + err
        (run_dir,) = (tmp_path / "outputs" / "here").iterdir()
        (run_dir / "summary.json").unlink()  # as if it had been killed before that
    assert "resume=auto: going on with outputs/here/" in out
    assert curve(run_dir, "val/loss")[-1] == curve(run_dir, "val/loss")[1]
