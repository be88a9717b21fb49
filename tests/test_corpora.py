"""Text comes in as it was written, or a message says how to get it."""

from __future__ import annotations

import hashlib
import http.server
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptlab import corpora
from gptlab.errors import UserError
from tests.conftest import ROOT

PLAY = "First Citizen:\nBefore we proceed any further, hear me speak.\n"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain\n", "plain\n"),
        (b"\xef\xbb\xbfwith a byte order mark", "with a byte order mark"),
        (b"\r\nline ends\r\nof all\rkinds\n", "\r\nline ends\r\nof all\rkinds\n"),
        ("z\u00fc\u4e2d\U0001f600 \ufeff".encode(), "z\u00fc\u4e2d\U0001f600 \ufeff"),
    ],
)
def test_a_file_is_read_as_it_is(tmp_path: Path, raw: bytes, text: str) -> None:
    path = tmp_path / "my.txt"
    path.write_bytes(raw)
    assert corpora.read_text(path) == text
    assert corpora.load("text", path, tmp_path, tmp_path) == (text, "text")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"my.txt is empty; give a file with some text"),
        (b" \n\t\r\n", r"my.txt is empty"),
        (b"\xef\xbb\xbf", r"my.txt is empty"),
        (b"\x7fELF\x00\x01", r"looks like a binary file \(it has NUL bytes\); give a text file"),
        ("wide".encode("utf-16"), r"looks like a binary file"),
        ("abc\u00fcde".encode("latin-1"), r"not UTF-8 text \(byte 0xfc at 3\); convert it first, e.g. iconv"),
        (b"\xef\xbb\xbfabc\xfcde", r"not UTF-8 text \(byte 0xfc at 6\)"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "my.txt"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=message) as refused:
        corpora.read_text(path)
    assert f"data.path={path}" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.txt", r"data.path=\S+absent.txt: no such file; give the path of a UTF-8 text file"),
        (".", r"data.path=\S+ is a directory; give the path of one UTF-8 text file"),
        ("to be or not to be " * 17, r"data.path="),
    ],
)
def test_a_path_without_a_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        corpora.read_text(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", r"data=text needs a file: add data.path=my.txt"),
        ("novels", r"data.name=novels: no such data set; there are auto, shakespeare_char, pydoc_char, text"),
    ],
)
def test_a_set_that_cannot_be_had_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        corpora.load(name, None, tmp_path, tmp_path)


def test_tiny_shakespeare_is_the_one_that_everybody_trains_on(data_dir: Path, tmp_path: Path) -> None:
    text, name = corpora.load("auto", None, data_dir, tmp_path)
    assert name == "shakespeare_char"
    assert len(text) == 1_115_394
    assert len(set(text)) == 65
    assert not list(tmp_path.iterdir())


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short play takes Tiny Shakespeare's place; the file that stands for the network, which is absent yet."""
    monkeypatch.setattr(corpora, "SHAKESPEARE_SHA256", hashlib.sha256(PLAY.encode()).hexdigest())
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", (tmp_path / "network").as_uri())
    return tmp_path / "network"


@pytest.mark.parametrize("folder", ["raw", "cache"])
@pytest.mark.parametrize("name", ["auto", "shakespeare_char"])
def test_tiny_shakespeare_is_taken_where_it_lies(offline: Path, tmp_path: Path, folder: str, name: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "tinyshakespeare.txt").write_text(PLAY)
    assert corpora.load(name, None, tmp_path / "raw", tmp_path / "cache") == (PLAY, "shakespeare_char")


def test_tiny_shakespeare_is_downloaded_once(offline: Path, tmp_path: Path) -> None:
    offline.write_text(PLAY)
    cache = tmp_path / "new" / "cache"
    assert corpora.tiny_shakespeare(tmp_path / "raw", cache) == PLAY
    assert [path.name for path in cache.iterdir()] == ["tinyshakespeare.txt"]
    offline.unlink()
    assert corpora.tiny_shakespeare(tmp_path / "raw", cache) == PLAY
    assert not (tmp_path / "raw").exists()  # data.dir may be read-only


