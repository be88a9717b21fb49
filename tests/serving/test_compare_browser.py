"""Two texts side by side on the server's page, votes on them, and attention, in headless Chromium."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptlab.data.chat.conversations import Message, Preference, read_examples
from tests.browser import NAMED, NEEDS_CHROMIUM, Page, expect
from tests.serving.test_page_browser import BLOCK, PROMPT, answers, completed, folder, start

pytestmark = NEEDS_CHROMIUM
__all__ = ["folder"]

DONE = re.compile("a second")


@pytest.fixture(scope="module")
def votes(folder: Path) -> Path:
    return folder / "votes.jsonl"


@pytest.fixture(scope="module")
def served(folder: Path, votes: Path) -> Iterator[str]:
    yield from start(folder, "abc.ckpt", "other.ckpt", "bytes.ckpt", "chat.ckpt", "table.ckpt", "--votes", votes.name)


@pytest.fixture
def page(chromium: Any, served: str) -> Iterator[Page]:
    opened = Page(chromium, served)
    yield opened
    assert opened.errors == []
    opened.context.close()


class Column:
    """One of the page's columns, counted from 0."""

    def __init__(self, page: Page, number: int) -> None:
        self.page, self.box = page, page.find(".column").nth(number)

    def find(self, what: str) -> Any:
        return self.box.locator(what)

    def finished(self) -> str:
        expect(self.find(".status")).to_have_text(DONE)
        return str(self.find(".text").text_content())


def two(page: Page, view: str = "two") -> tuple[Column, Column]:
    expect(page.find("#ask")).to_be_visible()
    page.find(f"#views input[value={view}]").click()
    expect(page.find(".column")).to_have_count(2)
    return Column(page, 0), Column(page, 1)


def test_two_models_continue_one_prompt_each_with_what_it_thought(page: Page, served: str) -> None:
    one, other = two(page)
    page.find("#model-2").select_option("bytes.ckpt")
    expect(other.find("h2")).to_have_text("2: bytes.ckpt")
    expect(page.find("#name")).to_have_text("abc.ckpt and bytes.ckpt")
    how = {"temperature": 0.9, "top_k": 9, "seed": 5}
    page.fill(prompt=PROMPT, count=30, **how)
    page.find("#write").click()
    for column, model in ((one, "abc.ckpt"), (other, "bytes.ckpt")):
        expected = completed(served, PROMPT, model=model, max_tokens=30, **how)
        assert column.finished().rstrip("\N{REPLACEMENT CHARACTER}") == (PROMPT + expected).rstrip(
            "\N{REPLACEMENT CHARACTER}"
        )
        expect(column.find(".status")).to_have_text(re.compile("seed 5$"))
        column.find(".loss summary").click()
        expect(column.find(".loss-chart rect")).to_have_count(len(PROMPT) - 1 + 30)
    assert one.find(".loss-words").text_content() != other.find(".loss-words").text_content()
    # A branch in the one leaves the other alone.
    before = other.finished()
    first = one.finished()
    one.find(".text .token").nth(len(PROMPT) + 3).click()
    one.find(".choices button").nth(1).click()
    expect(one.find(".text .token")).to_have_count(len(PROMPT) + 4 + 30)
    assert one.finished()[: len(PROMPT) + 3] == first[: len(PROMPT) + 3]
    assert other.finished() == before
    # Both go on, and both forget.
    page.fill(count=4)
    page.find("#more").click()
    expect(one.find(".text .token")).to_have_count(len(PROMPT) + 4 + 34)
    expect(other.find(".text .token")).to_have_count(len(PROMPT) + 34)
    page.find("#clear").click()
    expect(page.find(".paper").first).to_be_hidden()
    expect(page.find(".paper").last).to_be_hidden()
    page.find("#views input[value=one]").click()
    expect(one.find("h2")).to_be_hidden()
    expect(page.find(".column")).to_have_count(1)
    assert page.write(prompt=PROMPT, temperature=0, count=5).startswith(PROMPT)


def test_one_model_writes_twice_with_two_seeds_or_temperatures(page: Page, served: str) -> None:
    one, other = two(page)
    page.fill(prompt=PROMPT, count=20, temperature=0.9, seed=5)
    page.find("#write").click()
    drawn = [completed(served, PROMPT, model="abc.ckpt", max_tokens=20, temperature=0.9, seed=seed) for seed in (5, 6)]
    assert [one.finished(), other.finished()] == [PROMPT + text for text in drawn]
    expect(other.find(".status")).to_have_text(re.compile("seed 6$"))
    page.fill(temperature_2=0)
    page.find("#write").click()
    expect(other.find(".status")).to_have_text(re.compile("[0-9] a second$"))  # greedy
    greedy = completed(served, PROMPT, model="abc.ckpt", max_tokens=20, temperature=0)
    assert [one.finished(), other.finished()] == [PROMPT + drawn[0], PROMPT + greedy]
    page.fill(temperature_2="", seed_2=5)
    page.find("#write").click()
    expect(other.find(".status")).to_have_text(re.compile("seed 5$"))
    assert other.finished() == PROMPT + drawn[0]


