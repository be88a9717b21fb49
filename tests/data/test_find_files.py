"""A folder is all its texts; what else is in it is counted, and parts that have a name are used as such."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from gptlab.data import corpora
from gptlab.data.find_files import FoundFiles, find_texts
from gptlab.data.text_options import TextOptions
from gptlab.system.errors import UserError
from tests.data.helpers import read

ROWS = '{"text": "a"}\n'


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        rows = "json" in name
        (folder / name).write_text("text\na\n" if ".csv" in name else ROWS if rows else "a")


def find(*paths: Path, **options: str | bool) -> FoundFiles:
    return find_texts([*paths], TextOptions(**options))  # type: ignore[arg-type]


def names(found: FoundFiles, folder: Path) -> list[str]:
    return [file.path.relative_to(folder).as_posix() for file in found.files]


def test_a_folder_is_all_its_texts_by_name(tmp_path: Path) -> None:
    texts = ["A.TXT", "a.txt", "b/c.md", "b/d/e.jsonl.gz", "b.txt.zst", "c.csv", "rows.json", "z.NDJSON"]
    make(tmp_path, *reversed(texts), "photo.png", "b/program.py", "b/other.py", "NOTES", "archive.gz")
    make(tmp_path, ".hidden.txt", ".git/notes.md", "b/.cache/x.txt")
    (tmp_path / "settings.json").write_text('{"learning_rate": 1}')
    (tmp_path / "people.csv").write_text("name,age\nA,7\n")
    found = find(tmp_path)
    assert names(found, tmp_path) == sorted(texts, key=lambda name: name.split("/"))
    without = "without data.text_key=text"
    assert found.not_read == {
        **{".png": 1, ".py": 2, ".gz": 1, "without an ending": 1},
        **{f"settings.json {without}": 1, f"people.csv {without}": 1},
    }


def test_links_are_followed_and_those_that_lead_back_are_noticed(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "b.txt", "deep/c.txt")
    make(tmp_path / "texts", "a.txt")
    (tmp_path / "texts" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "texts" / "one.txt").symlink_to(tmp_path / "elsewhere" / "b.txt")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "texts")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)
    (tmp_path / "texts" / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    found = find(tmp_path / "texts")
    assert names(found, tmp_path / "texts") == ["a.txt", "linked/b.txt", "linked/deep/c.txt"]
    again = "that is read already"
    assert found.not_read == {f"link to a folder {again}": 2, f"link to a file {again}": 1, "broken link": 1}


def test_a_file_is_read_once_by_its_own_name_whatever_links_to_it(tmp_path: Path) -> None:
    """As in a folder of the hub's cache with two snapshots, or where the newest of some files has a second name."""
    make(tmp_path, "texts/v2.txt", "texts/v10.txt", "blobs/1f")
    (tmp_path / "texts" / "latest.txt").symlink_to("v2.txt")
    os.link(tmp_path / "texts" / "v10.txt", tmp_path / "texts" / "z.txt")
    for snapshot in "ab":
        (tmp_path / "texts" / snapshot).mkdir()
        (tmp_path / "texts" / snapshot / "x.txt").symlink_to("../../blobs/1f")
    found = find(tmp_path / "texts")
    assert names(found, tmp_path / "texts") == ["a/x.txt", "v10.txt", "v2.txt"]
    assert found.not_read == {"link to a file that is read already": 3}


def test_a_file_that_lies_there_packed_and_unpacked_is_read_once(tmp_path: Path) -> None:
    """As `zstd -d` and `gunzip -k` leave it."""
    make(tmp_path, "a.jsonl", "a.jsonl.zst", "a.txt.gz", "b/c.txt", "b/c.txt.gz", "d.txt.GZ", "c.txt.gz")
    found = find(tmp_path)
    assert names(found, tmp_path) == ["a.jsonl", "a.txt.gz", "b/c.txt", "c.txt.gz", "d.txt.GZ"]
    assert found.not_read == {"packed file that lies beside it unpacked": 2}


def test_a_folder_that_cannot_be_read_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.txt", "shut/b.txt")
    scan = os.scandir

    def refused(place: str) -> object:
        if Path(place).name == "shut":
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", refused)
    assert find(tmp_path).not_read == {"folder that cannot be read": 1}
    with pytest.raises(UserError, match=r"no text in this folder \(1 folder that cannot be read\)"):
        find(tmp_path / "shut")


def test_a_folder_of_nothing_but_a_link_is_read(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "b.txt")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "shortcut").symlink_to(tmp_path / "texts")
    assert names(find(tmp_path / "shortcut"), tmp_path / "shortcut") == ["linked/b.txt"]


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path) -> None:
    make(tmp_path / ".notes", "a.txt")
    assert names(find(tmp_path / ".notes"), tmp_path) == [".notes/a.txt"]


