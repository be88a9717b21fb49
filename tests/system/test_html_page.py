"""One file of a page: what is in it, and that data ends no element."""

from __future__ import annotations

import json

import pytest

from gptlab.system.html_page import data_element, one_file

PAGE = """<head><meta name="referrer" content="no-referrer"><title>gptlab</title>
<link rel="stylesheet" href="style.css"></head><body><script src="page.js"></script></body>"""


def test_a_page_has_all_in_it() -> None:
    found = one_file(PAGE, "a <b> & c", "p { margin: 0 }", "let a = 1;", data_element("data", {"a": 1}), "'x'")
    assert "<title>a &lt;b&gt; &amp; c</title>" in found
    assert "<style>p { margin: 0 }</style>" in found
    assert '{"a":1}</script>\n<script>"use strict";\nlet a = 1;</script></body>' in found
    assert "href=" not in found
    assert "src=" not in found
    assert " 'x'; style-src 'sha256-" in found
    with pytest.raises(AssertionError, match="referrer"):
        one_file(PAGE.replace("referrer", "r"), "", "", "", "")


def test_data_ends_no_element() -> None:
    data = {"</script>": ["<!--", "\ud800", "\u2028é"]}
    element = data_element("data", data)
    text = element.removeprefix('<script type="application/json" id="data">').removesuffix("</script>")
    assert text.isascii()
    assert "<" not in text
    assert json.loads(text) == data
    with pytest.raises(ValueError):
        data_element("data", {"a": float("nan")})