def test_both_are_stopped_and_what_one_refuses_stands_below_it_alone(page: Page, served: str) -> None:
    one, other = two(page)
    page.find("#model-2").select_option("bytes.ckpt")
    page.fill(prompt=PROMPT, temperature=0, count=BLOCK)
    page.find("#write").click()
    for column in (one, other):
        expect(column.find(".text .token").nth(len(PROMPT) + 5)).to_be_visible()
    assert answers(served, "abc.ckpt") == answers(served, "bytes.ckpt") == 1
    page.find("#stop").click()
    for column in (one, other):
        assert column.finished()
        expect(column.find(".status")).to_contain_text("Stopped: ")
    page.fill(prompt="xyz", count=5)
    page.find("#write").click()
    expect(one.find(".wrong")).to_contain_text("abc.ckpt: the prompt has characters that the model has never seen")
    assert other.finished().startswith("xyz")
    expect(other.find(".wrong")).to_be_hidden()
    page.errors.clear()  # Chromium tells of the status 400 by itself


def test_attention_is_shown_for_the_model_that_answers(page: Page) -> None:
    page.write(prompt=PROMPT, temperature=0, count=10)
    column = Column(page, 0)
    column.find(".attention summary").click()
    expect(column.find(".attention-words")).to_contain_text("Layer 1, head 1: from")
    expect(column.find(".attention-text .token")).to_have_count(len(PROMPT) + 10)
    column.find(".layer").select_option("2")
    column.find(".head").select_option("3")
    column.find(".attention-text .token").first.click()
    expect(column.find(".attention-words")).to_contain_text("Layer 2, head 3: from")
    expect(column.find(".attention-words")).to_contain_text("100.0%, goes to")  # the first sees nothing but itself
    page.find("#more").click()
    expect(column.find(".attention-text .token")).to_have_count(len(PROMPT) + 20)
    page.find("#model").select_option("table.ckpt")  # which sees but one token
    page.write()
    expect(column.find(".loss")).to_be_visible()
    expect(column.find(".attention")).to_be_hidden()


def test_another_view_is_chosen_by_keyboard(page: Page) -> None:
    page.write(prompt=PROMPT, temperature=0, count=3)
    page.find("#views input[value=one]").focus()
    for view in ("two", "vote"):
        page.page.keyboard.press("ArrowRight")
        expect(page.find(f"#views input[value={view}]")).to_be_focused()
        expect(page.find(".column")).to_have_count(2)
        expect(page.find(".paper").first).to_be_hidden()
    expect(page.find("#vote")).to_be_visible()
    expect(page.find("#prompt")).to_have_value(PROMPT)
    page.page.keyboard.press("ArrowRight")  # from the last to the first
    expect(page.find("#vote")).to_be_hidden()
    assert page.write().startswith(PROMPT)
    page.find("#clear").click()
    expect(page.find("#prompt")).to_be_focused()


def test_everything_has_a_name_beside_another_text_on_a_phone(chromium: Any, served: str) -> None:
    page = Page(chromium, served, 360)
    one, other = two(page)
    page.find("#model-2").select_option("bytes.ckpt")
    page.fill(prompt=PROMPT, temperature=0, count=40)
    page.find("#write").click()
    for column in (one, other):
        column.finished()
        column.find(".loss summary").click()
        column.find(".attention summary").click()
        expect(column.find(".attention-words")).to_contain_text("Layer 1")
    other.find(".text .token").last.click()
    named = page.find(NAMED).filter(visible=True)
    assert named.count() > 100
    for each in named.all():
        expect(each).to_have_accessible_name(re.compile("."))
    expect(other.find(".text")).to_have_accessible_name("2: bytes.ckpt")
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.errors == []
    page.context.close()


def vote(page: Page, prompt: str, key: str) -> list[str]:
    """Ask for two answers, vote by keyboard, and return them in the order in which they stood there."""
    page.find("#prompt").fill(prompt)
    page.page.keyboard.press("Control+Enter")
    expect(page.find("#vote button").first).to_be_focused()
    shown = [str(Column(page, at).find(".text").text_content()) for at in (0, 1)]
    assert all(text.startswith(prompt) for text in shown)
    page.page.keyboard.press(key)
    expect(page.find("#vote [role=status]")).to_contain_text("Written to votes")
    return [text.removeprefix(prompt) for text in shown]


