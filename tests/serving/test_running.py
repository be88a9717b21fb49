"""What a server does while answers are drawn: rows, the queue, clients that leave, errors, and its end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gptlab.formats.opened import OpenedModel
from gptlab.generation.sampling import Sampling
from gptlab.generation.text_stream import TextStream
from gptlab.serving.app import Options, build_app
from gptlab.serving.engine import Engine, Full, Job, Part
from gptlab.system.errors import UserError
from tests.serving.conftest import Gate, Served
from tests.serving.test_refusals import refused
from tests.test_generate import ABC


class Drawn:
    """A job, and what is delivered of it."""

    def __init__(self, prompt: str = "abc", max_tokens: int = 9, seed: int = 0, **options: Any) -> None:
        self.parts: list[Part] = []
        self.ended = threading.Event()
        self.on_part: Callable[[], object] = lambda: None
        options = {"sampling": Sampling(), "stream": TextStream(ABC), **options}
        self.job = Job(ABC.encode(prompt).tolist(), max_tokens, seed=seed, deliver=self.deliver, **options)

    def deliver(self, part: Part) -> None:
        self.parts.append(part)
        self.on_part()
        if part.finish or part.error:
            self.ended.set()

    @property
    def text(self) -> str:
        assert self.ended.wait(60)
        return "".join(part.text for part in self.parts)


@pytest.fixture
def engine(ours: OpenedModel[Any]) -> Any:
    engine = Engine(ours, width=2, most_waiting=2)
    engine.start(lambda call: call())
    yield engine
    engine.stop()


def test_who_comes_later_takes_a_row_that_is_free(engine: Engine, gate: Gate) -> None:
    drawn = [Drawn(max_tokens=count, seed=1) for count in (1, 40, 2, 3)]
    engine.submit([each.job for each in drawn])
    gate.open.set()
    texts = [each.text for each in drawn]
    assert [len(text) for text in texts] == [1, 40, 2, 3]
    assert all(texts[1].startswith(text) for text in texts)
    assert engine.batch.passes == 40


def test_only_so_many_may_wait(engine: Engine, gate: Gate) -> None:
    drawn = [Drawn() for _ in range(4)]
    engine.submit([each.job for each in drawn])
    with pytest.raises(Full):
        engine.submit([Drawn().job])
    gate.open.set()
    assert all(each.text for each in drawn)
    assert engine.wait_until_idle(60)
    more = Drawn()
    engine.submit([more.job])
    assert more.text == drawn[0].text


def test_who_leaves_frees_a_row_at_the_next_pass(engine: Engine, gate: Gate) -> None:
    drawn = [Drawn(max_tokens=50), Drawn(max_tokens=50), Drawn(max_tokens=1), Drawn(max_tokens=50, is_scored=True)]
    engine.submit([each.job for each in drawn])
    assert gate.reached.wait(60)
    drawn[0].job.is_cancelled = drawn[3].job.is_cancelled = True
    passes: list[int] = []
    drawn[2].on_part = lambda: passes.append(engine.batch.passes)
    gate.open.set()
    assert len(drawn[2].text) == 1
    assert passes == [2]
    assert len(drawn[1].text) == 50
    assert engine.wait_until_idle(60)
    assert not drawn[0].parts
    assert not drawn[3].parts


def test_an_error_reaches_those_whom_it_concerns_and_nobody_else(
    engine: Engine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Sampling.draw

    def fail(self: Sampling, *arguments: Any) -> Any:
        if self.temperature == 9:
            raise UserError("no numbers")
        return draw(self, *arguments)

    monkeypatch.setattr(Sampling, "draw", fail)
    bad, good = Drawn(sampling=Sampling(temperature=9)), Drawn()
    engine.submit([bad.job, good.job])
    gate.open.set()
    assert len(good.text) == 9
    assert bad.text == ""
    assert bad.parts[-1].error == "no numbers"
    assert engine.wait_until_idle(60)


def test_an_engine_goes_on_after_a_pass_that_fails(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(engine.batch), "logits", lambda self: 1 // 0)
    drawn = Drawn()
    engine.submit([drawn.job])
    assert drawn.text == ""
    assert "ZeroDivisionError" in (drawn.parts[-1].error or "")
    monkeypatch.undo()
    again = Drawn()
    engine.submit([again.job])
    assert len(again.text) == 9


def test_an_engine_that_stops_tells_everyone(ours: OpenedModel[Any], gate: Gate) -> None:
    engine = Engine(ours, width=1, most_waiting=2)
    engine.start(lambda call: call())
    drawn = [Drawn(), Drawn()]
    engine.submit([each.job for each in drawn])
    assert gate.reached.wait(60)
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    with engine.changed:
        assert engine.changed.wait_for(lambda: engine.is_stopped, 60)
    gate.open.set()
    stopping.join()
    assert all(each.ended.wait(60) for each in drawn)
    assert [each.parts[-1].error for each in drawn] == ["stopped", "stopped"]
    with pytest.raises(Full):
        engine.submit([Drawn().job])


# Through the application


def test_a_full_queue_is_429(serve: Any, ours: OpenedModel[Any], gate: Gate) -> None:
    served: Served = serve(ours, width=1, queue=1)
    found: list[Any] = []
    first = threading.Thread(target=lambda: found.append(served.post("completions", prompt="a", n=2)))
    first.start()
    assert gate.reached.wait(60)
    full = served.post("completions", prompt="a")
    refused(full, 429, None, "2 answers to draw", code="queue_full")
    assert full.headers["retry-after"] == "1"
    gate.open.set()
    first.join()
    assert found[0].status_code == 200


def test_who_stops_takes_no_more(serve: Any, ours: OpenedModel[Any]) -> None:
    served: Served = serve(ours)
    served.client.app.state.service.is_stopping = True  # type: ignore[attr-defined]
    found = served.post("completions", prompt="a")
    refused(found, 503, None, "being stopped", code="stopping")
    assert found.headers["retry-after"] == "5"
    assert served.client.get("/health").status_code == 503


def test_what_takes_too_long_is_408(serve: Any, ours: OpenedModel[Any], gate: Gate) -> None:
    served: Served = serve(ours, timeout=0.05)
    late = served.post("completions", prompt="a")
    refused(late, 408, None, "0.05 seconds", "--timeout", code="timeout")
    assert late.headers["x-should-retry"] == "false"
    stream = served.post("completions", prompt="a", stream=True)
    assert json.loads(stream.text.removeprefix("data: "))["error"]["code"] == "timeout"
    gate.open.set()
    assert served.engine.wait_until_idle(60)


def test_a_model_that_fails_is_500_without_a_retry(
    serve: Any, ours: OpenedModel[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    served: Served = serve(ours)
    monkeypatch.setattr(type(served.engine.batch), "logits", lambda self: 1 // 0)
    found = served.post("completions", prompt="a")
    refused(found, 500, None, "ZeroDivisionError", code="generation_failed")
    assert found.headers["x-should-retry"] == "false"


class Caller:
    """A client of the bare application, which leaves when it is told to."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.raw = json.dumps(body).encode()
        self.gone = asyncio.Event()
        self.sent: list[Any] = []
        self.asked = False

    async def receive(self) -> dict[str, Any]:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": self.raw, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def call(self, app: Any) -> None:
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
        await app({**scope, "asgi": {"spec_version": "2.3"}, "app": app}, self.receive, self.send)


