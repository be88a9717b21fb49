"""Text comes in as it was written, or a message says how to get it."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import importlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from gptlab.data import corpora, downloads
from gptlab.data.corpus import Corpus
from gptlab.data.prepare import prepare
from gptlab.data.split import Split
from gptlab.data.text_options import TextOptions
from gptlab.data.tokenizers import TokenizerConfig
from gptlab.system.errors import UserError
from tests.conftest import ROOT

PLAY = "First Citizen:\nBefore we proceed any further, hear me speak.\n"
STORY = "I HAD always thought Jack Gisburn rather a cheap genius.\n"


def load(name: str, *paths: Path | str, folder: Path = Path("/nowhere"), **options: Any) -> Corpus:
    return corpora.load(name, [str(path) for path in paths], folder / "raw", folder / "cache", **options)


def texts(corpus: Corpus) -> list[str]:
    """The documents of a corpus."""
    found = [""]
    for text, last, _ in corpus.read():
        found[-1] += text
        found += [""] * last
    assert found.pop() == ""  # the last piece ends its document
    return found


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


# Files.


def test_one_file_is_one_text(tmp_path: Path) -> None:
    path = tmp_path / "my.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntext")
    corpus = load("text", path)
    assert texts(corpus) == texts(corpus) == ["one\n\ntext"]
    assert (corpus.name, corpus.documents, corpus.bytes) == ("text", False, 14)


def test_several_files_lines_and_rows_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("from a text")
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(b"from a packed one"))
    write_lines(tmp_path / "c.jsonl", [{"text": "from a line"}, {"text": ""}, {"text": "and another"}])
    pyarrow.parquet.write_table(pyarrow.table({"text": ["from a row"]}), tmp_path / "d.parquet")
    found = ["from a text", "from a packed one", "from a line", "and another", "from a row"]
    for paths in ([tmp_path], sorted(tmp_path.iterdir())):
        corpus = load("text", *paths)
        assert texts(corpus) == found
        assert (corpus.documents, corpus.bytes) == (True, sum(path.stat().st_size for path in tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("names", "documents"),
    [
        (["a.txt"], False),
        (["a.md"], False),
        (["a.txt", "b.txt"], True),
        (["a.jsonl"], True),
        (["folder/a.txt"], False),
        (["folder/a.txt", "folder/b.md"], True),
    ],
)
def test_documents_have_ends_and_one_text_has_none(tmp_path: Path, names: list[str], documents: bool) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "a"}' if name.endswith(".jsonl") else "a")
    assert load("text", *{tmp_path / Path(name).parts[0] for name in names}).documents is documents


def test_the_text_is_read_from_the_key(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "my.jsonl", [{"body": "a", "text": "b"}])
    assert texts(load("text", path, options=TextOptions(text_key="body"))) == ["a"]
    with pytest.raises(
        UserError, match=r"data.text_key=content: \S+my.jsonl has no such text in its rows; there are body"
    ):
        texts(load("text", path, options=TextOptions(text_key="content")))


@pytest.mark.parametrize(("count", "found"), [(1, ["a"]), (2, ["a", "b"]), (3, ["a", "b", "c"]), (99, ["a", "b", "c"])])
def test_the_first_documents_can_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, found: list[str]
) -> None:
    monkeypatch.setattr("gptlab.data.pieces.PIECE", 4)
    found = [name * 7 + " b" * 7 for name in found]  # in many pieces
    path = write_lines(tmp_path / "my.jsonl", [{"text": name * 7 + " b" * 7} for name in "abc"])
    corpus = load("text", path, max_documents=count)
    assert texts(corpus) == texts(corpus) == found
    assert corpus.documents
    assert corpus.origin != load("text", path).origin


def test_documents_that_are_not_taken_are_not_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "my.jsonl", [{"text": "a"}, {"text": 7}])
    assert texts(load("text", path, max_documents=1)) == ["a"]


def test_the_origin_changes_with_what_is_read_and_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_lines(path, [{"text": "a"}])
    write_lines(other, [{"text": "a"}])
    os.utime(path, (7, 7))
    origins = [load("text", path).origin, load("text", other).origin, load("text", path, other).origin]
    origins += [
        load("text", path, options=TextOptions(text_key="body")).origin,
        load("text", path, max_documents=1).origin,
    ]
    assert load("text", "a.jsonl").origin == origins[0]
    os.utime(path, (8, 8))
    origins.append(load("text", path).origin)
    write_lines(path, [{"text": "abc"}])
    os.utime(path, (8, 8))
    origins.append(load("text", path).origin)
    changed = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == changed:  # whose clock ticks every few milliseconds
        write_lines(path, [{"text": "xyz"}])  # as a file that `cp -p` has replaced
        os.utime(path, (8, 8))
    origins.append(load("text", path).origin)
    assert len(set(origins)) == len(origins)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", r"data=text needs a file: add data.path=my.txt"),
        ("hub", r"data=hub needs a name: add data.path=owner/name"),
        ("novels", r"data.name=novels: no such data set; there are auto, .*shakespeare_char.*text, verdict"),
        ("verdit", r"data.name=verdit: no such data set; did you mean verdict\?"),
    ],
)
def test_a_set_that_cannot_be_had_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(name)


def test_a_file_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.path=\S+absent.txt: no such file"):
        load("text", tmp_path / "absent.txt")


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "my.txt").write_text("a")
    assert texts(load("text", "~/my.txt")) == ["a"]


# The Hugging Face hub.


def openwebtext(folder: Path) -> list[str]:
    """A folder of its form: a column of texts in several tables."""
    found = [f"Page {i} of the web.\n\nIt says z\u00fc\u4e2d." for i in range(7)]
    (folder / "plain_text").mkdir(parents=True)
    for i, part in enumerate((found[:4], found[4:])):
        pyarrow.parquet.write_table(
            pyarrow.table({"text": part}), folder / "plain_text" / f"train-0000{i}-of-00002.parquet"
        )
    return found


def fineweb_edu(folder: Path) -> list[str]:
    """A folder of its form: pages with what was found out about them."""
    found = [f"Lesson {i}." for i in range(5)]
    write_lines(
        folder / "000_00000.jsonl",
        [
            {"text": text, "id": f"<urn:uuid:{i}>", "url": "http://a.b", "score": 3.1, "token_count": 7}
            for i, text in enumerate(found)
        ],
    )
    return found


def fineweb_edu_table(folder: Path) -> list[str]:
    """The same as a table."""
    found = fineweb_edu(folder)
    (path,) = folder.iterdir()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "000_00000.parquet")
    return found


@pytest.mark.parametrize(
    ("name", "options", "make"),
    [
        ("openwebtext", {"revision": "refs/convert/parquet"}, openwebtext),
        ("fineweb_edu", {}, fineweb_edu),
        ("fineweb_edu", {}, fineweb_edu_table),
        ("hub", {}, fineweb_edu_table),
        ("fineweb_edu", {"subset": "sample-10BT"}, fineweb_edu_table),  # which the folder need not have
    ],
)
def test_a_folder_of_the_hubs_form_is_read(
    datasets: Any, tmp_path: Path, name: str, options: dict[str, str], make: Callable[[Path], list[str]]
) -> None:
    found = make(tmp_path / "set")
    corpus = load(name, tmp_path / "set", **options)
    assert texts(corpus) == texts(corpus) == found
    assert (corpus.name, corpus.documents, corpus.bytes) == (name, True, None)
    assert texts(load(name, tmp_path / "set", max_documents=3, **options)) == found[:3]


def test_a_copy_of_a_repository_of_the_hubs_has_its_subsets(datasets: Any, tmp_path: Path) -> None:
    for name, text in {"sample/10BT/000.jsonl": "of the sample", "data/000.jsonl": "of all"}.items():
        write_lines(tmp_path / name, [{"text": text}])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: default, data_files: [{split: train, path: data/*}]}\n"
        "- {config_name: sample-10BT, data_files: [{split: train, path: sample/10BT/*}]}\n---\n"
    )
    assert texts(load("fineweb_edu", tmp_path, subset="sample-10BT")) == ["of the sample"]


def test_the_origin_of_such_a_folder_changes_with_its_files(tmp_path: Path) -> None:
    fineweb_edu(tmp_path / "set")
    first = load("hub", tmp_path / "set").origin
    assert load("hub", tmp_path / "set").origin == first
    write_lines(tmp_path / "set" / "another.jsonl", [{"text": "a"}])
    others = [load("hub", tmp_path / "set").origin, load("hub", "owner/name").origin]
    others += [load("hub", "owner/name", **{key: "x"}).origin for key in ("subset", "revision")]
    others.append(load("hub", "owner/name", options=TextOptions("body")).origin)
    assert len({first, *others}) == 6


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("body", r"^data.text_key=body: \S+ has no such text; there are text, id, url, score"),
        ("score", r"row 1: data.text_key=score is a number, and must be a text"),
    ],
)
def test_a_row_without_text_says_what_there_is(datasets: Any, tmp_path: Path, key: str, message: str) -> None:
    fineweb_edu(tmp_path / "set")
    with pytest.raises(UserError, match=message):
        texts(load("hub", tmp_path / "set", options=TextOptions(text_key=key)))


class StrangeError(Exception):
    """As each library below `datasets` has its own."""


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("Couldn't reach the Hub"),
        FileNotFoundError("Couldn't reach the Hub"),
        StrangeError("Couldn't reach the Hub"),
    ],
    ids=lambda failure: type(failure).__name__,
)
@pytest.mark.parametrize("rows", [0, 3])  # which came before
def test_a_hub_that_cannot_be_reached_names_the_way_out(
    datasets: Any, monkeypatch: pytest.MonkeyPatch, failure: Exception, rows: int
) -> None:
    def load_dataset(path: str, **options: Any) -> Iterator[dict[str, str]]:
        asked.append((path, options))
        if not rows:
            raise failure
        return stream()

    def stream() -> Iterator[dict[str, str]]:
        yield from [{"text": "a"}] * rows
        raise failure

    asked: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = load("hub", "owner/name", subset="part", revision="v2")
    assert asked == []  # it is only named yet
    with pytest.raises(UserError) as refused:
        texts(corpus)
    options = {"name": "part", "revision": "v2", "split": "train", "streaming": True}
    assert asked == [("owner/name", options)]
    message = str(refused.value)
    assert "data=hub: owner/name, from the Hugging Face hub, cannot be read" in message
    assert "Couldn't reach the Hub" in message
    assert "the same command goes on" in message
    assert "data.path=" in message


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (0, r"data=hub: owner/name, from the Hugging Face hub, cannot be opened as a data set \(ValueError: Config"),
        (
            3,
            r"cannot be read after row 3 .*not be the next time either: .*data.max_documents=3, or .*data=text data.p",
        ),
    ],
)
def test_rows_that_never_can_be_read_are_no_fault_of_the_network(
    datasets: Any, monkeypatch: pytest.MonkeyPatch, rows: int, message: str
) -> None:
    def stream() -> Iterator[dict[str, str]]:
        yield from [{"text": "a"}] * rows
        raise ValueError("Config or column")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream())
    with pytest.raises(UserError, match=message) as refused:
        texts(load("hub", "owner/name"))
    assert "the same command goes on" not in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "other"),
    [(1, {"text": ["not", "a", "text"]}), (20_000, {"text": "a", "new": 1})],  # `datasets` reads 10 MB at once
)
def test_a_folder_whose_rows_change_is_named_and_no_network_is_blamed(
    datasets: Any, tmp_path: Path, rows: int, other: dict[str, Any]
) -> None:
    write_lines(tmp_path / "set" / "a.jsonl", [*[{"text": "word " * 150}] * rows, other])
    with pytest.raises(UserError) as refused:
        texts(load("hub", tmp_path / "set"))
    message = str(refused.value)
    assert str(tmp_path / "set") in message
    assert "hub," not in message
    assert "goes on" not in message
    assert "row 2: data.text_key=text is a list" in message or "data=text data.path=FOLDER" in message


def test_a_row_of_the_hub_without_text_is_skipped_and_another_type_is_named(
    datasets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = [{"text": "a"}, {"text": None}, {"text": ""}, {"text": "b"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter(rows))
    counts = Counter[str]()
    assert [piece.text for piece in load("hub", "owner/name").read(counts)] == ["a", "b"]
    assert counts == {"rows without text": 2}
    rows.append({"text": 7})
    with pytest.raises(UserError, match=r"owner/name, row 5: data.text_key=text is a number, and must be a text"):
        texts(load("hub", "owner/name"))


def test_rows_of_a_stream_without_text_are_counted_in_a_warning(
    datasets: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"body": f"row {i}" if i % 9 else None} for i in range(99)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter(rows))
    corpus = load("hub", "owner/name", options=TextOptions(text_key="body"))
    prepare(corpus, Split("document", 0.3, 0.0), TokenizerConfig("byte", None), tmp_path, tmp_path)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == ["data.text_key=body: rows without such a text are skipped: 11"]


def test_without_its_library_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"data=hub .* needs datasets: pip install 'gptlab\[data\]'"):
        texts(load("hub", "owner/name"))


# Downloads.


@pytest.mark.parametrize("name", ["auto", "shakespeare_char", "shakespeare_bpe"])
def test_tiny_shakespeare_is_the_one_that_everybody_trains_on(data_dir: Path, tmp_path: Path, name: str) -> None:
    corpus = corpora.load(name, [], data_dir, tmp_path)
    (text,) = texts(corpus)
    assert corpus.name == ("shakespeare_char" if name == "auto" else name)
    assert len(text) == corpus.bytes == 1_115_394
    assert len(set(text)) == 65
    assert not corpus.documents
    assert not list(tmp_path.iterdir())


def test_the_verdict_is_the_lessons(data_dir: Path, tmp_path: Path) -> None:
    if not (data_dir / "the-verdict.txt").is_file():
        pytest.skip("GPTLAB_DATA has no the-verdict.txt")
    (text,) = texts(corpora.load("verdict", [], data_dir, tmp_path))
    assert len(text) == 20_479
    assert text.startswith("I HAD always thought Jack Gisburn rather a cheap genius")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Short texts take the places of the real ones; a folder for what the network has, which is not there yet."""
    network = tmp_path / "network"
    for name, text in {"shakespeare": PLAY, "verdict": STORY}.items():
        file, _, _ = downloads.DOWNLOADS[name]
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        monkeypatch.setitem(downloads.DOWNLOADS, name, (file, (network / file).as_uri(), sha256))
    return network


