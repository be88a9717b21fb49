"""Checkpoints: files of plain dicts that restore a model and its tokenizer, without Lightning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import torch
from torch import Tensor

from gptlab import __version__, models
from gptlab.data import tokenizers
from gptlab.data.chat.chat_format import Format
from gptlab.data.chat.template import ChatTemplate
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats.description import (
    ADAPTERS,
    FORMAT,
    KEY,
    NEW_ROWS,
    PREFIX,
    SEAL,
    TEMPLATE,
    ModelInfo,
    find_checkpoint,
    format_version,
    model_info,
    verify_checksum,
)
from gptlab.formats.torch_reading import load_plain
from gptlab.models import Model, ModelConfig, weights
from gptlab.models.heads import HeadedGPT
from gptlab.models.other_configs import KINDS, HeadedConfig
from gptlab.runs import upgrades
from gptlab.system.errors import UserError
from gptlab.system.files import write_atomically

LoadedModel = tuple[Model, Tokenizer, ModelInfo]
"""A model on the CPU in evaluation mode, its tokenizer, and its info."""
LoadedHeaded = tuple[HeadedGPT, Tokenizer, ModelInfo]
"""The same for a classifier, a reward model, or a policy with a value head."""
AnyConfig = TypeVar("AnyConfig", ModelConfig, HeadedConfig)
AnyModel = TypeVar("AnyModel", Model, HeadedGPT)


def describe(
    model: Model | HeadedGPT,
    tokenizer: Tokenizer,
    config: dict[str, Any],
    data_sha256: str | None,
    step: int | None,
    metrics: dict[str, float],
    chat: Format | None = None,
) -> dict[str, Any]:
    """Describe a model as the plain dict that `restore` reads; for the arguments see `ModelInfo`."""
    return {
        **({TEMPLATE: chat.to_dict()} if isinstance(chat, ChatTemplate) else {}),
        "format": FORMAT,
        "version": __version__,
        "model": models.to_dict(model.config),
        "tokenizer": tokenizer.to_dict(),
        "config": config,
        "data_sha256": data_sha256,
        "step": step,
        "metrics": dict(metrics),
    }


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically: at any moment `path` holds the old file or the new one.

    Raises:
        UserError: the file cannot be written.
    """

    def write(file: BinaryIO) -> None:
        hashed = _Hashed(file)
        try:
            torch.save(content, cast(BinaryIO, hashed))
        except RuntimeError as error:  # torch hides a failed write in it
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from None
        comment = SEAL + hashed.digest.hexdigest().encode()
        file.seek(-2, 2)  # a zip file ends with the comment's length and the comment
        file.write(len(comment).to_bytes(2, "little") + comment)

    write_atomically(path, write)


class _Hashed:
    """A file that is only appended to, and the hash of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def read_checkpoint(path: Path, mapped: bool = True, content: Any = None) -> dict[str, Any]:
    """Read the dict in a checkpoint file of ours, and verify its checksum; nothing in the file is executed.

    Args:
        path: the file.
        mapped: leave the tensors in the file until they are used.
        content: what `load_plain` has read from the file; None: read it here.

    Raises:
        UserError: the file is broken, not a checkpoint of gptlab, or of a newer version.
    """
    try:
        sealed = path.stat().st_size > 0 and verify_checksum(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if content is None:
        content = load_plain(path, mapped)
    about = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(about, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(f"{path} is not a checkpoint of gptlab (it has no '{KEY}' entry)")
    if format_version(about, path) >= 2 and not sealed:
        raise UserError(f"{path} is broken: it lacks the checksum that it was written with")
    return content


def step_file(folder: Path, step: int) -> Path:
    """Return the file of a step's checkpoint once a later one is the last."""
    return folder / f"step_{step}.ckpt"


