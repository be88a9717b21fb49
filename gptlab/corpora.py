"""Where text comes from: a file, Tiny Shakespeare, or the documentation that every Python carries."""

from __future__ import annotations

import ast
import hashlib
import http.client
import logging
import os
import platform
import sysconfig
import urllib.request
from pathlib import Path

from tqdm import tqdm

from gptlab.errors import UserError
from gptlab.files import write_atomically

log = logging.getLogger(__name__)

SHAKESPEARE = "tinyshakespeare.txt"
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
DOWNLOAD_TIMEOUT = 10  # seconds without an answer

NAMES = ("shakespeare_char", "pydoc_char", "text")


def read_text(path: Path) -> str:
    """The UTF-8 text of `path`, line endings as they are.

    Raises:
        UserError: no such file, a directory, unreadable, empty, or not UTF-8 text.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"data.path={path}: no such file; give the path of a UTF-8 text file") from error
    except IsADirectoryError as error:
        raise UserError(f"data.path={path} is a directory; give the path of one UTF-8 text file") from error
    except OSError as error:
        raise UserError(f"data.path={path} cannot be read: {error.strerror}") from error
    if b"\0" in raw[: 1 << 16]:
        raise UserError(f"data.path={path} looks like a binary file (it has NUL bytes); give a text file")
    try:
        text = raw.decode().removeprefix("\ufeff")  # a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.path={path} is not UTF-8 text (byte {raw[error.start]:#04x} at {error.start}); "
            f"convert it first, e.g. iconv -f latin1 -t utf-8"
        ) from error
    if not text.strip():
        raise UserError(f"data.path={path} is empty; give a file with some text in it")
    return text


def tiny_shakespeare(raw_dir: Path, cache_dir: Path) -> str:
    """Tiny Shakespeare (1,115,394 characters) from `raw_dir`, else `cache_dir`, else the network.

    Raises:
        UserError: it lies in neither folder and the network does not give it, or what lies there differs.
    """
    for folder in (raw_dir, cache_dir):
        path = folder / SHAKESPEARE
        if path.is_file():
            raw = path.read_bytes()
            if hashlib.sha256(raw).hexdigest() != SHAKESPEARE_SHA256:
                raise UserError(
                    f"{path} is not Tiny Shakespeare (its sha256 differs): remove it to download it anew, "
                    f"or train on it as data=text data.path={path}"
                )
            return raw.decode()
    try:
        raw = _download(SHAKESPEARE_URL)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"Tiny Shakespeare is neither in data.dir={raw_dir} nor in data.cache_dir={cache_dir}, and cannot be "
            f"downloaded from {SHAKESPEARE_URL} ({getattr(error, 'reason', error)}). Put it there as {SHAKESPEARE}, "
            f"or use data=pydoc_char, or data=text data.path=my.txt"
        ) from error
    if hashlib.sha256(raw).hexdigest() != SHAKESPEARE_SHA256:
        raise UserError(f"what came from {SHAKESPEARE_URL} is not Tiny Shakespeare (its sha256 differs); try again")
    write_atomically(cache_dir / SHAKESPEARE, lambda file: file.write(raw))
    return raw.decode()


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
        total = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc=SHAKESPEARE, disable=None) as bar:
            chunks = []
            while chunk := response.read(1 << 16):
                chunks.append(chunk)
                bar.update(len(chunk))
    return b"".join(chunks)


def python_documentation(cache_dir: Path) -> str:
    """The text of pydoc's topics and of the standard library's docstrings, one document after another.

    Read from the source files, nothing is imported. Documents come in the order of their hashes, so that a split
    by position gives parts of one kind. The text depends on the Python version, which is part of its file name.
    """
    path = cache_dir / f"pydoc-{platform.python_version()}.txt"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    log.info("collecting Python's own documentation as training text, once: %s", path)
    documents = set(_docstrings(Path(sysconfig.get_paths()["stdlib"])))
    try:
        from pydoc_data.topics import topics

        documents.update(text.strip() for text in topics.values())
    except ImportError:  # some distributions ship Python without it; the docstrings remain
        pass
    ordered = sorted(documents, key=lambda text: hashlib.sha256(text.encode()).digest())
    text = "\n\n\n".join(ordered) + "\n"
    if len(text) < 1_000_000:
        raise UserError(
            f"this Python's documentation is only {len(text):,} characters (its standard library has no sources); "
            f"use data=text data.path=my.txt"
        )
    write_atomically(path, lambda file: file.write(text.encode()))
    return text


def _docstrings(root: Path) -> list[str]:
    """Docstrings of 80 ASCII characters and more, of all modules, classes and functions below `root`."""
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
                continue  # templates and samples that are no Python; one file more or less does not matter
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    text = (ast.get_docstring(node) or "").strip()
                    if len(text) >= 80 and text.isascii():
                        found.append(text)
    return found


def load(name: str, path: Path | None, raw_dir: Path, cache_dir: Path) -> tuple[str, str]:
    """The text of data set `name`, and the name of the set that was chosen (another one only for "auto").

    Raises:
        UserError: no such set, or its text cannot be had; the message says what to do.
    """
    if name == "auto":
        try:
            return tiny_shakespeare(raw_dir, cache_dir), "shakespeare_char"
        except UserError as error:
            reason = getattr(error.__cause__, "reason", error)
            log.warning("data=auto: no Tiny Shakespeare (%s); training on pydoc_char, Python's documentation", reason)
            name = "pydoc_char"
    if name == "shakespeare_char":
        return tiny_shakespeare(raw_dir, cache_dir), name
    if name == "pydoc_char":
        return python_documentation(cache_dir), name
    if name == "text":
        if path is None:
            raise UserError("data=text needs a file: add data.path=my.txt")
        return read_text(path), name
    raise UserError(f"data.name={name}: no such data set; there are auto, {', '.join(NAMES)}")
