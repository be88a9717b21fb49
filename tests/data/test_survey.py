"""What is read of a text, and what is not, stands in the log."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from gptlab.data import corpora
from gptlab.data.prepare import prepare
from gptlab.data.prepared import Prepared
from gptlab.data.split import Split
from gptlab.data.survey import survey
from gptlab.data.text_options import TextOptions
from gptlab.data.tokenizers import END_OF_TEXT, TokenizerConfig
from gptlab.system.errors import UserError

STORIES = [f"Story {i}.\nIts end is {i * i}." for i in range(60)]


def prepared(path: Path, tokenizer: str = "char", split: Split | None = None, **options: Any) -> Prepared:
    cache = path.parent / "cache"
    corpus = corpora.load("text", [str(path)], cache, cache, options=TextOptions(**options))
    return prepare(corpus, split or Split("position", 0.2, 0.0), TokenizerConfig(tokenizer, None), cache, cache)


def ids(found: Prepared) -> list[int]:
    return [int(i) for part in found.files for i in found.ids(part)[:]]


def log(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_published_stories_end_where_they_end_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in STORIES))
    (tmp_path / "stories.txt").write_text(f"\n{END_OF_TEXT}\n".join(STORIES))
    (tmp_path / "inline.txt").write_text(END_OF_TEXT.join(STORIES) + END_OF_TEXT)
    (tmp_path / "ended.jsonl").write_text("\n".join(json.dumps({"text": text + END_OF_TEXT}) for text in STORIES))
    expected = ids(prepared(tmp_path / "rows.jsonl"))
    size = sum(map(len, STORIES))
    for name, kind in (("stories.txt", "prose"), ("inline.txt", "prose"), ("ended.jsonl", "json")):
        caplog.clear()
        found = prepared(tmp_path / name)
        assert found.tokenizer.end_of_text is not None
        assert ids(found) == expected
        assert ids(found).count(found.tokenizer.end_of_text) == 60
        assert log(caplog) == [
            f'text: {name} ({kind}); 60 documents; {size:,} characters; "{END_OF_TEXT}" between documents'
        ]


def test_separators_can_be_left_as_text_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "stories.txt").write_text(END_OF_TEXT.join(STORIES))
    found = prepared(tmp_path / "stories.txt", separator=None)
    assert found.tokenizer.end_of_text is None
    assert found.tokenizer.decode(ids(found)).count(END_OF_TEXT) == 59
    (warned,) = log(caplog)
    assert f"{END_OF_TEXT} stands 59 times in the text, and is read as 13 ordinary characters each time" in warned
    assert f"\"data.separator='{END_OF_TEXT}'\"" in warned


def test_a_separator_that_does_not_stand_in_the_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("---".join(STORIES))
    assert prepared(tmp_path / "stories.txt", separator="---").files
    with pytest.raises(UserError, match=r"data.separator='%%'.*: does not stand in the text; leave it out"):
        prepared(tmp_path / "stories.txt", separator="%%")
    with pytest.raises(UserError, match=r"data.separator=''.*: nothing stands between any two characters"):
        TextOptions(separator="")


def test_a_separator_is_found_in_the_form_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "pages.txt").write_text("\f".join(STORIES))
    pages = ids(prepared(tmp_path / "pages.txt", separator="\\f"))
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in STORIES))
    assert pages == ids(prepared(tmp_path / "rows.jsonl"))
    (tmp_path / "lines.txt").write_bytes("\r\n".join(STORIES).encode())
    by_line = ids(prepared(tmp_path / "lines.txt", separator="\\n"))
    assert ids(prepared(tmp_path / "lines.txt", separator="\\r\\n")) == by_line


def test_a_separator_is_missed_only_where_all_has_been_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in [*STORIES, "a%%b"]))

    def read(count: int, separator: str) -> int:
        options = TextOptions(separator=separator)
        corpus = corpora.load("text", [str(tmp_path / "rows.jsonl")], tmp_path, tmp_path, options=options)
        return survey(corpora.first_documents(corpus, count), tmp_path).documents

    assert read(9, "%%") == 9  # it may stand further on
    assert read(99, "%%") == 62
    with pytest.raises(UserError, match=r"does not stand in the text"):
        read(99, "++")


def test_parts_of_one_name_are_told_apart_and_empty_files_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for part in ("train", "test"):
        (tmp_path / "set" / part).mkdir(parents=True)
        (tmp_path / "set" / part / "data.txt").write_text("\n".join(STORIES))
    prepared(tmp_path / "set")
    assert "2 files (prose); train is train/data.txt; test is test/data.txt; 2 documents;" in log(caplog)[0]
    for name in "abc":
        (tmp_path / "none").mkdir(exist_ok=True)
        (tmp_path / "none" / f"{name}.txt").write_text("\n")
    with pytest.raises(UserError, match=r"data.path=\S+none/a.txt and 2 others: each is empty: give a text"):
        prepared(tmp_path / "none")


def test_rows_without_text_are_counted_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": text} for text in STORIES] + [{"text": None}, {"url": "x"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepared(tmp_path / "rows.jsonl")
    assert log(caplog) == ["data.text_key=text: rows without such a text are skipped: 2 of 62"]
    (tmp_path / "none.jsonl").write_text("\n".join(map(json.dumps, [{"text": None}, {"text": ""}])))
    with pytest.raises(UserError, match=r"none.jsonl is without text: data.text_key=text is null or empty .* \(2\)"):
        prepared(tmp_path / "none.jsonl")


def test_parts_of_its_own_are_the_parts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "set"
    folder.mkdir()
    for name, texts in {"train": STORIES[:40], "valid": STORIES[40:50], "test": STORIES[50:]}.items():
        (folder / f"s-{name}.txt").write_text("\n".join(texts))
    (folder / "README.md").write_text("A card.")
    found = prepared(folder)
    texts = {
        part: found.tokenizer.decode(found.ids(part)[:].tolist()).removesuffix(END_OF_TEXT) for part in found.files
    }
    assert texts == {
        **{"train": "\n".join(STORIES[:40]), "val": "\n".join(STORIES[40:50])},
        **{"test": "\n".join(STORIES[50:])},
    }
    assert "train is s-train.txt; val is s-valid.txt; test is s-test.txt; 3 documents; " in log(caplog)[0]
    assert log(caplog)[0].endswith("; not read: 1 README.md")
    with pytest.raises(UserError, match=r"data.test_fraction=0.1: the text has parts of its own \(train, val, test\)"):
        prepared(folder, split=Split("position", 0.2, 0.1))
    whole = prepared(folder, named_parts=False)
    assert whole.folder != found.folder
    assert [*whole.files] == ["train", "val"]


@pytest.mark.parametrize("split", [Split("position", 0.25, 0.0), Split("document", 0.25, 0.0)])
def test_a_part_that_is_missing_is_cut_from_the_train_part(tmp_path: Path, split: Split) -> None:
    for name, texts in {"train": STORIES[:40], "test": STORIES[40:]}.items():
        (tmp_path / "set" / f"{name}.jsonl").parent.mkdir(exist_ok=True)
        (tmp_path / "set" / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    found = prepared(tmp_path / "set", split=split)
    end = END_OF_TEXT.join
    texts = {part: found.tokenizer.decode(found.ids(part)[:].tolist()) for part in found.files}
    assert texts["test"] == end([*STORIES[40:], ""])
    if split.by == "position":
        assert texts["train"] + texts["val"] == end([*STORIES[:40], ""])
        assert len(texts["val"]) > 200
    else:
        assert sorted((texts["train"] + texts["val"]).split(END_OF_TEXT)) == sorted([*STORIES[:40], ""])


def test_a_survey_of_a_large_text_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptlab.data.survey.LARGE", 0)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in [*STORIES, None]))
    corpus = corpora.load("text", [str(tmp_path / "rows.jsonl")], tmp_path, tmp_path)
    first = survey(corpus, tmp_path)
    assert (first.documents, first.counts) == (60, {"rows without text": 1})
    (tmp_path / "rows.jsonl").chmod(0o600)
    monkeypatch.setattr(type(corpus), "read", None)  # it is not read again
    assert survey(corpus, tmp_path) == first