def kept_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return the steps and files of the checkpoints before the last, the newest first."""
    found = (path for path in folder.glob("step_*.ckpt") if path.stem[5:].isdecimal())
    return sorted(((int(path.stem[5:]), path) for path in found), reverse=True)


def load_checkpoint(path: Path, content: Any = None) -> LoadedModel:
    """Load the model (on the CPU, in evaluation mode), its tokenizer and its info; no other file is needed.

    Args:
        path: a run directory or a checkpoint file.
        content: what `load_plain` has read from that file; None: read it here.

    Raises:
        UserError: see `find_checkpoint` and `read_checkpoint`; or the weights do not fit the model that is described;
            or it is no language model, or it holds adapters alone, see `open_model`.
    """
    about, state, file = read_model(path, content)
    return restore(about, state, file, "gptlab run")


def read_model(path: Path, content: Any = None) -> tuple[dict[str, Any], dict[str, Tensor], Path]:
    """Return the description of a model, its weights, and their file; the rest as in `load_checkpoint`."""
    file = find_checkpoint(path)
    try:
        content = read_checkpoint(file, content=content)
    except UserError as error:
        others = [other for other in sorted(file.parent.glob("*.ckpt")) if other != file]
        if not path.is_dir() or not others:
            raise
        raise UserError(f"{error}; the run has others: {', '.join(map(str, others))}") from error
    state = {k.removeprefix(PREFIX): v for k, v in content["state_dict"].items() if k.startswith(PREFIX)}
    return content[KEY], state, file


def put_new_rows_in(config: ModelConfig | HeadedConfig, state: dict[str, Tensor]) -> None:
    """Put the rows of tokens that were new to a run into its tables, see `lora.train_new_rows`.

    Raises:
        UserError: they do not fit, see also `weights.check_sound`.
    """
    names = [name for name in state if name.endswith(NEW_ROWS)]
    if names:
        weights.check_sound(config, state)
    for name in names:
        rows, table = state.pop(name), state[name.removesuffix(NEW_ROWS) + ".weight"]
        if rows.shape[1:] != table.shape[1:] or len(rows) > len(table):
            raise UserError(f"{name} is {list(rows.shape)}, and its table {list(table.shape)}")
        state[name.removesuffix(NEW_ROWS) + ".weight"] = torch.cat((table[: len(table) - len(rows)], rows))


def restore(about: dict[str, Any], state: dict[str, Tensor], path: Path, origin: str) -> LoadedModel:
    """Restore a language model from a description by `describe` and its weights; of a policy without its value head.

    Args:
        about: the description.
        state: the weights by name; emptied, to save memory.
        path: the file, for messages and the info.
        origin: what kind of model this is, in words.

    Raises:
        UserError: the description is damaged, or the weights do not fit it; or the model is no language model.
    """
    about, state = language_model_of(about, state, path)
    return _restore(about, state, path, origin, models.from_dict, weights.fill)


def restore_headed(about: dict[str, Any], state: dict[str, Tensor], path: Path, origin: str) -> LoadedHeaded:
    """Restore a classifier, a reward model, or a policy with a value head, as `restore` does a language model.

    Raises:
        UserError: as there; or it has no head.
    """
    return _restore(about, state, path, origin, models.headed_from_dict, weights.fill_headed)


def language_model_of(
    about: dict[str, Any], state: dict[str, Tensor], path: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the weights of the language model in a file: of a policy without its value head.

    Raises:
        UserError: it is none.
    """
    described = about["model"] if isinstance(about.get("model"), dict) else {}
    head = described.get("head")
    if not isinstance(head, dict):
        return about, state
    if head.get("kind") != "value":
        kind = KINDS.get(f"{head.get('kind')!s:.99}", "a model with another head")
        raise UserError(f"{path} is {kind}, whose outputs are no text: give a language model, such as its init_from")
    return without_head(about, state)


def without_head(about: dict[str, Any], state: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the weights of the GPT in a model with a head; its weights leave `state`."""
    of_gpt = {name: state.pop(name) for name in list(state) if name.startswith(weights.OF_GPT)}
    described = {name: value for name, value in about["model"].items() if name != "head"}
    return about | {"model": described}, {name.removeprefix(weights.OF_GPT): each for name, each in of_gpt.items()}


def _restore(
    about: dict[str, Any],
    state: dict[str, Tensor],
    path: Path,
    origin: str,
    parse: Callable[[dict[str, Any]], AnyConfig],
    fill: Callable[[AnyConfig, dict[str, Tensor]], AnyModel],
) -> tuple[AnyModel, Tokenizer, ModelInfo]:
    """Restore a model of either kind: `parse` returns its config, and `fill` the model with these weights."""
    made = format_version(about, path)
    try:
        if made == 1:
            about = upgrades.from_format_1(about)
        config = parse(about["model"])
        tokenizer = tokenizers.from_dict(about["tokenizer"])
        info = model_info(about, tokenizer, path, origin)
        if ADAPTERS in about:
            raise UserError("it has adapters alone, which belong on another model")
        put_new_rows_in(config, state)
        return fill(config, state), tokenizer, info
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {str(error)[:500]}"
        raise UserError(f"{path} does not fit together: {reason}") from error
