"""Prepared data: the ids of a text on disk, and the folder that holds them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gptlab.data import tokenizers
from gptlab.data.corpus import Corpus
from gptlab.data.shards import IdFile, Shards, id_type, shard, verify
from gptlab.data.split import Split
from gptlab.data.tokenizers import Tokenizer, TokenizerConfig
from gptlab.system.errors import UserError
from gptlab.system.files import read_json

FORMAT = 3  # version of the prepared files; enters the hash in their folder's name


@dataclass(frozen=True)
class Prepared:
    """A corpus as ids on disk."""

    name: str
    sha256: str
    """Hash of the raw text, UTF-8; if it is made of documents, the byte 0xFF follows each."""
    tokenizer: Tokenizer
    folder: Path | None
    """The folder that they were written into; None: they lie where others have written them."""
    files: dict[str, list[IdFile]]
    """The files of each split."""
    unknown: list[str]
    """Characters that the tokenizer left out; one fitted to this text lacks only held-out characters."""

    def ids(self, split: str) -> Shards:
        """Return the ids of "train", "val" or, if there is one, "test"."""
        return Shards(self.files[split])


def prepared_folder(
    corpus: Corpus, split: Split, config: TokenizerConfig | Tokenizer, identity: str, cache_dir: Path
) -> Path:
    """Return the folder for the ids of a text under this split and tokenizer.

    Args:
        identity: the sha256 of the text; for a stream, its origin.
    """
    chosen = asdict(config) if isinstance(config, TokenizerConfig) else _digest(config)
    begin = config.begin if isinstance(config, Tokenizer) else ()
    recipe = json.dumps([FORMAT, identity, corpus.documents, asdict(split), chosen, *([begin] if begin else [])])
    return cache_dir / f"{corpus.name}-{config.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"


def _digest(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(json.dumps(tokenizer.to_dict(), sort_keys=True).encode()).hexdigest()


def open_prepared(name: str, folder: Path, remember: bool = True) -> Prepared | None:
    """Open the prepared data in `folder`; return None if there is no such folder.

    Args:
        remember: see `shards.verify`.

    Raises:
        UserError: one of its files is missing or has changed.
    """
    if not folder.is_dir():
        return None
    try:
        index = read_json(folder / "index.json")
        names = {shard(folder, split, i).name for split, counts in index["counts"].items() for i in range(len(counts))}
        if index["files"].keys() != {"tokenizer.json", *names}:
            raise UserError("index.json is damaged: it names other files than it counts")
        verify(folder, index["files"], remember)
        tokenizer = tokenizers.from_dict(read_json(folder / "tokenizer.json"))
        dtype = np.dtype(id_type(tokenizer.vocab_size)).str
        files = {
            split: [IdFile(shard(folder, split, i), dtype, count) for i, count in enumerate(counts)]
            for split, counts in index["counts"].items()
        }
        if any(file.path.stat().st_size != file.bytes for of_split in files.values() for file in of_split):
            raise UserError("index.json is damaged: it counts other ids than there are")
        return Prepared(name, index["sha256"], tokenizer, folder, files, index["unknown"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"prepared data is damaged, {folder}: {error}") from error
