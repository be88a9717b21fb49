"""Turn a text into ids on disk, once: split it, and tokenise it in several threads and bounded memory.

A preparation that was killed resumes near where it stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from gptlab.data import tokenizers
from gptlab.data.corpus import Corpus
from gptlab.data.pieces import PIECE
from gptlab.data.prepared import Prepared, open_prepared, prepared_folder
from gptlab.data.shards import ShardWriter, id_type
from gptlab.data.split import LAST_FILE, Part, Split, split_pieces
from gptlab.data.survey import LARGE, caveats, describe, hash_pieces, spelled_end, survey
from gptlab.data.text_files import WITHOUT_TEXT
from gptlab.data.tokenizers import Tokenizer, TokenizerConfig
from gptlab.system.errors import UserError, amount, quoted
from gptlab.system.files import explain_write_errors, read_json, sha256_of, write_json
from gptlab.system.threads import cores

log = logging.getLogger(__name__)


MOST_UNKNOWN = 0.01  # the share of the characters in the text's first piece that a given tokenizer may lack


def prepare(
    corpus: Corpus, split: Split, config: TokenizerConfig | Tokenizer, raw_dir: Path, cache_dir: Path
) -> Prepared:
    """Split the text, fit the tokenizer on the training part, and write the ids of each part, unless they exist.

    The folder's name has a hash of text, split, tokenizer and format, and the folder appears only when it is complete.
    Of several processes one does the work and the others wait. Damaged data is prepared again.

    Args:
        config: the tokenizer to make; or an existing one, which was not fitted to this text.
        raw_dir: where OpenAI's vocabularies are looked for.
        cache_dir: where the ids are written.

    Raises:
        UserError: a part of the split would be empty, the vocabulary is not available or does not suit this text, or
            the cache cannot be written.
    """
    if split.by == "document" and not corpus.documents:
        raise UserError(f"data.split=document: data={corpus.name} is one text; use data.split=position")
    if split.by == "position" and corpus.bytes is None:
        raise UserError(f"data.split=position: data={corpus.name} has no known length; use data.split=document")
    if split.by == LAST_FILE and "val" not in corpus.parts:
        what, other = ("has one to learn from", "position") if corpus.found else ("is a stream", "document")
        raise UserError(
            f"data.split={LAST_FILE}: holds out the last of several files, and data={corpus.name} {what}; use "
            f"data.split={other}"
        )
    about = None if corpus.bytes is None else survey(corpus, cache_dir)
    if about is not None:
        log.info("text: %s", describe(corpus, about))
        end = spelled_end(corpus, config) if isinstance(config, Tokenizer) else None
        for each in [*caveats(corpus, about), *([end] if end else [])]:
            log.warning("%s", each)
    folder = prepared_folder(corpus, split, config, about.sha256 if about else corpus.origin, cache_dir)
    damage: UserError | None = None
    try:
        if prepared := open_prepared(corpus.name, folder):
            return prepared
    except UserError as error:
        damage = error
        log.warning("%s. The text is prepared anew", damage)
    with explain_write_errors(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        with locked(cache_dir / f".{folder.name}.lock"):
            with suppress(UserError):
                if prepared := open_prepared(corpus.name, folder):
                    return prepared
            try:
                _build(folder, corpus, split, config, raw_dir, about.to_split if about else 0)
            except UserError as error:
                raise UserError(f"{damage}. It cannot be prepared anew: {error}") if damage else error from error
            prepared = open_prepared(corpus.name, folder)
    assert prepared is not None
    return prepared


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock, waiting while another process holds it; it is released however the process ends."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that prepares the same data")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(
    folder: Path,
    corpus: Corpus,
    split: Split,
    config: TokenizerConfig | Tokenizer,
    raw_dir: Path,
    characters: int,
) -> None:
    """Fill a temporary folder, resuming what a killed process has left there, and rename it to `folder`."""
    names = split.names(corpus.parts)
    if split.by == "position" and "val" not in corpus.parts:
        ends = split.ends(characters)
        cut = [name for name in names if name == "train" or name not in corpus.parts]
        for name, begin, end in zip(cut, (0, *ends), ends, strict=False):
            if end - begin < 2:
                raise UserError(
                    f"the {name} part of data={corpus.name} has {amount(end - begin, 'character')} "
                    f"({characters:,} in all, data.val_fraction={split.val_fraction}): give more text"
                )
    quiet = True if corpus.bytes is not None and corpus.bytes < LARGE else None  # None: a bar on a terminal
    if not quiet:
        log.info("preparing data=%s with tokenizer=%s, once: %s", corpus.name, config.name, folder)
    work = folder.with_name(f".{folder.name}.partial")
    work.mkdir(exist_ok=True)
    text, skipped = hashlib.sha256(), Counter[str]()
    writer = ShardWriter(work)
    if writer.units:
        log.info("going on where a preparation of it was stopped")
    try:
        tokenizer = _make_tokenizer(work, corpus, split, config, raw_dir, characters)
        parts = split_pieces(hash_pieces(corpus.read(skipped), text, corpus.documents), split, characters)
        with tqdm(total=characters or None, unit="char", unit_scale=True, desc="tokenising", disable=quiet) as bar:
            for ids, unknown in _encode_in_parallel(tokenizer, parts, corpus.documents, writer.units, bar):
                writer.add(ids, unknown)
        if missing := skipped[WITHOUT_TEXT] if corpus.bytes is None else 0:  # of others the survey has said it
            key = corpus.asked.written("text_key", corpus.asked.text_key)
            log.warning("%s: rows without such a text are skipped: %s", key, f"{missing:,}")
        for name in names:
            if sum(writer.counts.get(name, [])) < 2:
                raise UserError(
                    f"data={corpus.name}: the {name} part has nothing that its tokens can say: give more text"
                )
    except BaseException:
        if not writer.mark.exists():
            shutil.rmtree(work, ignore_errors=True)
        raise
    files = {"tokenizer.json": sha256_of(work / "tokenizer.json").hexdigest(), **writer.sha256()}
    index = {"sha256": text.hexdigest(), "counts": writer.counts, "unknown": sorted(writer.unknown), "files": files}
    write_json(work / "index.json", index)
    writer.mark.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # a damaged one
    work.rename(folder)


def _make_tokenizer(
    work: Path, corpus: Corpus, split: Split, config: TokenizerConfig | Tokenizer, raw_dir: Path, characters: int
) -> Tokenizer:
    """Return the tokenizer in `work`; make it and write it there if it is missing."""
    file = work / "tokenizer.json"
    with suppress(UserError):
        return tokenizers.from_dict(read_json(file))
    train = (text for name, text, _ in split_pieces(corpus.read(), split, characters) if name == "train")
    beginning = next(train, None)
    if beginning is None:
        raise UserError(f"data={corpus.name}: no document falls into the train part: give more documents")
    if isinstance(config, TokenizerConfig):
        tokenizer = tokenizers.build(config, itertools.chain([beginning], train), corpus.documents, raw_dir)
    else:
        tokenizer = config
        _check_covers(tokenizer, beginning, corpus.name)
    if config.name == "bpe" and tokenizer.vocab_size < (config.vocab_size or 0):
        log.warning(
            "tokenizer.vocab_size=%d: data=%s has no more pairs to merge after %d tokens",
            config.vocab_size,
            corpus.name,
            tokenizer.vocab_size,
        )
    write_json(file, tokenizer.to_dict(), indent=None)
    return tokenizer


def _check_covers(tokenizer: Tokenizer, beginning: str, name: str) -> None:
    """Check that a tokenizer which was not fitted to this text can encode it.

    Raises:
        UserError: it would leave out more than MOST_UNKNOWN of the text.
    """
    unknown = tokenizer.unknown(beginning)
    share = sum(map(beginning.count, unknown)) / len(beginning)
    if share > MOST_UNKNOWN:
        raise UserError(
            f"data={name}: init_from's tokenizer ({tokenizer.name}, {tokenizer.vocab_size:,} in its vocabulary) lacks "
            f"{len(unknown)} of the text's characters, {share:.0%} of it: {quoted(unknown)}; begin with a model that "
            f"reads any text, e.g. init_from=gpt2, or leave init_from= out"
        )


Encoded = tuple[dict[str, np.ndarray], set[str]]
"""Ids by split, and the characters that have no id."""


def encode(
    tokenizer: Tokenizer, parts: list[Part], end_of_text: int | None, begun: frozenset[str] = frozenset()
) -> Encoded:
    """Return the ids of consecutive parts, with the tokenizer's beginning of text before each document.

    An end of text that is also the beginning stands once between two documents.

    Args:
        end_of_text: the id that follows each document; None: no id does.
        begun: the splits whose document has begun in an earlier part; see `begun_after`.
    """
    ids: dict[str, list[np.ndarray]] = {}
    unknown: set[str] = set()
    dtype = id_type(tokenizer.vocab_size)
    for part in parts:
        name, text, last = part
        of_split = ids.setdefault(name, [])
        if tokenizer.begin:
            if name not in begun:
                of_split.append(np.array(tokenizer.begin, dtype))
            begun = begun_after([part], begun, end_of_text in tokenizer.begin)
        of_split.append(tokenizer.encode(text).astype(dtype))
        if last and end_of_text is not None:
            of_split.append(np.array([end_of_text], dtype))
        unknown.update(tokenizer.unknown(text))
    return {name: np.concatenate(arrays) for name, arrays in ids.items()}, unknown


def begun_after(parts: list[Part], begun: frozenset[str], end_begins: bool) -> frozenset[str]:
    """Return the splits whose next part needs no beginning of text.

    Args:
        parts: consecutive parts.
        begun: those of before.
        end_begins: whether the end of a document is the beginning of the next.
    """
    for name, _, last in parts:
        begun = begun - {name} if last and not end_begins else begun | {name}
    return begun


def units(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Group consecutive parts into units of at least `PIECE` characters, which one thread encodes at a time."""
    unit: list[Part] = []
    size = 0
    for part in parts:
        unit.append(part)
        size += len(part[1])
        if size >= PIECE:
            yield unit
            unit, size = [], 0
    if unit:
        yield unit


