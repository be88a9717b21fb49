"""The page of the server in headless Chromium."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from gptlab.data.chat.chat_format import chat_tokenizer
from gptlab.data.tokenizers import ByteTokenizer
from tests.browser import NEEDS_CHROMIUM, Page, expect
from tests.conftest import ROOT
from tests.test_generate import ABC, gpt, saying

pytestmark = NEEDS_CHROMIUM

BLOCK = 800
PROMPT = "a bad cage"
KEY = "sésame"
# A server whose passes take 5 ms, so that there is time to stop it.
SLOW = """
import sys, time
from gptlab.generation.batch import Batch
logits = Batch.logits
def slow(batch):
    time.sleep(0.005)
    return logits(batch)
Batch.logits = slow
from gptlab.serve import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    gpt(folder / "abc.ckpt", ABC, block_size=BLOCK)
    saying(folder / "table.ckpt", ABC, [1, 2, 3])
    gpt(folder / "other.ckpt", ABC, seed=2, block_size=BLOCK)
    gpt(folder / "bytes.ckpt", ByteTokenizer(end_of_text=True), block_size=BLOCK)
    gpt(folder / "chat.ckpt", chat_tokenizer(ABC), config={"task": {"name": "sft"}}, block_size=BLOCK)
    return folder


def start(folder: Path, *arguments: str) -> Iterator[str]:
    """The address of a server, which runs until the fixture ends."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SLOW, *arguments, "--port", "0"]
    with subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield next(found[1] for line in process.stderr if (found := re.search(r"(http://\S+)/v1", line)))
        finally:
            process.kill()


@pytest.fixture(scope="module")
def one(folder: Path) -> Iterator[str]:
    yield from start(folder, "abc.ckpt")


@pytest.fixture(scope="module")
def several(folder: Path) -> Iterator[str]:
    yield from start(folder, "abc.ckpt", "bytes.ckpt", "chat.ckpt")


@pytest.fixture(scope="module")
def locked(folder: Path) -> Iterator[str]:
    yield from start(folder, "abc.ckpt", "--api-key", KEY)


@pytest.fixture
def page(chromium: Any, one: str) -> Iterator[Page]:
    opened = Page(chromium, one)
    yield opened
    assert opened.errors == []  # there is nothing that the policy has stopped, either
    opened.context.close()


def completed(address: str, prompt: Any, **body: Any) -> str:
    found = httpx.post(f"{address}/v1/completions", json={"prompt": prompt, **body}, timeout=60, trust_env=False)
    return str(found.json()["choices"][0]["text"])


def answers(address: str, name: str = "abc.ckpt") -> int:
    found = httpx.get(f"{address}/health", trust_env=False).json()
    return int(found["models"][name]["answers"])


def test_the_text_is_the_servers_again_after_a_reload(page: Page, one: str) -> None:
    how = {"temperature": 0.9, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "seed": 5}
    expected = completed(one, PROMPT, max_tokens=40, repetition_penalty=1.1, **how)
    for _ in range(2):
        assert page.write(prompt=PROMPT, count=40, penalty=1.1, **how) == PROMPT + expected
        expect(page.find(".status")).to_have_text(re.compile("^40 tokens, [0-9.]+ a second, seed 5$"))
        levels = page.tokens.evaluate_all("all => all.map((each) => each.style.getPropertyValue('--level'))")
        assert levels[0] == ""
        assert all(levels[1:])
        page.page.reload()
        expect(page.find("#ask")).to_be_visible()
        expect(page.find(".paper")).to_be_hidden()
    for each in ("#key-form", "#models", "#vote", "#modes"):
        expect(page.find(each)).to_be_hidden()


def test_stop_frees_the_servers_row(page: Page, one: str) -> None:
    page.fill(prompt=PROMPT, temperature=0, count=BLOCK)  # more than there is room for
    page.find("#write").click()
    expect(page.tokens.nth(len(PROMPT) + 5)).to_be_visible()
    assert answers(one) == 1
    page.find("#stop").click()
    stopped = page.finished()
    expect(page.find(".status")).to_contain_text("Stopped: ")
    assert len(stopped) < BLOCK
    deadline = time.monotonic() + 20
    while answers(one):
        assert time.monotonic() < deadline
    page.fill(count=7)
    page.find("#more").click()
    expect(page.find(".status")).to_have_text(re.compile("^7 tokens"))
    assert page.text.startswith(stopped)
    assert len(page.text) == len(stopped) + 7


def test_an_error_of_the_server_is_shown_as_it_is(page: Page) -> None:
    page.fill(prompt="xyz")
    page.find("#write").click()
    expect(page.find(".wrong")).to_contain_text("never seen: 'x' 'y' 'z'; leave them out")
    assert page.text == ""
    page.write(prompt="a" * (BLOCK - 3), temperature=0, count=9)
    expect(page.find(".status")).to_contain_text("3 tokens")
    page.find("#more").click()
    expect(page.find(".wrong")).to_contain_text(f"abc.ckpt has room for {BLOCK} tokens in all")
    assert [each for each in page.errors if "status of 400" not in each] == []  # of which Chromium tells by itself
    page.errors.clear()


def test_two_models_and_a_branch_within_a_character_on_a_phone(chromium: Any, several: str) -> None:
    page = Page(chromium, several, 360)
    expect(page.find("#name")).to_have_text("abc.ckpt")
    page.write(prompt=PROMPT, temperature=0, count=5)
    page.find("#model").select_option("bytes.ckpt")
    expect(page.find("#name")).to_have_text("bytes.ckpt")
    expect(page.find(".paper")).to_be_hidden()
    expect(page.find("#prompt")).to_have_value(PROMPT)
    page.write(prompt="é中", temperature=0, count=12)
    assert page.text.startswith("é中")
    assert page.tokens.count() == 5 + 12
    page.tokens.nth(8).click()
    page.find(".choices button").nth(1).click()
    expect(page.tokens).to_have_count(9 + 12)
    page.finished()
    ids = page.page.evaluate("window.page.columns[0].ids")
    assert ids[:5] == [*"é中".encode()]
    body = {"prompt": ids[:9], "model": "bytes.ckpt", "max_tokens": 12, "temperature": 0}
    found = httpx.post(
        f"{several}/v1/completions", json=body | {"logprobs": 0, "token_ids": True}, timeout=60, trust_env=False
    ).json()["choices"][0]
    assert [each["id"] for each in found["logprobs"]["content"]] == ids[9:]
    assert any(id >= 128 for id in ids[5:])
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.errors == []
    page.context.close()


def test_a_chat_has_its_turns(chromium: Any, several: str) -> None:
    page = Page(chromium, several)
    page.find("#model").select_option("chat.ckpt")
    expect(page.find("#prompt-label")).to_have_text("Say something")
    text = page.write(prompt="a face", temperature=0, count=5)
    assert text.startswith("<|begin_of_text|><|user|>a face<|end|><|assistant|>")
    asked: list[Any] = []
    page.page.on("request", lambda request: asked.append((request.url.rpartition("/")[2], request.post_data_json)))
    again = page.write(prompt="bad")
    assert again.startswith(text)
    assert [name for name, _ in asked] == ["tokens", "completions", "completions"]
    assert [body.get("max_tokens") for _, body in asked] == [None, 5, 0]  # what was said is scored once, at the end
    assert "<|user|>bad<|end|><|assistant|>" in again[len(text) :]
    page.find("input[value=continue]").click()
    assert page.write(prompt="abc").startswith("abc")
    assert page.errors == []
    page.context.close()


def test_another_model_is_chosen_while_the_prompt_is_read(chromium: Any, several: str) -> None:
    page = Page(chromium, several)
    page.fill(prompt=PROMPT, temperature=0, count=9)
    page.page.evaluate(
        """() => {
        document.getElementById("write").click();
        const select = document.querySelector("#model");
        select.value = "1";
        select.dispatchEvent(new Event("change", { bubbles: true }));
        }"""
    )
    page.page.wait_for_load_state("networkidle")
    expect(page.find("#name")).to_have_text("bytes.ckpt")
    assert page.text == ""  # nothing of what the other was asked
    expect(page.find("#stop")).to_be_disabled()
    assert page.write(prompt="é", count=3).startswith("é")
    assert page.errors == []
    page.context.close()


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(chromium: Any, locked: str) -> None:
    page = Page(chromium, locked)
    for key in (None, "wrong"):
        if key is not None:
            page.find("#key").fill(key)
            page.find("#key-form button").click()
        expect(page.find("#summary")).to_have_text(
            "the key is missing or wrong; send the header Authorization: Bearer KEY"
        )
        expect(page.find("#key")).to_be_focused()
        expect(page.find("#ask")).to_be_hidden()
    page.find("#key").fill(KEY)
    page.page.keyboard.press("Enter")
    expect(page.find("#ask")).to_be_visible()
    expect(page.find("#key-form")).to_be_hidden()
    assert len(page.write(prompt=PROMPT, count=5)) == len(PROMPT) + 5
    page.page.reload()
    expect(page.find("#ask")).to_be_visible()
    assert page.page.evaluate("localStorage.length") == 0
    assert page.context.cookies() == []
    other = page.context.new_page()
    other.goto(locked)
    expect(other.locator("#key")).to_be_visible()
    page.context.close()
