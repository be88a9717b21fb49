"""`data.split=last_file`: the last of several files is the validation part, as of nanochat's shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from gptlab.data.chat import sources
from gptlab.data.corpus import Corpus
from gptlab.data.prepare import prepare
from gptlab.data.prepared import Prepared
from gptlab.data.split import Split
from gptlab.data.survey import describe, survey
from gptlab.data.text_options import TextOptions
from gptlab.data.tokenizers import END_OF_TEXT, TokenizerConfig
from gptlab.system.errors import UserError
from tests.data.chat.helpers import data_config
from tests.data.test_corpora import load, write_lines
from tests.data.test_ready_ids import ids_of, opened, raw
from tests.test_cli import assert_refused
from tests.test_evaluate import QUICK, assert_is_the_runs_own

BY_FILE = Split("last_file", 0.1, 0.0)
BYTE = TokenizerConfig("byte", None)


def shards(folder: Path, texts: list[str], each: int = 3) -> Path:
    """A folder as nanochat downloads it: zstd, small row groups, a column `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(0, len(texts), each):
        name = folder / f"shard_{i // each:05}.parquet"
        table = pyarrow.table({"text": texts[i : i + each]})
        pyarrow.parquet.write_table(table, name, row_group_size=2, compression="zstd")
    return folder


def held_out(corpus: Corpus, cache: Path) -> Prepared:
    return prepare(corpus, BY_FILE, BYTE, cache, cache)


def decoded(prepared: Prepared) -> dict[str, list[str]]:
    """The documents of each part."""
    text = {part: prepared.tokenizer.decode(prepared.ids(part)[:].tolist()) for part in prepared.files}
    return {part: each.split(END_OF_TEXT)[:-1] for part, each in text.items()}


def test_the_last_shard_is_the_validation_part_whatever_its_size(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(10)]
    corpus = load("text", shards(tmp_path / "set", texts), last_file=True)
    assert decoded(held_out(corpus, tmp_path)) == {"train": texts[:9], "val": texts[9:]}
    words = describe(corpus, survey(corpus, tmp_path))
    assert words.startswith("4 files (parquet); train is 3 of them; val is shard_00003.parquet; 10 documents")


def test_files_that_are_named_are_the_last_as_they_are_given(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"of {name}")
    corpus = load("text", *(tmp_path / f"{name}.txt" for name in "cab"), last_file=True)
    assert [(piece.part, piece.text) for piece in corpus.read()] == [
        ("train", "of c"),
        ("train", "of a"),
        ("val", "of b"),
    ]


def test_a_part_that_is_named_stays_what_it_is(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(9)]
    for name, part in (("train_0", texts[:3]), ("train_1", texts[3:6]), ("test_0", texts[6:])):
        write_lines(tmp_path / "set" / f"{name}.jsonl", [{"text": text} for text in part])
    cut = load("text", tmp_path / "set", last_file=True)
    assert decoded(held_out(cut, tmp_path)) == {"train": texts[:3], "val": texts[3:6], "test": texts[6:]}
    (tmp_path / "set" / "test_0.jsonl").rename(tmp_path / "set" / "valid_0.jsonl")
    named = load("text", tmp_path / "set", last_file=True)
    assert decoded(held_out(named, tmp_path)) == {"train": texts[:6], "val": texts[6:]}


def test_one_file_or_a_stream_is_refused(tmp_path: Path) -> None:
    shards(tmp_path / "set", ["a", "b"])
    with pytest.raises(UserError, match=r"^data.split=last_file: .* data=text has one to learn from; .*=position"):
        held_out(load("text", tmp_path / "set", last_file=True), tmp_path)
    with pytest.raises(UserError, match=r"^data.split=last_file: .* data=hub is a stream; .*=document"):
        held_out(load("hub", tmp_path / "set", last_file=True), tmp_path)
    with pytest.raises(UserError, match=r"data.test_fraction=0.1: data.split=last_file holds out one whole file"):
        Split("last_file", 0.1, 0.1)
    with pytest.raises(UserError, match=r"data.split=files: must be one of position, document, last_file"):
        Split("files", 0.1, 0.0)


def test_the_last_file_of_ids_is_held_out(tmp_path: Path) -> None:
    for i in range(3):
        raw(tmp_path / "ids" / f"{i}.bin", [i] * 5)
    assert ids_of(opened(tmp_path / "ids", split=BY_FILE)) == {"train": [0] * 5 + [1] * 5, "val": [2] * 5}
    raw(tmp_path / "named" / "train.bin", [0] * 5)
    raw(tmp_path / "named" / "val.bin", [1] * 5)
    assert ids_of(opened(tmp_path / "named", split=BY_FILE)) == {"train": [0] * 5, "val": [1] * 5}
    with pytest.raises(UserError, match=r"data.split=last_file: .*train.bin is the only one to learn from"):
        opened(tmp_path / "named" / "train.bin", split=BY_FILE)


def test_the_last_file_of_conversations_is_held_out(tmp_path: Path) -> None:
    for name, count in (("a", 4), ("b", 3)):
        rows: list[Any] = [{"prompt": f"{i}+0=", "completion": f"{i}"} for i in range(count)]
        write_lines(tmp_path / f"{name}.jsonl", rows)
    found = sources.load(data_config("chat", path=str(tmp_path), split="last_file"))
    assert {part: len(rows) for part, rows in found.parts.items()} == {"train": 4, "val": 3}
    with pytest.raises(UserError, match=r"data.split=last_file: .* there is one to learn from"):
        sources.load(data_config("chat", path=str(tmp_path / "a.jsonl"), split="last_file"))


def test_a_run_on_shards_goes_on_and_is_measured_on_the_last(
    run: Any, evaluate: Any, command: Any, tmp_path: Path, text_file: Path
) -> None:
    lines = text_file.read_text().splitlines()[:1000]
    folder = shards(tmp_path / "set", lines, 400)
    words = (*QUICK, f"data.path={folder}", "data.split=last_file")
    run(tmp_path / "run", *words)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    found = evaluate(last)
    assert_is_the_runs_own(found, tmp_path / "run")
    assert found["bytes"] == sum(len(line) for line in lines[800:]) - 1
    again = evaluate(last, "--data", folder)  # the same text, of which the same part counts
    assert again["data"] == found["data"] | {"name": str(folder)}
    assert again["nats_per_token"] == found["nats_per_token"]
    assert evaluate(last, "--data", text_file)["data"]["split"] == "all"  # one file has no last one
    ids = command("prepare", "data=text", *words[-2:], "data.cache_dir=cache", "--to", "bin", "--out", "ids")
    assert ids.returncode == 0, ids.stderr
    assert (tmp_path / "ids" / "val.bin").stat().st_size == 2 * sum(len(line) + 1 for line in lines[800:])
    more = (*words, "trainer.max_steps=4")
    assert run(tmp_path / "run", *more, resume=True)["steps"] == 4
    shards(folder, [*lines[:800], "another", *lines[800:]], 400)
    with pytest.raises(UserError, match="the text has changed since"):
        run(tmp_path / "run", *more, "trainer.max_steps=6", resume=True)
    assert_refused(command("train", *words[:-2], f"data.path={text_file}", "data=text", words[-1]), "last of several")


def test_the_rule_is_no_part_of_the_text_but_the_parts_are(tmp_path: Path) -> None:
    """So a run is not resumed with other parts, and files that are named as these parts are the same text."""
    texts = [f"document {i}" for i in range(9)]
    shards(tmp_path / "set", texts)
    by_file = survey(load("text", tmp_path / "set", last_file=True), tmp_path).sha256
    assert survey(load("text", tmp_path / "set"), tmp_path).sha256 != by_file
    named = shards(tmp_path / "named", texts)
    for i, name in enumerate(("train-0", "train-1", "val-0")):
        (named / f"shard_{i:05}.parquet").rename(named / f"{name}.parquet")
    assert survey(load("text", named, options=TextOptions()), tmp_path).sha256 == by_file
