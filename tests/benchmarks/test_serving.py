"""What clients see of a server is measured: by a server that runs, and by one that fails."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gptlab.benchmarks import serving
from gptlab.benchmarks.clients import ask_all
from gptlab.benchmarks.servers import Load, Server, find_program
from gptlab.system.errors import UserError
from tests.test_generate import ABC, gpt

BLOCK = 29


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(gpt(tmp_path_factory.mktemp("model") / "abc.ckpt", ABC, block_size=BLOCK))


def test_a_server_of_ours_is_measured(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--clients", "1", "3", "--rounds", "2", "--requests", "7", "--prompt", "5", "--tokens", "11"]
    serving.main([model, *words, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["clients"]) == ["1", "3"]
    for sides in found["clients"].values():
        side = sides["gptlab"]
        assert (side["requests"], side["lost"], side["different"], side["errors"]) == (14, 0, 0, [])
        assert len(side["tokens_per_sec"]) == 2
        assert min(side["tokens_per_sec"]) > 0
        first = side["first_token_seconds"]
        assert 0 < first["p1"] <= first["p50"] <= first["p99"]
    assert "gptlab" in capsys.readouterr().out


class Failing(BaseHTTPRequestHandler):
    """Answers good, and once, after which it hangs up; cuts off the stream of cut, the answer of short; refuses bad."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["content-length"])))["prompt"]
        self.send_response(429 if prompt == "bad" else 200)
        self.close_connection = prompt == "once"
        end = None if prompt == "short" else "stop"
        chunks = [{"text": "a", "finish_reason": None}, {"text": "bc", "finish_reason": end}]
        lines = [f"data: {json.dumps({'choices': [chunk]})}\n\n" for chunk in chunks]
        body = "".join(lines) + ("data: [DONE]\n\n" if prompt != "cut" else "")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def failing() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("clients", [1, 4])
def test_an_answer_that_fails_is_lost_and_the_others_are_not(failing: str, clients: int) -> None:
    prompts = ["good", "bad", "cut", "good", "short"]
    answers, seconds = ask_all(failing, [{"prompt": prompt, "max_tokens": 5} for prompt in prompts], clients)
    assert [answer.number for answer in answers] == [0, 1, 2, 3, 4]
    assert [(answer.text, answer.tokens) for answer in answers if answer.error is None] == [("abc", 2)] * 2
    assert "429" in str(answers[1].error)
    assert "the stream was cut off" in str(answers[2].error)
    assert "the answer was cut off" in str(answers[4].error)
    found = serving.figures([(answers, seconds)])
    assert (found["requests"], found["lost"]) == (5, 3)
    assert found["tokens_per_sec"] == [pytest.approx(4 / seconds)]


def test_a_server_that_hangs_up_after_an_answer_is_asked_on_a_new_connection(failing: str) -> None:
    answers, _ = ask_all(failing, [{"prompt": "once", "max_tokens": 5}] * 3, 1)
    assert [(answer.text, answer.error) for answer in answers] == [("abc", None)] * 3


def test_another_answer_is_found(failing: str) -> None:
    bodies = [{"prompt": "good", "max_tokens": 5}] * 3
    answers, _ = ask_all(failing, bodies, 1)
    answers[1] = answers[1]._replace(text="ab")
    server = Server("gptlab", sys.executable, Load("x", "fp32", 1, 1, 1), Path())
    server.address = failing
    assert serving.asked_again(server, bodies, answers) == 1


def test_what_cannot_be_measured_is_refused(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, said in (
        (["--clients", "0"], "--clients: must be at least 1"),
        (["--prompt", "20", "--tokens", "10"], f"--prompt 20 --tokens 10: the model's block has {BLOCK} tokens"),
        (["--json", "nowhere/x"], "--json nowhere/x: there is no folder"),
        (["--program", "x"], "--program x is for another server: give --against, too"),
        (["--prompt", "2", "--tokens", "2", "--against", "llama-server", "--program", "nowhere"], "--program nowhere"),
    ):
        with pytest.raises(SystemExit, match=re.escape(said)):
            serving.main([model, *words])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--program llama-server: no such program"):
        find_program("llama-server", None)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    load = Load(str(tmp_path / "none.ckpt"), "fp32", 1, 1, 8)
    with (
        pytest.raises(UserError, match=r"gptlab does not serve: [\s\S]*none\.ckpt"),
        Server("gptlab", sys.executable, load, tmp_path),
    ):
        pass
