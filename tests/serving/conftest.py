"""What the tests of the server share: models, and a client that calls the application without a network."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from gptlab.formats.opened import OpenedModel
from gptlab.generation import cpu_context, opening
from gptlab.generation.batch import Batch
from gptlab.generation.opening import open_to_generate
from gptlab.serving.app import Options, build_app
from gptlab.serving.engine import Engine
from tests.formats.chat_folders import chat_folder
from tests.test_generate import ABC, gpt

BLOCK = 61


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a random GPT over 13 characters."""
    return gpt(tmp_path_factory.mktemp("served") / "abc.ckpt", ABC, block_size=BLOCK)


@pytest.fixture(scope="session")
def ours(model_file: Path) -> OpenedModel[Any]:
    """The model as arrays, computed by our library."""
    return open_to_generate(str(model_file), "cpu", "fp32", is_compiled=False)


@pytest.fixture(scope="session")
def by_torch(model_file: Path) -> OpenedModel[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "load_library", lambda: None)
        return open_to_generate(str(model_file), "cpu", "fp32", is_compiled=False)


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel[Any]:
    """A random GPT-2 that brings a chat template."""
    return open_to_generate(
        str(chat_folder(tmp_path_factory.mktemp("chat") / "folder", "chatml")), "cpu", "fp32", False
    )


@pytest.fixture(params=["ours", "torch"])
def either(
    request: pytest.FixtureRequest, ours: OpenedModel[Any], by_torch: OpenedModel[Any], monkeypatch: pytest.MonkeyPatch
) -> OpenedModel[Any]:
    """The model, by our library or by torch."""
    if request.param == "ours":
        return ours
    monkeypatch.setattr(cpu_context, "load_library", lambda: None)
    return by_torch


class Served:
    """A client, and the engines that it speaks to."""

    def __init__(self, client: TestClient, engines: dict[str, Engine]) -> None:
        self.client, self.engines = client, engines

    @property
    def engine(self) -> Engine:
        return next(iter(self.engines.values()))

    def post(self, route: str, **body: Any) -> Any:
        return self.client.post(f"/v1/{route}", json=body)

    def complete(self, prompt: Any, **body: Any) -> Any:
        """The body of a completion, which must succeed."""
        found = self.post("completions", prompt=prompt, **body)
        assert found.status_code == 200, found.text
        return found.json()

    def texts(self, prompt: Any, **body: Any) -> list[str]:
        return [choice["text"] for choice in self.complete(prompt, **body)["choices"]]

    def chunks(self, route: str, **body: Any) -> list[dict[str, Any]]:
        """The chunks of a stream, which must succeed and end."""
        found = self.post(route, stream=True, **body)
        assert found.status_code == 200, found.text
        assert found.headers["content-type"].startswith("text/event-stream")
        return events(found.text)


def events(text: str) -> list[dict[str, Any]]:
    *lines, last = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert last == "[DONE]"
    return [json.loads(line) for line in lines]


def joined(chunks: list[dict[str, Any]]) -> dict[int, str]:
    """The text of each choice of a stream."""
    found: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            text = choice["delta"]["content"] if "delta" in choice else choice["text"]
            found[choice["index"]] = found.get(choice["index"], "") + text
    return found


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """serve(opened, ...) serves models in this process; width and queue are those of each engine."""
    clients: list[TestClient] = []

    def serve(*models: OpenedModel[Any], width: int = 4, queue: int = 64, **options: Any) -> Served:
        engines = {opened.name: Engine(opened, width, queue) for opened in models}
        client = TestClient(build_app(engines, Options(**options)))
        client.__enter__()
        clients.append(client)
        return Served(client, engines)

    yield serve
    for client in clients:
        client.__exit__()


class Gate:
    """Lets passes through only while it is open, and tells of the first that waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        logits = Batch.logits

        def wait(batch: Batch) -> Any:
            self.reached.set()
            assert self.open.wait(60)
            return logits(batch)

        monkeypatch.setattr(Batch, "logits", wait)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()
