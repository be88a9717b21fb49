"""Hydra's parser of a command line, on Python 3.14 and newer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from hydra._internal import utils

CHECKS_HELP = sys.version_info >= (3, 14)


class Parser(argparse.ArgumentParser):
    """A parser that takes as help what is no text, too: it is put on the argument after that has been added."""

    def add_argument(self, *names: Any, help: Any = None, **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        action.help = help
        return action


@contextmanager
def on_every_python() -> Iterator[None]:
    """Inside, a function that hydra.main has decorated can be called without arguments on every Python.

    argparse checks each help text as it is added since Python 3.14. Hydra up to 1.3.8 gives --shell-completion an
    object for one, so as to look for its plugins only when it is shown: 3.14 refuses that, and no command starts
    (https://github.com/hydra-ecosystem/hydra/issues/3121); 3.15 makes a text of it at every start. Hydra 1.4 needs
    none of this.
    """
    makes_parser: Any = utils
    if CHECKS_HELP:
        makes_parser.argparse = SimpleNamespace(ArgumentParser=Parser)
    try:
        yield
    finally:
        makes_parser.argparse = argparse
