"""`python -m gptlab.tokenize`, as a user types it."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest

from tests.test_cli import assert_refused


def rows(stdout: str) -> dict[str, list[str]]:
    """The cells of the table, by tokenizer."""
    cells = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in stdout.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in cells if row[0]}


def test_the_lessons_three_strategies_stand_side_by_side(command: Any, data_dir: Path) -> None:
    result = command("tokenize", "Tokenization is fun!", "--data-dir", str(data_dir))
    assert result.returncode == 0, result.stderr
    assert "gpt2: 5 tokens\nToken|ization| is| fun|!\n30642 1634 318 1257 0\n" in result.stdout
    table = rows(result.stdout)
    assert table["char"][:4] == ["14", "20", "14", "1.000"]  # vocabulary, tokens, distinct, bytes per token
    assert table["word"][:4] == ["5", "4", "4", "5.000"]
    assert table["gpt2"][:4] == ["50,257", "5", "5", "4.000"]
    assert table["byte"][1] == "20"


def test_without_any_vocabulary_bpe_learns_one(command: Any) -> None:
    result = command("tokenize", "aaaa aaaa bbbb aaaa", "--data-dir", "nowhere", "--vocab-size", "258")
    assert result.stdout.startswith("bpe: 11 tokens\naa|aa| |aa|aa| |b|b|b|b| |aa|aa\n".replace("11", "13"))
    assert rows(result.stdout)["bpe"][0] == "258"
    assert "gpt2" not in result.stdout


def test_a_file_is_read_and_long_text_is_cut_aloud(command: Any, text_file: Path) -> None:
    result = command("tokenize", str(text_file), "--tokenizer", "char", "--tokenizer", "word", "--limit", "7")
    count = len(text_file.read_text())
    assert f"char: {count:,} tokens" in result.stdout
    assert f"... and {count - 7:,} more: --limit {count}" in result.stdout
    shown = result.stdout.partition("word: ")[2].splitlines()[1].replace("↵", "").split("|")
    assert len(shown) == 7
    assert rows(result.stdout)["char"][1] == f"{count:,}"


def test_a_folder_is_its_texts_and_a_word_is_a_word(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a text")
    assert "6 bytes, 6 characters" in command("tokenize", "notes/", "--tokenizer", "byte").stdout
    assert "5 bytes, 5 characters" in command("tokenize", "notes", "--tokenizer", "byte").stdout


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16"])
def test_standard_input_is_read(command: Any, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("a\tb\r\n".encode(code))))
    assert "a|\\t|b|↵\n" in command("tokenize", "-", "--tokenizer", "char").stdout


def test_a_special_token_is_text_unless_asked_for(command: Any, data_dir: Path) -> None:
    arguments = ("tokenize", "a<|endoftext|>b", "--tokenizer", "gpt2", "--data-dir", str(data_dir))
    assert "a|<|||end|of|text|||>|b\n" in command(*arguments).stdout
    assert "gpt2: 3 tokens\na|<|endoftext|>|b\n64 50256 65\n" in command(*arguments, "--special").stdout


def test_a_token_that_cuts_a_character_shows_its_bytes(command: Any) -> None:
    assert "\\xc3|\\xa9\n195 169\n" in command("tokenize", "é", "--tokenizer", "byte").stdout


def test_a_runs_own_tokenizer_can_be_asked(command: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "char").mkdir()
    assert "char: 2 tokens" in command("tokenize", "ab", "--tokenizer", "char").stdout  # a name comes first
    result = command("tokenize", "the cat Ω", "--tokenizer", str(trained))
    assert "t|h|e| |c|a|t| \n" in result.stdout
    assert "1 character" in result.stdout  # lost


def test_on_a_terminal_neighbours_have_different_colours(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    shown = command("tokenize", "ab", "--tokenizer", "char").stdout.splitlines()[1]
    colours = re.findall(r"\x1b\[([\d;]+)m[ab]", shown)
    assert len(set(colours)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hello", "--tokenizer", "gtp2"], ["tokenizer.name=gtp2: no such tokenizer; did you mean gpt2?"]),
        (["hello", "--tokenizer", "bpe", "--vocab-size", "3"], ["tokenizer.vocab_size=3: must be at least 257"]),
        ([""], ["the text is empty"]),
        (["{trained}/checkpoints/last.ckpt"], ["last.ckpt is a zip archive"]),
    ],
)
def test_what_tokenize_refuses(command: Any, trained: Path, arguments: list[str], words: list[str]) -> None:
    assert_refused(command("tokenize", *(a.format(trained=trained) for a in arguments)), *words)


def test_bytes_that_are_no_text_are_refused(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin").write_bytes("aü".encode("latin-1"))
    with (tmp_path / "latin").open(encoding="utf-8", errors="surrogateescape") as file:  # as `prepare_streams` has it
        monkeypatch.setattr("sys.stdin", file)
        assert_refused(command("tokenize", "-"), "standard input is not UTF-8 text (byte 0xfc at 1)")
