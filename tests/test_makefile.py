"""What the Makefile gives every command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_compiled_imports_are_kept_where_the_environment_says_not_to() -> None:
    """As images of containers do: else every command compiles torch and Lightning anew, which takes ten seconds."""
    target = f"shown:;@{sys.executable} -c 'import sys; print(sys.dont_write_bytecode)'"
    words = ["make", "--silent", "--eval", target, "shown"]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    made = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "False"
