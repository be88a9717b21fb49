"""What a checkpoint says of the model in it: read without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gptlab import __version__
from gptlab.data.chat.chat_format import ChatFormat, Format, answers_in_chat
from gptlab.data.chat.template import ChatTemplate
from gptlab.data.tokenizers import Tokenizer
from gptlab.system.errors import UserError
from gptlab.system.files import plain_tree

FORMAT = 2
SEAL = b"sha256:"  # begins the zip's comment, which has the hash of everything before it
KEY = "gptlab"  # our entry in Lightning's dict
DIGEST_KEY = f"{KEY}.sha256"  # a safetensors header's key for the checksum of our own weights
PREFIX = "model."  # of the model's weights in the LightningModule's
ADAPTERS = "adapters"  # the key of a description that says on which model they belong, see `adapters.describe`
ORIGIN = "reference"  # the key of a description that names the model of init_from, see `adapters.origin`
TEMPLATE = "chat_template"  # the key of a description that has the chat template of a model from elsewhere
NEW_ROWS = ".new.rows"  # ends the names of the rows of new tokens


@dataclass(frozen=True)
class ModelInfo:
    """What a model's file says about the model."""

    path: Path
    """The file or folder that was opened."""
    step: int | None
    """The optimizer step; None if the file does not say."""
    metrics: dict[str, float]
    """The metrics of the validation at that step; empty if there was none."""
    config: dict[str, Any]
    """The run's resolved config; empty for a model that is not gptlab's."""
    data_sha256: str | None
    """The hash of the text that the model has learned from; None if the file does not say."""
    origin: str
    """What kind of model this is, in words."""
    read_chat: Callable[[], Format | None] = field(default=lambda: None, compare=False, repr=False)
    """Returns `chat`."""
    about: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The description in the file, see `describe`; empty for a model that is not gptlab's."""
    family: str | None = field(default=None, compare=False)
    """The `model_type` of the Hugging Face folder that it comes from; None: it comes from none."""

    @property
    def words(self) -> str:
        """A one-line description."""
        step = "" if self.step is None else f", step {self.step:,}"
        return f"{self.path} ({self.origin}{step})"

    @cached_property
    def chat(self) -> Format | None:
        """The format in which the model has learned to answer; None: it continues texts.

        Raises:
            UserError: its files have a chat template, and that is broken.
        """
        return self.read_chat()


def verify_checksum(path: Path) -> bool:
    """Verify the checksum of a file; returns whether it has one.

    Raises:
        UserError: the contents do not have the checksum.
    """
    seal = len(SEAL) + 64
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = max(0, file.seek(0, 2) - seal)
        file.seek(left)
        said = file.read()
        if not said.startswith(SEAL):
            return False
        file.seek(0)
        left = max(0, left - 2)  # without the length of the comment, which was 0 when the hash was taken
        while left and (some := file.read(min(left, 1 << 20))):
            digest.update(some)
            left -= len(some)
    digest.update(b"\0\0")
    if digest.hexdigest().encode() != said[len(SEAL) :]:
        raise UserError(f"{path} is broken: its contents do not have the checksum that it was written with")
    return True


def find_checkpoint(path: Path) -> Path:
    """Find the checkpoint file of a path: the file itself, or a run directory's best.ckpt, else its last.ckpt.

    Raises:
        UserError: there is no such file.
    """
    try:
        path.stat()
    except (OSError, ValueError) as error:  # missing, or not a possible file name
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


def format_version(about: dict[str, Any], path: Path) -> int:
    """Return the format of a description by `describe`, in the file at `path`.

    Raises:
        UserError: this version of gptlab does not know the format.
    """
    made = about.get("format", 1)
    if not isinstance(made, int) or made > FORMAT:
        raise UserError(
            f"{path} has checkpoint format {str(made)[:99]}, written by gptlab {str(about.get('version'))[:99]}; this "
            f"is gptlab {__version__}, which reads formats up to {FORMAT}: update gptlab"
        )
    return made


def model_info(about: dict[str, Any], tokenizer: Tokenizer, path: Path, origin: str) -> ModelInfo:
    """Return the info in a description by `describe`.

    Raises:
        UserError, KeyError, TypeError, ValueError: the description is damaged.
    """
    step, data_sha256 = about["step"], about["data_sha256"]
    metrics, config = plain_tree(about["metrics"], "metrics"), plain_tree(about["config"], "config")
    if not (isinstance(step, int | None) and isinstance(data_sha256, str | None) and isinstance(config, dict)):
        raise UserError("what it says of itself is damaged")
    measured, chat = {name: float(value) for name, value in metrics.items()}, described_chat(about, tokenizer, path)
    return ModelInfo(path, step, measured, config, data_sha256, origin, lambda: chat, about)


def described_chat(about: dict[str, Any], tokenizer: Tokenizer, path: Path) -> Format | None:
    """Return the format in which a model with this description by `describe` answers; None: it continues texts.

    Raises:
        UserError: what it says of its chat template is damaged.
    """
    if TEMPLATE in about:
        return ChatTemplate.from_dict(tokenizer, about[TEMPLATE], str(path))
    return ChatFormat(tokenizer) if answers_in_chat(about["config"], tokenizer) else None
