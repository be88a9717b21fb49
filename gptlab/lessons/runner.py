"""Run a chapter's commands as a student types them, each a process of its own, and measure what they have made."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from gptlab.lessons.lesson import OUTPUTS, Expected, Lesson
from gptlab.runs import compose, directory, resume
from gptlab.system.errors import UserError
from gptlab.system.files import explain_write_errors, write_atomically

PLACES = ("hydra.run.dir=", "sweep.dir=")  # keys that name a command's folder


@dataclass(frozen=True)
class Measured:
    """A number, and the one that the chapter states."""

    expected: Expected
    value: float

    @property
    def is_inside(self) -> bool:
        return self.expected.low <= self.value <= self.expected.high


@dataclass(frozen=True)
class Command:
    """A line as a student types it: the words of a process, and the file that its output goes to, if any."""

    line: str
    words: tuple[str, ...]
    file: Path | None

    @property
    def folder(self) -> Path | None:
        """The folder of the run or the sweep that the command makes."""
        values = [word.partition("=")[2] for word in self.words if word.startswith(PLACES)]
        return Path(values[0]) if values else None

    @property
    def trains_one(self) -> bool:
        """Whether the command trains one run, and no sweep, which itself goes on where it was."""
        many = any(word == "-m" or word.startswith("sweep=") for word in self.words[3:])
        return self.words[2] == "gptlab.train" and not many


def read_command(line: str, seed: int | None = None) -> Command:
    """Return the command of a chapter's line.

    Args:
        seed: of what is trained, in place of the line's own.
    """
    words = shlex.split(line)
    file = Path(words[-1]) if ">" in words else None
    words = words[:-2] if file else words
    if seed is not None and words[2] == "gptlab.train":
        words = [*(word for word in words if not word.startswith("seed=")), f"seed={seed}"]
    shown = shlex.join(words) + (f" > {shlex.quote(str(file))}" if file else "")
    return Command(shown, tuple(words), file)


def run_lesson(lesson: Lesson, seed: int | None = None, again: bool = False) -> list[Measured]:
    """Run a chapter's commands, measure its numbers, and draw its picture into its outputs.

    A run that is there and complete is not made again, and one that was broken off is resumed.

    Args:
        seed: see `read_command`.
        again: first remove what the commands have made before.

    Raises:
        UserError: a command fails, or its folder holds something else.
    """
    commands = [read_command(line, seed) for line in lesson.commands]
    folder = OUTPUTS / str(lesson.number)
    if again:
        for command in commands:
            remove(command, folder)
    for command in commands:
        run_command(command)
    measured = [Measured(expected, expected.read(folder)) for expected in lesson.expected]
    draw_picture(lesson, folder)
    return measured


def draw_picture(lesson: Lesson, folder: Path) -> None:
    """Draw a chapter's picture into the folder of its outputs."""
    import matplotlib

    from gptlab.reports.plots.style import STYLE

    with matplotlib.rc_context(STYLE):
        figure = lesson.draw(folder)
        write_atomically(folder / lesson.picture, partial(figure.savefig, format="png"))


def remove(command: Command, folder: Path) -> None:
    """Remove what a command has made, all of which is in the chapter's folder.

    Raises:
        UserError: a process trains there, or it cannot be removed.
    """
    made = command.folder
    with explain_write_errors(folder):
        if made is not None and folder in made.parents and made.exists():
            if any(map(directory.in_use, (made, *made.iterdir()))):
                raise UserError(f"{made}: another process is training there; wait for it, or stop it first")
            shutil.rmtree(made)
        if command.file is not None:
            command.file.unlink(missing_ok=True)


def run_command(command: Command) -> None:
    """Run a command, with its output where the student's would go; a run that is complete is not made again.

    Raises:
        UserError: it fails.
        KeyboardInterrupt: Ctrl-C, after the command has saved what it has.
    """
    print(f"\n$ {command.line}", flush=True)
    if command.trains_one and is_complete(command):
        print(f"{command.folder}: complete, kept (--again makes it anew)", flush=True)
        return
    going_on = command.trains_one and command.folder is not None and (command.folder / "config.yaml").is_file()
    words = [sys.executable, *command.words[1:], *(["resume=auto"] if going_on else [])]
    if command.file is None:
        wait_for(words)
    else:
        write_atomically(command.file, partial(wait_for, words))


def is_complete(command: Command) -> bool:
    """Return whether the run that a command makes is there and has finished.

    Raises:
        UserError: its folder holds another run.
    """
    if command.folder is None or not (command.folder / "config.yaml").is_file():
        return False
    try:
        past = resume.stored_config(command.folder, lambda run_dir: None)
    except UserError:  # the command says what is wrong
        return False
    with compose.refusals():
        now = compose.compose(list(command.words[3:]))
    if others := resume.differing(past, now, "moved"):
        raise UserError(
            f"{command.folder} holds another run, which does not have {', '.join(others)}: --again makes it anew; or "
            f"move it away"
        )
    return directory.read_summary(command.folder) is not None


def wait_for(words: list[str], file: BinaryIO | None = None) -> None:
    """Run a process to its end. It has a session of its own, so that Ctrl-C reaches it once, through this process.

    Args:
        file: where its standard output goes; None: to this process's own.

    Raises:
        UserError: its exit code is not 0.
        KeyboardInterrupt: Ctrl-C, after the process has ended.
    """
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, start_new_session=True)
    interrupts = 0
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:  # the first lets it save, a second ends it
            interrupts += 1
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT if interrupts == 1 else signal.SIGKILL)
    if interrupts or code == 130:
        raise KeyboardInterrupt
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise UserError(f"the command {how}; what it said stands above. The same lesson goes on from here")
