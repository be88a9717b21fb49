"""Make one file of a page of HTML: with its style, script and data, and a policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import Any

SCRIPT = '<script src="page.js"></script>'
"""Where a page has its script."""


def one_file(page: str, title: str, style: str, script: str, content: str, script_rights: str = "") -> str:
    """Return a page with all that it links to in it.

    Args:
        page: HTML with a referrer policy, a title, style.css and page.js, which are replaced.
        title: plain text.
        content: elements that hold data, see `data_element`.
        script_rights: further sources of the policy's script-src.
    """
    script = f'"use strict";\n{script}'
    policy = (
        f"default-src 'none'; script-src {' '.join(filter(None, (_hash(script), script_rights)))}; "
        f"style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    allowed = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    for mark, found in {
        '<meta name="referrer" content="no-referrer">': allowed,
        "<title>gptlab</title>": f"<title>{html.escape(title)}</title>",
        '<link rel="stylesheet" href="style.css">': f"<style>{style}</style>",
        SCRIPT: f"{content}\n<script>{script}</script>",
    }.items():
        assert page.count(mark) == 1, mark
        page = page.replace(mark, found)
    return page


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
