"""Damage files at a fixed seed, read them as gptlab does, and watch what comes of it.

Whatever comes, it comes within seconds, starts no program, writes nowhere else, and takes no more memory than a few
times the file. Of formats with a checksum, all of ours, the result is that of the intact files or a `UserError`; of
those without one, a changed weight or letter cannot be noticed: there it is any result or a `UserError`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from gptlab import models
from gptlab.data import prepare, survey, tokenizers
from gptlab.formats import description
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.weights import parameters
from gptlab.system.errors import UserError

LONGEST = 5  # seconds of the processor's for a case: the machine may have other things to do
MOST = 1 << 25  # bytes of memory for a case, whose files are small
NOTHING = ("", ([], {}))  # of a packed file of no bytes
TEXT = "".join(random.Random(0).choice("to be or not, that is\n") for _ in range(3000))
CHARS = "".join(sorted(set(TEXT)))
GPT2 = GPTConfig(len(CHARS), block_size=7, n_layer=2, n_head=2, n_embd=4)

# What no file may do

STARTED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "pty.spawn")
watched: list[tuple[Path, list[str]]] = []


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not watched:
        return
    folder, found = watched[-1]
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    elsewhere = str(folder) not in str(arguments[0]) and "__pycache__" not in str(arguments[0])  # of a first import
    if event in STARTED or (writes and elsewhere):
        found.append(f"{event} {arguments[:2]}")


sys.addaudithook(hook)  # which is for ever: it listens where something is watched


class TooLong(BaseException):
    pass


@contextmanager
def watch(folder: Path) -> Iterator[list[int]]:
    """Check that no process starts, nothing outside of `folder` is written, and that it takes at most LONGEST and MOST.

    Yields:
        A list, which in the end has the bytes of memory that it took.
    """

    def stop(*_: Any) -> None:
        raise TooLong

    found: list[str] = []
    taken: list[int] = []
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    at_first = _peak_memory(forget=True)
    watched.append((folder, found))
    begun = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about what they see
            yield taken
    finally:
        watched.pop()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        taken.append(_peak_memory() - at_first)
        assert not found, found
        assert time.process_time() - begun < LONGEST  # also where TooLong was taken for damage
        assert taken[0] < MOST, f"{taken[0]:,} bytes"


def _peak_memory(forget: bool = False) -> int:
    """Return the most bytes that this process has had in memory, since that was last forgotten; 0 without Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def said(error: UserError) -> None:
    """Check that there is a message, and that it fits on a screen."""
    assert 0 < len(str(error)) < 3000


# Damages


def flip(content: bytearray, draw: random.Random, most: int = 1) -> None:
    for _ in range(draw.randint(1, most)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def truncate(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def overwrite(content: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(content))
    length = min(draw.choice((1, 2, 8, 64)), len(content) - place)
    content[place : place + length] = draw.randbytes(length) if draw.random() < 0.7 else bytes(length)


def remove(content: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(content))
    del content[place : place + draw.choice((1, 2, 8, 64))]


def insert(content: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(content) + 1)
    content[place:place] = draw.randbytes(draw.choice((1, 2, 8, 64)))


def repeat(content: bytearray, draw: random.Random) -> None:
    begin, end = sorted(draw.randrange(len(content) + 1) for _ in "ab")
    content[end:end] = content[begin:end]


def renumber(content: bytearray, draw: random.Random) -> None:
    """Replace a digit by another one, which keeps every format well-formed."""
    places = [i for i, byte in enumerate(content) if 48 <= byte < 58]
    if places:
        content[draw.choice(places)] = draw.randrange(48, 58)


def noise(content: bytearray, draw: random.Random) -> None:
    content[:] = draw.randbytes(draw.randrange(2 * len(content)))


DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(flip, flip, flip, lambda content, draw: flip(content, draw, 20), truncate, overwrite, remove, insert),
    *(repeat, renumber, renumber, noise),
)


def damaged(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    if changed:
        draw.choice(DAMAGES)(changed, draw)
    return bytes(changed)


# What is read


def gpt() -> models.Model:
    torch.manual_seed(1)
    return models.build(GPT2).eval()


def seen(model: models.Model, tokenizer: tokenizers.Tokenizer, info: description.ModelInfo | None = None) -> Any:
    """Everything in a loaded model, by value; it is also used."""
    about = (info.step, info.metrics, info.config, info.data_sha256) if info else ()
    with torch.no_grad():
        model(torch.zeros(1, min(3, model.config.block_size), dtype=torch.int64))
    weights = {name: weight.numpy().tobytes() for name, weight in parameters(model).items()}
    return models.to_dict(model.config), weights, used(tokenizer), repr(about)


def used(tokenizer: tokenizers.Tokenizer) -> Any:
    """Everything in a tokenizer, by value; it is also used."""
    ids = tokenizer.encode("to be, <|endoftext|> ü")
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert len(tokenizer.token_bytes()) == tokenizer.vocab_size
    return tokenizer.to_dict(), ids.tolist(), tokenizer.decode(ids.tolist()), tokenizer.end_of_text


def bpe() -> tokenizers.BPETokenizer:
    return tokenizers.BPETokenizer.fit([TEXT], 270)


# What is tried


@dataclass(frozen=True)
class Kind:
    """A set of files: `make` writes it, `read` gives what can be compared.

    Args:
        sealed: whether damage is always noticed.
        quick, slow: how many cases are tried in each test run, and how many more by `make test-all`.
    """

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    sealed: bool
    quick: int
    slow: int


class Tally(NamedTuple):
    """What came of the cases."""

    refused: int
    read: int
    memory: int
    """The most bytes that a case took."""


def fuzz(kind: Kind, seeds: range, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tally:
    for module in (prepare, survey):
        monkeypatch.setattr(module, "LARGE", 0)  # so that what is remembered of a text is read, too
    kind.make(folder)
    intact = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    expected = kind.read(folder)
    targets = [path for path in intact if path.name not in ("text.kept", "verified.json")]
    refused, memory = 0, []
    for seed in seeds:
        draw = random.Random(seed)
        for path, content in intact.items():
            path.parent.mkdir(exist_ok=True)
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
        file = targets[seed % len(targets)]
        file.write_bytes(damaged(intact[file], draw))
        where = f"seed {seed}, {file.relative_to(folder)}"
        try:
            with watch(folder) as taken:
                found = kind.read(folder)
        except UserError as error:
            said(error)
            refused += 1
        except BaseException as error:
            raise AssertionError(where) from error
        else:
            assert not kind.sealed or found == expected or found in NOTHING, where
        memory += taken
    return Tally(refused, len(seeds) - refused, max(memory))
