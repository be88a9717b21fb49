"""The texts to train on: files, Tiny Shakespeare, Python's documentation, data sets of the Hugging Face hub.

A corpus is read in pieces of bounded size, as often as needed, each time the same.
"""

from __future__ import annotations

import ast
import hashlib
import http.client
import json
import logging
import os
import platform
import sysconfig
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from gptlab.data.text_files import LINES, TABLES, Piece, documents, find_texts, import_extra, pieces, text_format
from gptlab.system.errors import UserError, did_you_mean
from gptlab.system.files import expand_user, write_atomically

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT = 10  # seconds without an answer

DOWNLOADS = {  # name: file, address, sha256
    "shakespeare": (
        "tinyshakespeare.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "verdict": (
        "the-verdict.txt",
        "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt",
        "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
    ),
}
NAMES = (
    *("auto", "shakespeare_char", "shakespeare_bpe", "pydoc_char", "verdict"),
    *("text", "openwebtext", "fineweb_edu", "hub"),
)
HUB = ("openwebtext", "fineweb_edu", "hub")


@dataclass(frozen=True)
class Corpus:
    """A named text."""

    name: str
    read: Callable[[], Iterator[Piece]]
    """Yield the text from its beginning, each time the same; no token reaches across the end of a piece."""
    documents: bool
    """Whether the text is made of documents, whose ends are marked; a single file of text is not."""
    origin: str
    """Where the text comes from; changes when the files there change."""
    bytes: int | None
    """Size of its files; None for a stream, which is not read just to be hashed."""


def from_files(name: str, files: tuple[Path, ...], key: str) -> Corpus:
    """Return a corpus of text files; several files, and lines of .jsonl or rows of .parquet, are documents.

    Args:
        key: name of the text's field in .jsonl and .parquet.
    """

    def read() -> Iterator[Piece]:
        for file in files:
            for chunks in documents(file, key):
                yield from pieces(chunks)

    many = len(files) > 1 or any(text_format(file) in (*LINES, *TABLES) for file in files)
    return Corpus(name, read, many, json.dumps([key, _stamps(files)]), sum(file.stat().st_size for file in files))


def _stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def from_hub(name: str, path: str, subset: str | None, revision: str | None, key: str) -> Corpus:
    """Stream the training part of a data set of the Hugging Face hub, or of a folder in the same format.

    Args:
        path: the name on the hub, or the folder.
        subset: name of a configuration; ignored if a folder does not have it.
        revision: commit, tag or branch on the hub; ignored for a folder.
        key: name of the text's column.
    """
    local = expand_user(path).is_dir()
    path = str(expand_user(path)) if local else path

    def read() -> Iterator[Piece]:
        datasets = import_extra("datasets", f"data={name} is a data set of the Hugging Face hub")
        logging.getLogger("huggingface_hub").propagate = False  # it has its own handler
        try:
            where = {"name": subset, "revision": revision}
            if local:  # it may hold all subsets, or one of them without a name
                where = {"name": subset if subset in datasets.get_dataset_config_names(path) else None}
            rows = datasets.load_dataset(path, **where, split="train", streaming=True)
            for row in rows:
                text = row.get(key)
                if not isinstance(text, str) and not (key in row and text is None):
                    raise UserError(f"data.text_key={key}: {path} has no such text; there are {', '.join(row)}")
                yield from pieces([text or ""])
        except UserError:
            raise
        except Exception as error:  # a network can raise many kinds
            raise UserError(
                f"data={name}: {path} cannot be read from the Hugging Face hub ({type(error).__name__}: "
                f"{str(error)[:300]}). What is prepared so far is kept: the same command goes on. Without a network, "
                f"give a folder that holds the data set's files: data.path=..."
            ) from error

    stamps = _stamps(file for file in sorted(Path(path).rglob("*")) if file.is_file()) if local else []
    return Corpus(name, read, True, json.dumps([key, path, subset, revision, stamps]), None)


def download_file_name(name: object) -> str | None:
    """Return the name of the file that holds the data set `name`; None if it is not one to download."""
    kinds = {"shakespeare_char": "shakespeare", "shakespeare_bpe": "shakespeare", "verdict": "verdict"}
    return DOWNLOADS[kinds[name]][0] if isinstance(name, str) and name in kinds else None


def download(name: str, raw_dir: Path, cache_dir: Path) -> Path:
    """Return the file of Tiny Shakespeare or The Verdict: from `raw_dir`, else `cache_dir`, else downloaded there.

    Raises:
        UserError: it lies in neither folder and cannot be downloaded, or its sha256 differs.
    """
    file, url, sha256 = DOWNLOADS[name]
    for path in (raw_dir / file, cache_dir / file):
        if path.is_file():
            if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                raise UserError(
                    f"{path} is not the text that data={name} means (its sha256 differs): remove it to download it "
                    f"anew, or train on it as data=text data.path={path}"
                )
            return path
    try:
        raw = _fetch(url, file)
    except (OSError, http.client.HTTPException) as error:
        places = f"neither in data.dir={raw_dir} nor in data.cache_dir={cache_dir}"
        if raw_dir == cache_dir:
            places = f"not in {raw_dir} (GPTLAB_DATA names another folder)"
        raise UserError(
            f"{file} is {places}, and cannot be downloaded from {url} ({getattr(error, 'reason', error)}). "
            f"Put it there, or use data=pydoc_char, or data=text data.path=my.txt"
        ) from error
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise UserError(f"what came from {url} is not {file} (its sha256 differs); try again")
    write_atomically(cache_dir / file, lambda file: file.write(raw))
    return cache_dir / file