def _encode_in_parallel(
    tokenizer: Tokenizer, parts: Iterable[Part], documents: bool, done: int, bar: tqdm
) -> Iterator[Encoded]:
    """Yield the result of `encode` for each unit after the first `done`, in order; a few are in progress at a time.

    Threads suffice: tiktoken and numpy release Python's global lock.
    """
    end_of_text = tokenizer.end_of_text if documents else None
    under_way: deque[tuple[Future[Encoded], int]] = deque()
    begun: frozenset[str] = frozenset()
    with ThreadPoolExecutor(cores()) as pool:
        try:
            for number, unit in enumerate(units(parts)):
                size = sum(len(text) for _, text, _ in unit)
                job = encode
                if tokenizer.begin:
                    job = partial(encode, begun=begun)
                    begun = begun_after(unit, begun, end_of_text in tokenizer.begin)
                if number < done:
                    bar.update(size)
                    continue
                under_way.append((pool.submit(job, tokenizer, unit, end_of_text), size))
                if len(under_way) > 2 * cores():
                    yield _collect(under_way, bar)
            while under_way:
                yield _collect(under_way, bar)
        finally:
            pool.shutdown(cancel_futures=True)


def _collect(under_way: deque[tuple[Future[Encoded], int]], bar: tqdm) -> Encoded:
    future, size = under_way.popleft()
    encoded = future.result()
    bar.update(size)
    return encoded
