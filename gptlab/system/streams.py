"""Standard output and error that take any text, and whose end is no traceback."""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import suppress
from typing import Any


class Stream(io.FileIO):
    """The file below standard output or error. From the first write that fails, everything written is dropped.

    It fails where a reader such as head has gone, the disk is full, or the terminal has been closed.

    Args:
        number: the file descriptor, 1 or 2.
        essential: let that first write raise its OSError, so that the command ends.

    Attributes:
        lost: the error of that write; None as long as all has been written.
    """

    def __init__(self, number: int, essential: bool) -> None:
        super().__init__(number, "wb", closefd=False)
        self.essential = essential
        self.lost: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.lost = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for torch's C++ and for child processes, too
            os.close(nowhere)
            if self.essential:
                logging.raiseExceptions = False  # the command says it, once
                raise
            return len(data)


def prepare_streams(essential: bool) -> None:
    """Let standard output and error take text of any encoding, and go on without a reader.

    Args:
        essential: standard output is what the command is for: its loss ends the command, see `Stream`.
    """
    for number in range(3):  # a descriptor that the shell has closed would be that of the next file opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # whoever reads it says what is wrong
    sys.stdout = _forgiving(sys.stdout, 1, essential)
    sys.stderr = _forgiving(sys.stderr, 2, False)


def _forgiving(stream: Any, number: int, essential: bool) -> Any:
    """Return a stream over a `Stream` in place of one of Python's own; any other, such as a test's, as it is."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if isinstance(raw, Stream):
        raw.essential = essential
    if isinstance(raw, Stream) or not (isinstance(raw, io.FileIO) and raw.fileno() == number):
        return stream
    stream.flush()
    fresh = Stream(number, essential)
    return io.TextIOWrapper(
        fresh if buffer is raw else io.BufferedWriter(fresh),  # the former under python -u
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def flush_output() -> OSError | None:
    """Flush standard output; returns the error by which it was lost, now or before, None if all has been written."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    return getattr(getattr(buffer, "raw", buffer), "lost", None)
