"""Text becomes the same ids however it is cut, split, threaded, killed and taken up again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hf
from filelock import FileLock

from gptlab.data import corpora, prepare, shards, survey, text_files
from gptlab.data import pieces as pieces_module
from gptlab.data.corpus import Corpus
from gptlab.data.pieces import Piece, pieces
from gptlab.data.prepared import Prepared, prepared_folder
from gptlab.data.split import Split, split_pieces
from gptlab.data.text_options import TextOptions
from gptlab.data.tokenizers import (
    BYTES,
    END_OF_TEXT,
    BPETokenizer,
    CharTokenizer,
    JsonTokenizer,
    Tokenizer,
    TokenizerConfig,
)
from gptlab.system.errors import UserError
from tests.conftest import ROOT

TEXT = "To be, or not to be: that is the question.\n" * 31
LONG = (
    (ROOT / "LICENSE").read_text() + "z\u00fc\u4e2d \U0001f600\u2028\r\n\r\n  e\u0301 \u00bd'll 12345\n\n" * 41 + TEXT
)
BY_POSITION, BY_DOCUMENT = Split("position", 0.1, 0.0), Split("document", 0.1, 0.0)
CHAR = TokenizerConfig("char", None)
TOKENIZERS = {
    "char": CHAR,
    "byte": TokenizerConfig("byte", None),
    "word": TokenizerConfig("word", 301),
    "bpe": TokenizerConfig("bpe", 401),
    "gpt2": TokenizerConfig("gpt2", None),
}


def one(text: str, origin: str = "here") -> Corpus:
    return Corpus("text", lambda counts: pieces([text]), False, origin, len(text.encode()))


def many(documents: list[str], origin: str = "here") -> Corpus:
    size = sum(len(document.encode()) for document in documents)
    return Corpus("text", lambda counts: (piece for each in documents for piece in pieces([each])), True, origin, size)


def made(
    corpus: Corpus,
    cache: Path,
    config: TokenizerConfig | Tokenizer = CHAR,
    split: Split = BY_POSITION,
    raw: Path = Path("/nowhere"),
) -> Prepared:
    return prepare.prepare(corpus, split, config, raw, cache)


def decoded(prepared: Prepared, split: str) -> str:
    return prepared.tokenizer.decode(prepared.ids(split)[:].tolist())


@pytest.fixture(params=TOKENIZERS)
def config(request: pytest.FixtureRequest) -> TokenizerConfig:
    return TOKENIZERS[request.param]


@pytest.fixture
def with_gpt2(data_dir: Path) -> Path:
    """The folder with the real data sets, if GPT-2's vocabulary is among them."""
    if not (data_dir / "gpt2" / "vocab.bpe").is_file():
        pytest.skip("GPTLAB_DATA has no gpt2/vocab.bpe")
    return data_dir


@pytest.fixture
def raw(request: pytest.FixtureRequest, config: TokenizerConfig, tmp_path: Path) -> Path:
    """Where GPT-2's vocabulary lies, if `config` asks for it."""
    return request.getfixturevalue("with_gpt2") if config.name == "gpt2" else tmp_path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of about 64 characters, and a new file after every 500 ids."""
    for module in (text_files, pieces_module, prepare):
        monkeypatch.setattr(module, "PIECE", 64)
    monkeypatch.setattr(shards, "SHARD", 500)


@pytest.fixture
def marked(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark after every third piece as well."""
    monkeypatch.setattr(shards, "SAVE_EVERY", 3)


# With a tokenizer that is there already.


def test_a_given_tokenizer_is_kept_and_never_shares_a_folder_with_another(tmp_path: Path) -> None:
    given = [CharTokenizer("\n ,.:?T" + "abehinoqrstu"), CharTokenizer("\n ,.:?T" + "abehinoqrstuz")]
    prepared = [made(one(TEXT), tmp_path, tokenizer) for tokenizer in (*given, CHAR)]
    assert [each.tokenizer.vocab_size for each in prepared] == [19, 20, 18]
    assert len({each.folder for each in prepared}) == 3
    assert decoded(prepared[1], "train") + decoded(prepared[1], "val") == TEXT
    again = made(one(TEXT), tmp_path, CharTokenizer(given[0].chars))
    assert again.folder == prepared[0].folder


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("char", "text-char-5aaa5c30d4faf6e6"),
        ("byte", "text-byte-91b59dda53aa8bb6"),
        ("bpe", "text-bpe-142de76516964ebe"),
    ],
)
def test_folders_keep_the_names_of_earlier_versions(tmp_path: Path, name: str, folder: str) -> None:
    assert made(one("to be or not to be " * 99), tmp_path, TOKENIZERS[name]).folder.name == folder