@pytest.mark.parametrize("folder", ["raw", "cache"])
@pytest.mark.parametrize(
    ("name", "file", "text", "taken"),
    [
        ("auto", "tinyshakespeare.txt", PLAY, "shakespeare_char"),
        ("shakespeare_char", "tinyshakespeare.txt", PLAY, "shakespeare_char"),
        ("shakespeare_bpe", "tinyshakespeare.txt", PLAY, "shakespeare_bpe"),
        ("verdict", "the-verdict.txt", STORY, "verdict"),
    ],
)
def test_a_text_is_taken_where_it_lies(
    offline: Path, tmp_path: Path, folder: str, name: str, file: str, text: str, taken: str
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / file).write_text(text)
    corpus = load(name, folder=tmp_path)
    assert (corpus.name, texts(corpus)) == (taken, [text])


def test_a_text_is_downloaded_once(offline: Path, tmp_path: Path) -> None:
    offline.mkdir()
    (offline / "tinyshakespeare.txt").write_text(PLAY)
    cache = tmp_path / "new" / "cache"
    path = downloads.download("shakespeare", tmp_path / "raw", cache)
    assert path.read_text() == PLAY
    assert list(cache.iterdir()) == [path]
    (offline / "tinyshakespeare.txt").unlink()
    assert downloads.download("shakespeare", tmp_path / "raw", cache) == path
    assert not (tmp_path / "raw").exists()  # data.dir may be read-only


