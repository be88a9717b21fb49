"""The answers of the server: the texts, log-probabilities and figures that the same model gives elsewhere."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.data.batches import Windows
from gptlab.evaluation.loss import token_nats
from gptlab.formats.open_model import open_model
from gptlab.formats.opened import OpenedModel
from gptlab.generation.answers import draw_answers, empty_answers
from gptlab.generation.opening import open_to_generate
from gptlab.generation.sampling import Sampling
from tests.serving.conftest import BLOCK, Served, joined
from tests.test_generate import ABC, chat_tokenizer, saying

PROMPTS = ["abc", "k", "deadbeef caged", "a face\nhid", "bad " * 5]


def generated(opened: OpenedModel[Any], prompt: str, count: int, sampling: Sampling, seed: int, *stops: str) -> str:
    """What `generate` draws."""
    [answer] = empty_answers(opened, [prompt], samples=1, seed=seed, stops=stops)
    for _ in draw_answers(opened, [answer], count, sampling):
        pass
    return answer.stream.text


def test_the_text_of_a_seed_is_that_of_generate_whatever_runs_beside_it(serve: Any, either: OpenedModel[Any]) -> None:
    served: Served = serve(either, width=3)
    wanted = [(PROMPTS[i % 5], {"max_tokens": 5 + i, "seed": i, "temperature": 0.5 + i / 10}) for i in range(12)]
    expected = [
        generated(either, prompt, how["max_tokens"], Sampling(temperature=how["temperature"]), how["seed"])
        for prompt, how in wanted
    ]
    assert [served.texts(prompt, **how) for prompt, how in wanted] == [[text] for text in expected]
    with ThreadPoolExecutor(len(wanted)) as pool:
        found = pool.map(lambda each: served.texts(each[0], **each[1]), wanted)
        assert [*found] == [[text] for text in expected]


def test_filters_are_those_of_generate(serve: Any, ours: OpenedModel[Any]) -> None:
    served: Served = serve(ours)
    for how in (
        {"temperature": 0},
        {"top_k": 3},
        {"top_p": 0.4},
        {"min_p": 0.3},
        {"repetition_penalty": 1.8, "temperature": 0.7},
    ):
        expected = generated(ours, "abc", 30, Sampling(**how), 5)
        assert served.texts("abc", max_tokens=30, seed=5, **how) == [expected], how


def test_samples_and_prompts_come_in_their_order(serve: Any, ours: OpenedModel[Any]) -> None:
    served: Served = serve(ours, width=2)
    body = served.complete(PROMPTS[:2], n=3, seed=7, max_tokens=9)
    assert [choice["index"] for choice in body["choices"]] == [*range(6)]
    assert [choice["text"] for choice in body["choices"]] == [
        generated(ours, prompt, 9, Sampling(), seed) for prompt in PROMPTS[:2] for seed in (7, 8, 9)
    ]
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 54, "total_tokens": 58}
    assert body["seed"] == 7
    assert served.complete("abc")["usage"]["completion_tokens"] == 16


def test_ids_are_as_good_as_text(serve: Any, ours: OpenedModel[Any]) -> None:
    served: Served = serve(ours)
    ids = [ABC.encode(prompt).tolist() for prompt in PROMPTS]
    assert served.texts(ids, seed=1, echo=True) == served.texts(PROMPTS, seed=1, echo=True)
    assert served.texts(ids[0], seed=1) == served.texts(PROMPTS[0], seed=1)


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"echo": True}, {"logprobs": 2}, {"logprobs": 0, "echo": True}])
def test_a_stream_is_the_whole_in_chunks(serve: Any, either: OpenedModel[Any], more: dict[str, Any]) -> None:
    served: Served = serve(either)
    how = {"max_tokens": 25, "seed": 3, "stop": ["ab", "k"], **more}
    whole = served.complete(PROMPTS, **how)
    chunks = served.chunks("completions", prompt=PROMPTS, stream_options={"include_usage": True}, **how)
    assert joined(chunks) == {choice["index"]: choice["text"] for choice in whole["choices"]}
    *some, last = chunks
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert all(chunk["usage"] is None for chunk in some)
    assert len({chunk["id"] for chunk in chunks}) == 1
    for choice in whole["choices"]:
        parts = [each for chunk in some for each in chunk["choices"] if each["index"] == choice["index"]]
        assert [each["finish_reason"] for each in parts if each["finish_reason"]] == [choice["finish_reason"]]
        if "logprobs" in more:
            for key, value in choice["logprobs"].items():
                if value is not None:
                    assert [x for each in parts for x in each["logprobs"][key]] == value


def test_a_text_ends_before_a_stop_string(serve: Any, tmp_path: Path) -> None:
    path = saying(tmp_path / "a.ckpt", ABC, ABC.encode("abcdefghijk\n").tolist())
    served: Served = serve(open_to_generate(str(path), "cpu", "fp32", False))
    for stop in ("fgh", ["zz", "fgh"], ["k", "gh", "fg"]):
        [choice] = served.complete("a", stop=stop, max_tokens=50)["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("bcde", "stop")
        assert joined(served.chunks("completions", prompt="a", stop=stop, max_tokens=50)) == {0: "bcde"}
    [choice] = served.complete("a", max_tokens=14)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("bcdefghijk\nabc", "length")


def test_scores_of_a_prompt_are_those_of_evaluate(serve: Any, either: OpenedModel[Any], model_file: Path) -> None:
    served: Served = serve(either)
    device = torch.device("cpu")
    text = "a bad cab\nhid a face fed a cab" * 2
    ids = ABC.encode(text)
    nats = token_nats(open_model(str(model_file), device).model, ids, Windows(BLOCK, BLOCK), device)
    [choice] = served.complete(text, echo=True, logprobs=3, max_tokens=0)["choices"]
    scores = choice["logprobs"]
    assert choice["text"] == text == "".join(scores["tokens"])
    assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
    np.testing.assert_allclose(scores["token_logprobs"][1:], -nats, rtol=1e-5, atol=1e-5)
    assert scores["text_offset"] == [*range(len(text))]
    for token, number, top in [*zip(scores["tokens"], scores["token_logprobs"], scores["top_logprobs"], strict=True)][
        1:
    ]:
        assert top[token] == number
        assert 3 <= len(top) <= 4
        assert max(top.values()) >= number
        assert sum(map(np.exp, top.values())) <= 1 + 1e-9


def test_scores_of_what_is_drawn_are_the_model_s_before_any_filter(serve: Any, either: OpenedModel[Any]) -> None:
    served: Served = serve(either)
    how = {"max_tokens": 12, "seed": 4, "temperature": 0.6, "top_k": 5}
    [choice] = served.complete("abc", logprobs=1, **how)["choices"]
    [again] = served.complete("abc", logprobs=1, echo=True, **how)["choices"]
    assert again["text"] == "abc" + choice["text"] == "abc" + served.texts("abc", **how)[0]
    [scored] = served.complete("abc" + choice["text"], logprobs=1, echo=True, max_tokens=0)["choices"]
    drawn, whole = (each["logprobs"]["token_logprobs"] for each in (choice, scored))
    np.testing.assert_allclose(drawn, whole[3:], atol=1e-5)
    np.testing.assert_allclose(again["logprobs"]["token_logprobs"][1:], whole[1:], atol=1e-5)
    assert choice["logprobs"]["text_offset"] == [*range(3, 15)]
    assert served.complete("abc", logprobs=0, **how)["choices"][0]["logprobs"]["top_logprobs"] is None


def test_nothing_drawn_is_the_prompt_alone(serve: Any, ours: OpenedModel[Any]) -> None:
    served: Served = serve(ours)
    assert served.texts(["abc", "d"], max_tokens=0, echo=True) == ["abc", "d"]
    assert served.texts("abc", max_tokens=0) == [""]
    assert joined(served.chunks("completions", prompt="abc", max_tokens=0, echo=True)) == {0: "abc"}


def test_a_chat_is_answered_in_the_model_s_own_form(serve: Any, chat: OpenedModel[Any]) -> None:
    served: Served = serve(chat)
    messages = [{"role": "user", "content": "Hi"}]
    how = {"seed": 3, "max_completion_tokens": 20}
    body = served.post("chat/completions", model=chat.name, messages=messages, **how).json()
    [choice] = body["choices"]
    assert body["object"] == "chat.completion"
    assert choice["message"] == {
        "role": "assistant",
        "content": generated(chat, "Hi", 20, Sampling(), 3),
        "refusal": None,
    }
    chunks = served.chunks("chat/completions", messages=messages, **how)
    assert joined(chunks) == {0: choice["message"]["content"]}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    parts = [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]
    assert served.post("chat/completions", messages=parts, **how).json()["choices"] == [choice]


def test_a_chat_has_log_probabilities(serve: Any, chat: OpenedModel[Any]) -> None:
    served: Served = serve(chat)
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    how = {"seed": 3, "max_tokens": 8, "logprobs": True, "top_logprobs": 4, "n": 2}
    body = served.post("chat/completions", messages=messages, **how).json()
    assert body["usage"]["completion_tokens"] == sum(len(each["logprobs"]["content"]) for each in body["choices"])
    for choice in body["choices"]:
        for token in choice["logprobs"]["content"]:
            assert len(token["top_logprobs"]) == 4
            assert token["logprob"] <= token["top_logprobs"][0]["logprob"]
            assert chat.tokenizer.tokens.index(bytes(token["bytes"])) >= 0
    raw = [token["bytes"] for token in body["choices"][0]["logprobs"]["content"]]
    said = b"".join(map(bytes, raw)).decode("utf-8", "replace")
    assert said.startswith(body["choices"][0]["message"]["content"])


def test_a_token_that_is_no_character_has_a_name(serve: Any, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()  # of bytes
    ids = tokenizer.encode("aé").tolist()
    served: Served = serve(open_to_generate(str(saying(tmp_path / "b.ckpt", tokenizer, ids)), "cpu", "fp32", False))
    [choice] = served.complete("a", max_tokens=3, temperature=0, logprobs=1)["choices"]
    assert choice["text"] == "éa"
    assert choice["logprobs"]["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "a"]
    assert choice["logprobs"]["text_offset"] == [1, 1, 2]


def test_a_prompt_as_long_as_the_block_is_scored(serve: Any, ours: OpenedModel[Any]) -> None:
    served: Served = serve(ours)
    [choice] = served.complete("a" * BLOCK, echo=True, logprobs=1, max_tokens=0)["choices"]
    assert len(choice["logprobs"]["tokens"]) == BLOCK
    [choice] = served.complete("a" * (BLOCK - 1), max_tokens=1)["choices"]
    assert len(choice["text"]) == 1


def test_the_lists_of_models(serve: Any, ours: OpenedModel[Any], chat: OpenedModel[Any]) -> None:
    served: Served = serve(ours, chat)
    listed = served.client.get("/v1/models").json()
    assert [(each["id"], each["is_chat"]) for each in listed["data"]] == [(ours.name, False), (chat.name, True)]
    assert served.client.get(f"/v1/models/{ours.name}").json() == listed["data"][0]
    assert served.client.get("/health").json()["status"] == "ok"
    text = served.texts("abc", model=ours.name, seed=1)
    assert text == [generated(ours, "abc", 16, Sampling(), 1)]
