"""The page of an explanation in headless Chromium, from the file system, without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab import explain
from gptlab.models import BigramConfig
from tests.browser import NEEDS_CHROMIUM, Page, expect
from tests.formats.test_html_browser import NAMED
from tests.test_export import TOKENIZERS, a_run, as_run

TEXT = "You may <b>not</b>\nuse"  # of 22 characters

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a GPT, with a training text, and one of a bigram table, without."""
    folder = tmp_path_factory.mktemp("reports")
    a_run(folder / "gpt", TOKENIZERS["byte"]())
    as_run(folder / "bigram", TOKENIZERS["byte"](), BigramConfig(256))
    (folder / "train.txt").write_text("You may use it.\n" * 60)
    explain.main([str(folder / "gpt"), TEXT, "--data", str(folder / "train.txt")])
    explain.main([str(folder / "bigram"), TEXT])
    return folder


@pytest.fixture
def page(chromium: Any, reports: Path) -> Iterator[Page]:
    opened = Page(chromium, (reports / "gpt" / "explain" / "explanation.html").as_uri())
    yield opened
    assert opened.errors == []  # there is nothing that the policy has stopped, either
    opened.context.close()


def test_pointing_at_a_token_shows_what_each_layer_would_have_guessed(page: Page) -> None:
    assert page.find("#text").text_content() == TEXT
    page.tokens.nth(4).hover()
    words = (
        r"^m \(5 of 22\): [0-9.]+ bits \([0-9.]+ nats\), a probability of .*%, the model's guess number \d+\. The table"
    )
    expect(page.find("#detail-words")).to_have_text(re.compile(words))
    expect(page.find("#likely tbody tr")).to_have_count(5)
    assert page.find("#by-layer tbody td:first-child").all_text_contents() == ["embedding", "layer 1", "layer 2"]
    first = page.find("#by-layer").text_content()
    page.tokens.first.hover()
    expect(page.find("#detail-words")).to_contain_text("begins the text")
    expect(page.find("#by-layer tr")).to_have_count(0)
    page.tokens.nth(3).focus()
    page.page.keyboard.press("ArrowRight")
    expect(page.find("#by-layer")).to_have_text(str(first))


def test_the_lens_shows_a_cell_in_two_colours(page: Page) -> None:
    cells = page.find("#lens-grid tbody td")
    expect(cells).to_have_count(3 * 22)
    last = cells.nth(2 * 22 + 3)
    last.click()
    expect(page.find("#lens-words")).to_have_text(
        re.compile(
            r"^layer 2, after ␣ \(4\): (\S+ [0-9.]+%(, |\. )){3}0.00 bits from the last row\. What came, m, has "
        )
    )
    level = "each => Number(each.style.getPropertyValue('--level'))"
    page.find("#lens-colour").select_option("kl")
    assert last.evaluate(level) == 0.75  # it is the last row
    page.find("#lens-colour").select_option("probability")
    assert 0 < last.evaluate(level) < 0.75
    expect(page.find("#lens-means tbody tr")).to_have_count(3)


def test_a_head_that_is_chosen_shows_its_map(page: Page) -> None:
    expect(page.find(".attention-words")).to_contain_text("Layer 1, head 1: from e (22)")
    page.find("#head-tables table").nth(1).locator("button").last.click()
    expect(page.find(".attention-words")).to_contain_text("Layer 2, head 3: from")
    page.find(".attention-text .token").first.click()
    expect(page.find(".attention-words")).to_contain_text("100.0%, goes to Y (1)")  # the first sees nothing but itself
    size = page.find(".attention-map").evaluate("map => [map.width, map.height]")
    assert size == [22, 22]


def test_passages_counts_and_neighbours_are_there(page: Page) -> None:
    assert page.find("#passages-text").text_content() == TEXT
    expect(page.find("#passages-table mark").first).to_have_text("You may ")
    expect(page.find("#passages-words")).to_contain_text("the training part of train.txt (864 characters)")
    for table, sign in (("#model-knows", 1), ("#table-knows", -1)):
        rows = [row.locator("td.number").all_text_contents() for row in page.find(f"{table} tbody tr").all()]
        assert rows
        gains = [sign * float(difference) for _, _, difference in rows]
        assert gains == sorted(gains, reverse=True)
        assert gains == pytest.approx([sign * (float(beside) - float(bits)) for bits, beside, _ in rows], abs=0.011)
    expect(page.find("#points text.own")).to_have_count(len(set(TEXT)))
    expect(page.find("#neighbours-table tbody tr")).to_have_count(len(set(TEXT)))
    page.find("#card summary").click()
    expect(page.find("#facts")).to_contain_text("2.2500 nats a token")


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_everything_has_a_name_and_fits_a_phone(chromium: Any, reports: Path, colours: str) -> None:
    page = Page(chromium, (reports / "gpt" / "explain" / "explanation.html").as_uri(), 360)
    page.page.emulate_media(color_scheme=colours)
    named = page.find(NAMED).filter(visible=True)
    assert named.count() > 60
    unnamed = [each.evaluate("each => each.outerHTML") for each in named.all() if not accessible(each)]
    assert unnamed == []
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.errors == []
    page.context.close()


def accessible(element: Any) -> bool:
    """Whether an element has a name, by its label, its text or what labels it."""
    return bool(
        element.evaluate(
            "each => each.getAttribute('aria-label') || each.labels?.[0]?.textContent || each.textContent ||"
            " document.getElementById(each.getAttribute('aria-labelledby'))?.textContent"
        )
    )


def test_sections_that_cannot_be_say_why(chromium: Any, reports: Path) -> None:
    page = Page(chromium, (reports / "bigram" / "explain" / "explanation.html").as_uri())
    for name in ("lens", "attention", "heads", "neighbours"):
        expect(page.find(f"#{name} .missing")).to_have_text("This model is a Bigram: it has no layers to look into.")
        expect(page.find(f"#{name} .body")).to_be_hidden()
    for name in ("passages", "counts"):
        expect(page.find(f"#{name} .missing")).to_contain_text("with --data FILE")
    page.tokens.nth(2).hover()
    expect(page.find("#likely tbody tr")).to_have_count(5)
    assert page.errors == []
    page.context.close()


def test_long_texts_say_how_much_of_the_maps_is_there(
    chromium: Any, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptlab.explaining.attention.MOST_BYTES", 6 * 15)
    torch.manual_seed(0)
    explain.main([str(reports / "gpt"), TEXT, "--out", str(tmp_path)])
    page = Page(chromium, (tmp_path / "explanation.html").as_uri())
    expect(page.find(".attention-words")).to_contain_text("These are the last 4 tokens.")
    expect(page.find(".attention-text .token")).to_have_count(4)
    page.context.close()