def test_a_wrong_download_is_refused_and_not_kept(offline: Path, tmp_path: Path) -> None:
    offline.mkdir()
    (offline / "the-verdict.txt").write_text("<html>Please log in to the hotel's network</html>")
    with pytest.raises(UserError, match=r"what came from file://\S+ is not the-verdict.txt .*; try again"):
        downloads.download("verdict", tmp_path / "raw", tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))


@pytest.mark.parametrize("folder", ["raw", "cache"])
def test_another_text_under_its_name_is_refused(offline: Path, tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "tinyshakespeare.txt"
    path.parent.mkdir()
    path.write_text("Call me Ishmael.\n")
    with pytest.raises(
        UserError, match=r"is not the text that .*: remove it .*or take it for a text of your own: data=text data.path="
    ):
        downloads.download("shakespeare", tmp_path / "raw", tmp_path / "cache")
    assert path.exists()


def assert_names_the_ways_out(message: str, tmp_path: Path) -> None:
    file, address, _ = downloads.DOWNLOADS["shakespeare"]
    assert f"{file} is neither in data.dir={tmp_path / 'raw'} nor in data.cache_dir={tmp_path / 'cache'}" in message
    assert f"downloaded from {address} (" in message
    assert "Put it there, or use data=pydoc_char, or data=text data.path=my.txt" in message


def test_without_a_network_the_ways_out_are_named(offline: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        load("shakespeare_char", folder=tmp_path)
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
    file, _, sha256 = downloads.DOWNLOADS["shakespeare"]
    monkeypatch.setitem(downloads.DOWNLOADS, "shakespeare", (file, broken_server, sha256))
    with pytest.raises(UserError) as refused:
        load("shakespeare_bpe", folder=tmp_path)
    assert_names_the_ways_out(str(refused.value), tmp_path)


# Python's documentation.


@pytest.fixture(scope="module")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path]]:
    """Python's documentation; the cache with it; the cache of another process, where sets have another order."""
    mine, others = tmp_path_factory.mktemp("mine"), tmp_path_factory.mktemp("others")
    code = (
        "import sys, pathlib; from gptlab.data import downloads as d; d.python_documentation(pathlib.Path(sys.argv[1]))"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
    with subprocess.Popen([sys.executable, "-c", code, str(others)], env=environment) as process:
        text = downloads.python_documentation(mine).read_text()
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
        corpus = corpora.load("pydoc_char", [], cache, cache)
    assert (corpus.name, texts(corpus), corpus.documents) == ("pydoc_char", [text], False)
    assert not caplog.messages
    assert path.stat() == before


def test_auto_goes_on_without_a_network_and_says_so_once(
    offline: Path, documentation: tuple[str, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, cache, _ = documentation
    corpus = corpora.load("auto", [], tmp_path / "raw", cache)
    assert (corpus.name, texts(corpus)) == ("pydoc_char", [text])
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "data=auto" in record.message
    assert "pydoc_char" in record.message
    assert offline.name in record.message  # what went wrong
