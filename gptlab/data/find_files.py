"""Find the text files among paths, in folders and behind links, and the parts of a data set that they are."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gptlab.data.file_kinds import PACKED, ROWS, SUFFIXES, kind_of, suffix
from gptlab.data.saved import is_saved, saved_files
from gptlab.data.text_files import has_text
from gptlab.data.text_options import AUTO, TextOptions
from gptlab.system.errors import UserError, amount

CARD = re.compile(r"(readme|licen[sc]e|citation|changelog|notice|contributing|dataset[-_ ]?card)\b", re.I)
PARTS = {  # the names of a part, as Hugging Face's `datasets` knows them
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
CAMEL = re.compile("(?<=[a-z])(?=[A-Z])")  # as in trainSet
WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class TextFile:
    """A file of a text."""

    path: Path
    kind: str
    """See `file_kinds.kind_of`."""
    part: str | None = None
    """train, val or test, if it is used as that part of a data set."""


@dataclass(frozen=True)
class FoundFiles:
    """The files of a text, and what lies beside them."""

    files: tuple[TextFile, ...]
    not_read: Counter[str]
    """How many files in the folders were left out, by what they are."""

    @property
    def parts(self) -> list[str]:
        """The parts that there are files of; empty if they are not divided."""
        return [part for part in PARTS if any(file.part == part for file in self.files)]

    def with_last_held_out(self) -> FoundFiles:
        """Return the files with the last of those to train on as the validation part, if there are several of them and
        none is that part by its name."""
        train = [file for file in self.files if file.part in (None, "train")]
        if "val" in self.parts or len(train) < 2:
            return self
        parts = {file.path: "train" for file in train} | {train[-1].path: "val"}
        divided = (replace(file, part=parts.get(file.path, file.part)) for file in self.files)
        return replace(self, files=tuple(divided))


def find_texts(paths: list[Path], options: TextOptions) -> FoundFiles:
    """Return the files among `paths`, and all text files below the folders among them, sorted by name.

    Raises:
        UserError: a path does not exist or is no text, a folder has no text, or it is unclear which of the files are
            parts of a data set.
    """
    found: list[Path] = []
    not_read: Counter[str] = Counter()
    for path in expanded(paths):
        named = options.written("path", path)
        try:
            path.stat()
        except OSError as error:  # not there, or no name that a file can have
            raise UserError(f"{named}: no such file; give text files, or a folder of them") from error
        if path.is_char_device() or path.is_fifo() or path.is_socket():
            raise UserError(f"{named} is no file, and a text is read several times; give text files")
        if path.is_dir():
            found += _in_folder(path, not_read, options)
        else:
            found.append(path)
    kinds = {path: kind_of(path, options) for path in found}
    if any(kind in ROWS for kind in kinds.values()):  # a data set, with its description
        not_read.update(path.name for path in kinds if kinds[path] not in ROWS and CARD.match(path.name))
        found = [path for path in found if kinds[path] in ROWS or not CARD.match(path.name)]
    parts = named_parts(found, options)
    divided = tuple(TextFile(path, kinds[path], parts.get(path)) for path in found)
    if parts:
        not_read.update(each.path.name for each in divided if each.part is None)
        order = [*PARTS]
        divided = tuple(sorted((each for each in divided if each.part), key=lambda each: order.index(str(each.part))))
    return FoundFiles(divided, not_read)


def expanded(paths: list[Path]) -> Iterator[Path]:
    """Yield the paths, and in place of a pattern that is no path the files that it matches."""
    for path in paths:
        matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []  # noqa: PTH207
        if not matches or os.path.lexists(path):
            yield path
        elif "**" in path.parts:  # which matches the folders, too, whose files it matches
            yield from (each for each in map(Path, matches) if not each.is_dir())
        else:
            yield from map(Path, matches)


def _in_folder(folder: Path, not_read: Counter[str], options: TextOptions) -> list[Path]:
    """Return the text files below a folder by their paths; count the others."""
    here: Counter[str] = Counter()
    texts, keyless, others = [], [], []
    for path in sorted(_walk(folder, here, options)):
        ending = suffix(path) or path.suffix.lower()
        if ending not in SUFFIXES:
            here[ending or "without an ending"] += 1
            others.append(path)
        elif ending in (".json", ".csv", ".tsv") and not has_text(path, kind_of(path, options), options):
            here[f"{path.name} without {options.written('text_key', options.text_key)}"] += 1
            keyless.append(path)
        else:
            texts.append(path)
    if not texts and not keyless:
        raise _no_text(folder, others, here, options)
    if not texts:
        return keyless  # which are refused by what they hold
    texts = _different(texts, here)
    not_read.update(here)
    return texts


def _different(paths: list[Path], left_out: Counter[str]) -> list[Path]:
    """Return the paths without other names and packed copies of files that are among them; count these."""
    files: dict[tuple[int, int], Path] = {}
    for path in sorted(paths, key=lambda path: (path.is_symlink(), path)):
        about = path.stat()
        if files.setdefault((about.st_dev, about.st_ino), path) is not path:
            left_out["link to a file that is read already"] += 1
    names = {str(path) for path in files.values()}
    packed = {path for path in files.values() if path.suffix.lower() in PACKED and str(path.with_suffix("")) in names}
    left_out.update({"packed file that lies beside it unpacked": len(packed)} if packed else {})
    return sorted({*files.values()} - packed)


def _no_text(folder: Path, others: list[Path], counts: Counter[str], options: TextOptions) -> UserError:
    """Return the message for a folder in which nothing is read, with a pattern that reads the others in it.

    Args:
        others: the files in it that are not read.
        counts: these in words.
    """
    named = options.written("path", folder)
    message = f"{named}: no text in this folder{f' ({in_words(counts)})' if counts else ''}; there should be "
    message += f"{' '.join(SUFFIXES)} files, packed as {' '.join(PACKED)} or not"
    if others:
        commonest, _ = Counter(path.suffix for path in others).most_common(1)[0]
        deep = any(path.parent != folder for path in others if path.suffix == commonest)
        pattern = folder / ("**" if deep else "") / f"*{commonest}"
        message += f"; others are read by their names, e.g. {options.written('path', pattern)}"
    return UserError(message)


def _walk(folder: Path, left_out: Counter[str], options: TextOptions) -> Iterator[Path]:
    """Yield the files below a folder, except hidden ones; follow links, and count those that lead nowhere or back.

    Of a data set that is saved in a folder these are its own files, unless it is said what all files are.
    """
    root = os.path.realpath(folder)
    seen = {root}

    def closed(_: OSError) -> None:
        left_out["folder that cannot be read"] += 1

    for place, names, files in os.walk(folder, onerror=closed, followlinks=True):
        if options.format == AUTO and is_saved(Path(place)):
            yield from saved_files(Path(place), options, left_out)
            names.clear()
            continue
        for name in sorted(names):
            real = os.path.realpath(Path(place, name))
            back = real in seen or root.startswith(f"{real.rstrip(os.sep)}{os.sep}")
            if name.startswith(".") or back:
                names.remove(name)
                if back and not name.startswith("."):
                    left_out["link to a folder that is read already"] += 1
            seen.add(real)
        for name in files:
            path = Path(place, name)
            if path.is_file():
                if not name.startswith("."):
                    yield path
            elif path.is_symlink():
                left_out["broken link"] += 1


def named_parts(paths: list[Path], options: TextOptions) -> dict[Path, str]:
    """Return the files that are used as a part of a data set, and which: train, val or test.

    What counts are the names of the files, and those of their folders below the one that all have in common.

    Raises:
        UserError: some files are named as parts and others are not; or parts are asked for, and there are none.
    """
    if options.named_parts is False:
        return {}
    files = {path: os.path.abspath(path) for path in paths}  # noqa: PTH100  (a link keeps its own name)
    folders = [os.path.dirname(files[path]) for path in paths if not CARD.match(path.name)]  # noqa: PTH120
    common = os.path.commonpath(folders or [os.sep])
    parts = {path: part for path, name in files.items() if (part := part_of(os.path.relpath(name, common)))}
    rest = [path for path in paths if path not in parts and not CARD.match(path.name)]
    divided = "train" in parts.values() and len(set(parts.values())) > 1
    if divided and rest and options.named_parts == AUTO:
        raise UserError(
            f"{len(parts)} files are named as parts of a data set, e.g. {next(iter(parts))}, and {len(rest)} are not, "
            f"e.g. {rest[0]}: {options.written('named_parts', 'true')} reads those parts alone, "
            f"{options.written('named_parts', 'false')} all as one text"
        )
    if options.named_parts is True and not divided:
        raise UserError(
            f"{options.written('named_parts', 'true')}: there must be files, or folders, named train and valid or test"
        )
    return parts if divided else {}


def part_of(name: str) -> str | None:
    """Return which part of a data set a file is by its name, or that of a folder: train, val or test; None: neither."""
    for each in Path(CAMEL.sub(" ", name)).parts:
        words = {word.removesuffix("set") for word in WORD.findall(each.lower())}
        for part, known in PARTS.items():
            if words & set(known):
                return part
    return None


def in_words(counts: Counter[str], most: int = 5) -> str:
    """Return counts in words, the `most` frequent ones: 3 .pdf, 1 broken link."""
    shown = ", ".join(f"{count:,} {what}" for what, count in counts.most_common(most))
    rest = sum(count for _, count in counts.most_common()[most:])
    return shown + (f" and {amount(rest, 'other')}" if rest else "")
