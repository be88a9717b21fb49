"""Votes on two answers: what is written is what training reads, whole lines, or nothing."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gptlab.data.chat.conversations import Message, Preference, read_examples
from gptlab.formats.opened import OpenedModel
from gptlab.serving import votes as votes_module
from gptlab.serving.votes import Votes
from gptlab.system.errors import UserError
from tests.serving.conftest import Served
from tests.serving.test_refusals import refused

LINE = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
TWO = [{"text": "the one", "seed": 3, "temperature": 0.8}, {"text": "the\u2028other", "seed": 4, "temperature": 1}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "votes.jsonl"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]


@pytest.mark.parametrize("better", [0, 1])
def test_a_vote_is_a_line_that_training_reads(
    serve: Any, ours: OpenedModel[Any], by_torch: OpenedModel[Any], path: Path, better: int
) -> None:
    served: Served = serve(ours, votes=Votes(path))
    assert not path.exists()
    for count in (1, 2):
        found = served.post("votes", prompt="To be", answers=TWO, better=better)
        assert found.status_code == 200, found.text
        assert found.json()["file"] == "votes.jsonl"
        assert json.loads(found.json()["line"]) == rows(path)[-1]
        assert len(rows(path)) == count
    texts = [str(each["text"]) for each in TWO]
    chosen, rejected = (Message("assistant", texts[at]) for at in (better, 1 - better))
    expected = Preference((Message("user", "To be"),), (chosen,), (rejected,))
    assert read_examples([path]).rows == [expected, expected]
    row = rows(path)[0]
    assert (row["chosen_model"], row["chosen_seed"], row["rejected_seed"]) == (ours.name, 3 + better, 4 - better)
    assert (row["chosen_temperature"], row["rejected_temperature"]) == ((0.8, 1) if better == 0 else (1, 0.8))
    assert row["time"].endswith("+00:00")
    Votes(path)  # which goes on with the file


def test_neither_is_kept_apart(serve: Any, ours: OpenedModel[Any], path: Path) -> None:
    served: Served = serve(ours, votes=Votes(path))
    found = served.post("votes", prompt="To be", answers=TWO, better=None).json()
    assert found["file"] == "votes.unranked.jsonl"
    assert not path.exists()
    [row] = rows(path.with_name("votes.unranked.jsonl"))
    assert row["tie"] == [each["text"] for each in TWO]
    assert row["seeds"] == [3, 4]
    Votes(path)


def test_without_a_file_the_line_is_told_and_kept_nowhere(
    serve: Any, ours: OpenedModel[Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    found = serve(ours).post("votes", prompt="To be", answers=TWO, better=0).json()
    assert found["file"] is None
    path.write_text(found["line"])
    assert len(read_examples([path]).rows) == 1
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"prompt": ""}, "prompt", "must be a text that is not empty"),
        ({"prompt": ["a"]}, "prompt", "must be a text"),
        ({"better": 2}, "better", "from 0 to 1"),
        ({"better": True}, "better", "from 0 to 1"),
        ({"answers": TWO[:1]}, "answers", "must be two objects"),
        ({"answers": [TWO[0], TWO[0]]}, "answers", "the same"),
        ({"answers": [TWO[0], {**TWO[1], "text": ""}]}, "answers[1].text", "not empty"),
        ({"answers": [TWO[0], {**TWO[1], "temperature": -1}]}, "answers[1].temperature", "from 0 to 100"),
        ({"answers": [TWO[0], {**TWO[1], "model": "gpt9"}]}, "model", "there is no such model"),
        ({"answers": [TWO[0], {**TWO[1], "label": "x"}]}, "answers[1].label", "no such parameter"),
        ({"margin": 3}, "margin", "no such parameter"),
    ],
)
def test_what_training_could_not_read_is_refused(
    serve: Any, ours: OpenedModel[Any], path: Path, body: dict[str, Any], param: str, said: str
) -> None:
    found = serve(ours, votes=Votes(path)).post("votes", **{"prompt": "a", "answers": TWO, "better": 0, **body})
    refused(found, 404 if param == "model" else 400, param, said)
    assert not path.exists()


def test_limits(serve: Any, ours: OpenedModel[Any], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: Served = serve(ours, votes=Votes(path))
    long = [{"text": "a" * votes_module.MOST_LINE}, {"text": "b"}]
    refused(served.post("votes", prompt="a", answers=long, better=1), 413, "answers", "1,048,576 characters")
    monkeypatch.setattr(votes_module, "MOST_BYTES", 10)
    path.write_text(LINE)
    full = served.post("votes", prompt="a", answers=TWO, better=1)
    refused(full, 507, None, "votes.jsonl is full", code="votes_full")
    assert path.read_text() == LINE


def test_a_key_is_asked_for(serve: Any, ours: OpenedModel[Any], path: Path) -> None:
    served: Served = serve(ours, votes=Votes(path), api_key="sesame")
    assert served.post("votes", prompt="a", answers=TWO, better=1).status_code == 401
    assert not path.exists()


def test_a_line_that_the_disk_cannot_take_is_not_half_written(
    serve: Any, ours: OpenedModel[Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(LINE)
    served: Served = serve(ours, votes=Votes(path))

    def fail(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    found = served.post("votes", prompt="a", answers=TWO, better=1)
    refused(found, 507, None, "No space left", "nothing was kept", code="votes_not_written")
    assert path.read_text() == LINE


def test_many_at_once_are_whole_lines(path: Path) -> None:
    votes = Votes(path)
    with ThreadPoolExecutor(8) as pool:
        [*pool.map(lambda i: votes.add({"prompt": f"{i}", "chosen": "é" * i, "rejected": "-"}, True), range(200))]
    assert sorted(int(row["prompt"]) for row in rows(path)) == [*range(200)]


def test_what_a_killed_process_has_left_is_removed_and_a_last_line_without_an_end_is_kept(path: Path) -> None:
    path.write_text(LINE + LINE[:20])
    Votes(path)
    assert path.read_text() == LINE
    path.write_text(LINE + LINE.strip())
    Votes(path)
    assert path.read_text() == LINE + LINE
    path.write_text("")
    Votes(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Dear diary", "line 1: it is no JSON"),
        ("Dear diary\nof today", "line 1: it is no JSON"),
        (LINE + '{"text": "a", "label": "b"}\n', "line 2: it has no chosen and rejected answer"),
        (LINE + "[]\n", "line 2: the row is a list"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(path: Path, content: str, said: str) -> None:
    path.write_text(content)
    with pytest.raises(UserError, match=f"--votes .*{said}.*give a file of votes"):
        Votes(path)
    assert path.read_text() == content


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["votes.jsonl", "votes.unranked.jsonl"])
def test_a_pipe_is_refused_and_not_waited_for(path: Path, name: str) -> None:
    os.mkfifo(path.with_name(name))
    with pytest.raises(UserError, match=f"--votes .*{name}: it is no file; give a file of votes"):
        Votes(path)


def test_a_file_that_cannot_be_written_is_refused_before_the_server_starts(
    command: Any, ours: OpenedModel[Any], tmp_path: Path
) -> None:
    for name, said in ((".", "Is a directory"), ("no/votes.jsonl", "No such file or directory")):
        result = command("serve", ours.name, "--port", "0", "--votes", name)
        assert result.returncode == 1
        assert result.stderr == f"error: --votes {name}: {said}; give a file of votes, which need not be there yet\n"
