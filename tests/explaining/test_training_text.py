"""The training text is the beginning of what a run has learned from, or of what --data names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gptlab.evaluation.candidates import open_candidate
from gptlab.explaining import training_text
from gptlab.explaining.training_text import open_training_text
from gptlab.system.errors import UserError
from tests.data.test_corpora import fineweb_edu
from tests.test_evaluate import QUICK


def joined(found: training_text.TrainingText) -> str:
    return "".join(piece.text for piece in found.pieces)


def test_it_is_the_beginning_of_the_training_part(
    trained: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, opened = text_file.read_text(), open_candidate(str(trained))
    train = text[: int(len(text) * 0.9)]
    found = open_training_text(opened, None)
    assert joined(found) == train
    assert found.words == f"the training part of text ({len(train):,} characters)"
    monkeypatch.setattr(training_text, "MOST_CHARACTERS", 1234)
    found = open_training_text(opened, None)
    assert joined(found) == train[:1234]
    assert found.words == "the first 1,234 characters of the training part of text"
    assert open_training_text(opened, str(text_file)).words.endswith(f" of {text_file.name}")


def test_of_ids_on_disk_the_beginning_is_decoded(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    fineweb_edu(tmp_path / "set")
    place = f"data.path={tmp_path / 'set'}"
    run(tmp_path / "run", *QUICK, "data=hub", place, "data.val_fraction=0.4", "tokenizer=byte", "model.block_size=5")
    opened = open_candidate(str(tmp_path / "run"))
    whole = joined(open_training_text(opened, None))
    monkeypatch.setattr(training_text, "MOST_CHARACTERS", 4)
    assert joined(open_training_text(opened, None)) == whole[:4]
    assert len(whole) > 4


def test_a_text_that_is_not_known_is_said(trained: Path) -> None:
    opened = open_candidate(str(trained))
    assert opened.info is not None

    def with_data(**data: Any) -> Any:
        assert opened.info is not None
        config = opened.config | {"data": opened.data | data}
        return dataclasses.replace(opened, info=dataclasses.replace(opened.info, config=config))

    with pytest.raises(UserError, match=r"learned from conversations .* give a text with --data NAME_OR_FILE"):
        open_training_text(with_data(name="chat"), None)
    with pytest.raises(UserError, match="if it has moved, give it with --data FILE"):
        open_training_text(with_data(path="/gone.txt"), None)
    stranger = dataclasses.replace(opened, info=dataclasses.replace(opened.info, config={}))
    with pytest.raises(UserError, match="brings no text: give one with --data FILE"):
        open_training_text(stranger, None)
    changed = dataclasses.replace(opened, info=dataclasses.replace(opened.info, data_sha256="0" * 64))
    with pytest.raises(UserError, match="has changed since its training"):
        open_training_text(changed, None)
