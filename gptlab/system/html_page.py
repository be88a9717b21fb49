"""A page in one file: its style, script and data are in it, and a policy lets nothing else run or load."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from typing import Any

LINKS = '<link rel="stylesheet" href="style.css">'
SCRIPT = '<script src="page.js"></script>'
"""Where a page has its scripts."""
HEAD = '<meta name="referrer" content="no-referrer">'
TITLE = "<title>gptlab</title>"


def one_file(
    page: str,
    title: str,
    style: str,
    script: str,
    data: Mapping[str, Any],
    texts: Mapping[str, str] | None = None,
    allowed: str = "",
) -> str:
    """Return a page with all that it links to in it, and a Content-Security-Policy that allows nothing else.

    Args:
        page: HTML that has each of `HEAD`, `TITLE`, `LINKS` and `SCRIPT` once.
        title: the page's title.
        style: its CSS.
        script: its JavaScript.
        data: by the id of an element, what the script reads from it as JSON.
        texts: by the id of an element, what the script reads from it as text; base64, which ends no element.
        allowed: what the policy allows scripts beside running, as 'wasm-unsafe-eval'.
    """
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'{allowed and f' {allowed}'}; style-src '{_hash(style)}'; "
        f"img-src data:; base-uri 'none'; form-action 'none'"
    )
    blocks = [f'<script type="application/json" id="{name}">{_quoted(each)}</script>' for name, each in data.items()]
    blocks += [f'<script type="text/plain" id="{name}">{each}</script>' for name, each in (texts or {}).items()]
    for mark, content in {
        HEAD: f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        TITLE: f"<title>{html.escape(title)}</title>",
        LINKS: f"<style>{style}</style>",
        SCRIPT: "\n".join([*blocks, f"<script>{script}</script>"]),
    }.items():
        assert page.count(mark) == 1, mark
        page = page.replace(mark, content)
    return page


def _hash(content: str) -> str:
    """Return the name by which a policy allows an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _quoted(data: Any) -> str:
    """Return JSON that ends no element of HTML."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
