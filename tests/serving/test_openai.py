"""OpenAI's own client speaks to the server."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from gptlab.formats.opened import OpenedModel
from tests.serving.conftest import Served

HI = [{"role": "user", "content": "Hi"}]


def client_of(served: Served, key: str = "k") -> openai.OpenAI:
    return openai.OpenAI(base_url="http://testserver/v1", api_key=key, http_client=served.client, max_retries=0)


def test_completions(serve: Any, ours: OpenedModel[Any]) -> None:
    client = client_of(serve(ours, api_key="k"))
    assert [model.id for model in client.models.list()] == [ours.name]
    how: dict[str, Any] = {"model": ours.name, "prompt": "abc", "seed": 1, "max_tokens": 12, "stop": ["k"]}
    whole = client.completions.create(**how, logprobs=2, n=2, extra_body={"top_k": 5, "min_p": 0.01})
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 3
    for choice in whole.choices:
        assert choice.finish_reason in ("stop", "length")
        assert choice.logprobs is not None
        assert len(choice.logprobs.tokens or ()) == len(choice.logprobs.token_logprobs or ())
    stream = client.completions.create(**how, stream=True, extra_body={"top_k": 5, "min_p": 0.01})
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_chat(serve: Any, chat: OpenedModel[Any]) -> None:
    client = client_of(serve(chat))
    how: dict[str, Any] = {"model": chat.name, "messages": HI, "seed": 1, "max_completion_tokens": 9}
    whole = client.chat.completions.create(**how, logprobs=True, top_logprobs=3)
    scores = whole.choices[0].logprobs
    assert scores is not None
    assert all(len(token.top_logprobs) == 3 for token in scores.content or ())
    usage = {"include_usage": True}
    chunks = [*client.chat.completions.create(**how, stream=True, stream_options=usage)]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_errors_are_the_client_s_own(serve: Any, ours: OpenedModel[Any]) -> None:
    served: Served = serve(ours, api_key="k")
    with pytest.raises(openai.BadRequestError) as caught:
        client_of(served).completions.create(model=ours.name, prompt="abc", presence_penalty=1)
    assert (caught.value.param, caught.value.code) == ("presence_penalty", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError, match="there is no such model"):
        client_of(served).completions.create(model="gpt-9", prompt="abc")
    with pytest.raises(openai.AuthenticationError):
        client_of(served, "wrong").models.list()
