"""Read a page as a browser would, without running it."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
from pathlib import Path
from typing import Any


class Reader(html.parser.HTMLParser):
    """The elements of a page: their names, and the contents of its scripts, styles and title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.policy = ""
        self.contents: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.names.append(tag)
        self.links += [str(given[name]) for name in ("src", "href") if name in given]
        self.ids += [str(given["id"])] if "id" in given else []
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(given["content"])

    def handle_data(self, content: str) -> None:
        if self.names and self.names[-1] in ("script", "style", "title") and content.strip():
            self.contents.append((self.names[-1], content))

    def of(self, name: str) -> list[str]:
        return [content for kind, content in self.contents if kind == name]


def read_page(path: Path) -> dict[str, Any]:
    """Return the data of a page, which must be one file that a strict policy guards."""
    reader = Reader(path.read_text("utf-8"))
    data, script = reader.of("script")
    (style,) = reader.of("style")
    assert reader.names.count("script") == 2
    assert reader.links == ["data:,"]  # the icon: nothing comes from elsewhere
    for kind, content in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in reader.policy
    assert reader.policy.startswith("default-src 'none'; ")
    assert "unsafe" not in reader.policy
    found: dict[str, Any] = json.loads(data)
    return found
