"""Files that are complete or absent, and that show when they have been changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from gptlab.system.errors import UserError

LARGEST = 1 << 28  # bytes of a file that is read into memory
SEAL = re.compile(rb'(?:# |\{")sha256 of what follows(?:: |": ")([0-9a-f]{64})(?:",)?')
SEAL_TRACE = re.compile(rb"[0-9a-f]{24}")  # in a first line: the rest of a seal that damage has made unreadable
MAX_DEPTH = 30  # of nested values in a config
MAX_VALUES = 100_000  # in a config
SEAL_BYTES = 150  # at the beginning of a file, where its seal is looked for


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and rename it to `path`.

    Raises:
        UserError: the disk is full or the folder cannot be written; an old file at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explain_write_errors(path.parent):
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


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, and flush it to disk; a file that cannot take all of it stays as it was.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        content = f"{line}\n".encode()
        try:
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def cut_unfinished_line(path: Path) -> None:
    """Remove what follows the last line end of a file, which a killed process has left half written.

    Raises:
        OSError: it cannot be read or written.
    """
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def check_writable(path: Path) -> None:
    """Check that a file can be written; it is not made.

    Raises:
        OSError: it cannot.
    """
    if path.exists():
        path.open("ab").close()
    else:
        tempfile.TemporaryFile(dir=path.parent).close()


def sync(path: Path) -> None:
    """Flush a file's contents, or a folder's entries, to the disk, where they survive a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_file(path: Path) -> bool:
    """Return whether a path leads to a file: one that nothing can have, as a name of 300 letters, leads nowhere."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_there(path: Path) -> bool:
    """Return whether a path leads to something, see `is_file`."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """Read a file of at most `most` bytes.

    Raises:
        UserError: it cannot be read, is larger, or is not a regular file: a pipe could be endless.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise OSError("it is no file")
        if size > most:
            raise OSError(f"it has {size:,} bytes, and {most:,} are the most")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a NUL in the name raises ValueError
        raise UserError(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def sha256_of(path: Path) -> Any:
    """Return the sha256 of a file, as a hashlib object that can be updated further."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found


def seal(text: str) -> str:
    """Return YAML with a comment on top by which `unseal` notices any change after it."""
    return f"# sha256 of what follows: {hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def unseal(content: bytes, name: str) -> bytes:
    """Check the seal of a file and return its content; without a seal (an old version, a file by hand) it passes.

    Args:
        name: the file's name, for the message.

    Raises:
        UserError: the content has changed since it was sealed.
    """
    first, _, rest = content.partition(b"\n")
    if not SEAL_TRACE.search(first[:SEAL_BYTES]):
        return content
    seal = SEAL.fullmatch(first)
    if seal is None or hashlib.sha256(rest).hexdigest().encode() != seal[1]:
        raise UserError(
            f"{name} has changed since gptlab wrote it (its sha256 differs): put the old one back; give changes on the "
            f"command line, or delete its first line{' but for the {' if first[:1] == b'{' else ''} to let them count"
        )
    return content


def write_json(path: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    """Write an object, which is not empty, with a seal as its first entry.

    Raises:
        UserError: see `write_atomically`.
    """
    rest = json.dumps(content, indent=indent)[1:].lstrip("\n").encode() + b"\n"
    seal = f'{{"sha256 of what follows": "{hashlib.sha256(rest).hexdigest()}",\n'
    write_atomically(path, lambda file: file.write(seal.encode() + rest))


def read_json(path: Path, must_be_sealed: bool = True) -> dict[str, Any]:
    """Read the object that `write_json` wrote.

    Args:
        must_be_sealed: reject files without a seal, which come from older versions or were written by hand.

    Raises:
        UserError: it cannot be read, is not an object, or has changed; the message begins with the file's name.
    """
    try:
        content = json.loads(unseal(read_bytes(path), path.name))
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
    """Check that `content` is a tree of dicts, lists and plain values of reasonable size, and return it.

    Raises:
        UserError: it is larger, holds other types, or refers to itself: a few lines of YAML or a short pickle can
            expand to more than memory holds.
    """
    rest, count = [(content, 0)], 0
    while rest:
        each, depth = rest.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise UserError(
                f"{name} is damaged: it is nested more than {MAX_DEPTH} deep, or has more than {MAX_VALUES:,} values"
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
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError on writing in `folder` into a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror or error}; free some space there, or choose another "
            f"folder (hydra.run.dir=... for runs, data.cache_dir=... for prepared data, DIR for exports, --out for "
            f"reports and ids)"
        ) from error


def user_folder(given: str | None) -> Path:
    """Return `given`, or the user's cache folder for gptlab."""
    if given:
        return expand_user(given)
    from platformdirs import user_cache_path

    return user_cache_path("gptlab", appauthor=False)


def expand_user(path: str) -> Path:
    """Return `path` with ~ replaced by the user's home; a file whose name begins with ~ is itself.

    Raises:
        UserError: `path` begins with ~ and an unknown user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        if is_there(Path(path)):
            return Path(path)
        raise UserError(f"{path}: there is no such user") from error


def refuse_taken(folder: Path) -> None:
    """Check that a folder does not exist, or is empty.

    Raises:
        UserError: it has files in it, it is a file, or it cannot be read.
    """
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; choose another folder") from error
    raise UserError(f"{folder} is there already; choose another name, or remove it first")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Provide a temporary folder beside `folder`, and rename it to `folder` if the block succeeds.

    Raises:
        UserError: the disk is full or the location cannot be written; nothing is left behind.
    """
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    try:
        with explain_write_errors(folder.parent):
            temporary.mkdir(parents=True)
            yield temporary
            if folder.exists():
                folder.rmdir()
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # it is not empty: the block has succeeded
                parent.rmdir()
