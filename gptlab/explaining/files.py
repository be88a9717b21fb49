"""The files of an explanation: one page that needs nothing else, and pictures."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from gptlab.explaining.explanation import Explanation
from gptlab.explaining.pictures import pictures, save_picture
from gptlab.formats.html.shared import HERE as SHARED
from gptlab.system.files import write_atomically
from gptlab.system.html_page import data_element, one_file
from gptlab.system.terminal import jsonable

HERE = Path(__file__).parent
PAGE = "explanation.html"
PICTURES = ("surprisal.png", "lens.png", "attention.png", "heads.png", "embeddings.png")
DIGITS = 4  # of a number on the page
SCRIPTS = (SHARED / "tokens.js", SHARED / "charts.js", HERE / "sections.js", HERE / "explain.js")
STYLES = (SHARED / "style.css", HERE / "explain.css")


def write_files(explanation: Explanation, folder: Path) -> list[str]:
    """Write the page and the pictures, and remove those of an older explanation that this one has not.

    Returns:
        The names of the files, the page first.

    Raises:
        UserError: the folder cannot be written.
    """
    drawn = pictures(explanation)
    for name in set(PICTURES) - drawn.keys():
        with suppress(OSError):
            (folder / name).unlink()
    for name, draw in drawn.items():
        write_atomically(folder / name, partial(save_picture, draw, explanation))
    content = page(explanation).encode("utf-8", "replace")
    write_atomically(folder / PAGE, lambda file: file.write(content))
    return [PAGE, *drawn]


def page(explanation: Explanation) -> str:
    """Return the text of the page."""
    style = "\n".join(path.read_text("utf-8") for path in STYLES)
    script = "\n".join(path.read_text("utf-8") for path in SCRIPTS)
    content = {key: each for key, each in explanation.content.items() if key != "model"}  # it has a path
    elements = [data_element("explanation", jsonable(rounded(content)))]
    if explanation.maps is not None:
        elements.append(f'<script type="text/plain" id="maps">{explanation.maps.encoded()}</script>')
    title = f"{explanation.content['name']}: a text explained"
    return one_file((HERE / "explain.html").read_text("utf-8"), title, style, script, "\n".join(elements))


def rounded(content: Any) -> Any:
    """Return plain data with `DIGITS` digits of each number, but for the totals."""
    if isinstance(content, dict):
        return {key: each if key == "totals" else rounded(each) for key, each in content.items()}
    if isinstance(content, list | tuple):
        return [rounded(each) for each in content]
    return float(f"{content:.{DIGITS}g}") if isinstance(content, float) and math.isfinite(content) else content
