"""Data that is ids already: files that others have written are memory-mapped where they lie."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from gptlab.data import meta_pickle, tokenizers
from gptlab.data.find_ids import NAME, find_ids
from gptlab.data.id_files import Content, first_outside, read_content, read_id_file
from gptlab.data.prepare import locked
from gptlab.data.prepared import Prepared
from gptlab.data.shards import ALWAYS, THREADS, IdFile, cut
from gptlab.data.split import LAST_FILE, SPLITS, Split
from gptlab.data.text_options import DEFAULT, TextOptions
from gptlab.data.tokenizers import Tokenizer, TokenizerConfig
from gptlab.system.errors import UserError, amount
from gptlab.system.files import explain_write_errors, read_json, write_json

log = logging.getLogger(__name__)

TOKENIZER = "gptlab_tokenizer.json"  # beside ids of ours
LEARNED = ("char", "word", "bpe")  # tokenizers that are fitted to a text


def open_ready_ids(
    paths: Sequence[str],
    split: Split,
    config: TokenizerConfig | Tokenizer,
    raw_dir: Path,
    cache_dir: Path,
    options: TextOptions = DEFAULT,
    max_documents: int | None = None,
) -> Prepared:
    """Open the ids in files of others, check them, and split them if they are not divided into parts.

    Several files of a part are one sequence, in the order of their names.

    Args:
        paths: files, or folders of them.
        config: the tokenizer where none lies beside the ids; or an existing one, which must fit to those.
        raw_dir: where OpenAI's vocabularies are looked for.
        cache_dir: where it is written what stands in large files.
        options: of them named_parts.
        max_documents: None; ids have no documents.

    Raises:
        UserError: there are no such files, they are damaged or hold ids beyond the vocabulary, a part has none, or an
            option is for texts.
    """
    _refuse_options_of_texts(split, options, max_documents)
    found = find_ids(paths, options)
    if split.by == LAST_FILE:
        found = found.with_last_held_out()
    files = {part: [read_id_file(path) for path in of_part] for part, of_part in found.parts.items()}
    beside = _tokenizer_beside(found.folders)
    tokenizer = _tokenizer(config, beside, raw_dir)
    every = [file for of_part in files.values() for file in of_part]
    contents = dict(zip(every, _contents(every, cache_dir), strict=True))
    for file, content in contents.items():
        _check_vocabulary(file, content, tokenizer)
    stored = {part: [[file.dtype, contents[file].sha256] for file in of_part] for part, of_part in files.items()}
    recipe = [NAME, stored, beside and beside.to_dict()]
    sha256 = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    highest = max(content.highest for content in contents.values())
    whose = f"their tokens lie beside them ({beside.name})" if beside else "no tokenizer lies beside them"
    log.info("ids: %s; %s; the highest is %s", found.in_words(), whose, f"{highest:,}")
    return Prepared(NAME, sha256, tokenizer, None, _split(files, split), [])


def _refuse_options_of_texts(split: Split, options: TextOptions, max_documents: int | None) -> None:
    if split.by == "document":
        raise UserError(f"data.split=document: data={NAME} has ids and no documents; use data.split=position")
    if max_documents is not None:
        raise UserError(f"data.max_documents={max_documents}: data={NAME} has ids and no documents; leave it out")
    for name in ("text_key", "format", "separator", "line_ends"):
        if getattr(options, name) != getattr(DEFAULT, name):
            raise UserError(
                f"{options.written(name, getattr(options, name))}: is for texts, and data={NAME} has ids; leave it out"
            )


def _tokenizer_beside(folders: Sequence[Path]) -> Tokenizer | None:
    """Return the tokenizer that lies in the folders of the ids: ours, or nanoGPT's characters; None: there is none.

    Raises:
        UserError: one is damaged, or there are several and they differ.
    """
    found: dict[Path, Tokenizer] = {}
    for folder in dict.fromkeys(folders):
        if (ours := folder / TOKENIZER).is_file():
            try:
                found[ours] = tokenizers.from_dict(read_json(ours))
            except UserError as error:
                raise UserError(f"{ours} is damaged: {error}; write the ids again") from error
        if (meta := folder / meta_pickle.FILE).is_file():
            found[meta] = meta_pickle.read_meta(meta)
    if not found:
        return None
    (first, tokenizer), *others = found.items()
    for path, other in others:
        if not _extends(tokenizer, other):
            raise UserError(f"{first} and {path} name different tokens: remove the one that is not of these ids")
    return tokenizer


def _extends(tokenizer: Tokenizer, other: Tokenizer) -> bool:
    """Return whether a tokenizer gives all ids of the other one the same tokens."""
    return tokenizer.tokens[: other.vocab_size] == other.tokens


def _tokenizer(config: TokenizerConfig | Tokenizer, beside: Tokenizer | None, raw_dir: Path) -> Tokenizer:
    """Return the tokenizer of the ids.

    Raises:
        UserError: it is not known, or another is asked for than lies beside them.
    """
    if isinstance(config, Tokenizer):
        if beside is not None and not _extends(config, beside):
            raise UserError(
                f"data={NAME}: what lies beside the ids says that they are of another tokenizer ({beside.name}, "
                f"{beside.vocab_size:,} in its vocabulary) than init_from's ({config.name}, {config.vocab_size:,}): "
                f"begin with a model that has learned these tokens, or leave init_from= out"
            )
        return config
    if beside is not None:
        if config.name not in (beside.name, "gpt2"):  # which is the default
            raise UserError(
                f"tokenizer={config.name}: what lies beside the ids says that they are of another ({beside.name}); "
                f"leave it out"
            )
        return beside
    if config.name in LEARNED:
        raise UserError(
            f"tokenizer={config.name}: is learned from a text, and data={NAME} has ids, without {meta_pickle.FILE} or "
            f"{TOKENIZER} beside them: put there the one that they were written with, or choose tokenizer=gpt2, "
            f"cl100k_base or byte, or the tokenizer of init_from"
        )
    return tokenizers.build(config, (), True, raw_dir)


def _contents(files: Sequence[IdFile], cache_dir: Path) -> list[Content]:
    """Return what stands in files; large ones are read again only when they have changed.

    Raises:
        UserError: the cache cannot be written.
    """
    if sum(file.bytes for file in files) <= ALWAYS:
        return _read(files, quiet=True)
    stamps = [_stamp(file) for file in files]
    places = json.dumps([place for place, *_ in stamps])
    remembered = cache_dir / f".ids-{hashlib.sha256(places.encode()).hexdigest()[:16]}.json"
    with explain_write_errors(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        with locked(remembered.with_suffix(".lock")):
            with suppress(UserError, TypeError, ValueError, KeyError):
                known = read_json(remembered)
                if known["stamps"] == stamps:
                    return [Content(*content) for content in known["contents"]]
            log.info("checking %.1f GB of ids, once", sum(file.bytes for file in files) / 1e9)
            found = _read(files, quiet=None)
            write_json(remembered, {"stamps": stamps, "contents": found})
            return found


def _stamp(file: IdFile) -> list[object]:
    """Return where a file lies, and what changes when it does."""
    stat = file.path.stat()
    place = str(file.path.resolve())
    return [place, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, file.dtype, file.offset]


def _read(files: Sequence[IdFile], quiet: bool | None) -> list[Content]:
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(files), unit="file", desc="checking", disable=quiet) as bar,
    ):
        found = []
        for content in pool.map(read_content, files):
            found.append(content)
            bar.update()
    return found


def _check_vocabulary(file: IdFile, content: Content, tokenizer: Tokenizer) -> None:
    """Check that a tokenizer has all ids of a file.

    Raises:
        UserError: it has not.
    """
    if content.lowest >= 0 and content.highest < tokenizer.vocab_size:
        return
    place, value = first_outside(file, tokenizer.vocab_size)
    raise UserError(
        f"data.path={file.path} has the id {value:,} at position {place:,}, and the vocabulary of "
        f"tokenizer={tokenizer.name} has {tokenizer.vocab_size:,} ids, from 0 on: choose the tokenizer that the ids "
        f"are of (tokenizer=cl100k_base, or that of init_from), or put their {meta_pickle.FILE} beside them"
    )


def _split(files: dict[str, list[IdFile]], split: Split) -> dict[str, list[IdFile]]:
    """Return the files of each part, with those cut from the end of the training part that have none of their own.

    Raises:
        UserError: a part has fewer than two ids.
    """
    named = list(files) if len(files) > 1 else []
    names = split.names(named)
    if "val" not in files:
        train = files["train"]
        total = sum(file.count for file in train)
        begins = (0, *split.ends(total))
        pieces = {name: cut(train, *begins[i : i + 2]) for i, name in enumerate(SPLITS)}
        files = pieces | {part: of_part for part, of_part in files.items() if part != "train"}
    for name in names:
        if (count := sum(file.count for file in files[name])) < 2:
            raise UserError(
                f"data={NAME}: the {name} part has {amount(count, 'id')}, and 2 are the least (data.val_fraction="
                f"{split.val_fraction}): give more ids"
            )
    return {name: files[name] for name in names}
