"""Data sets of the Hugging Face hub, streamed, and folders in the same format."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gptlab.data.corpus import Corpus, document_pieces, stamps
from gptlab.data.file_kinds import import_extra
from gptlab.data.pieces import Piece, unescaped
from gptlab.data.saved import NAME as SAVED
from gptlab.data.saved import is_saved
from gptlab.data.text_files import WITHOUT_TEXT, text_of
from gptlab.data.text_options import AUTO, TextOptions
from gptlab.system.errors import UserError
from gptlab.system.files import expand_user
from gptlab.system.terminal import pasteable

WRONG_CONTENT = (ValueError, TypeError, KeyError, AttributeError)  # what a row that cannot be read raises


def from_hub(name: str, path: str, subset: str | None, revision: str | None, options: TextOptions) -> Corpus:
    """Stream the training part of a data set of the Hugging Face hub, or of a folder in the same format.

    Args:
        path: the name on the hub, or the folder.
        subset: name of a configuration; ignored if a folder does not have it.
        revision: commit, tag or branch on the hub; ignored for a folder.
        options: of them text_key and a separator that is given.

    Raises:
        UserError: the folder is one of data=saved.
    """
    local = expand_user(path).is_dir()
    if local and is_saved(expand_user(path)):
        raise UserError(
            f"data={name}: save_to_disk has written {path}, which is read by data={SAVED} "
            f"{pasteable('data.path', path)}"
        )
    path = str(expand_user(path)) if local else path
    key = options.text_key
    separator = None if options.separator in (None, AUTO) else unescaped(str(options.separator))

    def read(counts: Counter[str]) -> Iterator[Piece]:
        datasets = import_extra("datasets", f"data={name} is read by Hugging Face's library for data sets")
        logging.getLogger("huggingface_hub").propagate = False  # it has its own handler
        number = 0
        try:
            where = {"name": subset, "revision": revision}
            if local:  # it may hold all subsets, or one of them without a name
                where = {"name": subset if subset in datasets.get_dataset_config_names(path) else None}
            rows = datasets.load_dataset(path, **where, split="train", streaming=True)
            for number, row in enumerate(rows, 1):
                if key not in row:
                    raise UserError(f"data.text_key={key}: {path} has no such text; there are {', '.join(row)}")
                text = text_of(row, options, path, number, "row")
                counts[WITHOUT_TEXT] += not text
                yield from document_pieces([text or ""], separator, None, counts)
        except UserError:
            raise
        except Exception as error:  # a network can raise many kinds
            raise _explained(error, name, path, local, number) from error

    files = stamps(file for file in sorted(Path(path).rglob("*")) if file.is_file()) if local else []
    given = [] if separator is None else [separator]
    origin = json.dumps([key, path, subset, revision, files, *given])
    return Corpus(name, read, True, origin, None, separator=separator, asked=options)


def _explained(error: Exception, name: str, path: str, local: bool, rows: int) -> UserError:
    """Return the message for an error of `datasets`: the same command helps only if the network was the cause.

    Args:
        local: whether `path` is a folder.
        rows: how many rows were read before.
    """
    what = f"({type(error).__name__}: {str(error)[:300]})"
    where = f"the folder {path}" if local else f"{path}, from the Hugging Face hub,"
    causes, cause = [], error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    network = not local and (
        any(isinstance(each, OSError) for each in causes) or not any(isinstance(each, WRONG_CONTENT) for each in causes)
    )
    if network:
        return UserError(
            f"data={name}: {where} cannot be read {what}. What is prepared so far is kept: the same command goes on. "
            f"Without a network, give a folder that holds the data set's files: data.path=..."
        )
    if not rows:
        return UserError(f"data={name}: {where} cannot be opened as a data set {what}")
    return UserError(
        f"data={name}: {where} cannot be read after row {rows:,} {what}. It will not be the next time either: take the "
        f"rows before with data.max_documents={rows}, or read its files by data=text data.path=FOLDER, which takes the "
        f"text of each row whatever else is in it"
    )
