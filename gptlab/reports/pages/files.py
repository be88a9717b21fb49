"""Put a page together from its data and from the HTML, CSS and JavaScript of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptlab.system.html_page import data_element, one_file

HERE = Path(__file__).parent
SCRIPTS = {"run": ("elements.js", "chart.js", "run.js"), "report": ("elements.js", "table.js", "report.js")}
"""The scripts of each page, in their order."""


def page_of(kind: str, title: str, data: dict[str, Any]) -> str:
    """Return the page of this kind, a key of `SCRIPTS`, with its data."""
    return one_file(
        (HERE / f"{kind}.html").read_text("utf-8"),
        title=title,
        style=(HERE / "style.css").read_text("utf-8"),
        script="\n".join((HERE / name).read_text("utf-8") for name in SCRIPTS[kind]),
        content=data_element("data", data),
    )