def _fetch(url: str, what: str) -> bytes:
    with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
        total = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=None) as bar:
            chunks = []
            while chunk := response.read(1 << 16):
                chunks.append(chunk)
                bar.update(len(chunk))
    return b"".join(chunks)


def python_documentation(cache_dir: Path) -> Path:
    """Return a file of pydoc's topics and the standard library's docstrings, written at the first call.

    The docstrings are parsed from source files; nothing is imported. Documents are ordered by their hashes, so that a
    split by position gives similar parts. The text depends on the Python version, which is in the file's name.

    Raises:
        UserError: this Python comes without its sources, or the file cannot be written.
    """
    path = cache_dir / f"pydoc-{platform.python_version()}.txt"
    if path.is_file():
        return path
    log.info("collecting Python's own documentation as training text, once: %s", path)
    texts = set(_docstrings(Path(sysconfig.get_paths()["stdlib"])))
    try:
        from pydoc_data.topics import topics

        texts.update(text.strip() for text in topics.values())
    except ImportError:  # some distributions ship Python without it; the docstrings remain
        pass
    ordered = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    text = "\n\n\n".join(ordered) + "\n"
    if len(text) < 1_000_000:
        raise UserError(
            f"this Python's documentation is only {len(text):,} characters (its standard library has no sources); "
            f"use data=text data.path=my.txt"
        )
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _docstrings(root: Path) -> list[str]:
    """Collect docstrings of at least 80 characters, ASCII only, from all modules below `root`."""
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - skipped)
        for name in sorted(files):
            if not name.endswith(".py"):
                continue
            try:
                tree = ast.parse((Path(folder) / name).read_bytes())
            except (SyntaxError, ValueError, OSError):
                continue  # templates and samples that are not valid Python
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    text = (ast.get_docstring(node) or "").strip()
                    if len(text) >= 80 and text.isascii():
                        found.append(text)
    return found


def load(
    name: str,
    paths: list[str],
    raw_dir: Path,
    cache_dir: Path,
    *,
    text_key: str = "text",
    subset: str | None = None,
    revision: str | None = None,
    max_documents: int | None = None,
) -> Corpus:
    """Return the data set `name`; for "auto", the one that was chosen.

    Args:
        paths: for data=text, files and folders; for the hub, the data set's name there, or one folder.
        raw_dir: where texts are looked for first.
        cache_dir: where downloads are looked for and written.
        text_key: name of the text's field in .jsonl, .parquet and the hub's rows.
        subset: configuration of a data set of the hub.
        revision: commit, tag or branch on the hub.
        max_documents: take at most so many; None: all.

    Raises:
        UserError: there is no such set, or its text is not available; the message says what to do.
    """
    if name not in NAMES:
        raise UserError(f"data.name={name}: no such data set; {did_you_mean(name, NAMES)}")
    if name in ("text", *HUB) and not paths:
        example = "a file: add data.path=my.txt" if name == "text" else "a name: add data.path=owner/name"
        raise UserError(f"data={name} needs {example}")
    if name in HUB and len(paths) > 1:
        raise UserError(f"data.path={paths}: data={name} takes one name of a data set, or one folder")
    if name == "auto":
        name, files = _auto(raw_dir, cache_dir)
    elif name in ("shakespeare_char", "shakespeare_bpe"):
        files = [download("shakespeare", raw_dir, cache_dir)]
    elif name == "verdict":
        files = [download("verdict", raw_dir, cache_dir)]
    elif name == "pydoc_char":
        files = [python_documentation(cache_dir)]
    else:
        files = [expand_user(path) for path in paths]
    if name in HUB:
        corpus = from_hub(name, paths[0], subset, revision, text_key)
    else:
        corpus = from_files(name, find_texts(files), text_key)
    return corpus if max_documents is None else first_documents(corpus, max_documents)


def _auto(raw_dir: Path, cache_dir: Path) -> tuple[str, list[Path]]:
    """Choose Tiny Shakespeare, or Python's documentation where the former is not available."""
    try:
        return "shakespeare_char", [download("shakespeare", raw_dir, cache_dir)]
    except UserError as error:
        reason = getattr(error.__cause__, "reason", error)
        log.warning("data=auto: no Tiny Shakespeare (%s); training on pydoc_char, Python's documentation", reason)
        return "pydoc_char", [python_documentation(cache_dir)]


def first_documents(corpus: Corpus, count: int) -> Corpus:
    """Return a corpus of the first `count` documents of `corpus`."""

    def read() -> Iterator[Piece]:
        left = count
        for piece in corpus.read():
            yield piece
            left -= piece.last
            if left == 0:
                return

    return replace(corpus, read=read, origin=f"{corpus.origin} {count}")
