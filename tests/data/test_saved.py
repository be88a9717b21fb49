"""What `save_to_disk` writes is read as the library itself reads it, and nothing else that lies in its folder."""

from __future__ import annotations

import json
import struct
from collections import Counter, deque
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from gptlab.data.chat.conversations import read_examples
from gptlab.data.find_files import find_texts
from gptlab.data.prepare import prepare
from gptlab.data.split import Split
from gptlab.data.survey import describe, survey
from gptlab.data.text_files import table_rows
from gptlab.data.text_options import TextOptions
from gptlab.data.tokenizers import TokenizerConfig
from gptlab.system.errors import UserError
from tests.data.test_corpora import load, texts, write_lines
from tests.test_evaluate import QUICK, assert_is_the_runs_own, summary

TEXTS = [f"Row {i} of it: z\u00fc\u4e2d {i * i}." for i in range(50)]


def saved(datasets: Any, folder: Path, texts: list[str] | None = None, shards: int = 1, key: str = "text") -> Path:
    rows = {key: TEXTS if texts is None else texts, "url": [f"http://a.b/{i}" for i in range(len(texts or TEXTS))]}
    datasets.Dataset.from_dict(rows).save_to_disk(folder, num_shards=shards)
    return folder


def splits(datasets: Any, folder: Path, **of_split: list[str]) -> Path:
    each = {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in of_split.items()}
    datasets.DatasetDict(each).save_to_disk(folder)
    return folder


def sha256(name: str, path: Path) -> str:
    return survey(load(name, path), path.parent).sha256


@pytest.mark.parametrize("name", ["saved", "text"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_data_set_gives_the_texts_that_the_library_gives(
    datasets: Any, tmp_path: Path, name: str, shards: int
) -> None:
    corpus = load(name, saved(datasets, tmp_path / "set", shards=shards))
    assert texts(corpus) == texts(corpus) == datasets.load_from_disk(tmp_path / "set")["text"][:] == TEXTS
    assert (corpus.name, corpus.documents, corpus.parts) == (name, True, [])
    assert texts(load(name, tmp_path / "set", max_documents=3)) == TEXTS[:3]


def test_rows_that_were_chosen_and_shuffled_come_in_the_librarys_order(datasets: Any, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": TEXTS}).shuffle(seed=3).select(range(20))
    rows.save_to_disk(tmp_path / "set")
    found = texts(load("saved", tmp_path / "set"))
    assert found == rows["text"][:]
    assert found != TEXTS[:20]


def test_what_the_library_leaves_in_the_folder_is_no_part_of_the_data_set(datasets: Any, tmp_path: Path) -> None:
    saved(datasets, tmp_path / "set", shards=3)
    saved(datasets, tmp_path / "set", TEXTS[:9])  # the three files of before stay
    datasets.load_from_disk(tmp_path / "set").map(lambda row: {"text": row["text"].upper()})  # leaves a cache
    assert len([*(tmp_path / "set").glob("*.arrow")]) == 5
    for name in ("saved", "text"):
        corpus = load(name, tmp_path / "set")
        assert texts(corpus) == TEXTS[:9]
        assert corpus.found
        assert corpus.found.not_read == {"Arrow file that is not of the saved data set": 4}


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "dev"])
def test_splits_are_the_parts(datasets: Any, tmp_path: Path, validation: str) -> None:
    splits(datasets, tmp_path / "set", **{"test": TEXTS[40:], validation: TEXTS[30:40], "train": TEXTS[:30]})
    corpus = load("saved", tmp_path / "set")
    assert corpus.parts == ["train", "val", "test"]
    assert [(piece.part, piece.text) for piece in corpus.read()] == [
        *(("train", text) for text in TEXTS[:30]),
        *(("val", text) for text in TEXTS[30:40]),
        *(("test", text) for text in TEXTS[40:]),
    ]
    words = describe(corpus, survey(corpus, tmp_path))
    assert words.startswith("3 files (arrow); train is train/data-00000-of-00001.arrow; val is ")
    whole = load("saved", tmp_path / "set", options=TextOptions(named_parts=False))
    assert (whole.parts, sorted(texts(whole))) == ([], sorted(TEXTS))


def test_splits_of_other_names_are_asked_about(datasets: Any, tmp_path: Path) -> None:
    splits(datasets, tmp_path / "set", train=TEXTS[:30], test=TEXTS[30:40], unsupervised=TEXTS[40:])
    with pytest.raises(UserError, match=r"unsupervised/data-\S+: data.named_parts=true reads those parts alone"):
        load("saved", tmp_path / "set")
    assert texts(load("saved", tmp_path / "set", options=TextOptions(named_parts=True))) == TEXTS[:40]


def test_splits_without_rows_are_named_and_left_out(datasets: Any, tmp_path: Path) -> None:
    """Which the library itself cannot open."""
    splits(datasets, tmp_path / "set", train=TEXTS, test=[])
    with pytest.raises(IndexError):
        datasets.load_from_disk(tmp_path / "set")
    corpus = load("saved", tmp_path / "set")
    assert (texts(corpus), corpus.parts) == (TEXTS, [])
    assert corpus.found
    assert corpus.found.not_read == {"split without rows, test": 1}


def test_the_form_in_which_rows_were_to_come_changes_nothing(datasets: Any, tmp_path: Path) -> None:
    """A data set of someone who had jax."""
    saved(datasets, tmp_path / "set")
    state = json.loads((tmp_path / "set" / "state.json").read_text())
    (tmp_path / "set" / "state.json").write_text(json.dumps(state | {"_format_type": "jax"}))
    assert texts(load("saved", tmp_path / "set")) == TEXTS


def test_the_identity_is_that_of_the_text_in_any_form(datasets: Any, tmp_path: Path) -> None:
    first = sha256("saved", saved(datasets, tmp_path / "set"))
    assert sha256("saved", saved(datasets, tmp_path / "again", shards=4)) == first
    assert sha256("text", write_lines(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])) == first
    assert sha256("saved", saved(datasets, tmp_path / "other", TEXTS[1:])) != first