def test_what_a_given_tokenizer_lacks_is_left_out_of_every_part_and_refused_if_it_is_much(tmp_path: Path) -> None:
    tokenizer = CharTokenizer("\n ,.:?T" + "abehinoqrstu")
    prepared = made(one("é" + TEXT + "ü"), tmp_path, tokenizer)
    assert prepared.unknown == ["é", "ü"]
    assert decoded(prepared, "train") + decoded(prepared, "val") == TEXT
    with pytest.raises(UserError, match=r"lacks 1 of the text's characters, 8% of it: 'é'; begin with a model that"):
        made(one(TEXT + "é" * (len(TEXT) // 7), "elsewhere"), tmp_path, tokenizer, Split("position", 0.05, 0.0))
    assert [path.name for path in tmp_path.glob("text-*")] == [prepared.folder.name]


# By position.


def test_prepared_ids_are_the_text_split_by_position(tmp_path: Path) -> None:
    prepared = made(one(TEXT + "~"), tmp_path)
    cut = int(len(TEXT + "~") * 0.9)
    assert decoded(prepared, "train") == TEXT[:cut]
    assert decoded(prepared, "val") == TEXT[cut:]  # without the ~ that training never saw
    assert prepared.tokenizer.to_dict() == CharTokenizer.fit([TEXT[:cut]]).to_dict()
    assert prepared.sha256 == hashlib.sha256((TEXT + "~").encode()).hexdigest()
    assert prepared.folder.parent == tmp_path
    assert prepared.folder.name.startswith("text-char-")
    assert list(prepared.files) == ["train", "val"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("val", "test", "places"),
    [(0.25, 0.0, (750, 1000)), (0.25, 0.25, (500, 750, 1000)), (0.5, 0.125, (375, 875, 1000)), (0.002, 0, (998, 1000))],
)
def test_the_last_parts_are_held_out_at_exact_characters(
    tmp_path: Path, val: float, test: float, places: tuple[int, ...]
) -> None:
    text = "".join(random.Random(7).choices("ab \n\u00fc\U0001f600", k=1000))
    prepared = made(one(text), tmp_path, split=Split("position", val, test))
    found = [decoded(prepared, split) for split in ("train", "val", "test")[: len(places)]]
    assert found == [text[begin:end] for begin, end in zip((0, *places), places, strict=False)]
    assert len(prepared.files) == len(places)


@pytest.mark.parametrize(
    ("name", "config", "train", "val"),
    [("shakespeare_char", "char", 1_003_854, 111_540), ("shakespeare_bpe", "gpt2", 301_966, 36_059)],
    indirect=["config"],
)
def test_tiny_shakespeare_has_as_many_tokens_as_in_nanogpt(
    data_dir: Path, raw: Path, tmp_path: Path, name: str, config: TokenizerConfig, train: int, val: int
) -> None:
    prepared = made(corpora.load(name, [], data_dir, tmp_path), tmp_path, config, raw=raw)
    assert (len(prepared.ids("train")), len(prepared.ids("val"))) == (train, val)


@pytest.mark.usefixtures("small")
def test_ids_are_those_of_each_split_as_a_whole(tmp_path: Path, config: TokenizerConfig, raw: Path) -> None:
    prepared = made(one(LONG), tmp_path, config, Split("position", 0.25, 0.125), raw)
    cuts = [0, int(len(LONG) * 0.625), int(len(LONG) * 0.875), len(LONG)]
    for split, begin, end in zip(("train", "val", "test"), cuts, cuts[1:], strict=False):
        assert prepared.ids(split)[:].tolist() == prepared.tokenizer.encode(LONG[begin:end]).tolist()
    assert len(prepared.files["train"]) > 2  # several files
    assert prepared.tokenizer.end_of_text not in prepared.ids("train")[:]  # one text has no such token


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["char", "byte", "bpe", "gpt2"])
@pytest.mark.parametrize("documents", [False, True])
def test_the_bytes_of_all_ids_are_those_of_the_text(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, documents: bool
) -> None:
    raw = request.getfixturevalue("with_gpt2") if name == "gpt2" else tmp_path
    corpus = many(["one", *LONG.split("\n\n"), "two "]) if documents else one(LONG)
    prepared = made(corpus, tmp_path, TOKENIZERS[name], Split("position", 0.25, 0.25), raw)
    sizes = prepared.tokenizer.token_bytes()
    text = "".join(piece.text for piece in corpus.read())
    cuts = [0, len(text) // 2, int(len(text) * 0.75), len(text)]
    for split, begin, end in zip(("train", "val", "test"), cuts, cuts[1:], strict=False):
        unknown = "".join(prepared.unknown)
        left = text[begin:end].translate(dict.fromkeys(map(ord, unknown))) if split != "train" else text[begin:end]
        assert sizes[prepared.ids(split)[:]].sum() == len(left.encode())


@pytest.mark.parametrize("name", ["word", "bpe", "byte"])
@pytest.mark.parametrize("threads", [1, 7])
@pytest.mark.usefixtures("small")
def test_the_number_of_threads_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(threads), raising=False)
    prepared = made(one(LONG), tmp_path, TOKENIZERS[name])
    assert prepared.ids("train")[:].tolist() == prepared.tokenizer.encode(LONG[: int(len(LONG) * 0.9)]).tolist()


def test_a_vocabulary_beyond_two_bytes_keeps_its_ids(tmp_path: Path) -> None:
    chars = "".join(map(chr, range(0x10000, 0x10000 + 70_001)))
    prepared = made(one(chars + chars[-7001:]), tmp_path, split=Split("position", 0.08, 0.0))
    assert prepared.ids("train")[:].dtype == np.uint32
    assert decoded(prepared, "val") == chars[-len(prepared.ids("val")) :]


@pytest.mark.usefixtures("small")
def test_characters_that_training_never_saw_are_listed(tmp_path: Path) -> None:
    text = "a" * 500 + "ab~" * 83 + "\u00fcac" * 84
    prepared = made(one(text), tmp_path, split=Split("position", 0.25, 0.25))
    assert prepared.unknown == ["b", "c", "~", "\u00fc"]
    assert made(one(text), tmp_path, split=Split("position", 0.25, 0.25)).unknown == prepared.unknown
    assert made(one(text), tmp_path, TOKENIZERS["byte"]).unknown == []


def test_a_vocabulary_smaller_than_asked_for_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepared = made(one("the cat " * 50), tmp_path, TokenizerConfig("bpe", 5000))
    assert prepared.tokenizer.vocab_size < 300
    (message,) = caplog.messages
    assert message.startswith("tokenizer.vocab_size=5000: data=text has no more pairs to merge after 2")
    made(one(TEXT), tmp_path, TokenizerConfig("bpe", 260))
    assert len(caplog.messages) == 1


# By document.


def drawn(count: int) -> list[str]:
    """Different documents, some of several pieces, some with what looks like an end."""
    draw = random.Random(0)
    words = ["the", "cat", "\u00fc\u4e2d", "sees", "\n", END_OF_TEXT, "night", "."]
    return [f"{i}: " + " ".join(draw.choices(words, k=draw.choice([1, 2, 3, 90]))) for i in range(count)]


def ended(prepared: Prepared, split: str) -> list[str]:
    """The documents of a split, each of which must have its end."""
    ids = prepared.ids(split)[:].astype(int)
    ends = np.flatnonzero(ids == prepared.tokenizer.end_of_text)
    *documents, rest = np.split(ids, ends + 1)
    assert len(rest) == 0
    return [prepared.tokenizer.decode(document[:-1].tolist()) for document in documents]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["char", "byte", "bpe"])
def test_every_document_is_in_one_split_with_an_end_after_it(tmp_path: Path, name: str) -> None:
    documents = drawn(301)
    prepared = made(many(documents), tmp_path, TOKENIZERS[name], Split("document", 0.1, 0.2))
    found = {split: ended(prepared, split) for split in ("train", "val", "test")}
    if not prepared.unknown:
        assert sorted(chain.from_iterable(found.values())) == sorted(documents)
    for of_split in found.values():
        places = [int(document.partition(":")[0]) for document in of_split]
        assert places == sorted(places)  # in their order
        assert of_split == [documents[i] for i in places]
    assert prepared.sha256 == hashlib.sha256(b"".join(each.encode() + b"\xff" for each in documents)).hexdigest()


def test_the_fractions_are_kept_about(tmp_path: Path) -> None:
    documents = [f"document {i}" for i in range(2000)]
    prepared = made(many(documents), tmp_path, TOKENIZERS["byte"], Split("document", 0.1, 0.2))
    counts = [len(ended(prepared, split)) for split in ("train", "val", "test")]
    assert sum(counts) == 2000
    assert counts == pytest.approx([1400, 200, 400], abs=60)  # three standard deviations


def test_copies_go_together_and_the_order_does_not_matter(tmp_path: Path) -> None:
    documents = drawn(97) * 3
    shuffled = random.Random(1).sample(documents, len(documents))
    found = []
    for order in (documents, shuffled):
        prepared = made(many(order), tmp_path, TOKENIZERS["byte"], Split("document", 0.2, 0.2))
        found.append([sorted(ended(prepared, split)) for split in ("train", "val", "test")])
    assert found[0] == found[1]
    assert all(of_split.count(document) == 3 for of_split in found[0] for document in of_split)


def test_one_more_document_moves_no_other(tmp_path: Path) -> None:
    first, second = (made(many(drawn(count)), tmp_path, TOKENIZERS["byte"], BY_DOCUMENT) for count in (97, 98))
    assert set(ended(first, "val")) <= set(ended(second, "val"))
    assert set(ended(first, "train")) <= set(ended(second, "train"))


@pytest.mark.usefixtures("small")
def test_documents_can_be_split_by_position_too(tmp_path: Path) -> None:
    documents = drawn(31)
    prepared = made(many(documents), tmp_path, TOKENIZERS["byte"], Split("position", 0.25, 0.0))
    whole = "".join(document + "\0" for document in documents)
    train, val = (prepared.ids(split)[:].tolist() for split in ("train", "val"))
    assert train[-1] != 256  # the document at the border goes on in the other part
    assert bytes(0 if i == 256 else i for i in train + val).decode() == whole
    characters = sum(map(len, documents))
    assert len(bytes(i for i in train if i != 256).decode()) == int(characters * 0.75)


def test_a_stream_is_split_by_document_and_read_twice(tmp_path: Path) -> None:
    documents, read = drawn(97), []

    def stream(counts: object) -> Iterator[Piece]:
        read.append(1)
        for document in documents:
            yield Piece(document, True)

    corpus = Corpus("hub", stream, True, "somewhere", None)
    prepared = made(corpus, tmp_path, TOKENIZERS["bpe"], BY_DOCUMENT)
    assert sorted(ended(prepared, "train") + ended(prepared, "val")) == sorted(documents)
    assert len(read) == 2  # for the vocabulary, for the ids
    assert made(corpus, tmp_path, TOKENIZERS["bpe"], BY_DOCUMENT).folder == prepared.folder
    assert len(read) == 2
    again = made(Corpus("hub", stream, True, "elsewhere", None), tmp_path, TOKENIZERS["bpe"], BY_DOCUMENT)
    assert again.folder != prepared.folder
    assert again.sha256 == prepared.sha256 == made(many(documents), tmp_path, CHAR, BY_DOCUMENT).sha256


# Once.


def left(cache: Path) -> list[str]:
    """The names in a cache without the locks, which some versions of filelock remove and others leave."""
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


def files(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What changes when a file is written, by the file's name; not when it was last read."""
    stats = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.suffix != ".lock"}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def test_a_text_is_prepared_once(tmp_path: Path) -> None:
    first = made(one(TEXT), tmp_path)
    before = files(tmp_path)
    name = first.folder.name
    inside = {"index.json", "tokenizer.json", "train-00000.bin", "val-00000.bin"}
    assert set(before) == {name, *(f"{name}/{file}" for file in inside)}
    os.utime(tmp_path, (7, 7))
    second = made(one(TEXT), tmp_path)
    assert files(tmp_path) == before
    assert tmp_path.stat().st_mtime == 7  # not even a temporary folder came and went
    assert (second.folder, second.sha256, second.files) == (first.folder, first.sha256, first.files)
    assert second.tokenizer.to_dict() == first.tokenizer.to_dict()
    assert decoded(second, "val") == decoded(first, "val")


@pytest.mark.parametrize(
    ("corpus", "config", "split"),
    [
        (one(TEXT + "."), CHAR, BY_POSITION),
        (many([TEXT]), CHAR, BY_POSITION),
        (many([TEXT[:900], TEXT[900:]]), CHAR, BY_POSITION),
        (Corpus("other", one(TEXT).reader, False, "here", 1), CHAR, BY_POSITION),
        (one(TEXT), TOKENIZERS["byte"], BY_POSITION),
        (one(TEXT), TokenizerConfig("word", 7), BY_POSITION),
        (one(TEXT), TokenizerConfig("word", 8), BY_POSITION),
        (one(TEXT), CHAR, Split("position", 0.2, 0.0)),
        (one(TEXT), CHAR, Split("position", 0.1, 0.1)),
    ],
)
def test_another_recipe_is_another_folder(
    tmp_path: Path, corpus: Corpus, config: TokenizerConfig, split: Split
) -> None:
    first = made(one(TEXT), tmp_path)
    others = [made(one(TEXT), tmp_path, TokenizerConfig("word", 7))] if config.vocab_size == 8 else [first]
    before = first.ids("train")[:].copy()
    assert made(corpus, tmp_path, config, split).folder not in {each.folder for each in others}
    assert np.array_equal(first.ids("train")[:], before)


@pytest.mark.parametrize(
    "file", ["index.json", "tokenizer.json", "train-00000.bin", "val-00000.bin"], ids=lambda file: file.split("-")[0]
)
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: os.truncate(path, 7)], ids=["gone", "cut"])
def test_a_folder_that_is_not_whole_is_made_again(tmp_path: Path, file: str, damage: Callable[[Path], None]) -> None:
    first = made(one(TEXT), tmp_path)
    damage(first.folder / file)
    again = made(one(TEXT), tmp_path)
    assert again.folder == first.folder
    assert decoded(again, "train") + decoded(again, "val") == TEXT


