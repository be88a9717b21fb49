"""The page in headless Chromium, from the file system, without a network."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptlab.data.chat.chat_format import ChatFormat, chat_tokenizer
from gptlab.formats.html.page import write_html
from gptlab.formats.open_model import load_model
from tests.browser import NAMED, NEEDS_CHROMIUM, Page, expect
from tests.test_export import PROMPT, TOKENIZERS, T, a_run

NEW = 40  # beyond the block

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that continues texts, one that chats, and a page of each."""
    folder = tmp_path_factory.mktemp("runs")
    for name, tokenizer in (("text", TOKENIZERS["char"]()), ("chat", chat_tokenizer(TOKENIZERS["char"]()))):
        a_run(folder / name, tokenizer)
        model, tokenizer, info = load_model(folder / name)
        chat = ChatFormat(tokenizer) if name == "chat" else None
        write_html(
            model, tokenizer, dataclasses.replace(info, read_chat=lambda chat=chat: chat), folder / f"{name}.html"
        )
    return folder


@pytest.fixture
def page(chromium: Any, runs: Path) -> Iterator[Page]:
    opened = Page(chromium, (runs / "text.html").as_uri())
    yield opened
    assert opened.errors == []  # there is nothing that the policy has stopped, either
    opened.context.close()


def generated(command: Any, runs: Path, *arguments: str) -> str:
    count = ("--max-new-tokens", str(NEW))
    result = command("generate", str(runs / "text"), PROMPT, "--precision", "int8", *count, *arguments)
    assert result.returncode == 0, result.stderr
    return str(result.stdout.removesuffix("\n"))


def test_the_text_is_that_of_generate_again_after_a_reload(command: Any, page: Page, runs: Path) -> None:
    expected = generated(command, runs, "--temperature", "0")
    assert len(expected) == len(PROMPT) + NEW
    assert page.write(prompt=PROMPT, temperature=0, count=NEW) == expected
    expect(page.find(".status")).not_to_contain_text("seed")
    page.page.reload()
    expect(page.find(".paper")).to_be_hidden()
    assert page.write(prompt=PROMPT, temperature=0, count=NEW) == expected
    drawn = generated(command, runs, "--temperature", "0.9", "--top-k", "9", "--top-p", "0.9", "--seed", "5")
    assert page.write(temperature=0.9, top_k=9, top_p=0.9, seed=5) == drawn != expected
    expect(page.find(".status")).to_have_text(re.compile(f"^{NEW} tokens, [0-9.]+ a second, seed 5$"))


def test_stop_and_go_on(page: Page) -> None:
    page.fill(prompt=PROMPT, temperature=0, count=10_000)
    page.find("#write").click()
    expect(page.tokens.nth(2 * T)).to_be_visible()
    expect(page.find("#more")).to_be_disabled()
    page.find("#stop").click()
    stopped = page.finished()
    expect(page.find(".status")).to_contain_text("Stopped: ")
    page.fill(count=7)
    page.find("#more").click()
    expect(page.find(".status")).to_have_text(re.compile("^7 tokens"))
    assert page.text.startswith(stopped)
    assert len(page.text) == len(stopped) + 7
    page.find("#clear").click()
    expect(page.find(".paper")).to_be_hidden()


def test_another_token_is_taken_by_pointer_or_by_keyboard(page: Page) -> None:
    first = page.write(prompt=PROMPT, temperature=0, count=9)
    place = len(PROMPT) + 3
    page.tokens.nth(place).hover()
    choices = page.find(".choices button")
    expect(choices).to_have_count(5)
    other = str(choices.nth(1).locator("span").first.text_content()).replace("␣", " ").replace("⏎", "\n")
    assert other != first[place]
    choices.nth(1).click()
    expect(page.tokens).to_have_count(place + 1 + 9)
    second = page.finished()
    assert second.startswith(first[:place] + other)

    page.tokens.first.focus()
    for key in ("End", "ArrowLeft"):
        page.page.keyboard.press(key)
    expect(page.tokens.nth(-2)).to_be_focused()
    for key in ("Enter", "ArrowDown", "Escape"):
        page.page.keyboard.press(key)
    expect(page.tokens.nth(-2)).to_be_focused()
    for key in ("Enter", "Enter"):  # the likeliest, which is the one that is there
        page.page.keyboard.press(key)
    expect(page.tokens).to_have_count(len(second) - 1 + 9)
    assert page.finished().startswith(second[:-1])


def test_it_shows_what_the_model_thought(page: Page) -> None:
    page.write(prompt=PROMPT, temperature=0.8, seed=3, count=30)
    levels = page.tokens.evaluate_all("all => all.map((each) => each.style.getPropertyValue('--level'))")
    assert levels[0] == ""  # nothing predicts the first
    assert all(levels[1:])
    assert len(set(levels)) > 9
    for name in (".loss", ".attention", "#card"):
        page.find(f"{name} summary").click()
    expect(page.find(".loss-words")).to_contain_text("bits a token (")
    expect(page.find(".loss-chart rect")).to_have_count(len(levels) - 1)
    expect(page.find(".attention-words")).to_contain_text("Layer 1, head 1: from")
    expect(page.find(".attention-text .token")).to_have_count(T)
    page.find(".layer").select_option("2")
    page.find(".attention-text .token").first.click()
    expect(page.find(".attention-words")).to_contain_text("Layer 2, head 1: from")
    expect(page.find(".attention-words")).to_contain_text("100.0%, goes to")  # the first sees nothing but itself
    expect(page.find("#facts")).to_contain_text("2.2500 nats a token")


def test_what_is_wrong_is_said(page: Page) -> None:
    page.fill(prompt="中")
    page.find("#write").click()
    expect(page.find(".wrong")).to_have_text("The model has never seen 中: leave it out.")
    page.fill(prompt=PROMPT, top_p=7)
    page.find("#sampling summary").click()
    page.find("#write").click()
    assert page.page.evaluate("document.getElementById('sampling').open")
    assert page.text == ""


def test_everything_has_a_name_and_fits_a_phone(chromium: Any, runs: Path) -> None:
    page = Page(chromium, (runs / "text.html").as_uri(), 360)
    page.write(prompt=PROMPT, temperature=0, count=60)
    page.page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    expect(page.find(".attention-words")).to_contain_text("Layer 1")
    page.tokens.last.click()
    named = page.find(NAMED)
    assert named.count() > 60
    for each in named.filter(visible=True).all():
        expect(each).to_have_accessible_name(re.compile("."))
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360
    page.context.close()


def test_a_chat_has_its_turns(chromium: Any, runs: Path) -> None:
    page = Page(chromium, (runs / "chat.html").as_uri())
    expect(page.find("#prompt-label")).to_have_text("Say something")
    turn = "<|user|>You may<|end|><|assistant|>"
    text = page.write(prompt="You may", temperature=0, count=5)
    assert text.startswith(f"<|begin_of_text|>{turn}")
    again = page.write(prompt="not")
    assert again.startswith(text)
    assert "<|user|>not<|end|><|assistant|>" in again[len(text) :]
    expect(page.find("#prompt")).to_have_value("")
    page.find("input[value=continue]").click()
    expect(page.find("#prompt-label")).to_have_text("Begin the text")
    assert page.write(prompt="You may").startswith("You may")
    assert page.errors == []
    page.context.close()
