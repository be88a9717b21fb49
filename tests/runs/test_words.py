# ruff: noqa: RUF001 (letters of other alphabets)
"""Words as a shell hands them over, in Hydra's grammar."""

from __future__ import annotations

import errno
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from gptlab.runs.compose import refusals
from gptlab.runs.words import bare, is_read, readable, spelled
from gptlab.system.errors import UserError
from gptlab.system.terminal import pasteable
from tests.test_cli import RUN, assert_refused

TEXTS = (
    *("~/my.txt", "[~/draft].txt", "Café.txt", "Лиса", "東京", "mañana ☂.txt", "my file (1).txt", "a#b&c;d!e.txt"),
    *("it's.txt", 'say "hi".txt', "'quoted", "C:\\texts\\Café.txt", "a=b", "runs/lr=1e-3/x", "Ромео:", "ROMEO:\n"),
    *("<|endoftext|>", "x^2", "[draft].txt", "{x}.txt", "notes(1)", "notes (a, b).txt", "é[", "]é", "Who? (Me!)"),
)
KNOWN = (
    *("null", "true", "1e-3", "1_000", "my.txt", "C:\\texts\\my.txt", "a b", "'Café.txt'", '"a, é"', "ROMEO:", "''"),
    *("[1,2]", "{a:1}", "1,2", "range(1,4)", "tag(log,interval(1e-4,1e-2))", "${optim.lr}", "$HOME", "50%", "*.txt"),
)


def parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


@pytest.mark.parametrize("text", TEXTS)
def test_what_hydra_cannot_read_is_a_text(text: str) -> None:
    assert not is_read(f"x={text}")
    (word,) = readable([f"trainer.sample_prompt={text}"])
    assert parsed(word).value() == text
    assert readable([word]) == [word]  # a child process reads it again
    assert bare(word.partition("=")[2]) == text


@pytest.mark.parametrize("value", KNOWN)
def test_what_hydra_can_read_stays_as_it_is(value: str) -> None:
    words = ["-m", f"x={value}", f"+y={value}", f"++z={value}", "model", "--cfg", "job", "~optim"]
    assert readable(words) == words


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[Café.txt,b.txt]", ["Café.txt", "b.txt"]),
        ("[ ~/a.txt , [it's,1] ]", ["~/a.txt", ["it's", 1]]),
        ("['a, b',é,null]", ["a, b", "é", None]),
        ("{model.n_head:1,path:é}", {"model.n_head": 1, "path": "é"}),
        ("Œuf\\, thé", "Œuf, thé"),  # as an ASCII text with the same signs
        ("${oc.env:HOME}/Café.txt", "${oc.env:HOME}/Café.txt"),
    ],
)
def test_each_part_of_a_list_is_read_by_itself(value: str, expected: Any) -> None:
    assert parsed(spelled(f"x={value}")).value() == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Café.txt,Naïve.txt", ["Café.txt", "Naïve.txt"]),
        ("a.txt, ~/b.txt,3", ["a.txt", "~/b.txt", "3"]),
        ("choice(Café.txt,b)", ["Café.txt", "b"]),
        ("sort(é,b,reverse=true)", ["é", "b"]),
        ("é,'a, b'", ["é", "'a, b'"]),
    ],
)
def test_each_choice_of_a_sweep_is_read_by_itself(value: str, expected: list[str]) -> None:
    override = parsed(spelled(f"x={value}"))
    assert [bare(str(value)) for value in override.sweep_string_iterator()] == expected


@pytest.mark.parametrize("value", ["[a,b", "[é,b", "{x:1", "range(1,", "choice(é", "[a,,b]", "a,,b", "range(1,2,3,4)"])
def test_a_broken_list_is_left_to_hydra(value: str) -> None:
    assert readable([f"x={value}"]) == [f"x={value}"]


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = ["--config-dir", "~/conf", "--config-dir=~/conf", "hydra.run.dir=~/a b/${name}", "hydra.run.dir='~/c'"]
    expected = ["--config-dir", "/home/me/conf", "--config-dir=/home/me/conf"]
    assert readable(words) == [*expected, "hydra.run.dir='/home/me/a b/${name}'", "hydra.run.dir='/home/me/c'"]


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("data.path=", "data.path"),
        ("data.path=''", "data.path"),
        ('data.dir=""', "data.dir"),
        ("init_from=", "init_from"),
        ("resume= ", "resume"),
        ("+seed=", "seed"),
        ("model=", "model"),
    ],
)
def test_nothing_is_refused_by_the_name_of_its_key(word: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"{key}=: is empty .* leave {key} out"):
        readable([word])


def test_more_that_a_shell_or_a_text_processor_does() -> None:
    with pytest.raises(UserError, match=r"data\.path=“my\.txt”: has quotes that a shell does not know"):
        readable(["data.path=“my.txt”"])
    with pytest.raises(UserError, match="--config-dir: is empty"):
        readable(["--config-dir", ""])
    assert readable(["trainer.sample_prompt=“Ja”"]) == ["trainer.sample_prompt='“Ja”'"]