FILES = ("index.json", "tokenizer.json", "train-00000.bin", "val-00000.bin")


def flip(path: Path, place: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.split("-")[0])
def test_a_flipped_bit_is_noticed_said_and_put_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    first = made(one(TEXT), tmp_path)
    before = contents(first.folder)
    flip(first.folder / file)
    caplog.clear()
    again = made(one(TEXT), tmp_path)
    assert again.folder == first.folder
    assert contents(again.folder) == before
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert file in said
    assert said.endswith("The text is prepared anew")


def test_files_of_another_folder_are_noticed(tmp_path: Path) -> None:
    """Each of them is sound by itself."""
    first, other = made(one(TEXT), tmp_path), made(one(TEXT.replace("y", "z")), tmp_path)
    for name in ("tokenizer.json", "train-00000.bin"):
        (first.folder / name).write_bytes((other.folder / name).read_bytes())
        assert made(one(TEXT), tmp_path).tokenizer.to_dict() == first.tokenizer.to_dict()
        assert decoded(made(one(TEXT), tmp_path), "train") == TEXT[: len(first.ids("train"))]


def test_damaged_data_whose_text_is_gone_is_an_error_that_says_both(tmp_path: Path) -> None:
    def gone(counts: object) -> Iterator[Piece]:
        raise UserError("the network does not answer")
        yield

    corpus = replace(many([f"{i} {TEXT[:50]}" for i in range(99)]), bytes=None, origin="hub")
    flip(made(corpus, tmp_path, CHAR, BY_DOCUMENT).folder / "train-00000.bin")
    both = r"train-00000\.bin is damaged: .*\. It cannot be prepared anew: the network does not answer"
    with pytest.raises(UserError, match=both):
        made(replace(corpus, reader=gone), tmp_path, CHAR, BY_DOCUMENT)


