"""Hydra's own flags where argparse checks help texts as they are added, as it does since Python 3.14."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import pytest
from hydra._internal import utils

from gptlab.runs import hydra_parser


@pytest.fixture(params=[False, True], ids=["here", "as on 3.14"])
def checking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The argparse of this Python, and one that checks as that of 3.14 does."""
    if not request.param:
        return
    plain = argparse._ActionsContainer.add_argument

    def add_argument(self: Any, *names: Any, **options: Any) -> argparse.Action:
        action = plain(self, *names, **options)
        try:
            "%" in (action.help or "")  # noqa: B015
        except TypeError as error:
            raise ValueError("badly formed help string") from error
        return action

    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", add_argument)
    monkeypatch.setattr(hydra_parser, "CHECKS_HELP", True)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--hydra-help"], ["--shell-completion,-sc : Install or Uninstall", "Bash - Install", "Overrides : Any"]),
        (["model=gpt1m", "--hydra-help"], ["Bash - Install"]),
        (["--cfg", "job"], ["name: gpt800k"]),
        (["--info", "searchpath"], ["Config search path"]),
        (["-sc", "install=bash"], ["complete -"]),
        (["--version"], ["Hydra 1."]),
    ],
)
@pytest.mark.usefixtures("checking")
def test_hydra_answers(command: Any, arguments: list[str], shown: list[str]) -> None:
    result = command("train", *arguments)
    assert result.returncode == 0, result.stderr
    for words in shown:
        assert words in result.stdout


@pytest.mark.usefixtures("checking")
def test_a_flag_that_there_is_not_is_refused(command: Any) -> None:
    result = command("train", "--nonsense")
    assert result.returncode == 2
    assert "unrecognized arguments: --nonsense" in result.stderr


@pytest.mark.usefixtures("checking")
def test_no_plugins_are_looked_for_until_their_help_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "_get_completion_help", lambda: pytest.fail("looked for plugins"))
    with hydra_parser.on_every_python():
        assert utils.get_args_parser().parse_args(["seed=3"]).overrides == ["seed=3"]


def test_older_pythons_and_what_comes_after_are_left_alone() -> None:
    with hydra_parser.on_every_python():
        assert (utils.argparse is argparse) == (sys.version_info < (3, 14))
    assert utils.argparse is argparse
