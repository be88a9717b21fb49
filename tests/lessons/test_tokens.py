"""Chapter 6: the sentences' tokens are those of the lesson."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptlab.data.tokenizers import BPETokenizer
from gptlab.lessons import chapter_06_tokens as chapter


def test_characters_and_words_of_the_sentence() -> None:
    assert len(chapter.as_characters("Tokenization is fun!")) == 20
    assert len({*chapter.as_characters("Tokenization is fun!")}) == 14
    assert chapter.as_words("Tokenization is fun!") == ["Tokenization", "is", "fun", "!"]


def test_the_sentences_have_the_lessons_tokens_of_gpt2(data_dir: Path) -> None:
    if not (data_dir / "gpt2" / "vocab.bpe").is_file():
        pytest.skip("GPTLAB_DATA has no gpt2/vocab.bpe")
    tokenizer = BPETokenizer.gpt2(data_dir)
    assert tokenizer.encode("Every effort moves you").tolist() == [6109, 3626, 6100, 345]
    assert tokenizer.encode("Your journey").tolist() == [7120, 7002]
    assert chapter.pieces(tokenizer, "Your journey") == ["Your", " journey"]


def test_the_sentence_has_the_lessons_tokens_of_gpt4(data_dir: Path) -> None:
    if not (data_dir / "cl100k_base.tiktoken").is_file():
        pytest.skip("GPTLAB_DATA has no cl100k_base.tiktoken")
    assert BPETokenizer.cl100k_base(data_dir).encode("Tokenization is fun!").tolist() == [3404, 2065, 374, 2523, 0]


def test_a_vocabulary_that_is_not_there_is_skipped_with_a_sentence(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(raw_dir: Path) -> None:
        raise chapter.UserError("its vocabulary is not there")

    monkeypatch.setattr(BPETokenizer, "gpt2", refuse)
    monkeypatch.setattr(BPETokenizer, "cl100k_base", refuse)
    chapter.main()
    said = capsys.readouterr().out
    assert "gpt2 is skipped. its vocabulary is not there" in said
    assert "characters: 20, of which 14 different" in said
