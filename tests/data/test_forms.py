"""The same sentences give the same ids in every form of file, or one message says what to do."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tests.data import forms


@pytest.fixture(scope="module")
def rows() -> list[str]:
    return forms.rows()


def test_every_form_gives_the_same_ids_or_a_message(rows: list[str]) -> None:
    ids = [row.split(" | ")[-1].removesuffix(" |") for row in rows[2:]]
    refused = [row for row in rows if "refused: " in row]
    assert len(ids) == len(forms.FORMS)
    assert ids.count("the same") == len(ids) - 2 - len(refused)  # two are the first of their kind
    assert ids.count("-") == len(refused)
    assert all("data.path=" in row or "data.text_key=" in row for row in refused)


def test_the_page_has_the_table(rows: list[str]) -> None:
    page = (ROOT / "docs" / "data-formats.md").read_text()
    assert "\n".join(rows) in page, "put there what python -m tests.data.forms prints"
