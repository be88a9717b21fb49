"""What the server tells of a text beside its continuation: its tokens, and where the heads look in it."""

from __future__ import annotations

import asyncio
import base64
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.formats.opened import OpenedModel
from gptlab.generation import attention_reader, opening
from gptlab.generation.attention_reader import AttentionReader
from gptlab.generation.opening import open_to_generate
from gptlab.models.watching import attention_maps
from gptlab.serving import inspection
from gptlab.serving.engine import Engine
from tests.serving.conftest import BLOCK, Gate, Served
from tests.serving.test_refusals import refused
from tests.serving.test_running import with_app
from tests.test_generate import ABC, saying

TEXT = "a bad cage faced"


def unpacked(found: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The weights of a response, (L, H, T, T)."""
    maps = np.zeros((found["layers"], found["heads"], found["count"], found["count"]))
    rows, columns = np.tril_indices(found["count"])
    numbers = np.frombuffer(base64.b64decode(found["weights"]), "<u2") / 65535
    maps[..., rows, columns] = numbers.reshape(*maps.shape[:2], -1)
    return maps


def attention(served: Served, prompt: Any, **body: Any) -> dict[str, Any]:
    found = served.post("attention", prompt=prompt, **body)
    assert found.status_code == 200, found.text
    result: dict[str, Any] = found.json()
    return result


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("has_library", [True, False])
def test_the_weights_are_those_of_the_model_that_answers(
    serve: Any, model_file: Path, monkeypatch: pytest.MonkeyPatch, precision: str, has_library: bool
) -> None:
    if not has_library:
        monkeypatch.setattr(opening, "load_library", lambda: None)
    served: Served = serve(open_to_generate(str(model_file), "cpu", precision, is_compiled=False))
    monkeypatch.setattr(opening, "load_library", lambda: None)
    by_torch = open_to_generate(str(model_file), "cpu", precision, is_compiled=False).model
    ids = ABC.encode(TEXT)
    found = attention(served, ids.tolist())
    assert {name: found[name] for name in ("object", "model", "layers", "heads", "count")} == {
        "object": "attention",
        "model": str(model_file),
        "layers": 2,
        "heads": 3,
        "count": len(TEXT),
    }
    expected = attention_maps(by_torch, torch.from_numpy(ids)).numpy()  # type: ignore[arg-type]
    np.testing.assert_allclose(unpacked(found), expected, atol=1.1 / 65535)
    assert served.client.get("/v1/models").json()["data"][0]["attention"] == {"layers": 2, "heads": 3}
    assert attention(served, TEXT) == found  # as a text


def test_weights_that_are_no_numbers_are_refused(
    serve: Any, ours: OpenedModel[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AttentionReader, "__call__", lambda self, ids: np.full((2, 3, len(ids), len(ids)), np.nan))
    served: Served = serve(ours)
    found = served.post("attention", prompt=TEXT)
    refused(found, 500, None, "the weights of the model are broken", code="generation_failed")


def test_a_long_text_has_the_weights_of_its_end(
    serve: Any, ours: OpenedModel[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "MOST_WEIGHTS", 6 * 9 * 9 + 5)
    served: Served = serve(ours)
    found = attention(served, TEXT)
    assert found["count"] == 9
    assert found == attention(served, TEXT[-9:])


def test_what_cannot_be_read_is_refused(
    serve: Any, ours: OpenedModel[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saying(tmp_path / "table.ckpt", ABC, [1, 2, 3])
    table = open_to_generate(str(tmp_path / "table.ckpt"), "cpu", "fp32", is_compiled=False)
    served: Served = serve(ours, table)
    none = served.post("attention", model=table.name, prompt=[1])
    refused(none, 400, "model", "has no attention", code="no_attention")
    assert [each["attention"] for each in served.client.get("/v1/models").json()["data"]][1] is None
    for route in ("attention", "tokens"):
        say: Any = lambda route=route, **body: served.post(route, model=ours.name, **body)  # noqa: E731
        long = say(prompt=[1] * (BLOCK + 1))
        refused(long, 400, "prompt", f"has room for {BLOCK} tokens", code="context_length_exceeded")
        refused(say(prompt=[99]), 400, "prompt", "ids go from 0 to 12")
        refused(say(prompt="xyz"), 400, "prompt", "never seen: 'x' 'y' 'z'")
        refused(say(), 400, "prompt", "must be a text")
        refused(say(prompt=["a", "b"]), 413, "prompt", "2 prompts: at most 1")
        refused(say(prompt=[1], n=2), 400, "n", "there is no such parameter")
        refused(served.post(route, prompt=[1]), 400, "model", "must be the name of a model")
        assert served.client.get(f"/v1/{route}").status_code == 405
    monkeypatch.setattr(inspection, "MOST_WAITING", 0)
    refused(served.post("attention", model=ours.name, prompt=[1]), 429, None, "wait", code="queue_full")


def test_a_key_is_asked_for(serve: Any, ours: OpenedModel[Any]) -> None:
    served: Served = serve(ours, api_key="sesame")
    for route in ("attention", "tokens"):
        assert served.post(route, prompt=[1]).status_code == 401


class Slow:
    """Lets readings of attention wait until they may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reading, self.go = threading.Event(), threading.Event()
        self.count = 0
        read = AttentionReader.__call__

        def wait(reader: AttentionReader, ids: list[int]) -> Any:
            self.count += 1
            self.reading.set()
            assert self.go.wait(60)
            return read(reader, ids)

        monkeypatch.setattr(AttentionReader, "__call__", wait)


def test_others_are_answered_while_attention_is_read(
    serve: Any, ours: OpenedModel[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    served: Served = serve(ours)
    expected = served.texts("abc", seed=3, max_tokens=20)
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(attention(served, TEXT)))
    asking.start()
    assert slow.reading.wait(60)
    assert served.texts("abc", seed=3, max_tokens=20) == expected
    assert served.client.get("/health").json()["status"] == "ok"
    slow.go.set()
    asking.join()
    assert found[0]["count"] == len(TEXT)


def test_who_leaves_is_not_waited_for_and_what_takes_too_long_is_408(
    ours: OpenedModel[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)

    async def body(app: Any, engine: Engine) -> None:
        reading = app.state.service.attention
        first = asyncio.ensure_future(reading.body(ours, [1], 60))
        assert await asyncio.to_thread(slow.reading.wait, 60)
        second = asyncio.ensure_future(reading.body(ours, [1], 60))
        await asyncio.sleep(0)
        assert reading.waiting == 2
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        with pytest.raises(inspection.ApiError, match=r"not there after 0\.001 seconds"):
            await reading.body(ours, [1], 0.001)
        assert reading.waiting == 1
        slow.go.set()
        assert (await first)["count"] == 1
        assert slow.count == 1  # neither of the others was begun

    with_app(ours, body)


def test_torch_is_loaded_for_the_first_text_alone(ours: OpenedModel[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    from gptlab.models import torch_arrays

    twin_of = torch_arrays.twin_of
    monkeypatch.setattr(torch_arrays, "twin_of", lambda model: made.append(model) or twin_of(model))
    reader = attention_reader.AttentionReader(ours.model)
    assert not made
    assert reader([1, 2]).shape == reader([3, 4]).shape == (2, 3, 2, 2)
    assert made == [ours.model]


def test_tokens_are_told_without_a_pass(serve: Any, chat: OpenedModel[Any], gate: Gate) -> None:
    served: Served = serve(chat)
    found = served.post("tokens", prompt="é!").json()  # while no pass may be made
    ids = [*chat.tokenizer.begin, *chat.tokenizer.encode("é!").tolist()]
    assert [each["id"] for each in found["data"]] == ids
    assert b"".join(bytes(each["bytes"]) for each in found["data"][len(chat.tokenizer.begin) :]).decode() == "é!"
    again = served.post("tokens", prompt=ids).json()
    assert again == found
    assert again["model"] == chat.name
    assert not gate.reached.is_set()