def test_files_are_taken_as_they_are_named(tmp_path: Path) -> None:
    make(tmp_path, "poem", "b.txt", "folder/a.txt")
    found = find(tmp_path / "poem", tmp_path / "folder", tmp_path / "b.txt")
    assert names(found, tmp_path) == ["poem", "folder/a.txt", "b.txt"]
    assert read(tmp_path / "poem") == ["a"]


def test_a_pattern_is_the_files_that_match_it(tmp_path: Path) -> None:
    make(tmp_path, "a.py", "b.py", "deep/c.py", "d.txt", "odd[1].txt")
    assert names(find(tmp_path / "*.py"), tmp_path) == ["a.py", "b.py"]
    assert names(find(tmp_path / "**" / "*.py"), tmp_path) == ["a.py", "b.py", "deep/c.py"]
    assert names(find(tmp_path / "odd[1].txt"), tmp_path) == ["odd[1].txt"]


@pytest.mark.parametrize(
    ("texts", "beside", "pattern"),
    [
        (["part-00000", "part-00001"], [], "*"),
        (["wiki.train.tokens", "wiki.valid.tokens"], ["a.py"], "*.tokens"),
        (["a_data.xz", "b_data.xz"], [], "*.xz"),
        (["A/wiki_00", "B/wiki_00"], [], "**/*"),
        (["en/a.srt", "de/b.srt", "c.srt"], ["a.png", "b.png"], "**/*.srt"),
    ],
)
def test_files_of_other_names_are_read_by_the_pattern_that_the_message_gives(
    tmp_path: Path, texts: list[str], beside: list[str], pattern: str
) -> None:
    make(tmp_path, *texts, *beside)
    with pytest.raises(
        UserError, match=rf"no text in this folder .* e.g. data.path={re.escape(str(tmp_path))}"
    ) as told:
        find(tmp_path)
    assert str(told.value).endswith(f"{tmp_path}/{pattern}")
    assert sorted(names(find(tmp_path / pattern), tmp_path)) == sorted(texts)


def test_a_folder_of_nothing_but_rows_without_the_key_is_refused_by_what_they_have(tmp_path: Path) -> None:
    (tmp_path / "alpaca.json").write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    corpus = corpora.load("text", [str(tmp_path)], tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"data.text_key=text: \S+json has no such text .* instruction, output$"):
        list(corpus.read())
    corpus = corpora.load("text", [str(tmp_path)], tmp_path, tmp_path, options=TextOptions(text_key="output"))
    assert [piece.text for piece in corpus.read()] == ["b"]


def test_a_folder_with_the_name_of_a_text_is_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "table.parquet/part-0.md", "a.txt")
    assert [file.path.name for file in find(tmp_path).files] == ["a.txt", "part-0.md"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.txt", r"data.path=\S+absent.txt: no such file; give text files, or a folder of them"),
        ("*.rst", r"data.path=\S+rst: no such file"),
        (
            ".",
            r"data.path=\S+: no text in this folder \(1 .png\); there should be .txt .* .gz .* are read by their names",
        ),
        ("to be or not to be " * 17, r"data.path=\S+to be or not .*: no such file"),  # the text in place of its file
    ],
)
def test_a_path_without_a_text_is_refused(tmp_path: Path, name: str, message: str) -> None:
    make(tmp_path, "photo.png", ".hidden.txt")
    with pytest.raises(UserError, match=message):
        find(tmp_path / name)


def test_a_file_that_has_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.path=\S+gone.txt: no such file"):
        read(tmp_path / "gone.txt")


