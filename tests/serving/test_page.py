"""The page at `/`: which files there are, and what a browser is told of them; token ids, by which the page works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptlab.data.chat.chat_format import ChatFormat, chat_tokenizer
from gptlab.formats.html.shared import chat_of
from gptlab.formats.opened import OpenedModel
from gptlab.serving.page import FILES, HEADERS
from tests.serving.conftest import Served
from tests.serving.test_refusals import refused


def test_the_pages_files_are_served_and_no_others(serve: Any, ours: OpenedModel[Any]) -> None:
    client = serve(ours, api_key="sesame").client  # which the page itself is not asked for
    for name, (content, kind) in FILES.items():
        found = client.get(f"/{name}")
        assert found.status_code == 200
        assert found.headers["content-type"] == f"{kind}; charset=utf-8"
        assert {key: found.headers[key] for key in HEADERS} == HEADERS
        assert client.post(f"/{name}").status_code == 405
        assert found.text == content
    text = client.get("/").text
    names = [name for name in FILES if name]
    assert [name for name in names if f'="{name}"' in text] == names
    assert "<script>" not in text
    assert " style=" not in text
    for name in (
        "index.html",
        "local.js",
        "model.js",
        "page.py",
        "server.py",
        "static/",
        "..%2fserver.js",
        "../app.py",
    ):
        assert client.get(f"/{name}").status_code == 404, name


def test_the_policy_lets_nothing_come_from_elsewhere() -> None:
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert HEADERS["X-Content-Type-Options"] == "nosniff"
    assert HEADERS["Cache-Control"] == "no-store"


def test_a_completion_names_its_tokens_by_ids_and_bytes(serve: Any, chat: OpenedModel[Any]) -> None:
    served: Served = serve(chat)
    ids = chat.tokenizer.encode("é!").tolist()
    how: dict[str, Any] = {"echo": True, "logprobs": 2, "max_tokens": 3, "temperature": 0}
    [choice] = served.complete(ids, token_ids=True, **how)["choices"]
    content = choice["logprobs"]["content"]
    assert [each["id"] for each in content][: len(ids)] == ids
    assert len(content) == len(ids) + 3
    assert bytes(byte for each in content[: len(ids)] for byte in each["bytes"]).decode() == "é!"
    assert content[0]["logprob"] is None
    assert [each["logprob"] for each in content] == choice["logprobs"]["token_logprobs"]
    for each in content[len(ids) :]:  # greedy
        assert each["top_logprobs"][0]["id"] == each["id"]
        assert len(each["top_logprobs"]) == 2
        assert bytes(each["bytes"]) == chat.tokenizer.tokens[each["id"]]
    [plain] = served.complete(ids, **how)["choices"]
    assert "content" not in plain["logprobs"]
    again = [each["id"] for each in content]
    chunks = served.chunks("completions", prompt=ids, token_ids=True, **how)
    assert [each["id"] for chunk in chunks for each in chunk["choices"][0]["logprobs"]["content"]] == again
    refused(served.post("completions", prompt="a", token_ids=True), 400, "token_ids", "needs logprobs")


def test_a_model_says_what_the_page_must_know(serve: Any, chat: OpenedModel[Any], tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(chat.tokenizer)
    [told] = serve(chat).client.get("/v1/models").json()["data"]
    assert told["tokens"] == {
        "begin": [*chat.tokenizer.begin],
        "ends": sorted(chat.ends),
        "special": chat.tokenizer.special_tokens,
        "chat": None,  # a template of its own
    }
    found = chat_of(ChatFormat(tokenizer))
    assert found is not None
    assert {*found["turns"]} == {"user", "assistant"}