def test_a_wrong_download_is_refused_and_not_kept(offline: Path, tmp_path: Path) -> None:
    offline.write_text("<html>Please log in to the hotel's network</html>")
    with pytest.raises(UserError, match=r"what came from file://\S+ is not Tiny Shakespeare .*; try again"):
        corpora.tiny_shakespeare(tmp_path / "raw", tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))


@pytest.mark.parametrize("folder", ["raw", "cache"])
def test_another_text_under_its_name_is_refused(offline: Path, tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "tinyshakespeare.txt"
    path.parent.mkdir()
    path.write_text("Call me Ishmael.\n")
    with pytest.raises(UserError, match=r"is not Tiny Shakespeare .*: remove it .*or train on it as data=text data.pa"):
        corpora.tiny_shakespeare(tmp_path / "raw", tmp_path / "cache")
    assert path.exists()


def assert_names_the_ways_out(message: str, tmp_path: Path) -> None:
    assert f"neither in data.dir={tmp_path / 'raw'} nor in data.cache_dir={tmp_path / 'cache'}" in message
    assert f"downloaded from {corpora.SHAKESPEARE_URL} (" in message
    assert "Put it there as tinyshakespeare.txt, or use data=pydoc_char, or data=text data.path=my.txt" in message


def test_without_a_network_the_ways_out_are_named(offline: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        corpora.load("shakespeare_char", None, tmp_path / "raw", tmp_path / "cache")
    assert_names_the_ways_out(str(refused.value), tmp_path)
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def broken_server() -> Iterator[str]:
    """The address of a server that hangs up in the middle of its answer."""

    class HangUp(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nFirst\r\n")
            self.close_connection = True

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), HangUp) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_download_that_breaks_off_names_the_ways_out(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_server: str
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", broken_server)
    with pytest.raises(UserError) as refused:
        corpora.tiny_shakespeare(tmp_path / "raw", tmp_path / "cache")
    assert_names_the_ways_out(str(refused.value), tmp_path)


@pytest.fixture(scope="module")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path]]:
    """Python's documentation; the cache with it; the cache of another process, where sets have another order."""
    mine, others = tmp_path_factory.mktemp("mine"), tmp_path_factory.mktemp("others")
    code = "import sys, pathlib; from gptlab import corpora; corpora.python_documentation(pathlib.Path(sys.argv[1]))"
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
    with subprocess.Popen([sys.executable, "-c", code, str(others)], env=environment) as process:
        text = corpora.python_documentation(mine)
        assert process.wait(timeout=300) == 0
    return text, mine, others


def test_the_documentation_is_over_a_megabyte_of_text(documentation: tuple[str, Path, Path]) -> None:
    text, _, _ = documentation
    assert len(text) > 1_000_000
    assert "\r" not in text
    assert text.count("context manager") > 10


def test_the_documentation_is_the_same_in_every_process(documentation: tuple[str, Path, Path]) -> None:
    text, _, others = documentation
    (path,) = others.iterdir()
    assert path.read_bytes() == text.encode()


def test_the_documentation_is_collected_once(
    documentation: tuple[str, Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    text, cache, _ = documentation
    (path,) = cache.iterdir()
    before = path.stat()
    with caplog.at_level(logging.INFO):
        assert corpora.load("pydoc_char", None, cache, cache) == (text, "pydoc_char")
    assert not caplog.messages
    assert path.stat() == before


def test_auto_goes_on_without_a_network_and_says_so_once(
    offline: Path, documentation: tuple[str, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, cache, _ = documentation
    assert corpora.load("auto", None, tmp_path / "raw", cache) == (text, "pydoc_char")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "data=auto" in record.message
    assert "pydoc_char" in record.message
    assert offline.name in record.message  # what went wrong
