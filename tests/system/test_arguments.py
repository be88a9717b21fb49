"""What a shell hands over for a variable that it does not know, or writes ~ in, in the flags of every command."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("verb", "words", "argument"),
    [
        ("generate", ["M", "--also", ""], "--also"),
        ("evaluate", [""], "MODEL"),
        ("evaluate", ["M", "--data", ""], "--data"),
        ("evaluate", ["M", "--data", " "], "--data"),
        ("evaluate", ["M", "--compare", ""], "--compare"),
        ("evaluate", ["M", "--memorised", "--sample", ""], "--sample"),
        ("export", ["", "DIR"], "MODEL"),
        ("export", ["M", ""], "DIR"),
        ("report", [""], "DIR"),
        ("report", ["DIR", "--out", ""], "--out"),
        ("report", ["DIR", "--metric", ""], "--metric"),
        ("report", ["DIR", "--baseline", ""], "--baseline"),
        ("report", ["DIR", "--reference", ""], "--reference"),
        ("report", ["--diff", "A", ""], "--diff"),
        ("tokenize", ["text", "--tokenizer", ""], "--tokenizer"),
        ("tokenize", ["text", "--data-dir", ""], "--data-dir"),
        ("bench", ["--json", ""], "--json"),
    ],
)
def test_nothing_is_neither_here_nor_the_default(
    verb: str, words: list[str], argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"gptlab.{verb}").main(words)
    assert stop.value.code == 2
    assert f"argument {argument}: is empty (a variable that the shell does not know?)" in capsys.readouterr().err


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from gptlab import evaluate, export, report, tokenize

    monkeypatch.setenv("HOME", "/home/me")
    args = evaluate.parser().parse_args(["~/m", "--data=~/x.txt", "--compare=~/n", "--sample=~/s"])
    assert (args.model, args.data, args.compare) == ("/home/me/m", "/home/me/x.txt", "/home/me/n")
    assert args.sample == Path("/home/me/s")
    assert export.parser().parse_args(["~/m", "~/d"]).dir == Path("/home/me/d")
    assert report.parser().parse_args(["~/d", "--out=~/o"]).out == Path("/home/me/o")
    assert tokenize.parser().parse_args(["x", "--tokenizer=~/r", "--data-dir=~/d"]).data_dir == "/home/me/d"
    with pytest.raises(SystemExit):
        report.parser().parse_args(["~nobody-has-this-name/x"])
    assert "~nobody-has-this-name/x: there is no such user" in capsys.readouterr().err


def test_a_file_may_be_named_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptlab.system.files import expand_user

    monkeypatch.chdir(tmp_path)
    (tmp_path / "~draft.txt").touch()
    assert expand_user("~draft.txt") == Path("~draft.txt")
