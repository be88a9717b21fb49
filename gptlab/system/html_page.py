"""Pages of HTML: what all have in common, and one file of a page that has all in it and lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def base_style() -> str:
    """Return the CSS that every page begins with: colours, light and dark, and what any element looks like."""
    return Path(__file__).with_suffix(".css").read_text("utf-8")


def linked_page(body: str, style: str, scripts: Iterable[str]) -> str:
    """Return a page for a server that gives its style and scripts at these addresses."""
    link = f'<meta name="referrer" content="no-referrer">\n<link rel="stylesheet" href="{style}">'
    return _page("gptlab", link, body, "\n".join(f'<script src="{script}"></script>' for script in scripts))


def one_file(body: str, title: str, style: str, script: str, content: str, script_rights: str = "") -> str:
    """Return a page with all that it needs in it, and a Content-Security-Policy that lets nothing else run or load.

    Args:
        body: HTML.
        title: plain text.
        style: CSS, which comes after `base_style`.
        script: JavaScript, in strict mode.
        content: elements that hold data, see `data_element`.
        script_rights: further sources of the policy's script-src.
    """
    script, style = f'"use strict";\n{script}', f"{base_style()}{style}"
    policy = (
        f"default-src 'none'; script-src {' '.join(filter(None, (_hash(script), script_rights)))}; "
        f"style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>'
    return _page(title, head, body, f"{content}\n<script>{script}</script>")


def _page(title: str, head: str, body: str, scripts: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
{head}
</head>
<body>
{body}{scripts}
</body>
</html>
"""


def data_element(name: str, data: dict[str, Any]) -> str:
    """Return an element that holds JSON: pure ASCII, in which nothing ends the element.

    Args:
        name: its id.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _hash(content: str) -> str:
    """Return the name by which a policy allows an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