def test_the_key_is_that_of_the_text(datasets: Any, tmp_path: Path) -> None:
    saved(datasets, tmp_path / "set", key="body")
    assert texts(load("saved", tmp_path / "set", options=TextOptions("body"))) == TEXTS
    with pytest.raises(UserError, match=r"^data.text_key=text: \S+ has no such column of text; there are body \(str"):
        texts(load("saved", tmp_path / "set"))


def test_such_folders_below_a_folder_are_read_each_by_its_index(datasets: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(datasets, tmp_path / "all" / name, [name, f"{name}{name}"], shards=2)
    saved(datasets, tmp_path / "all" / "b", ["b"])
    (tmp_path / "all" / "c.txt").write_text("c")
    assert texts(load("text", tmp_path / "all")) == ["a", "aa", "b", "c"]
    assert texts(load("saved", tmp_path / "all" / "[ab]")) == ["a", "aa", "b"]


def test_conversations_come_from_such_a_folder(datasets: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} + 1 =", "completion": str(i + 1)} for i in range(9)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    datasets.load_from_disk(tmp_path / "set").map(lambda row: {"completion": "no"})
    found = find_texts([tmp_path / "set"], TextOptions())
    examples = read_examples(file.path for file in found.files)
    assert [each.messages[-1].content for each in examples.rows] == [row["completion"] for row in rows]


def damage(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


DAMAGE = {
    "state.json": [
        ("{", "the index of the data set that is saved there is damaged"),
        ({"_data_files": []}, "the data set that is saved there has no rows: give one with texts"),
        ({"_data_files": 3}, "is damaged"),
        ({}, "is damaged"),
        ({"_data_files": [{"filename": "../other.arrow"}]}, r"damaged \('../other.arrow' is not in its folder\)"),
        ({"_data_files": [{"filename": "data-1.arrow"}]}, r"saved there lacks its file data-1.arrow; copy all"),
    ],
    "dataset_dict.json": [
        ({"splits": []}, "has no rows"),
        ({"splits": ["train"]}, "is damaged"),
        ({"splits": ["../set"]}, "is not in its folder"),
        ([], "is damaged"),
    ],
}


@pytest.mark.parametrize(
    ("name", "content", "message"), [(name, *each) for name, wrong in DAMAGE.items() for each in wrong]
)
def test_a_damaged_index_is_refused(datasets: Any, tmp_path: Path, name: str, content: object, message: str) -> None:
    damage(saved(datasets, tmp_path / "set"), name, content)
    with pytest.raises(UserError, match=message):
        load("saved", tmp_path / "set")


def test_a_file_that_is_cut_off_is_refused(datasets: Any, tmp_path: Path) -> None:
    (file,) = saved(datasets, tmp_path / "set").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-900])
    with pytest.raises(UserError, match=r"^data.path=\S+arrow cannot be read"):
        texts(load("saved", tmp_path / "set"))