def test_large_data_is_verified_once_as_long_as_it_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(path: Path) -> Any:
        hashed.append(path.name)
        return digest(path)

    digest, hashed = shards.sha256_of, list[str]()
    monkeypatch.setattr(shards, "ALWAYS", 0)
    monkeypatch.setattr(shards, "sha256_of", counted)
    first = made(one(TEXT), tmp_path)
    assert sorted(hashed) == ["tokenizer.json", "train-00000.bin", "val-00000.bin"]
    hashed.clear()
    assert made(one(TEXT), tmp_path).folder == first.folder
    assert hashed == []
    flip(first.folder / "val-00000.bin")
    assert made(one(TEXT), tmp_path).folder == first.folder
    assert "val-00000.bin" in hashed
    assert decoded(made(one(TEXT), tmp_path), "val") == TEXT[len(first.ids("train")) :]
    flip(first.folder / shards.VERIFIED)  # no more than a note
    assert made(one(TEXT), tmp_path).folder == first.folder


def reads(corpus: Corpus) -> tuple[Corpus, list[int]]:
    """The corpus, and a list that has an item for each time that it was read."""
    read: list[int] = []
    return replace(corpus, reader=lambda counts: read.append(1) or corpus.read(counts)), read


def test_a_large_text_is_not_read_again_until_its_files_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, read = reads(one(TEXT))
    first = made(corpus, tmp_path)
    read.clear()
    made(corpus, tmp_path)
    assert len(read) == 1  # a small one is
    for module in (survey, prepare):
        monkeypatch.setattr(module, "LARGE", 0)
    for times in (1, 0):
        read.clear()
        assert made(corpus, tmp_path).folder == first.folder
        assert len(read) == times
    changed, read = reads(one(TEXT.upper(), "changed"))
    assert made(changed, tmp_path).folder != first.folder
    assert len(read) == 3
    touched, read = reads(one(TEXT, "touched"))
    assert made(touched, tmp_path).folder == first.folder
    assert len(read) == 1


