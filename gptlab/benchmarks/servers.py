"""Servers of completions as processes: ours, and those that it is measured against."""

from __future__ import annotations

import http.client
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from gptlab.system.errors import UserError
from gptlab.system.machine import resident_bytes

HOST = "127.0.0.1"
START = 300.0  # seconds that a server may take to open its model
PAUSE = 0.05  # seconds between two looks at a server that starts
LAST_LINES = 12  # lines of its log that the error message shows


class Load(NamedTuple):
    """What a server is to serve."""

    model: str
    """Its file: a model that gptlab opens, or GGUF for the others."""
    precision: str
    threads: int
    clients: int
    """The most that ask at once."""
    tokens: int
    """The most of a prompt and its answer."""


def gptlab_command(program: str, load: Load, port: int) -> list[str]:
    limits = ["--width", str(min(load.clients, 1024)), "--queue", "1000000"]
    return [program, "-m", "gptlab.serve", load.model, "--port", str(port), "--precision", load.precision, *limits]


def llama_server_command(program: str, load: Load, port: int) -> list[str]:
    """llama.cpp's own server, in C++: a slot for each client, continuous batching, its defaults for the rest."""
    each = max(256, load.tokens)
    room = ["--ctx-size", str(each * load.clients), "--parallel", str(load.clients), "--threads", str(load.threads)]
    return [program, "--model", load.model, "--host", HOST, "--port", str(port), *room]


def llama_cpp_python_command(program: str, load: Load, port: int) -> list[str]:
    """The server of llama-cpp-python, which answers one after another; by default a request cuts off the one before."""
    room = ["--n_ctx", str(max(256, load.tokens)), "--n_threads", str(load.threads), "--interrupt_requests", "false"]
    return [program, "-m", "llama_cpp.server", "--model", load.model, "--host", HOST, "--port", str(port), *room]


OURS = "gptlab"
COMMANDS: dict[str, Callable[[str, Load, int], list[str]]] = {
    OURS: gptlab_command,
    "llama-server": llama_server_command,
    "llama-cpp-python": llama_cpp_python_command,
}
"""By the program that is run: a Python, or llama-server."""


def find_program(name: str, given: str | None) -> str:
    """Return the program of a server: what is given, or what is on the path.

    Raises:
        UserError: there is none.
    """
    usual = "llama-server" if name == "llama-server" else sys.executable
    found = shutil.which(given or usual)
    if found is None:
        raise UserError(f"--program {given or usual}: no such program; give the path of what runs {name}")
    return found


class Server:
    """A server that runs for as long as the block does.

    Args:
        name: of `COMMANDS`.
        folder: where its log goes.

    Raises:
        UserError: it does not start.
    """

    def __init__(self, name: str, program: str, load: Load, folder: Path) -> None:
        self.name, self.log, self.port = name, folder / f"{name}.log", free_port()
        self.address = f"http://{HOST}:{self.port}"
        self.command = COMMANDS[name](program, load, self.port)

    def __enter__(self) -> Server:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        give_up = time.monotonic() + START
        while not self.serves():
            if self.process.poll() is not None or time.monotonic() > give_up:
                self.__exit__()
                lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
                raise UserError("\n".join([f"{self.name} does not serve: {' '.join(self.command)}", *lines]))
            time.sleep(PAUSE)
        return self

    def serves(self) -> bool:
        """Return whether it answers."""
        with closing(http.client.HTTPConnection(HOST, self.port, timeout=START)) as connection:
            try:
                connection.request("GET", "/v1/models")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    @property
    def memory(self) -> int | None:
        """Its resident memory in bytes; None where that is not known."""
        return resident_bytes(self.process.pid)

    def __exit__(self, *args: object) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        return int(bound.getsockname()[1])
