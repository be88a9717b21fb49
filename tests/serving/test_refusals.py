"""What a server refuses, and in which words; what is harmless it takes."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from gptlab.formats.opened import OpenedModel
from gptlab.serving.fields import HARMLESS, UNSUPPORTED
from tests.serving.conftest import BLOCK, Served

WRONG: list[tuple[dict[str, Any], str, str]] = [  # the body, the parameter, and words of the message
    ({"prompt": None}, "prompt", "must be a text"),
    ({"prompt": []}, "prompt", "a list of 0"),
    ({"prompt": [[]]}, "prompt[0]", "must be a text"),
    ({"prompt": ["a", 1]}, "prompt[1]", "must be a text"),
    ({"prompt": [1, "a"]}, "prompt", "must be a text"),
    ({"prompt": {"text": "a"}}, "prompt", "an object"),
    ({"prompt": [1, 99]}, "prompt", "99: ids go from 0 to 12"),
    ({"prompt": [-1]}, "prompt", "-1: ids"),
    ({"prompt": [True]}, "prompt[0]", "true"),
    ({"prompt": "abcXYZ"}, "prompt", "'X' 'Y' 'Z'"),
    ({"max_tokens": -1}, "max_tokens", "whole number from 0"),
    ({"max_tokens": 1.5}, "max_tokens", "1.5"),
    ({"max_tokens": True}, "max_tokens", "true"),
    ({"temperature": -1}, "temperature", "from 0 to 100"),
    ({"temperature": "hot"}, "temperature", '"hot"'),
    ({"temperature": float("nan")}, "temperature", "NaN"),
    ({"top_p": 0}, "top_p", "above 0 to 1"),
    ({"top_p": 1.1}, "top_p", "1.1"),
    ({"top_k": 0}, "top_k", "leave it out"),
    ({"min_p": 2}, "min_p", "from 0 to 1"),
    ({"repetition_penalty": 1e308}, "repetition_penalty", "to 100"),
    ({"n": 0}, "n", "from 1 to 128"),
    ({"seed": "x"}, "seed", "whole number"),
    ({"seed": 2**64}, "seed", "whole number"),
    ({"stop": ""}, "stop", "not empty"),
    ({"stop": ["a", ""]}, "stop", "not empty"),
    ({"stop": [*"abcde"]}, "stop", "up to 4"),
    ({"stop": 3}, "stop", "3"),
    ({"stream": 1}, "stream", "true or false"),
    ({"stream_options": {}}, "stream_options", "needs stream"),
    ({"stream": True, "stream_options": []}, "stream_options", "an object"),
    ({"stream": True, "stream_options": {"include_usag": True}}, "stream_options.include_usag", "include_usage?"),
    ({"logprobs": 6}, "logprobs", "from 0 to 5"),
    ({"logprobs": True}, "logprobs", "true"),
    ({"echo": "yes"}, "echo", "true or false"),
    ({"best_of": 2}, "best_of", "at most n, 1"),
    ({"temprature": 1}, "temprature", "did you mean temperature?"),
    ({"model": 7}, "model", "must be the name"),
]


def refused(found: Any, status: int, param: str | None, *words: str, code: str | None = None) -> None:
    assert found.status_code == status, found.text
    body = found.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["param"] == param
    for word in words:
        assert word in body["error"]["message"]
    if code is not None:
        assert body["error"]["code"] == code


@pytest.fixture
def served(serve: Any, ours: OpenedModel[Any]) -> Served:
    return serve(ours)


@pytest.mark.parametrize(("body", "param", "words"), WRONG, ids=lambda each: str(each)[:40])
def test_a_wrong_value_is_named(served: Served, body: dict[str, Any], param: str, words: str) -> None:
    raw = json.dumps({"prompt": "a", **body})
    found = served.client.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
    refused(found, 400, param, words, param)


def test_what_cannot_be_honoured_is_refused_and_its_neutral_value_taken(served: Served) -> None:
    for name, (neutral, way_out) in UNSUPPORTED.items():
        value = 1.5 if "penalty" in name else {"some": "thing"}
        refused(
            served.post("completions", prompt="a", **{name: value}), 400, name, way_out, code="unsupported_parameter"
        )
        for each in neutral:
            served.complete("a", **{name: each})
        served.complete("a", **{name: None})
    refused(served.post("completions", prompt="a", frequency_penalty=False), 400, "frequency_penalty")
    served.complete("a", **dict.fromkeys(HARMLESS, "x"), best_of=1)


def test_what_does_not_fit_is_refused_with_what_would(served: Served) -> None:
    code = "context_length_exceeded"
    refused(served.post("completions", prompt="a" * 50, max_tokens=12), 400, "max_tokens", "at most 11", code=code)
    refused(served.post("completions", prompt="a" * BLOCK), 400, "prompt", "61 tokens", "an answer needs 1", code=code)
    refused(served.post("completions", prompt=[1] * 99), 400, "prompt", "99 tokens", code=code)
    refused(served.post("completions", prompt="a" * 99), 400, "prompt", "99 characters", code=code)
    assert len(served.texts("a" * 50)[0]) == BLOCK - 50  # without max_tokens, what there is room for


def test_the_limits_of_the_server(serve: Any, ours: OpenedModel[Any]) -> None:
    served: Served = serve(ours, width=2, queue=3, max_tokens=8, body_bytes=2000)
    refused(served.post("completions", prompt="a", max_tokens=9), 400, "max_tokens", "--max-tokens 8")
    assert len(served.texts("a")[0]) == 8
    refused(served.post("completions", prompt=["a"] * 6), 413, "prompt", "6 prompts: at most 5")
    refused(served.post("completions", prompt=["a"] * 2, n=3), 413, "n", "2 prompts with n=3")
    assert len(served.texts("a", n=5)) == 5
    refused(served.post("completions", prompt="a" * 2000), 413, None, "2,000 bytes", code="too_large")


def test_bodies_that_are_no_objects(served: Served) -> None:
    deep = b"[" * 100_000
    for raw in (b"", b"{", b"[]", b'"a"', b"\xff", b"nul", deep, b'{"n": ' + b"9" * 5000 + b"}"):
        found = served.client.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
        refused(found, 400, None, "the body is")
    found = served.client.post("/v1/completions", content=b'{"prompt": "a"}', headers={"content-type": "text/plain"})
    refused(found, 400, None, "content-type text/plain", "application/json")
    refused(served.client.post("/v1/completions", content=b'{"prompt": "a"}'), 400, None, "no content-type")


def test_unknown_models_and_addresses(serve: Any, ours: OpenedModel[Any], chat: OpenedModel[Any]) -> None:
    served: Served = serve(ours, chat)
    refused(served.post("completions", prompt="a", model="gpt-9"), 404, "model", ours.name, code="model_not_found")
    refused(served.post("completions", prompt="a"), 400, "model", "null", chat.name)
    refused(served.client.get("/v1/models/gpt-9"), 404, "model", code="model_not_found")
    refused(served.client.get("/v1/nothing"), 404, None, "/v1/models")
    refused(served.client.get("/v1/completions"), 405, None, "POST")


def test_a_chat_needs_a_model_that_answers(serve: Any, ours: OpenedModel[Any], chat: OpenedModel[Any]) -> None:
    served: Served = serve(ours, chat)
    hi = [{"role": "user", "content": "Hi"}]
    found = served.post("chat/completions", model=ours.name, messages=hi)
    refused(found, 400, "model", "no chat format", "/v1/completions", code="no_chat_format")
    for messages, param in (
        (None, "messages"),
        ([], "messages"),
        (["Hi"], "messages[0]"),
        ([{"role": "wizard", "content": "Hi"}], "messages[0].role"),
        ([{"content": "Hi"}], "messages[0].role"),
        ([*hi, {"role": "assistant", "content": "Ho"}], "messages[1].role"),
        ([{"role": "user", "content": ""}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content"),
        ([{"role": "user", "content": "Hi", "tool_calls": [1]}], "messages[0].tool_calls"),
    ):
        refused(served.post("chat/completions", model=chat.name, messages=messages), 400, param)
    for more, param in (
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"max_completion_tokens": 999}, "max_completion_tokens"),
        ({"echo": True}, "echo"),
        ({"tools": [{}]}, "tools"),
    ):
        refused(served.post("chat/completions", model=chat.name, messages=hi, **more), 400, param)


def test_who_has_no_key_is_refused(serve: Any, ours: OpenedModel[Any]) -> None:
    served: Served = serve(ours, api_key="sesame é")
    for header in ({}, {"authorization": "Bearer open"}, {"authorization": "Basic sesame é".encode()}):
        for call in (served.client.get("/v1/models", headers=header), served.client.post("/v1/x", headers=header)):
            refused(call, 401, None, "Authorization: Bearer KEY", code="invalid_api_key")
    assert served.client.get("/health").status_code == 200
    assert served.client.get("/v1/models", headers={"authorization": "bearer sesame é".encode()}).status_code == 200


def test_a_web_page_that_says_this_machine_is_its_own_is_refused(serve: Any, ours: OpenedModel[Any]) -> None:
    served: Served = serve(ours, is_local=True)
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000"):
        assert served.client.get("/v1/models", headers={"host": host}).status_code == 200, host
    for host in ("my.org", "my.org:8000", "localhost.my.org", "127.0.0.1.my.org:80", "["):
        found = served.client.get("/v1/models", headers={"host": host})
        refused(found, 403, None, host, "--api-key", code="wrong_host")


def test_only_pages_that_are_allowed_may_call(serve: Any, ours: OpenedModel[Any]) -> None:
    asks = {"origin": "https://my.org", "access-control-request-method": "POST"}
    closed: Served = serve(ours)
    assert "access-control-allow-origin" not in closed.client.get("/health", headers=asks).headers
    served: Served = serve(ours, api_key="k", origins=["https://my.org"])
    allowed = served.client.options("/v1/completions", headers=asks)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://my.org")
    other = served.client.options("/v1/completions", headers=asks | {"origin": "https://other.org"})
    assert other.status_code == 400


# Random and damaged requests

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2**63, 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "a", "abc", "é", "\ud800", "\0", "a" * 3000, "null", [], [[]], [None], ["a", "b"], [1, 2], [[1], [2, 3]]),
    *([-1], [1e3], {}, {"a": []}, {"type": "text"}, {"include_usage": True}, [{"role": "user", "content": "Hi"}]),
    *([{"role": "user", "content": [{"type": "text", "text": "x"}]}], [{"role": None}], [[[[[]]]]], ["ab"] * 9),
]
KEYS = [
    *("prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "n"),
    *("repetition_penalty", "stop", "seed", "stream", "stream_options", "logprobs", "top_logprobs", "echo", "best_of"),
    *("model", "user", "tools", "logit_bias", "suffix", "frequency_penalty", "", "\ud800", "x" * 200),
]


def damaged(draw: random.Random, name: str) -> tuple[str, bytes]:
    """A route and a body; half of them begin as good ones."""
    body: dict[str, Any] = {}
    route = draw.choice(["completions", "chat/completions"])
    if draw.random() < 0.8:
        good = {"prompt": "abc"} if route == "completions" else {"messages": [{"role": "user", "content": "abc"}]}
        body |= good | {"max_tokens": draw.randrange(9), "model": name}
    for _ in range(draw.randrange(4)):
        body[draw.choice(KEYS)] = draw.choice(VALUES)
    raw = bytearray(json.dumps(body).encode())
    if draw.random() < 0.2:
        for _ in range(draw.randrange(1, 6)):
            place = draw.randrange(len(raw) + 1)
            raw[place : place + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
    return route, bytes(raw)


def fuzz(served: Served, count: int, seed: int = 0) -> dict[int, int]:
    """How often each status came."""
    draw, found = random.Random(seed), dict[int, int]()
    names = [*served.engines]
    for _ in range(count):
        route, raw = damaged(draw, draw.choice(names))
        answer = served.client.post(f"/v1/{route}", content=raw, headers={"content-type": "application/json"})
        assert answer.status_code < 500, raw
        if "event-stream" in answer.headers["content-type"]:
            assert answer.text.endswith("data: [DONE]\n\n"), raw
        else:
            answer.json()
        found[answer.status_code] = found.get(answer.status_code, 0) + 1
    for engine in served.engines.values():
        assert engine.wait_until_idle(60)
    return found


def test_no_request_breaks_the_server(serve: Any, ours: OpenedModel[Any], chat: OpenedModel[Any]) -> None:
    served: Served = serve(ours, chat)
    found = fuzz(served, 300)
    assert found[200] > 30
    assert found[400] > 100
    assert served.complete("abc", model=ours.name)
