"""A page of HTML: what is in its one file, what a server's links to, and that data ends no element."""

from __future__ import annotations

import json

import pytest

from gptlab.system.html_page import base_style, data_element, linked_page, one_file


def test_a_file_has_all_in_it() -> None:
    found = one_file("<p>x</p>\n", "a <b> & c", "p { margin: 0 }", "let a = 1;", data_element("data", {"a": 1}), "'x'")
    assert "<title>a &lt;b&gt; &amp; c</title>" in found
    assert f"<style>{base_style()}p {{ margin: 0 }}</style>" in found
    assert '<p>x</p>\n<script type="application/json" id="data">{"a":1}</script>\n<script>"use strict";' in found
    assert found.count("href=") == found.count('href="data:,"') == 1
    assert "src=" not in found
    assert " 'x'; style-src 'sha256-" in found


def test_a_servers_page_links_to_all() -> None:
    found = linked_page("<p>x</p>\n", "style.css", ["a.js", "b.js"])
    assert '<link rel="stylesheet" href="style.css">' in found
    assert '<p>x</p>\n<script src="a.js"></script>\n<script src="b.js"></script>' in found
    assert "<style>" not in found


def test_data_ends_no_element() -> None:
    data = {"</script>": ["<!--", "\ud800", "\u2028é"]}
    element = data_element("data", data)
    text = element.removeprefix('<script type="application/json" id="data">').removesuffix("</script>")
    assert text.isascii()
    assert "<" not in text
    assert json.loads(text) == data
    with pytest.raises(ValueError):
        data_element("data", {"a": float("nan")})