# Parts.


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (["README.md", "data/test-00000.jsonl", "data/train-00000.jsonl"], {"train": 1, "test": 1}),
        (["Stories-train.txt", "Stories-valid.txt"], {"train": 1, "val": 1}),
        (["wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"], {"train": 1, "val": 1, "test": 1}),
        (["train/a.txt", "train/test-of-time.txt", "dev/a.txt", "LICENSE.txt"], {"train": 2, "val": 1}),
        (["TRAIN.JSONL", "Validation.jsonl", "eval_1.jsonl"], {"train": 1, "val": 1, "test": 1}),
        (["trainset.jsonl", "valset.jsonl", "testSet.jsonl"], {"train": 1, "val": 1, "test": 1}),
        (["newsTrain(1).txt", "newsTrain(2).txt", "newsDev.txt"], {"train": 2, "val": 1}),
        (["unit-test-set/train.txt", "unit-test-set/valid.txt"], {"train": 1, "val": 1}),  # all have the folder
        (["README.md", "training-data/a/train.txt", "training-data/b/test.txt"], {"train": 1, "test": 1}),
        (["train-1.txt", "train-2.txt"], {}),  # of one part there is nothing to tell
        (["a-test.txt", "b-valid.txt"], {}),
        (["training camp/a.txt", "contest.txt", "validity.txt", "a.txt"], {}),
    ],
)
def test_parts_that_have_a_name_are_used_as_such(tmp_path: Path, files: list[str], parts: dict[str, int]) -> None:
    make(tmp_path, *files)
    found = find(tmp_path)
    assert {part: sum(file.part == part for file in found.files) for part in found.parts} == parts
    assert [part for part in ("train", "val", "test") if part in parts] == found.parts
    assert len(found.files) == sum(parts.values()) if parts else len(files)
    everything = find(tmp_path, named_parts=False)
    assert everything.parts == []
    assert len(everything.files) == len([name for name in files if "json" in name.lower()] or files)


@pytest.mark.parametrize("paths", [["train", "valid"], ["train/a.txt", "valid/b.txt"], ["*/*.txt"], ["**/*.txt"]])
def test_parts_are_found_however_their_files_are_given(tmp_path: Path, paths: list[str]) -> None:
    make(tmp_path, "train/a.txt", "valid/b.txt")
    assert [file.part for file in find(*(tmp_path / each for each in paths)).files] == ["train", "val"]


def test_the_card_of_a_data_set_is_not_read_and_that_of_notes_is(tmp_path: Path) -> None:
    make(tmp_path / "set", "README.md", "LICENSE.txt", "a.jsonl", "b.txt")
    assert names(find(tmp_path / "set"), tmp_path / "set") == ["a.jsonl", "b.txt"]
    assert find(tmp_path / "set").not_read == {"README.md": 1, "LICENSE.txt": 1}
    make(tmp_path / "notes", "README.md", "b.txt")
    assert names(find(tmp_path / "notes"), tmp_path / "notes") == ["README.md", "b.txt"]
    assert names(find(tmp_path / "set" / "README.md"), tmp_path) == ["set/README.md"]


def test_where_only_some_files_are_named_as_parts_the_switch_is_named(tmp_path: Path) -> None:
    make(tmp_path, "train.md", "test.md", "other.md")
    with pytest.raises(
        UserError, match=r"2 files .* e.g. \S+test.md, and 1 are not, e.g. \S+other.md: data.named_parts=tr"
    ):
        find(tmp_path)
    assert [file.part for file in find(tmp_path, named_parts=True).files] == ["train", "test"]
    assert find(tmp_path, named_parts=True).not_read == {"other.md": 1}
    assert len(find(tmp_path, named_parts=False).files) == 3
    with pytest.raises(
        UserError, match=r"data.named_parts=true: there must be files, or folders, named train and valid"
    ):
        find(tmp_path / "other.md", named_parts=True)