@pytest.mark.parametrize("form", ["stream", "file"])
def test_offsets_that_lead_out_of_a_column_of_arrow_are_refused(datasets: Any, tmp_path: Path, form: str) -> None:
    """What they lead to here is the padding; pyarrow would read on as far as they say."""
    (file,) = saved(datasets, tmp_path / "set", ["abcd", "efghi"]).glob("*.arrow")
    if form == "file":
        table = pyarrow.ipc.open_stream(file.read_bytes()).read_all()
        with pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    content, offsets = file.read_bytes(), struct.pack("<3i", 0, 4, 9)
    assert texts(load("saved", tmp_path / "set")) == ["abcd", "efghi"]
    assert content.count(offsets) == 1
    file.write_bytes(content.replace(offsets, struct.pack("<3i", 0, 4, 14)))
    with pytest.raises(UserError, match=r"^data.path=\S+arrow cannot be read: In column 0: .* out of bounds: 14 > 9$"):
        texts(load("saved", tmp_path / "set"))
    with pytest.raises(UserError, match=r"out of bounds: 14 > 9$"):
        deque(table_rows(file, "arrow", TextOptions(), ["text"]), maxlen=0)


def test_what_is_no_saved_data_set_names_the_way_out(datasets: Any, tmp_path: Path) -> None:
    saved(datasets, tmp_path / "all" / "inside")
    (tmp_path / "my.txt").write_text("a")
    refusals = {
        "absent": "absent: no such folder; give a folder that save_to_disk",
        "my.txt": "my.txt: is a file; give a folder that save_to_disk",
        "all": r"no data set lies in this .*; one lies in data.path=\S+inside; .* by data=text data.path=\S+all",
    }
    for name, message in refusals.items():
        with pytest.raises(UserError, match=message):
            load("saved", tmp_path / name)
    with pytest.raises(UserError, match=r"data=saved needs a folder of save_to_disk: add data.path=DIR"):
        load("saved")
    with pytest.raises(UserError, match=r"data.format=parquet: data=saved reads what save_to_disk wrote"):
        load("saved", tmp_path / "all" / "inside", options=TextOptions(format="parquet"))
    with pytest.raises(UserError, match=r"data=hub: save_to_disk has written \S+inside, .* data=saved data.path="):
        load("hub", tmp_path / "all" / "inside")


def test_rows_without_text_are_counted_and_nothing_but_them_is_refused(datasets: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a", None, "", "b"]}).save_to_disk(tmp_path / "set")
    counts = Counter[str]()
    assert [piece.text for piece in load("saved", tmp_path / "set").read(counts)] == ["a", "b"]
    assert counts == {"rows without text": 2}
    datasets.Dataset.from_dict({"text": [None, ""]}).save_to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match=r"data.text_key=text is null or empty in its rows \(2\); name another key"):
        prepare(
            load("saved", tmp_path / "blank"),
            Split("position", 0.1, 0.0),
            TokenizerConfig("byte", None),
            tmp_path,
            tmp_path,
        )


def test_a_run_on_a_saved_data_set_is_measured_prepared_and_goes_on(
    datasets: Any, run: Any, evaluate: Any, command: Any, tmp_path: Path, text_file: Path
) -> None:
    lines = text_file.read_text().splitlines()
    folder = splits(datasets, tmp_path / "set", train=lines[:900], validation=lines[900:1000])
    run(tmp_path / "run", *QUICK, "data=saved", f"data.path={folder}")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert_is_the_runs_own(evaluate(last), tmp_path / "run")
    on_it = evaluate("uniform", "--data", folder, "--split", "val")
    assert on_it["data"]["sha256"] == summary(tmp_path / "run")["data"]["sha256"]
    ids = command("prepare", "data=saved", f"data.path={folder}", "data.cache_dir=cache", "--to", "bin", "--out", "ids")
    assert ids.returncode == 0, ids.stderr
    assert (tmp_path / "ids" / "val.bin").stat().st_size == 2 * sum(len(line) + 1 for line in lines[900:1000])
    moved = folder.rename(tmp_path / "moved")
    more = (*QUICK, "data=saved", f"data.path={moved}", "trainer.max_steps=9")
    run(tmp_path / "run", *more, resume=True)
    splits(datasets, moved, train=lines[:901], validation=lines[900:1000])
    with pytest.raises(UserError, match="the text has changed since"):
        run(tmp_path / "run", *more, "trainer.max_steps=11", resume=True)
