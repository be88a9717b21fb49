"""What a checkpoint means: a file of plain dicts, from which model and tokenizer come back, without Lightning."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from gptlab import __version__, models
from gptlab.data import tokenizers
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats.reading import load_plain
from gptlab.models import Model, weights
from gptlab.runs import upgrades
from gptlab.system.errors import UserError
from gptlab.system.files import plain_tree, write_atomically

FORMAT = 2
SEAL = b"sha256:"  # begins the zip's comment, which names the hash of all that stands before it
KEY = "gptlab"  # what we add to Lightning's dict
PREFIX = "model."  # where the LightningModule keeps the model


@dataclass(frozen=True)
class Info:
    """What a model says of itself."""

    path: Path
    """What was opened."""
    step: int | None
    """None: the file does not say."""
    metrics: dict[str, float]
    """Of the validation at that step; empty if there was none."""
    config: dict[str, Any]
    """The run's resolved config; empty for a model that is not gptlab's."""
    data_sha256: str | None
    """Of the text that the model has learned from; None: the file does not say."""
    origin: str
    """What kind of model this is, in words."""

    @property
    def words(self) -> str:
        """One line for people."""
        step = "" if self.step is None else f", step {self.step:,}"
        return f"{self.path} ({self.origin}{step})"


Loaded = tuple[Model, Tokenizer, Info]
"""A model on the CPU in evaluation mode, its tokenizer, and what the model says of itself."""


def describe(
    model: Model,
    tokenizer: Tokenizer,
    config: dict[str, Any],
    data_sha256: str | None,
    step: int | None,
    metrics: dict[str, float],
) -> dict[str, Any]:
    """The plain dict that makes a checkpoint enough to sample, evaluate or export; arguments as of `Info`."""
    return {
        "format": FORMAT,
        "version": __version__,
        "model": models.to_dict(model.config),
        "tokenizer": tokenizer.to_dict(),
        "config": config,
        "data_sha256": data_sha256,
        "step": step,
        "metrics": dict(metrics),
    }


def save(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that `path` holds the old one or the new one, never a part.

    Raises:
        UserError: it cannot be written.
    """

    def write(file: BinaryIO) -> None:
        hashed = _Hashed(file)
        try:
            torch.save(content, cast(BinaryIO, hashed))
        except RuntimeError as error:  # what torch makes of a refused write
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from None
        comment = SEAL + hashed.digest.hexdigest().encode()
        file.seek(-2, 2)  # the comment's length, and then the comment, are the end of a zip file
        file.write(len(comment).to_bytes(2, "little") + comment)

    write_atomically(path, write)


class _Hashed:
    """A file that only grows, and the hash of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def verify(path: Path) -> bool:
    """Whether the file at `path` carries its hash.

    Raises:
        UserError: it does, and it is not what was written.
    """
    end = len(SEAL) + 64
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[-end:-64] != SEAL:
            return False
        digest = hashlib.sha256()
        with memoryview(data) as view:
            digest.update(view[: -end - 2])
        digest.update(b"\0\0")  # there was no comment then
        if digest.hexdigest().encode() != data[-64:]:
            raise UserError(f"{path} is broken: its contents do not have the checksum that it was written with")
    return True


def find(path: Path) -> Path:
    """The checkpoint file that `path` means: itself, or a run directory's best, else its last.

    Raises:
        UserError: there is none.
    """
    try:
        path.stat()
    except OSError as error:  # not there, or no name that a file can have
        raise UserError(
            f"{path}: no such run directory or checkpoint file; runs lie in outputs/<name>/<time>"
        ) from error
    if path.is_file():
        return path
    for name in ("best.ckpt", "last.ckpt"):
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    raise UserError(
        f"{path} is not a run directory with a checkpoint (no checkpoints/best.ckpt or last.ckpt in it); "
        f"runs lie in outputs/<name>/<time>, and a run has one from its first validation on"
    )


def read(path: Path, mapped: bool = True) -> dict[str, Any]:
    """The dict in a checkpoint file of ours, verified; nothing in the file is executed.

    Args:
        mapped: leave the tensors in the file until they are used.

    Raises:
        UserError: the file is broken, foreign, or of a newer version.
    """
    try:
        sealed = path.stat().st_size > 0 and verify(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    content = load_plain(path, mapped)
    about = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(about, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(f"{path} is not a checkpoint of gptlab (it has no '{KEY}' entry)")
    if version(about, path) >= 2 and not sealed:
        raise UserError(f"{path} is broken: it lacks the checksum that it was written with")
    return content


def version(about: dict[str, Any], path: Path) -> int:
    """The format of what `describe` has described in the file at `path`.

    Raises:
        UserError: this version does not know it.
    """
    made = about.get("format", 1)
    if not isinstance(made, int) or made > FORMAT:
        raise UserError(
            f"{path} has checkpoint format {str(made)[:99]}, written by gptlab {str(about.get('version'))[:99]}; this "
            f"is gptlab {__version__}, which reads formats up to {FORMAT}: update gptlab"
        )
    return made


def step_file(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is kept that is not the last any more."""
    return folder / f"step_{step}.ckpt"


def kept(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints from before the last with their steps, the newest first."""
    found = (path for path in folder.glob("step_*.ckpt") if path.stem[5:].isdecimal())
    return sorted(((int(path.stem[5:]), path) for path in found), reverse=True)


def load(path: Path) -> Loaded:
    """Model (on the CPU, in evaluation mode), tokenizer and info from a run directory or a checkpoint file alone.

    Raises:
        UserError: see `find` and `read`; or the weights do not fit the model that the file describes.
    """
    file = find(path)
    try:
        content = read(file)
    except UserError as error:
        others = [other for other in sorted(file.parent.glob("*.ckpt")) if other != file]
        if not path.is_dir() or not others:
            raise
        raise UserError(f"{error}; the run has others: {', '.join(map(str, others))}") from error
    state = {k.removeprefix(PREFIX): v for k, v in content["state_dict"].items() if k.startswith(PREFIX)}
    return restored(content[KEY], state, file, "gptlab run")


def restored(about: dict[str, Any], state: dict[str, Tensor], path: Path, origin: str) -> Loaded:
    """What `describe` described, with the weights in `state`, which is used up.

    Raises:
        UserError: they do not fit together.
    """
    made = version(about, path)
    try:
        if made == 1:
            about = upgrades.from_format_1(about)
        config = models.from_dict(about["model"])
        tokenizer = tokenizers.from_dict(about["tokenizer"])
        step, data_sha256 = about["step"], about["data_sha256"]
        metrics, config_ = plain_tree(about["metrics"], "metrics"), plain_tree(about["config"], "config")
        if not (isinstance(step, int | None) and isinstance(data_sha256, str | None) and isinstance(config_, dict)):
            raise UserError("what it says of itself is damaged")
        info = Info(path, step, {name: float(value) for name, value in metrics.items()}, config_, data_sha256, origin)
        return weights.fill(config, state), tokenizer, info
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {str(error)[:500]}"
        raise UserError(f"{path} does not fit together: {reason}") from error