# What a file is.


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("my.txt", "prose, and more", "text"),
        ("my", "prose", "text"),
        ("my.py", "x = {1: 2}", "text"),
        ("my.txt", '{"text": "a"}\n{"text": "b"}\n', "json"),
        ("part-00000", '[{"url": "x", "text": "a"}]', "json"),
        ("my.json.bak", ' [\n {"text": "a"}]', "json"),
        ("my.txt", "<s> a text of Llama's </s>\n<unk>", "text"),
        ("my.md", "# Title\n\n<b>bold</b>", "text"),
        ("my.txt", "[1] a footnote\n{2} another", "text"),
        ("my.txt", "one\ttwo\nthree\n", "text"),
        ("names.txt", "emma\nolivia\nava\n" * 9, "text"),
        ("sums.txt", "12+34=46\n1,5+2=3,5\n" * 9, "text"),
        ("text.txt", "text\nmore text\n", "text"),
        ("my.txt", '["a \\"b\\"", "c"]', "json"),
        ("my.txt", '["a"]', "json"),
        ("my.txt", '["A", he said, "B"]', "text"),
        ("my.dat", json.dumps({"meta": "m" * 9999, "text": "a"}), "json"),  # the key is further on than is looked at
        ("poem.txt", "\tone\n\ttwo\n" * 9, "text"),
        ("README.md", '<p align="center"><img src="x"></p>\n\n# Title', "text"),
    ],
)
def test_what_a_file_is_is_seen_in_it(tmp_path: Path, name: str, content: str, kind: str) -> None:
    (tmp_path / name).write_text(content)
    assert find(tmp_path / name).files[0].kind == kind
    assert find(tmp_path / name, format="text").files[0].kind == "text"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("my.html", "just words", r"looks like markup, whose tags would be learned: .* data.format=text"),
        ("my.txt", "<!DOCTYPE html>\n<p>", r"looks like markup"),
        ("wiki", '<doc id="12" url="x" title="y">\nwords\n</doc>', r"looks like markup"),
        ("my.xml.gz", "<?xml version='1.0'?><a/>", r"looks like markup"),
        ("my.txt", '{"body": "a"}\n', r"looks like JSON, without data.text_key=text: .* data.format=text"),
        ("notebook.ipynb", '{\n "cells": []}', r"looks like JSON"),
        (
            "my.txt",
            "id,text,url\n1,a,x\n",
            r"looks like a table \(.* names the columns id, text, url\): .*data.format=csv",
        ),
        ("my", "text\tlabel\na\t1\n", r"looks like a table"),
        ("my.txt", "text\tlabel\ra\t1\r", r"looks like a table"),  # as Excel on a Mac writes it
        ("my.txt", "a\t1\n" * 9, r"looks like a table \(each line has 2 fields between tabs\)"),
        ("my.txt", "sep=;\nid;body\n1;a\n", r"looks like a table \(its first line is sep=;\)"),
        ("my.txt", "<p>words</p>\n", r"looks like markup"),
        (
            "my.txt",
            '{"hello" world}',
            r"looks like JSON, without data.text_key=text: give the name of the text in its rows,",
        ),
        ("my.txt", '{"a": 1, "b": 2}', r"looks like JSON, .* rows \(there are a, b\), or data.format=text"),
    ],
)
def test_tables_and_markup_are_asked_about(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"^data.path={tmp_path / name} {message}"):
        find(tmp_path / name)
    assert find(tmp_path / name, format="text").files[0].kind == "text"


@pytest.mark.parametrize(
    ("first", "what"),
    [
        (b"PK\x03\x04", "a zip archive"),
        (b"%PDF-1.7", "a PDF"),
        (b"{\\rtf1", "rich text"),
        (b"SQLite format 3\0", "a database"),
        (b"\x1f\x9d\x90", "packed by compress"),
        (b"Obj\x01\x04\x14avro.codec", "an Avro file"),
        (b"WARC/1.0\r\nWARC-Type: conversion\r\n", "a WARC archive"),
    ],
)
def test_what_holds_no_plain_text_is_named(tmp_path: Path, first: bytes, what: str) -> None:
    (tmp_path / "my.txt").write_bytes(first + b" and more")
    with pytest.raises(UserError, match=rf"data.path=\S+my.txt is {what}.*: \w"):
        find(tmp_path / "my.txt")


def test_a_file_that_is_packed_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "my.txt.gz").write_bytes(gzip.compress(gzip.compress(b"a text")))
    with pytest.raises(UserError, match=r"my.txt.gz is packed by gzip twice: unpack it once"):
        find(tmp_path / "my.txt.gz")


def test_a_file_beside_others_whose_first_rows_lack_the_key_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"id": 1}, {"text": "a"}]')
    (tmp_path / "b.json").write_text('[{"id": 1}, {"id": 2}]')
    assert names(find(tmp_path), tmp_path) == ["a.json"]


def test_bytes_are_no_table(tmp_path: Path) -> None:
    """nanoGPT's train.bin, whose bytes can look like fields between tabs."""
    (tmp_path / "train.bin").write_bytes(bytes(range(256)) * 9)
    with pytest.raises(UserError, match=r"looks like a binary file"):
        read(tmp_path / "train.bin")


def test_a_format_that_is_given_is_taken(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("text,label\na,1\n")
    assert read(tmp_path / "my.txt", format="csv") == ["a"]
    (tmp_path / "my.json").write_text(json.dumps({"text": "a"}))
    assert read(tmp_path / "my.json", format="text") == ['{"text": "a"}']
    with pytest.raises(UserError, match=r"data.format=xml: must be one of auto, text, json, csv, parquet"):
        TextOptions(format="xml")


def test_names_do_not_depend_on_the_order_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "b/2.txt", "a/1.txt", "a/0.txt", "c.txt")
    first, walk = names(find(tmp_path), tmp_path), os.walk

    def backwards(*args: object, **options: object) -> object:
        for place, folders, files in walk(*args, **options):  # type: ignore[call-overload]
            folders.sort(reverse=True)
            yield place, folders, files[::-1]

    monkeypatch.setattr(os, "walk", backwards)
    assert names(find(tmp_path), tmp_path) == first == ["a/0.txt", "a/1.txt", "b/2.txt", "c.txt"]
