"""The texts to train on, by name: files, Tiny Shakespeare, Python's documentation, data sets of the hub."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from gptlab.data.corpus import Corpus, first_documents, from_files
from gptlab.data.downloads import download, python_documentation
from gptlab.data.find_files import expanded, find_texts
from gptlab.data.hub import from_hub
from gptlab.data.saved import NAME as SAVED
from gptlab.data.saved import check_saved
from gptlab.data.text_options import DEFAULT, TextOptions
from gptlab.system.errors import UserError, did_you_mean
from gptlab.system.files import expand_user

log = logging.getLogger(__name__)

NAMES = (
    *("auto", "shakespeare_char", "shakespeare_bpe", "pydoc_char", "verdict"),
    *("text", SAVED, "openwebtext", "fineweb_edu", "hub"),
)
FILES = ("text", SAVED)
HUB = ("openwebtext", "fineweb_edu", "hub")
EXAMPLES = {"text": "a file: add data.path=my.txt", SAVED: "a folder of save_to_disk: add data.path=DIR"}
AS_IT_IS = TextOptions(format="text", separator=None, named_parts=False, line_ends="kept")
"""How the texts that have a name of their own are read."""


def load(
    name: str,
    paths: list[str],
    raw_dir: Path,
    cache_dir: Path,
    *,
    options: TextOptions = DEFAULT,
    subset: str | None = None,
    revision: str | None = None,
    max_documents: int | None = None,
    last_file: bool = False,
) -> Corpus:
    """Return the data set `name`; for "auto", the one that was chosen.

    Args:
        paths: for data=text and data=saved, files and folders; for the hub, the data set's name there, or one folder.
        raw_dir: where texts are looked for first.
        cache_dir: where downloads are looked for and written.
        options: how the files of data=text and data=saved, or the rows of the hub, are read.
        subset: configuration of a data set of the hub.
        revision: commit, tag or branch on the hub.
        max_documents: take at most so many; None: all.
        last_file: the last of several files is the validation part, if none is by its name.

    Raises:
        UserError: there is no such set, or its text is not available; the message says what to do.
    """
    if name not in NAMES:
        raise UserError(f"data.name={name}: no such data set; {did_you_mean(name, NAMES)}")
    if name in (*FILES, *HUB) and not paths:
        raise UserError(f"data={name} needs {EXAMPLES.get(name, 'a name: add data.path=owner/name')}")
    if name in HUB and len(paths) > 1:
        raise UserError(f"data.path={paths}: data={name} takes one name of a data set, or one folder")
    if name == "auto":
        name, files = _auto(raw_dir, cache_dir)
    elif name in ("shakespeare_char", "shakespeare_bpe"):
        files = [download("shakespeare", raw_dir, cache_dir, options.written)]
    elif name == "verdict":
        files = [download("verdict", raw_dir, cache_dir, options.written)]
    elif name == "pydoc_char":
        files = [python_documentation(cache_dir)]
    else:
        files = [expand_user(path) for path in paths]
    if name == SAVED:
        check_saved([*expanded(files)], options)
    if name in HUB:
        corpus = from_hub(name, paths[0], subset, revision, options)
    else:
        how = options if name in FILES else replace(AS_IT_IS, written=options.written)
        found = find_texts(files, how)
        corpus = from_files(name, found.with_last_held_out() if last_file else found, how)
    return corpus if max_documents is None else first_documents(corpus, max_documents)


def _auto(raw_dir: Path, cache_dir: Path) -> tuple[str, list[Path]]:
    """Choose Tiny Shakespeare, or Python's documentation where the former is not available."""
    try:
        return "shakespeare_char", [download("shakespeare", raw_dir, cache_dir)]
    except UserError as error:
        reason = getattr(error.__cause__, "reason", error)
        log.warning("data=auto: no Tiny Shakespeare (%s); training on pydoc_char, Python's documentation", reason)
        return "pydoc_char", [python_documentation(cache_dir)]
