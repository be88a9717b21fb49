"""Sweeps as a user types them: what is varied, where it lies, what is refused, and what is left after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import pytest
from omegaconf import OmegaConf

from gptlab.runs import directory
from gptlab.runs.compose import CONF, asked_for_sweep, open_conf
from gptlab.runs.words import readable
from gptlab.sweeps import command_line
from gptlab.system.errors import UserError
from gptlab.system.files import read_json
from gptlab.training import settings
from tests.conftest import ROOT, TINY
from tests.test_cli import RUN, assert_refused

SEARCH = ("-m", "sweep.method=optuna")
SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))


def planned(*words: str) -> command_line.Command:
    arguments = asked_for_sweep(readable(words))
    assert arguments is not None
    with open_conf():
        command = command_line.Command(*arguments)
        command.jobs = command.plan().jobs if command.config.method != "optuna" else []  # type: ignore
    return command


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_sweep_is_asked_for_by_m_or_by_its_name() -> None:
    assert asked_for_sweep(["model=gpt1m", "seed=1"]) is None
    assert asked_for_sweep(["sweep=heads", "hydra.mode=RUN"]) is None  # one of its jobs
    assert asked_for_sweep(["sweep=heads", "--cfg", "job"]) is None
    assert asked_for_sweep(["-m", "--help"]) is None
    assert asked_for_sweep(["sweep=heads"]) is not None
    assert asked_for_sweep(["--multirun", "seed=1,2"]) is not None
    assert asked_for_sweep(["hydra.mode=MULTIRUN", "seed=1,2"]) == (None, ["seed=1,2"])
    with pytest.raises(UserError, match="--config-name: does not go with a sweep"):
        asked_for_sweep(["-m", "--config-name=other", "seed=1,2"])


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_composes_and_each_of_its_jobs_is_a_run(name: str) -> None:
    command = planned(f"sweep={name}")
    jobs = command.jobs  # type: ignore[attr-defined]
    assert command.root == Path("outputs/sweeps") / name
    assert len({job.dir for job in jobs}) == len(jobs) > 5
    baseline = command.baseline()
    without_seed = [{k: v for k, v in job.point.items() if k != "seed"} for job in jobs]
    assert without_seed.count(baseline) == 3  # type: ignore[arg-type]
    different = {str(point): job.point for point, job in zip(without_seed, jobs, strict=True)}  # by more than the seed
    assert 3 * len(different) == len(jobs)
    with open_conf():
        configs = [command.config_of(point) for point in different.values()]
        last = hydra.compose("train", list(jobs[-1].words))
    for cfg in configs:
        settings.from_config(cfg)
    assert {**configs[-1], "sweep": None} == {**OmegaConf.to_container(last, resolve=True), "sweep": None}  # type: ignore
    assert jobs[-1].max_steps == last.trainer.max_steps


def test_what_is_typed_wins_over_the_sweeps_file() -> None:
    command = planned("sweep=heads", "seed=7", "model.n_head=8,1", "optim.lr=1e-4,1e-3", "trainer.max_steps=50")
    points = [job.point for job in command.jobs]  # type: ignore[attr-defined]
    assert points == [
        {"model.n_head": n_head, "seed": "7", "optim.lr": lr} for n_head in ("8", "1") for lr in ("0.0001", "0.001")
    ]
    assert command.baseline() == {"model.n_head": "8", "optim.lr": "0.0001"}
    job = command.jobs[0]  # type: ignore[attr-defined]
    assert job.words == ("sweep=heads", "trainer.max_steps=50", "model.n_head=8", "seed=7", "optim.lr=0.0001")
    assert job.dir.name.startswith("n_head-8+lr-0.0001+seed-7+")


def test_a_folder_is_named_by_the_config_and_not_by_places() -> None:
    def names(*words: str) -> list[str]:
        return [job.dir.name for job in planned("-m", "seed=1,2", *words).jobs]  # type: ignore[attr-defined]

    plain = names()
    assert names("data.dir=/elsewhere", "data.cache_dir=/other") == plain
    assert names("sweep.jobs=2") == plain
    assert set(names("optim.lr=0.5")).isdisjoint(plain)
    assert set(names("data=text", "data.path=a.txt")).isdisjoint(names("data=text", "data.path=b.txt"))


def test_the_same_run_under_two_names_is_made_once(capsys: pytest.CaptureFixture[str]) -> None:
    command = planned("-m", "sweep.method=one_at_a_time", "model.norm=layernorm,rmsnorm")
    assert [job.name for job in command.jobs] == ["baseline", "norm-rmsnorm"]  # type: ignore[attr-defined]
    assert "the same run as baseline, left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "seed=1", "model=gpt1m"], ["-m: nothing varies", "seed=1,2,3"]),
        (["-m", "optim.lr=interval(0,1)"], ["optim.lr: an interval is for sweep.method=optuna", "optim.lr=1,2,3"]),
        (["-m", "seed=1,2", "hydra/launcher=joblib"], ["hydra/launcher=joblib", "sweep.jobs"]),
        (["-m", "seed=1,2", "resume=outputs/x"], ["resume=outputs/x", "the same command again"]),
        (["-m", "seed=1,2", "sweep.method=random"], ["sweep.method=random", "grid, one_at_a_time, optuna"]),
        (["-m", "seed=1,2", "sweep.launcher=k8s"], ["sweep.launcher=k8s", "local or slurm"]),
        (["-m", "seed=1,2", "sweep.jobs=0"], ["sweep.jobs=0", "at least 1"]),
        (["-m", "seed=1,2", "sweep.trials=0"], ["sweep.trials=0", "at least 1"]),
        (["-m", "seed=1,2", "sweep.job=2"], ["sweep.job: there is no such key", "sweep.jobs"]),
        (["sweep=head"], ["sweep=head: there is no such choice; did you mean heads?", "heads"]),
        (["-m", "sweep=heads,depth"], ["sweep=heads,depth: takes one value"]),
        (["-m", "seed=1,2", "trainer.devices=two"], ["trainer.devices=two: must be an integer"]),
        (["-m", "model=glob(none*)"], ["model: there are no values"]),
        (["-m", "seed=range(1,5,0)"], ["seed=range(1,5,0): a step of 0"]),
        (["-m", "seed=range(1,100000000000)"], ["has more than 100,000 values"]),
        ([*SEARCH, "optim.lr=tag(log,interval(0,1e-2))"], ["optim.lr=interval(0,0.01): on a log scale", "above 0"]),
        ([*SEARCH, "optim.lr=tag(log,interval(-1,1))"], ["optim.lr=interval(-1,1): on a log scale"]),
        ([*SEARCH, "optim.lr=interval(1e-2,1e-3)"], ["optim.lr=interval(0.01,0.001): the first end must be below"]),
        ([*SEARCH, "optim.lr=interval(1,1)"], ["optim.lr=interval(1,1): the first end must be below"]),
        ([*SEARCH, "optim.lr=interval(0,inf)"], ["optim.lr=interval(0,inf): both ends must be finite"]),
        ([*SEARCH, "optim.lr=interval(nan,1)"], ["both ends must be finite"]),
        ([*SEARCH, "optim.lr=interval('1','2')"], ["optim.lr=interval('1','2'): cannot be read"]),
        ([*SEARCH, "optim.lr=interval(1,8,2)"], ["optim.lr=interval(1,8,2): cannot be read"]),
        ([*SEARCH, "optim.lr=interval(0,1),interval(2,3)"], ["stands alone"]),
        ([*SEARCH, "optim.lr=tag(lgo,interval(1,2))"], ["there is no tag lgo; the only one is log"]),
        ([*SEARCH, "optim.lrr=interval(1,2)"], ["optim.lrr=interval(1,2): there is no such key", "optim.lr?"]),
        ([*SEARCH, "model.n_layer=interval(1.5,3)"], ["model.n_layer is an integer"]),
        (
            [*SEARCH, "model.tied=interval(0,1)"],
            ["model.tied=interval(0,1): an interval is for a key that takes numbers"],
        ),
        ([*SEARCH, "model.pos=interval(0,1)"], ["an interval is for a key that takes numbers"]),
        ([*SEARCH, "model=interval(0,1)"], ["model=interval(0,1): an interval is for a key that takes numbers"]),
        ([*SEARCH, "model.n_layer=choice(1,1.5)"], ["model.n_layer=1.5: must be an integer"]),
        ([*SEARCH, "optim.lr=choice(a,b)"], ["optim.lr=a: must be a number"]),
        ([*SEARCH, "tokenizer=char,bype"], ["tokenizer=bype: there is no such choice; did you mean bpe?"]),
        (
            [*SEARCH, "task=dpo", "data=preferences", "init_from=x", "task.beta=interval(0.01,1)"],
            ["sweep.method=optuna with task.beta=...: a search minimises val/loss, which is another measure"],
        ),
        ([*SEARCH, "model.n_layr=1,2"], ["model.n_layr: there is no such key here"]),
        (["-m", "model.n_layr=1,2"], ["model.n_layr: there is no such key here", "model.n_layer"]),
        (["-m", "model=gpt99,gpt1m"], ["model=gpt99: there is no such choice"]),
        (["model.n_head=1,2"], ["model.n_head=1,2", "-m"]),
    ],
)
def test_a_refused_sweep_is_one_message_and_leaves_nothing(
    command: Any, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    assert_refused(command("train", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_from_its_command_to_its_table_and_again(
    command: Any, shell: Any, text_file: Path, tmp_path: Path
) -> None:
    """Two sizes, one of which cannot be: the other finishes. Then two seeds, of which one is there."""
    words = ("-m", *RUN, f"data.path='{text_file}'", "name=heads", "sweep.jobs=2")
    process = shell("-m", "gptlab.train", *words, "model.n_head=3,2", "seed=1")
    shown = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    for expected in (
        "2 jobs, 2 at once, in outputs/sweeps/heads",
        "1/2 n_head-3: finished, val/loss ",
        "2/2 n_head-2: failed",
        "failed (exit code 1): outputs/sweeps/heads/n_head-2+",
        "    error: model.n_embd=33",
        "1 of 2 jobs have failed",
    ):
        assert expected in shown, expected
    root = tmp_path / "outputs" / "sweeps" / "heads"
    (first,) = root.glob("n_head-3+*")
    before = (first / "summary.json").read_bytes()
    assert json.loads(before)["format"] == directory.SUMMARY_FORMAT
    assert read_json(first / "job.json") == {
        "sweep": "heads",
        "baseline": {"model.n_head": "3"},
        "overrides": {"model.n_head": "3"},
    }

    again = command("train", *words, "seed=1,2")  # n_head is 3 by default
    assert again.returncode == 0, again.stderr
    assert [line for line in again.stdout.splitlines() if "running" in line] == ["2/2 baseline+seed-2: running"]
    assert (first / "summary.json").read_bytes() == before
    (second,) = root.glob("*seed-2+*")
    table = pd.read_csv(root / "report" / "report.csv")
    losses = [json.loads(text)["val/loss"] for text in (before, (second / "summary.json").read_bytes())]
    assert table["mean"].tolist() == pytest.approx([sum(losses) / 2], abs=0)


@pytest.mark.parametrize(
    ("word", "integer"),
    [
        ("model.n_layer=interval(2,8)", True),
        ("model.n_layer=tag(log,interval(2.0,8))", True),
        ("tokenizer.vocab_size=interval(260,400)", True),
        ("seed=interval(1,9)", True),
        ("optim.lr=interval(0,1)", False),
        ("trainer.ema=interval(0,0.9)", False),
        ("model.dropout=interval(0,1)", False),
    ],
)
def test_the_type_of_a_key_decides_what_is_drawn(word: str, integer: bool) -> None:
    (axis,) = planned(*SEARCH, "tokenizer=bpe", word).axes
    assert axis.integer is integer


def test_the_type_of_every_number_is_that_of_its_field() -> None:
    """Where a default does not show it, `identity.NUMBERS` does."""
    import dataclasses

    from gptlab.data.config import DataConfig
    from gptlab.data.tokenizers import TokenizerConfig
    from gptlab.models import GPTConfig
    from gptlab.runs.compose import compose
    from gptlab.runs.identity import flatten, number_type
    from gptlab.training.optimizers import OptimConfig
    from gptlab.training.schedules import ScheduleConfig

    kinds: dict[str, Any] = {"data": DataConfig, "tokenizer": TokenizerConfig, "model": GPTConfig}
    kinds |= {"optim": OptimConfig, "schedule": ScheduleConfig, "trainer": settings.TrainerConfig}
    for choice in ("optim=adamw", "optim=muon", "schedule=wsd"):
        config = flatten(compose([choice]))
        for group, kind in kinds.items():
            for field in dataclasses.fields(kind):
                key, words = f"{group}.{field.name}", str(field.type).split(" | ")
                if key in config and key not in ("data.path", "trainer.devices", "data.micro_batch_size"):  # of Any
                    expected = float if "float" in words else int if "int" in words else None
                    assert number_type(key, config[key]) is expected, key


@pytest.mark.parametrize(
    ("words", "metric"),
    [
        (["seed=1,2", "optim.lr=1e-3,1e-2"], "val/loss"),
        (["model=gpt1m,gpt3m"], "val/loss"),
        (["tokenizer=bpe", "tokenizer.vocab_size=260,300"], "val/bpb"),
        (["tokenizer=char,byte"], "val/bpb"),
        (["data=text", "data.path=a.txt,b.txt"], "val/bpb"),
        (["data.val_fraction=0.1,0.2"], "val/bpb"),
        (["experiment=first,verdict"], "val/bpb"),
        (["sweep.method=one_at_a_time", "tokenizer=byte,word"], "val/bpb"),
        (["data.batch_size=4,8"], "val/loss"),
        (["sweep.method=optuna", "tokenizer=bpe", "tokenizer.vocab_size=interval(260,300)"], "val/bpb"),
        (["sweep.method=optuna", "optim.lr=interval(0,1)"], "val/loss"),
    ],
)
def test_bits_per_byte_decide_where_tokens_differ(words: list[str], metric: str) -> None:
    assert planned("-m", *words).metric == metric


def test_texts_with_any_name_can_be_swept(tmp_path: Path) -> None:
    command = planned("-m", "data=text", "data.path=Café.txt,~/it's é.txt,'a, b.txt'", "name=é", "sweep.dir=~/s")
    jobs = command.jobs  # type: ignore[attr-defined]
    assert [job.point["data.path"] for job in jobs] == ["Café.txt", "~/it's é.txt", "'a, b.txt'"]
    with open_conf():
        paths = [command.config_of(job.point)["data"]["path"] for job in jobs]
    assert paths == ["Café.txt", "~/it's é.txt", "a, b.txt"]
    assert jobs[0].words[-1] == "data.path='Café.txt'"
    assert jobs[0].dir.name.startswith("path-Café.txt+")
    assert jobs[0].dir.is_relative_to(Path.home() / "s")


def test_truth_is_written_as_it_is_typed() -> None:
    points = [job.point for job in planned("-m", "model.bias=true,false", "seed=1").jobs]  # type: ignore[attr-defined]
    assert [point["model.bias"] for point in points] == ["true", "false"]


def test_an_axis_in_a_file_is_as_if_typed() -> None:
    assert [command_line.typed_values(value) for value in (None, True, 3, "1,2", [4, None])] == [
        "null",
        "true",
        "3",
        "1,2",
        "4,null",
    ]


def test_a_users_own_groups_can_be_swept(tmp_path: Path) -> None:
    folder = tmp_path / "my conf, (1)" / "model"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - gpt1m\nmodel:\n  n_layer: 7\n")
    command = planned("-m", "--config-dir", str(folder.parent), "model=mine,gpt1m", "++seed=1,2")
    assert [command.config_of(job.point)["model"]["n_layer"] for job in command.jobs] == [7, 7, 6, 6]  # type: ignore
    assert command.jobs[0].words[:2] == ("--config-dir", str(folder.parent))  # type: ignore[attr-defined]
    assert command.baseline() == {"model": "mine"}


def test_a_moved_data_folder_reaches_jobs_that_go_on(tmp_path: Path) -> None:
    job = planned("-m", "seed=1,2", "data.dir=/moved", "optim.lr=1").jobs[0]  # type: ignore[attr-defined]
    for name in ("config.yaml", "checkpoints/last.ckpt"):
        (job.dir / name).parent.mkdir(parents=True, exist_ok=True)
        (job.dir / name).touch()
    assert job.command()[3:] == [f"resume='{job.dir}'", "data.dir=/moved", "hydra.mode=RUN"]


def test_two_processes_cannot_train_in_one_folder(command: Any, text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with directory.locked(tmp_path / "one"):
        result = command("train", *RUN, f"data.path='{text_file}'", "hydra.run.dir=one")
        assert directory.in_use(tmp_path / "one")  # what the first process has begun is left alone
    assert_refused(result, "one: another process is training there")
    assert directory.in_use(tmp_path / "one") is False


@pytest.mark.slow
def test_a_sweep_that_is_killed_five_times_ends_with_the_table_of_one_that_is_not(
    text_file: Path, tmp_path: Path
) -> None:
    """SIGKILL, at random, of the sweep alone or of all its processes, as when the power goes."""
    words = (
        *(*TINY, "model.dropout=0.2", f"data.path='{text_file}'", "data.cache_dir=cache"),
        *("trainer.max_steps=3000", "trainer.val_every=200", "trainer.log_every=10"),
    )
    command = [sys.executable, "-m", "gptlab.train", "-m", *words, "model.n_embd=33,66", "optim.lr=1e-3,3e-3"]
    command += ["seed=1,2,3", "sweep.jobs=2"]

    def processes() -> list[int]:
        listing = subprocess.run(["ps", "-ewwo", "pid=,args="], capture_output=True, text=True, check=True).stdout
        return [int(line.split()[0]) for line in listing.splitlines() if "name=cut" in line or "sweeps/cut/" in line]

    draw = random.Random(1)
    for number in range(5):
        process = subprocess.Popen([*command, "name=cut"], stdout=subprocess.DEVNULL)
        time.sleep(draw.uniform(4, 12))
        assert process.poll() is None
        for pid in [process.pid] if number % 2 else {process.pid, *processes()}:
            os.kill(pid, signal.SIGKILL)
        process.wait()
    tables = []
    for name in ("cut", "whole"):
        assert subprocess.run([*command, f"name={name}"], stdout=subprocess.DEVNULL).returncode == 0
        table = pd.read_csv(tmp_path / "outputs" / "sweeps" / name / "report" / "report.csv")
        tables.append(table[[column for column in table if "second" not in column]])
    pd.testing.assert_frame_equal(*tables, check_exact=True)
