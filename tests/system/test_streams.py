"""Standard output and error that are closed, full, unread, or of an encoding that lacks our letters."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptlab.system.streams import Stream
from tests.conftest import ROOT
from tests.test_cli import RUN

OURS = "from gptlab.system.errors import command_line\n"
PRINTS = (
    OURS + "with command_line({essential}):\n    print('größer, Лиса')\n    print('more', flush=True)\n    {more}\n"
)
BROKEN = pytest.mark.parametrize("essential", [True, False])


def ended(code: str, redirections: str = "", **variables: str) -> tuple[int, str, str]:
    """The exit code, the output and the errors of a few lines of Python, as a shell starts them."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **variables}
    command = ["bash", "-c", f'"$0" -c "$1" {redirections}', sys.executable, code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252:strict"])
def test_letters_that_an_encoding_lacks_are_escaped(encoding: str) -> None:
    code, out, err = ended(PRINTS.format(essential=True, more="pass"), PYTHONIOENCODING=encoding)
    assert (code, err) == (0, "")
    assert "\\u041b\\u0438\\u0441\\u0430" in out
    assert "more" in out


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_one_message_where_it_is_the_point(unbuffered: str) -> None:
    for essential, code, err in ((True, 1, "error: standard output: No space left on device\n"), (False, 0, "")):
        words = PRINTS.format(essential=essential, more="pass")
        assert ended(words, ">/dev/full", PYTHONUNBUFFERED=unbuffered) == (code, "", err)


@BROKEN
def test_closed_streams_are_no_mistake_and_their_numbers_are_not_taken(tmp_path: Path, essential: bool) -> None:
    file = tmp_path / "checkpoint"
    more = f"file = open('{file}', 'w'); import os; os.write(1, b'from C'); file.write('whole')"
    assert ended(PRINTS.format(essential=essential, more=more), "<&- >&- 2>&-") == (0, "", "")
    assert file.read_text() == "whole"


def test_a_reader_that_goes_ends_what_is_written_for_it_and_nothing_else(tmp_path: Path) -> None:
    for essential, words in ((True, ""), (False, "to the end")):
        more = f"open('{tmp_path}/end', 'w').write('to the end')"
        code = PRINTS.format(essential=essential, more=more).replace("'more'", "'more' * 100000")
        (tmp_path / "end").write_text("")
        returned, out, err = ended(code, "| head -c 3; exit ${PIPESTATUS[0]}")
        assert (returned, out[:2], err) == (0, "gr", "")
        assert (tmp_path / "end").read_text() == words


@pytest.mark.parametrize("error", ["raise UserError('wrong')", "raise SystemExit('error: wrong')"])
def test_a_mistake_stays_one_where_nobody_reads(error: str) -> None:
    code = "from gptlab.system.errors import UserError\n" + PRINTS.format(essential=True, more=error)
    returned, _, err = ended(code.replace(", flush=True", ""), "| head -0; exit ${PIPESTATUS[0]}")
    assert (returned, err) == (1, "error: wrong\n")


def test_a_log_without_a_reader_makes_no_traceback() -> None:
    more = "import logging; logging.basicConfig(stream=sys.stdout); logging.warning('x' * 100000); print('more')"
    code = "import sys\n" + PRINTS.format(essential=True, more=more).replace(", flush=True", "")
    assert ended(code, "| head -0; exit ${PIPESTATUS[0]}") == (0, "", "")


def test_a_child_process_does_not_meet_the_broken_pipe_again() -> None:
    more = "import subprocess, sys; assert subprocess.run([sys.executable, '-c', 'print(1)']).returncode == 0"
    code = PRINTS.format(essential=False, more=more).replace("'more'", "'more' * 100000")
    assert ended(code, "| head -0; exit ${PIPESTATUS[0]}") == (0, "", "")


def test_a_stream_remembers_why_it_was_lost() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    file = io.TextIOWrapper(io.BufferedWriter(stream := Stream(writer, essential=False)))
    print("nobody reads this", file=file, flush=True)
    assert isinstance(stream.lost, BrokenPipeError)
    os.close(writer)


def test_a_run_whose_reader_has_gone_trains_to_its_end(shell: Any, tmp_path: Path) -> None:
    """As `2>&1 | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    (tmp_path / "ru.txt").write_text("Лиса и волк.\n" * 200, encoding="utf-8")
    process = shell("-m", "gptlab.train", *RUN, "data.path=ru.txt", "hydra.run.dir=run", stdout=writer, stderr=writer)
    os.close(writer)
    assert process.wait(120) == 0
    assert (tmp_path / "run" / "summary.json").is_file()
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert "finished after 7 steps" in log
    assert "Traceback" not in log
