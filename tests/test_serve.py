"""`python -m gptlab.serve` as a user types it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from gptlab.serving.server import is_local, listen
from gptlab.system.errors import UserError
from tests.conftest import Bell
from tests.serving.conftest import events, joined
from tests.test_cli import assert_refused
from tests.test_generate import ABC, gpt, saying

# Tells of each pass, and waits before the first one.
GATED = """
import sys
from gptlab.generation.batch import Batch
logits = Batch.logits
def gated(batch):
    if not batch.passes:
        with open("bell", "w") as bell:
            bell.write("!")
        with open("go") as go:
            go.read()
    return logits(batch)
Batch.logits = gated
from gptlab.serve import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(gpt(tmp_path_factory.mktemp("model") / "abc.ckpt", ABC))


def url(process: subprocess.Popen[str]) -> str:
    """Where a server listens, as it says."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://\S+/v1", line):
            return found[0]
    raise AssertionError("the server has ended")


@pytest.fixture
def started(shell: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """A list of processes to be killed at the end."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_sigterm_finishes_what_runs_and_refuses_what_comes(
    shell: Any, started: list[subprocess.Popen[str]], model: str, tmp_path: Path, bell: Bell
) -> None:
    os.mkfifo(tmp_path / "go")
    process = shell("-c", GATED, model, "--port", "0")
    started.append(process)
    base = url(process)
    ask = {"prompt": "abc", "max_tokens": 30, "seed": 1}
    with ThreadPoolExecutor() as pool, httpx.Client(trust_env=False, timeout=60) as client:
        first = pool.submit(client.post, f"{base}/completions", json=ask)
        stream = pool.submit(client.post, f"{base}/completions", json={**ask, "stream": True})
        bell.heard(1)
        process.send_signal(signal.SIGTERM)
        while (found := client.get(base.replace("/v1", "/health"))).status_code == 200:
            pass  # until the signal has come
        assert found.json()["status"] == "stopping"
        assert client.post(f"{base}/completions", json=ask).status_code == 503
        (tmp_path / "go").write_text("")
        text = first.result().json()["choices"][0]["text"]
        assert len(text) == 30
        assert joined(events(stream.result().text)) == {0: text}
    assert process.wait(60) == 0
    assert process.stderr.read() == ""


def test_a_second_signal_makes_an_end_of_what_runs(
    shell: Any, started: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    endless = str(saying(tmp_path / "endless.ckpt", ABC, ABC.encode("abc").tolist()))
    process = shell("-m", "gptlab.serve", endless, "--port", "0")
    started.append(process)
    base = url(process)
    ask = {"prompt": ["a"] * 100, "max_tokens": 4000, "stream": True}
    with (
        httpx.Client(trust_env=False, timeout=60) as client,
        client.stream("POST", f"{base}/completions", json=ask) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("data: {")
        process.send_signal(signal.SIGINT)
        while client.get(base.replace("/v1", "/health")).status_code == 200:
            pass
        process.send_signal(signal.SIGINT)
        *_, last = [line for line in lines if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
    assert process.wait(60) == 0
    assert process.stderr.read() == ""


def test_ctrl_c_ends_a_server_that_has_nothing_to_do(
    shell: Any, started: list[subprocess.Popen[str]], model: str
) -> None:
    process = shell("-m", "gptlab.serve", model, "--port", "0")
    started.append(process)
    base = url(process)
    with httpx.Client(trust_env=False) as client:  # whose connection stays open
        assert client.get(f"{base}/models").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_an_address_that_is_taken_is_one_message(command: Any, model: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert_refused(command("serve", model, "--port", port), f"--port {port}", "give another --port")
    assert_refused(command("serve", model, "--host", "203.0.113.7"), "--host 203.0.113.7", "of this machine")
    assert_refused(command("serve", model, "--host", "no such host"), "--host no such host")


def test_flags_out_of_range_are_refused(command: Any, model: str) -> None:
    for flag, value in (
        ("--width", "0"),
        ("--queue", "-1"),
        ("--timeout", "0"),
        ("--port", "65536"),
        ("--grace", "-1"),
    ):
        assert_refused(command("serve", model, flag, value), f"{flag} {value}", "at least")
    assert_refused(command("serve", model, model), "give each once")
    assert_refused(command("serve", model, "--precision", "int8", "--device", "cuda"), "for a CPU")
    assert_refused(command("serve", "no-such-model", "--port", "0"), "no-such-model")


def test_without_its_libraries_it_says_how_to_get_them(
    command: Any, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else found(name, *more)
    )
    assert_refused(command("serve", model), "uvicorn is missing", "pip install 'gptlab[serve]'")


def test_who_opens_it_to_everyone_is_told(command: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptlab.serving.server.Server.run", lambda self, sockets: None)
    for flags, told in (((), False), (("--host", "0.0.0.0"), True), (("--host", "0.0.0.0", "--api-key", "k"), False)):
        result = command("serve", model, "--port", "0", *flags)
        assert result.returncode == 0
        assert ("whoever reaches this machine" in result.stderr) == told
    monkeypatch.setenv("GPTLAB_API_KEY", "k")
    assert "whoever" not in command("serve", model, "--port", "0", "--host", "0.0.0.0").stderr


def test_which_addresses_are_local() -> None:
    assert all(map(is_local, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_local, ("0.0.0.0", "::", "192.168.1.7", "my.org")))
    with pytest.raises(UserError, match="--port"), listen("127.0.0.1", 0) as one:
        listen("127.0.0.1", one.getsockname()[1])


def test_a_token_is_sent_at_once() -> None:
    """And not held back until the client has acknowledged the one before, as by Nagle's algorithm."""

    async def connection() -> int:
        found = asyncio.get_running_loop().create_future()

        def accepted(reader: Any, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen("127.0.0.1", 0) as bound:
            async with await asyncio.start_server(accepted, sock=bound):
                _, writer = await asyncio.open_connection(*bound.getsockname())
                writer.close()
                return int(await found)

    assert asyncio.run(connection())


def test_help_and_a_server_load_no_torch(model: str) -> None:
    code = (
        "import sys\nfrom gptlab.serve import main\nfrom gptlab.serving import server\n"
        "server.Server.run = lambda self, sockets: None\nmain(sys.argv[1:])\nprint('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, model, "--port", "0"], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
    heavy = "{'torch', 'numpy', 'starlette'}"
    code = f"import sys\nimport gptlab.serve\ngptlab.serve.parser()\nprint({heavy} & {{*sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
