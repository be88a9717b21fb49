"""What models are measured on: a run's own text, or one that is named, and its parts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data import corpora, prepare
from gptlab.data.corpora import Corpus
from gptlab.data.prepared import Prepared, open_prepared, prepared_folder
from gptlab.data.split import Split, split_pieces
from gptlab.data.text_files import Piece
from gptlab.data.tokenizers import Tokenizer, TokenizerConfig
from gptlab.system.errors import UserError
from gptlab.system.files import user_folder

NAMED = ("auto", "shakespeare_char", "shakespeare_bpe", "pydoc_char", "verdict")


@dataclass(frozen=True)
class Source:
    """A corpus and how it is split."""

    corpus: Corpus
    split: Split
    sha256: str
    characters: int = 0
    """In all; not of a stream."""
    prepared: Prepared | None = None
    """Of a stream, which is not read again: its ids on disk."""

    def pieces(self, part: str) -> list[Piece]:
        """The text of "train", "val", "test" or "all".

        Raises:
            UserError: there is no such part.
        """
        name, fraction = self.corpus.name, self.split.test_fraction
        if part == "test" and not fraction:
            raise UserError(
                f"--split test: {name} has no test part (data.test_fraction={fraction:g}); there are train, val, all"
            )
        if self.prepared is not None:
            return _documents(self.prepared, part)
        if part == "all":
            return list(self.corpus.read())
        parts = split_pieces(self.corpus.read(), self.split, self.characters)
        return [Piece(text, last) for where, text, last in parts if where == part]

    def encode(self, pieces: Sequence[Piece], tokenizer: Tokenizer) -> np.ndarray:
        """The ids of `pieces`, (n,), with the marks of documents' ends that a run has.

        Raises:
            UserError: there is nothing to predict: fewer than two tokens, or none that stands for text.
        """
        end = tokenizer.end_of_text if self.corpus.documents else None
        encoded, _ = prepare.encode(tokenizer, [("text", *piece) for piece in pieces], end)
        ids = encoded.get("text", np.zeros(0, np.int64))
        if not tokenizer.token_bytes()[ids[1:]].any():
            raise UserError(
                f"the text is too short: it has {len(ids)} tokens, and the first is not predicted; give more text"
            )
        return ids


def readable(corpus: Corpus, split: Split, cache_dir: Path) -> Source:
    """A text that can be read from its beginning as often as needed.

    Raises:
        UserError: there is no text in it.
    """
    about = prepare.survey(corpus, cache_dir)
    by = split.by if corpus.documents else "position"
    return Source(corpus, Split(by, split.val_fraction, split.test_fraction), about["sha256"], about["characters"])


def _documents(prepared: Prepared, part: str) -> list[Piece]:
    tokenizer = prepared.tokenizer
    if part == "all" or tokenizer.name == "word" or tokenizer.end_of_text is None:
        raise UserError(
            f"data={prepared.name} is a stream, of which only the ids of each part are kept: with --split {part} "
            f"and tokenizer={tokenizer.name} there is no text; give one with --data FILE"
        )
    ids = prepared.ids(part)[:]
    documents = np.split(ids, np.flatnonzero(ids == tokenizer.end_of_text) + 1)  # each with its mark
    texts = [tokenizer.decode(each[each != tokenizer.end_of_text].tolist()) for each in documents]
    return [Piece(text, i + 1 < len(texts)) for i, text in enumerate(texts)]


def known(pieces: Sequence[Piece], tokenizers: Sequence[Tokenizer]) -> tuple[list[Piece], Counter[str]]:
    """`pieces` without the characters that one of the tokenizers lacks, and how often each of these stood there."""
    kept, lost = [], Counter[str]()
    for text, last in pieces:
        unknown = {character for tokenizer in tokenizers for character in tokenizer.unknown(text)}
        lost.update({character: text.count(character) for character in unknown})
        kept.append(Piece(text.translate(dict.fromkeys(map(ord, unknown))) if unknown else text, last))
    return kept, lost


def split(data: dict[str, Any]) -> Split:
    """How a run with that config splits its text; by default as in conf/train.yaml.

    Raises:
        UserError: the config is damaged.
    """
    try:
        return Split(data.get("split", "position"), data.get("val_fraction", 0.1), data.get("test_fraction", 0.0))
    except TypeError as error:
        raise UserError(f"the config has a split that is none: {error}") from error


def folders(data: dict[str, Any]) -> tuple[Path, Path]:
    """Where raw texts and vocabularies are read for a run with that config, and where downloads and ids are written.

    A checkpoint may come from a stranger: its config says where to look, never where to write.
    """
    given = (os.environ.get("GPTLAB_DATA"), data.get("dir"), data.get("cache_dir"))
    places = [user_folder(folder) for folder in given if folder and isinstance(folder, str)]
    file = corpora.download_file_name(data.get("name"))
    there = (folder for folder in places if file and (folder / file).is_file())
    return next(there, (places or [user_folder(None)])[0]), user_folder(None)


def named(name: str, data: dict[str, Any]) -> Source:
    """The text of --data, split as that of a run with the config `data`.

    Raises:
        UserError: it cannot be had.
    """
    if name in corpora.NAMES and name not in NAMED:
        raise UserError(f"--data {name}: give a file, a folder of them, or one of {', '.join(NAMED)}")
    file = name not in NAMED
    try:
        paths, key = [name] if file else [], data.get("text_key", "text")
        corpus = corpora.load("text" if file else name, paths, *folders(data), text_key=key)
    except UserError as error:
        raise UserError(str(error).replace("data.path=", "--data ")) from error
    return readable(corpus, split(data), folders(data)[1])


def own(name: str, config: dict[str, Any], tokenizer: Tokenizer) -> Source:
    """The text that a run was trained on, with its split.

    Args:
        name: the run's.
        config: the run's resolved config.

    Raises:
        UserError: it cannot be had any more.
    """
    try:
        data, made = config["data"], config["tokenizer"]
        paths = [data["path"]] if isinstance(data["path"], str) else list(data["path"] or ())
        options = {key: data[key] for key in ("text_key", "subset", "revision", "max_documents")}
        corpus = corpora.load(data["name"], paths, *folders(data), **options)
        if corpus.bytes is not None:
            return readable(corpus, split(data), folders(data)[1])
        how = tokenizer if made["name"] == "pretrained" else TokenizerConfig(made["name"], made["vocab_size"])
        prepared = _prepared(corpus, split(data), how, user_folder(data["cache_dir"]))
        prepared = prepared or prepare.prepare(corpus, split(data), how, *folders(data))
        return Source(corpus, split(data), prepared.sha256, prepared=prepared)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the config in {name} is damaged ({type(error).__name__}: {str(error)[:99]}): give a text with --data FILE"
        ) from error
    except UserError as error:
        raise UserError(f"{error}. It is the text of {name}: if it has moved, give it with --data FILE") from error


def _prepared(corpus: Corpus, split: Split, how: TokenizerConfig | Tokenizer, cache_dir: Path) -> Prepared | None:
    """What the run has prepared itself, if that is still there; nothing is written."""
    with suppress(UserError):
        return open_prepared(corpus.name, prepared_folder(corpus, split, how, corpus.origin, cache_dir), remember=False)
    return None