def test_a_large_file_that_changed_is_prepared_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (survey, prepare):
        monkeypatch.setattr(module, "LARGE", 0)
    path = tmp_path / "my.txt"
    for text in (TEXT, TEXT.swapcase(), TEXT):
        path.write_text(text)
        os.utime(path, (len(text), hash(text) % 1000))
        prepared = made(corpora.load("text", [str(path)], tmp_path, tmp_path), tmp_path / "cache")
        assert decoded(prepared, "train") + decoded(prepared, "val") == text


@pytest.mark.parametrize("large", [False, True])
def test_a_cache_that_may_only_be_read_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    def refuse(path: Path, *_: Any) -> None:
        raise UserError(f"cannot write in {path.parent}")

    first = made(one(TEXT), tmp_path)
    for module in (survey, prepare):
        monkeypatch.setattr(module, "LARGE", 0 if large else 1 << 26)
    monkeypatch.setattr(shards, "ALWAYS", 0 if large else 1 << 29)
    for place, name in ((prepare, "write_json"), (survey, "write_json"), (shards, "write_json"), (prepare, "FileLock")):
        monkeypatch.setattr(place, name, refuse)  # root may write everywhere
    tmp_path.chmod(0o555)
    try:
        assert made(one(TEXT), tmp_path).folder == first.folder
    finally:
        tmp_path.chmod(0o755)


# Progress.


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The progress bars that came."""

    class Bar:
        def __init__(self, **options: Any) -> None:
            self.options, self.done = options, 0
            found.append(self)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def update(self, count: int) -> None:
            self.done += count

    found: list[Any] = []
    monkeypatch.setattr(prepare, "tqdm", Bar)
    return found


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("large", [False, True])
def test_a_large_text_has_a_bar_on_a_terminal_and_a_line_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bars: list[Any], large: bool
) -> None:
    for module in (survey, prepare):
        monkeypatch.setattr(module, "LARGE", 0 if large else 1 << 26)
    with caplog.at_level(logging.INFO):
        prepared = made(one(TEXT), tmp_path, TOKENIZERS["bpe"])
        prepared = made(one(TEXT), tmp_path, TOKENIZERS["byte"])
    assert [bar.done for bar in bars if bar.options["desc"] == "tokenising"] == [len(TEXT)] * 2
    assert [bar.options["total"] for bar in bars if bar.options["desc"] == "tokenising"] == [len(TEXT)] * 2
    assert all(bar.done == len(TEXT) for bar in bars)
    assert all(bar.options["disable"] is (None if large else True) for bar in bars)  # None: on a terminal
    lines = [line for line in caplog.messages if line.startswith("preparing data=text with tokenizer=byte, once")]
    assert len(lines) == large
    assert all(str(prepared.folder) in line for line in lines)


# Killed.

DOCUMENTS = [*drawn(31), "a", "only here: ~\u00df \u0416"]


@pytest.fixture(params=["text", "documents"])
def corpus(request: pytest.FixtureRequest) -> Corpus:
    return many(DOCUMENTS) if request.param == "documents" else one("".join(DOCUMENTS))


@pytest.fixture
def split(corpus: Corpus) -> Split:
    return Split("document", 0.3, 0.2) if corpus.documents else Split("position", 0.3, 0.2)


def units(corpus: Corpus, split: Split) -> list[Any]:
    characters = sum(len(piece.text) for piece in corpus.read())
    return list(prepare.units(split_pieces(corpus.read(), split, characters)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The units that are encoded; one that is put into `encoded.deadly` stops the preparation."""

    class Units(list[Any]):
        deadly: Any = None
        failure: BaseException

    def encode(tokenizer: Any, parts: Any, end_of_text: Any) -> Any:
        found.append(parts)
        if parts == found.deadly:
            raise found.failure
        return real(tokenizer, parts, end_of_text)

    real, found = prepare.encode, Units()
    monkeypatch.setattr(prepare, "encode", encode)
    return found


