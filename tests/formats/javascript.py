"""The page's JavaScript under node, beside gptlab."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from gptlab.formats.html.page import HERE

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
SCRIPTS = ("products.js", "model.js", "tokenizer.js", "sampling.js")
MAIN = """
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
Promise.resolve(answer(given)).then((found) => require("fs").writeFileSync(1, JSON.stringify(found)));
"""


def run_node(answer: str, given: Any, scripts: tuple[str, ...] = SCRIPTS) -> Any:
    """What the function `answer` in JavaScript returns of `given`, both through JSON, after the page's scripts."""
    assert NODE is not None
    text = "\n".join(['"use strict";', *((HERE / name).read_text("utf-8") for name in scripts), answer, MAIN])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "main.js"
        file.write_text(text, "utf-8")
        done = subprocess.run([NODE, file], input=json.dumps(given), capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