def with_app(opened: OpenedModel[Any], body: Callable[[Any, Engine], Any], **options: Any) -> None:
    async def run() -> None:
        engine = Engine(opened, width=2, most_waiting=4)
        app = build_app({opened.name: engine}, Options(**options))
        async with app.router.lifespan_context(app):
            await body(app, engine)

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_rows(ours: OpenedModel[Any], gate: Gate, stream: bool) -> None:
    async def body(app: Any, engine: Engine) -> None:
        caller = Caller({"prompt": "abc", "n": 4, "max_tokens": 50, "stream": stream})
        call = asyncio.ensure_future(caller.call(app))
        assert await asyncio.to_thread(gate.reached.wait, 60)
        assert engine.count == 4
        caller.gone.set()
        await call
        gate.open.set()
        assert await asyncio.to_thread(engine.wait_until_idle, 60)
        assert engine.batch.passes <= 2
        assert app.state.service.active == 0

    with_app(ours, body)


def test_a_body_that_never_comes_is_given_up(ours: OpenedModel[Any]) -> None:
    async def body(app: Any, engine: Engine) -> None:
        caller = Caller({})

        async def receive() -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        caller.receive = receive  # type: ignore[method-assign]
        await caller.call(app)
        assert caller.sent[0]["status"] == 408

    with_app(ours, body, timeout=0.02)