@pytest.mark.usefixtures("marked")
@pytest.mark.parametrize(
    ("place", "failure"),
    [
        *((0, KeyboardInterrupt), (2, RuntimeError), (3, KeyboardInterrupt), (4, RuntimeError)),
        *((13, KeyboardInterrupt), (-1, RuntimeError)),
    ],
)
def test_a_preparation_that_was_stopped_goes_on_after_its_last_mark(
    tmp_path: Path, corpus: Corpus, split: Split, encoded: Any, place: int, failure: type[BaseException]
) -> None:
    undisturbed = made(corpus, tmp_path / "a", TOKENIZERS["bpe"], split)
    every = units(corpus, split)
    place %= len(every)
    assert len(every) == len(encoded) > 15
    encoded.deadly, encoded.failure = every[place], failure()
    with pytest.raises(failure):
        made(corpus, tmp_path / "b", TOKENIZERS["bpe"], split)
    marked = place // 3 * 3
    assert [Path(name).suffix for name in left(tmp_path / "b")] == ([".partial"] if marked else [])
    encoded.clear()
    encoded.deadly = None
    again = made(corpus, tmp_path / "b", TOKENIZERS["bpe"], split)
    assert sorted(map(str, encoded)) == sorted(map(str, every[marked:]))
    assert contents(again.folder) == contents(undisturbed.folder)
    assert {path.name for path in again.folder.iterdir() if path.suffix != ".bin"} == {"index.json", "tokenizer.json"}
    assert left(tmp_path / "b") == [again.folder.name]


@pytest.mark.usefixtures("marked")
def test_a_preparation_can_be_stopped_again_and_again(
    tmp_path: Path, corpus: Corpus, split: Split, encoded: Any, bars: list[Any]
) -> None:
    undisturbed = made(corpus, tmp_path / "a", CHAR, split)
    assert undisturbed.unknown
    every = units(corpus, split)
    for place in (1, 4, 5, 9, 17):
        encoded.deadly, encoded.failure = every[place], KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            made(corpus, tmp_path / "b", CHAR, split)
    bars.clear()
    encoded.clear()
    encoded.deadly = None
    again = made(corpus, tmp_path / "b", CHAR, split)
    assert len(encoded) == len(every) - 15
    assert contents(again.folder) == contents(undisturbed.folder)
    assert all(bar.done == sum(map(len, DOCUMENTS)) for bar in bars)  # what was there already counts


@pytest.mark.usefixtures("marked")
def test_a_vocabulary_is_learned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: Any) -> None:
    encoded.deadly, encoded.failure = units(one(LONG), BY_POSITION)[7], KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        made(one(LONG), tmp_path, TOKENIZERS["bpe"])
    encoded.deadly = None
    monkeypatch.setattr(BPETokenizer, "fit", lambda *_: pytest.fail("it is learned again"))
    assert decoded(made(one(LONG), tmp_path, TOKENIZERS["bpe"]), "val") == LONG[int(len(LONG) * 0.9) :]