def test_votes_are_blind_until_cast_and_train_a_reward_model_and_a_policy(
    page: Page, votes: Path, folder: Path, command: Any, tmp_path: Path
) -> None:
    two(page, "vote")
    page.find("#model-2").select_option("other.ckpt")
    page.fill(temperature=0.9, count=12)
    page.find("#prompt").fill(PROMPT)
    page.find("#write").click()
    expect(page.find("#vote button").first).to_be_focused()
    body = page.find("#columns").inner_text()
    assert "abc.ckpt" not in body
    assert "other.ckpt" not in body
    assert "a second" not in body
    expect(page.find("#columns .token")).to_have_count(0)  # whose colours would tell
    for what in (".loss", ".attention", "#legend"):
        expect(page.find(what).first).to_be_hidden()
    page.find("#vote button").last.click()
    expect(page.find("#vote [role=status]")).to_have_text("Neither was better. Written to votes.unranked.jsonl.")
    assert {str(each) for each in page.find("h2").all_text_contents()} in (
        {"1: abc.ckpt", "2: other.ckpt"},
        {"1: other.ckpt", "2: abc.ckpt"},
    )
    expect(page.find("#columns .token").first).to_be_visible()
    expect(page.find("#vote button").first).to_be_disabled()
    assert not votes.exists()
    expected = []
    for i in range(8):
        prompt, better = "abcdefgh"[: i + 1], i // 2 % 2
        page.page.evaluate(f"crypto.getRandomValues = (numbers) => numbers.fill({i}); null")  # the order, and the seed
        shown = vote(page, prompt, "12"[better])
        models = ["abc.ckpt", "other.ckpt"][:: -1 if i % 2 else 1]
        expected.append((prompt, shown[better], shown[1 - better], models[better], models[1 - better], i, i))
    rows = [json.loads(line) for line in votes.read_text().splitlines()]
    keys = ("prompt", "chosen", "rejected", "chosen_model", "rejected_model", "chosen_seed", "rejected_seed")
    assert [tuple(row[key] for key in keys) for row in rows] == expected
    prompt, chosen, rejected, *_ = expected[0]
    messages = (Message("user", prompt),), (Message("assistant", chosen),), (Message("assistant", rejected),)
    assert read_examples([votes]).rows[0] == Preference(*messages)
    for task in ("reward", "dpo"):
        words = (f"task={task}", "data=chat", f"data.path={votes}", f"init_from={folder / 'chat.ckpt'}")
        words += ("trainer=cpu", "trainer.max_steps=2", "data.batch_size=2", "data.val_fraction=0.25")
        result = command("train", *words, f"hydra.run.dir={tmp_path / task}")
        assert result.returncode == 0, result.stderr
        assert json.loads((tmp_path / task / "summary.json").read_text())["steps"] == 2


def test_a_chat_is_voted_on_without_what_its_turns_are_made_of(page: Page, votes: Path) -> None:
    page.find("#model").select_option("chat.ckpt")
    two(page, "vote")
    page.find("#model-2").select_option("chat.ckpt")  # with two seeds
    before = votes.read_text() if votes.exists() else ""
    page.fill(prompt="a face", temperature=0.9, count=9, seed=3)
    page.find("#write").click()
    expect(page.find("#vote button").first).to_be_focused()
    text = str(Column(page, 0).find(".text").text_content())
    assert text.startswith("a face")
    assert "<|" not in text
    page.page.keyboard.press("1")
    expect(page.find("#vote [role=status]")).to_contain_text("You prefer chat.ckpt. Written to votes.jsonl.")
    row = json.loads(votes.read_text().removeprefix(before))
    assert row["prompt"] == "a face"
    assert row["chosen"] == text.removeprefix("a face")
    assert {row["chosen_seed"], row["rejected_seed"]} == {3, 4}
    assert row["chosen_model"] == row["rejected_model"] == "chat.ckpt"


def test_without_a_file_the_page_keeps_votes_until_they_are_downloaded(chromium: Any, folder: Path) -> None:
    for address in start(folder, "abc.ckpt"):
        page = Page(chromium, address, 390)
        two(page, "vote")
        expect(page.find("#models")).to_be_hidden()  # there is but one
        page.fill(temperature=0, count=5)
        page.find("#prompt").fill("abc")
        page.find("#write").click()
        expect(page.find("#vote [role=status]")).to_contain_text("nothing to vote on")  # greedy: the same twice
        expect(page.find("#vote button").first).to_be_disabled()
        page.fill(temperature=0.9, count=20)
        for count, prompt in enumerate(("abc", "cab"), 1):
            page.find("#prompt").fill(prompt)
            page.find("#write").click()
            expect(page.find("#vote button").first).to_be_focused()
            expect(page.find("#vote button").first).to_have_accessible_name("Upper is better (1)")
            page.find("#vote button").nth(count - 1).click()
            expect(page.find("#vote [role=status]")).to_contain_text(f"This page keeps {count} vote")
        with page.page.expect_download() as download:
            page.find("#vote a").click()
        assert download.value.suggested_filename == "votes.jsonl"
        path = folder / "downloaded.jsonl"
        download.value.save_as(path)
        assert [each.prompt[0].content for each in read_examples([path]).rows] == ["abc", "cab"]
        page.find("#write").click()
        expect(page.find("#vote button").first).to_be_focused()
        page.find("#clear").click()
        expect(page.find("#vote button").first).to_be_disabled()
        assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.errors == []
        page.context.close()
