"""Files that are there whole or not at all, and that say so when they have changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from gptlab.system.errors import UserError

LARGEST = 1 << 28  # bytes of a file that is read at once
SEAL = re.compile(rb'(?:# |\{")sha256 of what follows(?:: |": ")([0-9a-f]{64})(?:",)?')
TRACE = re.compile(rb"[0-9a-f]{24}")  # in a first line: of a seal, which damage may have left unreadable
DEPTH = 30  # of nested values
VALUES = 100_000  # in a config or the like
BEGINNING = 150  # bytes in which a seal is looked for


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and give it the name `path`.

    Raises:
        UserError: the disk is full or the folder cannot be written; what stood at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync(path: Path) -> None:
    """Have a file's contents, or a folder's names, on the disk, where they survive a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """The content of a file of at most `most` bytes.

    Raises:
        UserError: it cannot be read, is larger, or is no file: of a pipe, reading would have no end.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise OSError("it is no file")
        if size > most:
            raise OSError(f"it has {size:,} bytes, and {most:,} are the most")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise UserError(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def sha256_of(path: Path) -> Any:
    """The sha256 of a file, as hashlib's object."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found


def sealed(text: str) -> str:
    """YAML with a first line, a comment, from which `unsealed` sees whether anything after it has changed."""
    return f"# sha256 of what follows: {hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def unsealed(content: bytes, name: str) -> bytes:
    """`content`, which is as gptlab wrote it, or without a seal: of an older version, or written by hand.

    Args:
        name: of the file, for the message.

    Raises:
        UserError: it has changed since.
    """
    first, _, rest = content.partition(b"\n")
    if not TRACE.search(first[:BEGINNING]):
        return content
    seal = SEAL.fullmatch(first)
    if seal is None or hashlib.sha256(rest).hexdigest().encode() != seal[1]:
        raise UserError(
            f"{name} has changed since gptlab wrote it (its sha256 differs): put the old one back; give changes on the "
            f"command line, or delete its first line{' but for the {' if first[:1] == b'{' else ''} to let them count"
        )
    return content


def write_json(path: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    """Write an object, sealed; `content` has something in it.

    Raises:
        UserError: see `write_atomically`.
    """
    rest = json.dumps(content, indent=indent)[1:].lstrip("\n").encode() + b"\n"
    seal = f'{{"sha256 of what follows": "{hashlib.sha256(rest).hexdigest()}",\n'
    write_atomically(path, lambda file: file.write(seal.encode() + rest))


def read_json(path: Path, must_be_sealed: bool = True) -> dict[str, Any]:
    """The object that `write_json` wrote.

    Args:
        must_be_sealed: or it may come from an older version, which had no seals, or from someone's hand.

    Raises:
        UserError: it cannot be read, is no object, or has changed; the message begins with the file's name.
    """
    try:
        content = json.loads(unsealed(read_bytes(path), path.name))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path.name} cannot be read: it is no JSON object")
    if content.pop("sha256 of what follows", None) is None and must_be_sealed:
        raise UserError(f"{path.name} cannot be read: its first line, with the checksum, is missing")
    return content


def plain_tree(content: Any, name: str) -> Any:
    """`content`, a tree of dicts, lists and plain values of a size that a person could have meant.

    Raises:
        UserError: it is larger, has something else in it, or refers to itself: in YAML and in pickles a few lines can
            stand for more than any memory holds.
    """
    rest, count = [(content, 0)], 0
    while rest:
        each, depth = rest.pop()
        count += 1
        if depth > DEPTH or count > VALUES:
            raise UserError(
                f"{name} is damaged: it is nested more than {DEPTH} deep, or has more than {VALUES:,} values"
            )
        if isinstance(each, dict | list):
            if isinstance(each, dict) and not all(isinstance(key, str) for key in each):
                raise UserError(f"{name} is damaged: it has keys that are no words")
            rest += [(child, depth + 1) for child in (each.values() if isinstance(each, dict) else each)]
        elif not (each is None or isinstance(each, str | int | float)) or (
            isinstance(each, int) and each.bit_length() > 64
        ):
            raise UserError(f"{name} is damaged: it has a value that none of gptlab's is ({type(each).__name__})")
    return content


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write in `folder` into one message with the way out."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror or error}; free some space there, or choose another "
            f"folder (hydra.run.dir=... for runs, data.cache_dir=... for prepared data, --out for reports)"
        ) from error


def user_folder(given: str | None) -> Path:
    """`given`, or the user's cache folder for gptlab."""
    return expand_user(given) if given else platformdirs.user_cache_path("gptlab", appauthor=False)


def expand_user(path: str) -> Path:
    """`path`, in which ~ is the user's home.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such user") from error


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which gets its name once the block has ended well.

    Raises:
        UserError: the disk is full or the place cannot be written to; nothing is left then.
    """
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    lacking = [parent for parent in folder.parents if not parent.exists()]
    try:
        with writing(folder.parent):
            temporary.mkdir(parents=True)
            yield temporary
            if folder.exists():
                folder.rmdir()
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in lacking:
            with suppress(OSError):  # it is not empty: all went well
                parent.rmdir()
