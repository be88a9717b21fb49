"""Find the files of ids among paths and in folders, and the parts of a data set that they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gptlab.data.find_files import PARTS, expanded, in_words, named_parts, part_of
from gptlab.data.split import LAST_FILE
from gptlab.data.text_options import TextOptions
from gptlab.system.errors import UserError, amount
from gptlab.system.files import expand_user
from gptlab.system.terminal import pasteable

NAME = "bin"  # of data
SUFFIXES = (".bin", ".npy")
WANTED = "nanoGPT's train.bin and val.bin, llm.c's *_train_*.bin and *_val_*.bin, or arrays of numpy, *.npy"


@dataclass(frozen=True)
class FoundIds:
    """The files of ids, and where they lie."""

    parts: dict[str, list[Path]]
    """The files of each part that there are files of; all for train if they are not divided."""
    folders: list[Path]
    """Where what describes them may lie."""
    not_read: int
    """Files that are no part, beside others that are."""

    def with_last_held_out(self) -> FoundIds:
        """Return the files with the last of those to train on as the validation part, if none is by its name.

        Raises:
            UserError: there is one file only.
        """
        if "val" in self.parts:
            return self
        *train, last = self.parts["train"]
        if not train:
            raise UserError(
                f"data.split={LAST_FILE}: holds out the last of several files, and {last} is the only one to learn "
                f"from; use data.split=position"
            )
        return replace(self, parts=self.parts | {"train": train, "val": [last]})

    def in_words(self) -> str:
        """Return what is read."""
        words = []
        for part, paths in self.parts.items():
            what = paths[0].name if len(paths) == 1 else f"{len(paths):,} files"
            words.append(f"{part} is {what}" if len(self.parts) > 1 else what)
        return "; ".join([*words, f"not read: {amount(self.not_read, 'file')}"] if self.not_read else words)


def find_ids(paths: Sequence[str], options: TextOptions) -> FoundIds:
    """Return the files among `paths`, in their order, and those in the folders among them, by their names.

    Raises:
        UserError: there are none, a path is something else, or there is nothing to train on.
    """
    if not paths:
        raise UserError(f"data={NAME} needs a folder of ids: add data.path=DIR, with {WANTED}")
    given = [*expanded([expand_user(path) for path in paths])]
    found = {path: _files(path) for path in given}
    files = [file for of_path in found.values() for file in of_path]
    names = [
        str(file.relative_to(path if path != file else path.parent))
        for path, inside in found.items()
        for file in inside
    ]
    parts = _divided(files, names, options)
    folders = dict.fromkeys([*(path for path in given if found[path] != [path]), *(path.parent for path in files)])
    return FoundIds(parts, [*folders], len(files) - sum(map(len, parts.values())))


def _files(path: Path) -> list[Path]:
    """Return the file that `path` is, or those in a folder, by their names.

    Raises:
        UserError: there are none, or two kinds of them.
    """
    try:
        if path.is_file():
            if path.suffix.lower() not in SUFFIXES:
                raise UserError(f"data.path={path}: files of ids end with {' or '.join(SUFFIXES)}; a text is data=text")
            return [path]
        if not path.is_dir():
            raise UserError(f"data.path={path}: no such file or folder; give a folder with {WANTED}")
        inside = sorted(path.iterdir())
        folders = [each for each in inside if each.is_dir() and part_of(each.name)]
        found = _ids(inside) or [file for folder in folders for file in _ids(sorted(folder.iterdir()))]
    except OSError as error:
        raise UserError(f"data.path={path} cannot be read: {error.strerror}") from error
    if not found:
        others = Counter(each.suffix or "without an ending" for each in inside if each.is_file())
        there = f"there are {in_words(others)}" if others else "there are no files"
        raise UserError(f"data.path={path}: no ids in this folder ({there}): give one with {WANTED}")
    kinds = {file.suffix.lower() for file in found}
    if len(kinds) > 1:
        raise UserError(
            f"data.path={path}: this folder has {' and '.join(sorted(kinds))} files, perhaps the same ids twice: "
            f"{pasteable('data.path', str(path / '*.bin'))} reads those alone"
        )
    return found


def _ids(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file() and path.name[0] != "."]


def _divided(found: list[Path], names: list[str], options: TextOptions) -> dict[str, list[Path]]:
    """Return the files of each part that there is; those that are not divided are for training.

    Args:
        found: the files.
        names: their names, in the folders that were given.

    Raises:
        UserError: there is none for training, or see `named_parts`.
    """
    parts = named_parts(found, options)
    named = {part_of(name) for name in names}
    if not parts and options.named_parts is not False and not named & {None, "train"}:
        raise UserError(
            f"data.path: {', '.join(names[:3])} {'is' if len(names) == 1 else 'are'} for "
            f"{' and '.join(sorted(map(str, named)))} by name, and there is nothing to train on: add train.bin, or "
            f"{options.written('named_parts', 'false')}, which splits them by position"
        )
    if not parts:
        return {"train": found}
    return {part: [path for path in found if parts.get(path) == part] for part in PARTS if part in parts.values()}
