"""The folders that the library `datasets` writes by `save_to_disk`: their index says which Arrow files they are.

What else lies there is of no data set: the library keeps its caches beside the files, and leaves those of an earlier
save. The index is read here and the files as all Arrow files are; the library itself cannot open a set without rows,
nor one whose rows were to come as tensors of a package that is not installed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptlab.data.text_options import AUTO, TextOptions
from gptlab.system.errors import UserError
from gptlab.system.files import is_file, read_bytes

NAME = "saved"  # of data
SPLITS, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` has written a folder: a data set, or a folder for each of its splits."""
    return (folder / SPLITS).is_file() or ((folder / STATE).is_file() and (folder / INFO).is_file())


def saved_files(folder: Path, options: TextOptions, not_read: Counter[str]) -> list[Path]:
    """Return the Arrow files of the data set that is saved in a folder, split by split.

    Args:
        not_read: counts the splits without rows, and the Arrow files beside that are not of the data set.

    Raises:
        UserError: its index is damaged or names files that are not there, or no split has rows.
    """
    named = options.written("path", folder)
    try:
        names = _content(folder / SPLITS)["splits"] if (folder / SPLITS).is_file() else [""]
        splits = {_inside(folder, name): name for name in names}
        files = {
            split: [_inside(split, each["filename"]) for each in _content(split / STATE)["_data_files"]]
            for split in splits
        }
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{named}: the index of the data set that is saved there is damaged ({error}); save it again"
        ) from error
    found = [file for of_split in files.values() for file in of_split]
    if missing := [file.name for file in found if not is_file(file)]:
        raise UserError(f"{named}: the data set that is saved there lacks its file {missing[0]:.99}; copy all of it")
    if not found:
        raise UserError(f"{named}: the data set that is saved there has no rows: give one with texts")
    not_read.update(f"split without rows, {name}" for split, name in splits.items() if not files[split])
    others = {file for split in splits for file in split.glob("*.arrow")} - {*found}
    not_read.update({"Arrow file that is not of the saved data set": len(others)} if others else {})
    return found


def _content(index: Path) -> Any:
    return json.loads(read_bytes(index))


def _inside(folder: Path, name: str) -> Path:
    """Return what an index calls `name`; raises ValueError if that is not in the folder."""
    if name and (Path(name).name != name or name == ".."):
        raise ValueError(f"{name!r} is not in its folder")
    return folder / name


def check_saved(paths: Sequence[Path], options: TextOptions) -> None:
    """Check that paths are folders of saved data sets.

    Raises:
        UserError: one is not; or a format is given.
    """
    if options.format != AUTO:
        raise UserError(
            f"{options.written('format', options.format)}: data={NAME} reads what save_to_disk wrote, which is Arrow; "
            f"leave it out"
        )
    for path in paths:
        named = options.written("path", path)
        if not path.is_dir():
            what = "is a file" if path.exists() else "no such folder"
            raise UserError(f"{named}: {what}; give a folder that save_to_disk of the library `datasets` has written")
        if not is_saved(path):
            inside = next((each for each in sorted(path.iterdir()) if each.is_dir() and is_saved(each)), None)
            hint = f"one lies in {options.written('path', inside)}; " if inside else ""
            raise UserError(
                f"{named}: no data set lies in this folder, which would have {SPLITS}, or {STATE} and {INFO}; {hint}"
                f"a folder of text, Parquet or Arrow files is read by {options.written('text', path)}"
            )