@pytest.mark.parametrize("text", ["2024", "1e3", "1.50", "1_000", "nan", "true", " 12 "])
@pytest.mark.parametrize("key", ["data.path", "++name", "init_from", "trainer.sample_prompt", "data.separator"])
def test_a_number_is_a_text_where_the_key_takes_one(key: str, text: str) -> None:
    (word,) = readable([f"{key}={text}"])
    assert parsed(word).value() == text.strip()
    assert readable([word]) == [word]


def test_numbers_stay_numbers_where_no_text_is_meant() -> None:
    words = ["data.path=null", "data.path=[1,b]", "data.path=choice(1,2)", "optim.lr=1e3", "data.separator=a,null"]
    assert readable(words) == words
    assert readable(["data.path=2023,b,'2024'"]) == ["data.path='2023',b,'2024'"]


@pytest.mark.parametrize("text", [*TEXTS, *KNOWN, "outputs/gpt1m/2026-11-20_12-00-00", "$(x) `y` !z", "back\\"])
def test_a_printed_word_can_be_pasted(text: str) -> None:
    (word,) = shlex.split(pasteable("resume", text))
    assert parsed(word).value() == text
    assert readable([word]) == [word] or text == "''"


def test_a_printed_word_is_as_plain_as_it_can_be() -> None:
    assert pasteable("resume", "outputs/gpt1m/2026-11-20_12-00-00") == "resume=outputs/gpt1m/2026-11-20_12-00-00"
    assert pasteable("resume", "my run") == "\"resume='my run'\""
    assert pasteable("resume", "null") == "\"resume='null'\""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["data.path=[a,b"],
            ["data.path=[a,b: cannot be read as a list, a choice or a range (", "\"data.path='[a,b'\""],
        ),
        (["seed=range(1,"], ["seed=range(1,: cannot be read as a list, a choice or a range ("]),
        (["données=1"], ["données: there is no such key; a word is key=value"]),
        (["data.path=my", "file.txt"], ["file.txt: must be key=value", "a value with spaces needs quotes"]),
        (["trainer.sample_prompt=Ja, já"], ["has several values; add -m", "\"trainer.sample_prompt='Ja, já'\""]),
        (["data=text", "data.path=['']"], ["data.path=['']: must be a file"]),
        (["data=text", "data.path=123"], ["data.path=123: no such file"]),
        (["data=text", "data.path=[123]"], ["data.path=[123]: must be a file", "\"data.path='123'\""]),
        (["data=text", "trainer.max_steps=4\r"], ["'trainer.max_steps=4\\r': ends in a carriage return"]),
        (["data=text", "data.path=caf\udce9"], ["'data.path=caf\\udce9': has bytes that are no UTF-8"]),
        (["resume=''"], ["resume=: is empty"]),
        (["resume=~nobody-has-this-name/x"], ["~nobody-has-this-name/x: there is no such user"]),
        (["-m", "seed=1,2", "data.path="], ["data.path=: is empty"]),
        (["trainer.sample_prompt=${x"], ["trainer.sample_prompt"]),
    ],
)
def test_one_message_and_nothing_is_left(command: Any, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    assert_refused(command("train", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_name_is_no_utf8_is_refused_before_the_run(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert_refused(command("train", *RUN), "has bytes that are no UTF-8; choose another folder by hydra.run.dir=...")
    assert list(folder.iterdir()) == []


def test_a_run_directory_that_leads_through_a_file_is_refused(command: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = command("train", *RUN, "hydra.run.dir=file/run")
    assert_refused(refused, "file/run", "Not a directory; choose another folder")


def test_a_full_disk_is_said_of_what_is_full() -> None:
    with pytest.raises(OSError, match="No space left"), refusals():
        raise OSError(errno.ENOSPC, "No space left on device")  # of standard output, which has no name


def test_a_run_by_unquoted_words_and_the_commands_it_prints(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text lies in the home folder, the run in one whose name a shell and Hydra would both take apart."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "Лиса (1).txt").write_text("Лиса.\n" * 200, encoding="utf-8")
    words = (*RUN, "data.path=~/Лиса (1).txt", "trainer.sample_prompt=Лиса", "hydra.run.dir=~/it's é, [1]/$x")
    trained = command("train", *words)
    assert trained.returncode == 0, trained.stderr
    run_dir = tmp_path / "home" / "it's é, [1]" / "$x"
    assert (run_dir / "samples.txt").read_text(encoding="utf-8").count("\nЛиса") == 4
    printed = [line.strip() for line in trained.stdout.splitlines() if line.startswith("  python -m gptlab.")]
    assert len(printed) == 2
    for line in printed:
        echo = "import json, sys; print(json.dumps(sys.argv[3:]))"
        run = line.replace("python", f"{shlex.quote(sys.executable)} -c {shlex.quote(echo)}", 1)
        heard = subprocess.run(["bash", "-c", run], capture_output=True, text=True, check=True).stdout
        arguments = __import__("json").loads(heard)
        again = command(line.split()[2].removeprefix("gptlab."), *arguments)
        assert again.returncode == 0, again.stderr
    assert (run_dir / "summary.json").read_text().count('"steps": 14') == 1
