"""Texts that are downloaded once, or collected from this Python: Tiny Shakespeare, The Verdict, the documentation."""

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

from gptlab.data.text_options import Written, of_train
from gptlab.system.errors import UserError
from gptlab.system.files import write_atomically

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


def download_file_name(name: object) -> str | None:
    """Return the name of the file that holds the data set `name`; None if it is not one to download."""
    kinds = {"shakespeare_char": "shakespeare", "shakespeare_bpe": "shakespeare", "verdict": "verdict"}
    return DOWNLOADS[kinds[name]][0] if isinstance(name, str) and name in kinds else None


def download(name: str, raw_dir: Path, cache_dir: Path, written: Written = of_train) -> Path:
    """Return the file of Tiny Shakespeare or The Verdict: from `raw_dir`, else `cache_dir`, else downloaded there.

    Args:
        written: writes the ways out, see `TextOptions`.

    Raises:
        UserError: it lies in neither folder and cannot be downloaded, or its sha256 differs.
    """
    file, url, sha256 = DOWNLOADS[name]
    for path in (raw_dir / file, cache_dir / file):
        if path.is_file():
            if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                raise UserError(
                    f"{path} is not the text that data={name} means (its sha256 differs): remove it to download it "
                    f"anew, or take it for a text of your own: {written('text', path)}"
                )
            return path
    try:
        raw = _fetch(url, file)
    except (OSError, http.client.HTTPException) as error:
        places = f"neither in {written('dir', raw_dir)} nor in {written('cache_dir', cache_dir)}"
        if raw_dir == cache_dir:
            places = f"not in {raw_dir} (GPTLAB_DATA names another folder)"
        raise UserError(
            f"{file} is {places}, and cannot be downloaded from {url} ({getattr(error, 'reason', error)}). "
            f"Put it there, or use {written('name', 'pydoc_char')}, or {written('text', 'my.txt')}"
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
