"""The texts that models are measured on: a run's own text or a named one, and its parts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data import corpora, downloads, find_ids, prepare, ready_ids
from gptlab.data.chat import sources
from gptlab.data.corpus import Corpus
from gptlab.data.pieces import Piece
from gptlab.data.prepared import Prepared, open_prepared, prepared_folder
from gptlab.data.split import LAST_FILE, Split, split_pieces
from gptlab.data.survey import caveats, describe, survey
from gptlab.data.text_options import AUTO, TextOptions, of_evaluate
from gptlab.data.tokenizers import Tokenizer, TokenizerConfig
from gptlab.system.errors import UserError, amount
from gptlab.system.files import user_folder

MEANT = {"null": None, "true": True, "false": False}  # what the value of a flag means
NAMED_TEXTS = ("auto", "shakespeare_char", "shakespeare_bpe", "pydoc_char", "verdict")


@dataclass(frozen=True)
class Source:
    """A corpus and how it is split."""

    corpus: Corpus
    split: Split
    sha256: str
    """The hash of the whole text."""
    to_split: int = 0
    """The characters outside the parts that the text names itself; 0 for a stream."""
    described: str = ""
    """In words, what was read."""
    caveats: Sequence[str] = ()
    """What a reader of the numbers should know of it."""
    prepared: Prepared | None = None
    """Of a text that is not read again, as a stream, or not there: its ids on disk."""

    @property
    def parts(self) -> list[str]:
        """The parts that there are."""
        return [*self.prepared.files] if self.prepared else self.split.names(self.corpus.parts)

    def pieces(self, part: str, most: int | None = None) -> list[Piece]:
        """Read a part of the text: "train", "val", "test" or "all".

        Args:
            most: the number of characters after which no more is read; None: all is.

        Raises:
            UserError: there is no such part, or its text is not kept.
        """
        if part not in (*self.parts, "all"):
            raise UserError(
                f"--split {part}: {self.corpus.name} has no {part} part (data.test_fraction="
                f"{self.split.test_fraction:g}); there are train, val, all"
            )
        if self.prepared is not None:
            found = iter(_documents(self.prepared, part, most))
        elif part == "all":
            found = self.corpus.read()
        else:
            parts = split_pieces(self.corpus.read(), self.split, self.to_split)
            found = (Piece(text, last) for where, text, last in parts if where == part)
        return list(found if most is None else first_characters(found, most))

    def encode(self, pieces: Sequence[Piece], tokenizer: Tokenizer, part: str | None = None) -> np.ndarray:
        """Encode pieces of the text as a run does, with the tokens before and after each document: ids (n,) int64.

        Args:
            part: the part that the pieces are all of, if they are: ids that lie on disk are taken as they are.

        Raises:
            UserError: there are fewer than two tokens, or none that can be predicted stands for text.
        """
        if part and self.prepared and _same_ids(self.prepared.tokenizer, tokenizer):
            ids = self.prepared.ids(part)[:]
        else:
            end = tokenizer.end_of_text if self.corpus.documents else None
            encoded, _ = prepare.encode(tokenizer, [("text", piece.text, piece.last) for piece in pieces], end)
            ids = encoded.get("text", np.zeros(0, np.int64))
        if not tokenizer.token_bytes()[ids[1:]].any():
            raise UserError(
                f"the text is too short: it has {amount(len(ids), 'token')}, and the first is not predicted; "
                f"give more text"
            )
        return ids


def _same_ids(a: Tokenizer, b: Tokenizer) -> bool:
    return (a.tokens, a.begin, a.end_of_text) == (b.tokens, b.begin, b.end_of_text)


def readable_source(corpus: Corpus, split: Split, cache_dir: Path) -> Source:
    """Return the source for a corpus that can be read again from its beginning.

    Args:
        corpus: the text.
        split: how it is split; a text without documents, or one file, is always split by position.
        cache_dir: the folder for what is computed once for each text.

    Raises:
        UserError: the corpus has no text.
    """
    about = survey(corpus, cache_dir)
    undivided = split.by == LAST_FILE and "val" not in corpus.parts
    by = split.by if corpus.documents and not undivided else "position"
    test_fraction = 0.0 if corpus.parts else split.test_fraction
    how = Split(by, split.val_fraction, test_fraction)
    return Source(corpus, how, about.sha256, about.to_split, describe(corpus, about), caveats(corpus, about))


def first_characters(pieces: Iterable[Piece], most: int) -> Iterator[Piece]:
    """Yield the pieces of a text up to `most` characters."""
    for piece in pieces:
        if most <= 0:
            return
        yield piece if len(piece.text) <= most else Piece(piece.text[:most], False)
        most -= len(piece.text)


def _documents(prepared: Prepared, part: str, most: int | None) -> list[Piece]:
    """Return the documents of a part, decoded from the ids on disk; without an end of text, data=bin is one.

    Args:
        most: the number of tokens after which no more is read; None: all is.
    """
    tokenizer = prepared.tokenizer
    glued = tokenizer.end_of_text is None and prepared.name != find_ids.NAME
    if part == "all" or tokenizer.name == "word" or glued:
        raise UserError(
            f"of data={prepared.name} there are only the ids of each part: with --split {part} and "
            f"tokenizer={tokenizer.name} there is no text; give one with --data FILE"
        )
    ids = prepared.ids(part)[:most]
    if tokenizer.end_of_text is None:
        return [Piece(tokenizer.decode(ids.tolist()), False)]
    documents = np.split(ids, np.flatnonzero(ids == tokenizer.end_of_text) + 1)  # each with its end-of-text token
    around = [tokenizer.end_of_text, *tokenizer.begin]
    texts = [tokenizer.decode(each[~np.isin(each, around)].tolist()) for each in documents]
    return [Piece(text, i + 1 < len(texts)) for i, text in enumerate(texts)]


def without_unknown(pieces: Sequence[Piece], tokenizers: Sequence[Tokenizer]) -> tuple[list[Piece], Counter[str]]:
    """Drop the characters that any of the tokenizers lacks; returns the pieces and how often each one was dropped."""
    remaining, dropped = [], Counter[str]()
    for text, last, _ in pieces:
        unknown = {character for tokenizer in tokenizers for character in tokenizer.unknown(text)}
        dropped.update({character: text.count(character) for character in unknown})
        remaining.append(Piece(text.translate(dict.fromkeys(map(ord, unknown))) if unknown else text, last))
    return remaining, dropped


def split_of_run(data: dict[str, Any]) -> Split:
    """Return how a run splits its text; keys that are missing have the defaults of conf/train.yaml.

    Args:
        data: the node `data` of the run's config.

    Raises:
        UserError: the config is damaged.
    """
    try:
        return Split(data.get("split", "position"), data.get("val_fraction", 0.1), data.get("test_fraction", 0.0))
    except TypeError as error:
        raise UserError(f"the config has a split that is none: {error}") from error


def data_folders(data: dict[str, Any]) -> tuple[Path, Path]:
    """Return the folder of raw texts and vocabularies for a run, and the folder for downloads and ids.

    A checkpoint may come from a stranger: its config says where to read, never where to write.

    Args:
        data: the node `data` of the run's config; may be empty.
    """
    given = (os.environ.get("GPTLAB_DATA"), data.get("dir"), data.get("cache_dir"))
    places = [user_folder(folder) for folder in given if folder and isinstance(folder, str)]
    file = downloads.download_file_name(data.get("name"))
    there = (folder for folder in places if file and (folder / file).is_file())
    return next(there, (places or [user_folder(None)])[0]), user_folder(None)


def named_source(name: str, data: dict[str, Any], flags: dict[str, Any]) -> Source:
    """Return the text that --data names, split as a run splits its text.

    Args:
        name: one of `NAMED_TEXTS`, a file or a folder.
        data: the node `data` of the run's config; may be empty.
        flags: the `TextOptions` that are given; the others are the run's.

    Raises:
        UserError: the text cannot be had.
    """
    if name in corpora.NAMES and name not in NAMED_TEXTS:
        raise UserError(f"--data {name}: give a file, a folder of them, or one of {', '.join(NAMED_TEXTS)}")
    raw_dir, cache_dir = data_folders(data)
    given = {"format": AUTO, "written": of_evaluate, **flags}
    for key in {"separator", "named_parts"} & flags.keys():
        given[key] = MEANT.get(flags[key], flags[key])
    options = TextOptions.of(data, **given) if data else TextOptions(**given)
    kind, paths = (name, []) if name in NAMED_TEXTS else ("text", [name])
    split = split_of_run(data)
    corpus = corpora.load(kind, paths, raw_dir, cache_dir, options=options, last_file=split.by == LAST_FILE)
    return readable_source(corpus, split, cache_dir)


def source_of_run(name: str, config: dict[str, Any], tokenizer: Tokenizer) -> Source:
    """Return the text that a run was trained on, with its split.

    Args:
        name: the run's name, for messages.
        config: the run's resolved config.
        tokenizer: the run's tokenizer.

    Raises:
        UserError: the config is damaged, or the text cannot be had any more.
    """
    learned = config.get("data")
    if isinstance(learned, dict) and learned.get("name") in sources.NAMES:
        raise UserError(
            f"{name} learned from conversations (data={learned['name']}): --task measures how well it answers, and "
            f"--data FILE its loss on a text"
        )
    try:
        data, tokenizer_node = config["data"], config["tokenizer"]
        paths = [data["path"]] if isinstance(data["path"], str) else list(data["path"] or ())
        where = {key: data[key] for key in ("subset", "revision", "max_documents")}
        where["last_file"] = data.get("split") == LAST_FILE
        raw_dir, cache_dir = data_folders(data)
        split, options = split_of_run(data), TextOptions.of(data)
        if data["name"] == find_ids.NAME:
            return _source_of_ids(ready_ids.open_ready_ids(paths, split, tokenizer, raw_dir, cache_dir, options), split)
        corpus = corpora.load(data["name"], paths, raw_dir, cache_dir, options=options, **where)
        if corpus.bytes is not None:
            return readable_source(corpus, split, cache_dir)
        pretrained = tokenizer_node["name"] == "pretrained"
        how = tokenizer if pretrained else TokenizerConfig(tokenizer_node["name"], tokenizer_node["vocab_size"])
        prepared = _prepared_by_run(corpus, split, how, user_folder(data["cache_dir"]))
        prepared = prepared or prepare.prepare(corpus, split, how, raw_dir, cache_dir)
        return Source(corpus, split, prepared.sha256, prepared=prepared)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the config in {name} is damaged ({type(error).__name__}: {str(error)[:99]}): give a text with --data FILE"
        ) from error
    except UserError as error:
        raise UserError(f"{error}. It is the text of {name}: if it has moved, give it with --data FILE") from error


def _source_of_ids(prepared: Prepared, split: Split) -> Source:
    """Return the source for ids that others have written, of which there is no text."""
    documents = prepared.tokenizer.end_of_text is not None
    corpus = Corpus(prepared.name, lambda counts: iter(()), documents, prepared.sha256, None)
    return Source(corpus, split, prepared.sha256, prepared=prepared)


def _prepared_by_run(
    corpus: Corpus, split: Split, how: TokenizerConfig | Tokenizer, cache_dir: Path
) -> Prepared | None:
    """Return the ids that the run itself has prepared, or None if they are gone; nothing is written."""
    with suppress(UserError):
        return open_prepared(corpus.name, prepared_folder(corpus, split, how, corpus.origin, cache_dir), remember=False)
    return None
