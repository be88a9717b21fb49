"""The README's picture is drawn from recorded runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptlab.benchmarks import picture
from gptlab.system.errors import UserError
from tests.conftest import ROOT

RUNS = {"first": [(20.0, 1.9), (60.0, 1.55)], picture.LOOP: [(140.0, 1.9055)]}


def test_what_is_recorded_is_read_and_drawn_and_drawn_again_alike(tmp_path: Path) -> None:
    picture.write(RUNS, tmp_path / "seconds.csv")
    assert picture.read(tmp_path / "seconds.csv") == RUNS
    for name in ("a.png", "b.png"):
        picture.draw(picture.read(tmp_path / "seconds.csv"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content", [None, "run,seconds\nfirst,1\n", "run,seconds,val_loss\nfirst,soon,1.9\n"])
def test_what_was_not_recorded_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "seconds.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"seconds.csv cannot be read .*: make the runs with --record"):
        picture.read(file)


def test_the_log_of_a_run_tells_when_it_was_validated() -> None:
    line = "2026-11-28 10:27:19,532 INFO gptlab: step 20 of 210: val/loss 2.6030 (3.7554 bits per byte)"
    assert picture.VALIDATED.findall(line) == [("2026-11-28 10:27:19", "532", "2.6030")]


def test_the_readmes_picture_shows_the_recorded_runs() -> None:
    runs = picture.read(ROOT / "docs" / "pictures" / "seconds.csv")
    assert {"first", picture.LOOP} <= runs.keys()
    assert (ROOT / "docs" / "pictures" / "seconds.png").is_file()
