"""What of a chapter's runs is kept, resumed, refused or made anew; and numbers out of its outputs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from gptlab.lessons import intervals, outputs, runner
from gptlab.lessons.lesson import OUTPUTS, rounded
from gptlab.system.errors import UserError
from tests.conftest import TINY
from tests.lessons.tiny import WRITE, tiny_lesson


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that would have been started, in an empty folder."""
    found: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "wait_for", lambda words, file=None: found.append(words))
    return found


@pytest.fixture
def line(trained: Path, text_file: Path, cache_dir: Path, started: list[list[str]]) -> str:
    """The line that trains the tiny run, a copy of which is where it belongs."""
    run_dir = OUTPUTS / "1" / "run"
    shutil.copytree(trained, run_dir)
    words = [*TINY, "model.dropout=0.1", f"data.path='{text_file}'", f"data.cache_dir={cache_dir}", "name=bigram"]
    return shlex.join(["python", "-m", "gptlab.train", *words, f"hydra.run.dir={run_dir}"])


def test_a_complete_run_is_kept(line: str, started: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    runner.run_command(runner.read_command(line))
    assert started == []
    assert "complete, kept" in capsys.readouterr().out


def test_a_run_that_was_broken_off_is_resumed(line: str, started: list[list[str]]) -> None:
    (OUTPUTS / "1" / "run" / "summary.json").unlink()
    runner.run_command(runner.read_command(line))
    assert [words[-1] for words in started] == ["resume=auto"]


def test_a_run_that_is_not_there_is_made(line: str, started: list[list[str]]) -> None:
    shutil.rmtree(OUTPUTS / "1" / "run")
    runner.run_command(runner.read_command(line))
    assert [words[1:] for words in started] == [shlex.split(line)[1:]]


def test_the_run_of_another_version_is_refused_and_made_anew_if_that_is_asked(
    line: str, started: list[list[str]]
) -> None:
    command = runner.read_command(line.replace("model.dropout=0.1", "model.dropout=0.3"))
    with pytest.raises(UserError, match=r"holds another run, which does not have model\.dropout=0\.3: --again"):
        runner.run_command(command)
    runner.remove(command, OUTPUTS / "1")
    assert not (OUTPUTS / "1" / "run").exists()
    runner.run_command(command)
    assert len(started) == 1


def test_again_removes_nothing_but_what_the_commands_have_made(started: list[list[str]]) -> None:
    """An exercise's run in the same folder stays, and so does what lies elsewhere."""
    made = [OUTPUTS / "1" / "run", OUTPUTS / "1" / "mine", Path("elsewhere")]
    for folder in made:
        folder.mkdir(parents=True)
    for folder in (made[0], made[2]):
        runner.remove(runner.read_command(f"python -m gptlab.train hydra.run.dir={folder}"), OUTPUTS / "1")
    assert [folder.exists() for folder in made] == [False, True, True]


@pytest.mark.parametrize("words", ["sweep=ladder", "-m seed=1,2"])
def test_a_sweep_is_always_started_since_it_keeps_what_is_complete(words: str) -> None:
    command = runner.read_command(f"python -m gptlab.train {words} sweep.dir=outputs/lessons/1/sweep")
    assert not command.trains_one
    assert command.folder == OUTPUTS / "1" / "sweep"


def test_a_line_is_read_for_another_seed() -> None:
    train = "python -m gptlab.train experiment=first seed=1337 hydra.run.dir=outputs/lessons/1/run"
    command = runner.read_command(train, 7)
    assert command.line == "python -m gptlab.train experiment=first hydra.run.dir=outputs/lessons/1/run seed=7"
    line = "python -m gptlab.evaluate uniform > outputs/lessons/1/it.json"
    command = runner.read_command(line, 7)
    assert (command.line, command.file) == (line, OUTPUTS / "1" / "it.json")


def test_what_a_seed_leaves_alone_has_the_interval_of_its_rounding() -> None:
    expected = rounded("it", lambda folder: 0.0, 0.4419)
    assert (expected.low, expected.high, expected.interval()) == (0.44185, 0.44195, "0.44185 to 0.44195")


def test_intervals_are_predictions_from_several_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Student's t for 2 degrees of freedom, of 1 in 200 above: 9.925."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(intervals, "find_lesson", lambda chapter: tiny_lesson(WRITE))
    losses = iter([2.4, 2.5, 2.6])

    def run_lesson(lesson: Any, seed: int) -> list[runner.Measured]:
        assert Path.cwd() == tmp_path / "outputs" / "lessons-seeds" / str(seed)
        return [runner.Measured(lesson.expected[0], next(losses))]

    monkeypatch.setattr(intervals, "run_lesson", run_lesson)
    intervals.show_intervals("1", [1, 2, 3], 0.99)
    half = 9.925 * 0.1 * (4 / 3) ** 0.5
    assert capsys.readouterr().out.startswith(f"the loss: 2.5, {2.5 - half:.5g} to {2.5 + half:.5g}; seeds: ")
    assert Path.cwd() == tmp_path
    with pytest.raises(UserError, match="--seeds 1 2 2: give at least three different ones"):
        intervals.show_intervals("1", [1, 2, 2], 0.99)


# Numbers out of outputs


def test_numbers_are_read_from_a_runs_files(trained: Path) -> None:
    folder = trained.parent
    summary = json.loads((trained / "summary.json").read_text())
    assert outputs.of_summary(trained.name, "val/loss")(folder) == summary["val/loss"]
    assert outputs.at_step(trained.name, "val/loss", 7)(folder) == pytest.approx(summary["val/loss"])
    for read in (outputs.of_summary(trained.name, "val/los"), outputs.at_step(trained.name, "val/loss", 8)):
        with pytest.raises(UserError, match="has no number"):
            read(folder)
    with pytest.raises(UserError, match="there is no finished run"):
        outputs.of_summary("none", "val/loss")(folder)


def test_of_a_sweeps_jobs_the_one_that_was_looked_at_last_counts(tmp_path: Path) -> None:
    """An older version's job may lie beside it, under another hash."""
    for place, (name, loss) in enumerate((("old", 9.0), ("new", 2.0))):
        folder = tmp_path / "sweep" / name
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps({"overrides": {"experiment": "x", "seed": "1"}}))
        summary = {"status": "finished", "steps": 1, "val/loss": loss, "best_val_loss": loss}
        (folder / "summary.json").write_text(json.dumps(summary))
        os.utime(folder / "job.json", (place, place))
    assert outputs.of_job("sweep", {"experiment": "x"}, "val/loss")(tmp_path) == 2.0
    with pytest.raises(UserError, match="there is no run of experiment=y"):
        outputs.of_job("sweep", {"experiment": "y"}, "val/loss")(tmp_path)


def test_a_file_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text('{"compare": {"loss": "low"}}')
    for keys in (("compare", "loss"), ("compare", "nats"), ("loss",), ("compare", 0)):
        with pytest.raises(UserError, match=r"it\.json has no number .*--again"):
            outputs.of_json("it.json", *keys)(tmp_path)