KILLED = """
import json, os, signal, sys
from pathlib import Path
from gptlab.data import corpora, pieces, prepare, shards, split, text_files
from gptlab.data.tokenizers import TokenizerConfig

text_files.PIECE = pieces.PIECE = prepare.PIECE = 64
shards.SAVE_EVERY, shards.SHARD = 3, 500
add = shards.ShardWriter.add

def deadly(writer, ids, unknown):
    add(writer, ids, unknown)
    if writer.units == 11:
        os.kill(os.getpid(), signal.SIGKILL)

shards.ShardWriter.add = deadly
corpus = corpora.load("text", [sys.argv[1]], Path(), Path())
prepare.prepare(corpus, split.Split("document", 0.3, 0.2), TokenizerConfig("bpe", 401), Path(), Path(sys.argv[2]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.usefixtures("marked")
def test_a_killed_process_has_left_what_the_next_one_goes_on_with(tmp_path: Path, shell: Any, encoded: Any) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS))
    with shell("-c", KILLED, str(path), str(tmp_path / "b")) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, errors
    corpus, split = corpora.load("text", [str(path)], tmp_path, tmp_path), Split("document", 0.3, 0.2)
    again = made(corpus, tmp_path / "b", TOKENIZERS["bpe"], split)
    every = units(corpus, split)
    assert sorted(map(str, encoded)) == sorted(map(str, every[9:]))
    assert contents(again.folder) == contents(made(corpus, tmp_path / "a", TOKENIZERS["bpe"], split).folder)


def test_a_full_disk_is_named_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: Any
) -> None:
    encoded.deadly, encoded.failure = units(one(TEXT), BY_POSITION)[0], OSError(28, "No space left on device")
    with pytest.raises(UserError) as stopped:
        made(one(TEXT), tmp_path)
    assert f"cannot write in {tmp_path}: No space left on device; free some space" in str(stopped.value)
    assert "data.cache_dir=..." in str(stopped.value)
    assert left(tmp_path) == []
    encoded.deadly = None
    assert len(made(one(TEXT), tmp_path).ids("val"))


# Several processes.


@pytest.mark.usefixtures("small")
def test_of_processes_that_prepare_at_once_one_does_the_work(tmp_path: Path, encoded: Any) -> None:
    barrier, results = threading.Barrier(5), []

    def work() -> None:
        barrier.wait()
        results.append(made(one(TEXT), tmp_path))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 5
    assert len(encoded) == len(units(one(TEXT), BY_POSITION))
    (folder,) = left(tmp_path)
    assert all(result.folder.name == folder for result in results)
    assert all(decoded(result, "train") == decoded(results[0], "train") for result in results)


@pytest.mark.parametrize("finished", [True, False])
def test_a_process_waits_for_another_and_takes_what_that_has_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoded: Any, finished: bool
) -> None:
    folder = made(one(TEXT), tmp_path / "theirs").folder
    (tmp_path / "cache").mkdir()
    lock = FileLock(tmp_path / "cache" / f".{folder.name}.lock")
    lock.acquire()

    class Other(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("text: "):
                return
            said.append(record.getMessage())
            if finished:
                shutil.copytree(folder, tmp_path / "cache" / folder.name)
            lock.release()

    said: list[str] = []
    other = Other()
    prepare.log.addHandler(other)
    encoded.clear()
    try:
        with caplog.at_level(logging.INFO):
            prepared = made(one(TEXT), tmp_path / "cache")
    finally:
        prepare.log.removeHandler(other)
    assert said == ["waiting for another process that prepares the same data"]
    assert contents(prepared.folder) == contents(folder)
    assert bool(encoded) is not finished


# What cannot be prepared.


@pytest.mark.parametrize(
    ("text", "val_fraction", "message"),
    [
        (
            "a" * 7,
            0.1,
            r"the val part of data=text has 1 character \(7 in all, data.val_fraction=0.1\): give more text",
        ),
        ("abcdefg", 0.9, r"the train part of data=text has 0 characters \(7 in all, data.val_fraction=0.9\)"),
        ("a", 0.1, r"the train part of data=text has 0 characters \(1 in all"),
        ("", 0.1, r"data.path=text is empty: give a text with something in it"),
        (" \n\t\r\n\u3000" * 99, 0.1, r"data.path=text is empty"),
        ("a" * 97 + "b" * 11, 0.1, r"data=text: the val part has nothing that its tokens can say: give more text"),
    ],
)
def test_too_short_a_text_is_refused(tmp_path: Path, text: str, val_fraction: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(one(text), tmp_path, split=Split("position", val_fraction, 0.0))
    assert left(tmp_path) == []


def test_too_short_a_test_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the test part of data=text has 1 character \(100 in all"):
        made(one("ab" * 50), tmp_path, split=Split("position", 0.25, 0.01))


@pytest.mark.parametrize(
    ("documents", "split", "message"),
    [
        ([], Split("document", 0.1, 0.0), r"data=hub: no document falls into the train part: give more documents"),
        (["a b"] * 9, Split("document", 0.9999, 0.0), r"no document falls into the train part"),
        (["a b"] * 9, Split("document", 1e-9, 0.0), r"data=hub: the val part has nothing .*: give more text"),
        (["a b"] * 9, Split("position", 0.1, 0.0), r"data.split=position: data=hub has no known length; use data.spl"),
    ],
)
def test_documents_that_cannot_be_split_are_refused(
    tmp_path: Path, documents: list[str], split: Split, message: str
) -> None:
    corpus = Corpus("hub", many(documents).reader, True, "somewhere", None)
    with pytest.raises(UserError, match=message):
        made(corpus, tmp_path, TOKENIZERS["byte"], split)
    assert left(tmp_path) == []


def test_one_text_cannot_be_split_by_document(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.split=document: data=text is one text; use data.split=position"):
        made(one(TEXT), tmp_path, split=BY_DOCUMENT)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("by", "val", "test", "message"),
    [
        ("line", 0.1, 0.0, r"data.split=line: must be one of position, document"),
        ("position", 0.0, 0.0, r"data.val_fraction=0.0: must be above 0 and below 1"),
        ("position", 1.0, 0.0, r"data.val_fraction=1.0: must be above 0 and below 1"),
        ("document", 0.1, -0.1, r"data.test_fraction=-0.1: must be at least 0, and leave something to train on"),
        ("document", 0.5, 0.5, r"data.test_fraction=0.5: must be .* beside data.val_fraction=0.5"),
    ],
)
def test_a_split_that_leaves_nothing_is_refused(by: str, val: float, test: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Split(by, val, test)


@pytest.mark.parametrize("large", [False, True])
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    for module in (survey, prepare):
        monkeypatch.setattr(module, "LARGE", 0 if large else 1 << 26)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write in \S+cache: .*choose another folder .*data.cache_dir="):
        made(one(TEXT), tmp_path / "file" / "cache")


# Tokenizers that begin texts.


def beginning(begin: str = "<s>", end: str = "</s>", space: bool = False) -> JsonTokenizer:
    """Bytes, 256 for <s> and 257 for </s>, with `begin` before a text; and a space if `space`."""
    backend = hf.Tokenizer(hf.models.BPE({letter: i for i, letter in enumerate(BYTES)}, []))
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = hf.decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    special = [(begin, backend.token_to_id(begin))]
    backend.post_processor = hf.processors.TemplateProcessing(f"{begin} $A", special_tokens=special)
    return JsonTokenizer(backend.to_str(), backend.token_to_id(end))


def test_documents_begin_with_the_beginning_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "PIECE", 40)
    monkeypatch.setattr(prepare, "PIECE", 50)  # so that documents are cut into pieces, and those into units
    documents = [f"{n} {'a word or two, ' * (n % 9)}." for n in range(200)]
    tokenizer = beginning()
    prepared = made(many(documents), tmp_path, tokenizer, BY_DOCUMENT)
    whole: list[str] = []
    for split in ("train", "val"):
        ids = prepared.ids(split)[:]
        parts = np.split(ids, np.flatnonzero(ids == 257) + 1)[:-1]
        assert all(part[0] == 256 and part[-1] == 257 for part in parts)
        assert sum(np.count_nonzero(part >= 256) for part in parts) == 2 * len(parts)
        whole += [tokenizer.decode(part[1:-1].tolist()) for part in parts]
    assert sorted(whole) == sorted(documents)


def test_a_single_text_begins_once_and_so_does_each_of_its_parts(tmp_path: Path) -> None:
    for begin in ("<s>", "</s>"):
        tokenizer = beginning(begin)
        prepared = made(one(LONG), tmp_path, tokenizer)
        end = int(len(LONG) * 0.9)
        for split, text in (("train", LONG[:end]), ("val", LONG[end:])):
            assert prepared.ids(split)[:].tolist() == [*tokenizer.begin, *tokenizer.encode(text)]


@pytest.mark.parametrize(("separator", "said"), [("auto", True), ("</s>", False), (None, True)])
def test_an_end_of_text_that_is_spelled_out_is_offered_as_the_separator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, separator: str | None, said: bool
) -> None:
    (tmp_path / "my.txt").write_text("\n</s>\n".join(f"story {i}" for i in range(99)))
    text = corpora.load(
        "text", [str(tmp_path / "my.txt")], tmp_path, tmp_path, options=TextOptions(separator=separator)
    )
    ids = made(text, tmp_path, beginning()).ids("train")[:]
    assert np.count_nonzero(ids == 257) == (0 if said else 89)
    offer = "</s> stands in the text, .*: \"data.separator='</s>'\" makes it the end of a document"
    assert [bool(re.match(offer, message)) for message in caplog.messages] == [True] * said


def test_an_end_that_is_the_beginning_stands_once(tmp_path: Path) -> None:
    documents = [f"document {n}" for n in range(50)]
    ids = made(many(documents), tmp_path, beginning("</s>"), BY_DOCUMENT).ids("train")[:]
    assert (ids[0], ids[-1]) == (257, 257)
    assert not np.any((ids[1:] == 257) & (ids[:-1] == 257))
    assert 256 not in ids


def test_only_data_of_tokenizers_that_begin_texts_is_prepared_again(tmp_path: Path) -> None:
    def folder(config: TokenizerConfig | Tokenizer) -> str:
        return prepared_folder(one(TEXT), BY_POSITION, config, "7d", tmp_path).name

    plain = JsonTokenizer(json.dumps(json.loads(beginning().content) | {"post_processor": None}), 257)
    assert plain.begin == ()
    assert folder(CHAR) == "text-char-70d26cf897613998"  # as in earlier versions
    for tokenizer, as_before in ((plain, True), (CharTokenizer("ab"), True), (beginning(), False)):
        state = hashlib.sha256(json.dumps(tokenizer.to_dict(), sort_keys=True).encode()).hexdigest()
        recipe = json.dumps([3, "7d", False, {"by": "position", "val_fraction": 0.1, "test_fraction": 0.0}, state])
        earlier = f"text-{tokenizer.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
        assert (folder(tokenizer) == earlier) == as_before
