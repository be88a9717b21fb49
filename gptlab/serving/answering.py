"""Answer one request: its answers are drawn by an engine, and sent as a whole or in chunks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from gptlab.generation.answers import stream_of
from gptlab.serving.bodies import Bodies
from gptlab.serving.engine import Engine, Full, Job, Part
from gptlab.serving.errors import STOPPING, ApiError, do_not_retry, retry_later
from gptlab.serving.requests import Request

LATE = -1  # in place of a choice's number: the time is up


class Answering:
    """The answers to one request, from the time when an engine has accepted them.

    Args:
        request: what is asked for.
        engine: of the model.
        seconds: how long it may take.

    Raises:
        ApiError: too many answers wait.
    """

    def __init__(self, request: Request, engine: Engine, seconds: float) -> None:
        self.request, self.engine, self.seconds = request, engine, seconds
        self.bodies = Bodies(request, engine.opened.name, engine.opened.tokenizer)
        self.queue: asyncio.Queue[tuple[int, Part]] = asyncio.Queue()
        chat = engine.opened.chat if request.is_chat else None
        self.jobs = [
            Job(
                ids,
                request.max_tokens,
                request.sampling,
                request.seed + sample,
                stream_of(engine.opened, request.stops, chat),
                self._deliver(place * request.samples + sample),
                in_parts=request.stream,
                likely=request.log_probs,
                is_scored=request.echo and request.log_probs is not None,
            )
            for place, ids in enumerate(request.prompts)
            for sample in range(request.samples)
        ]
        try:
            engine.submit(self.jobs)
        except Full as error:
            message = (
                f"{engine.opened.name} has {engine.count:,} answers to draw, and at most {engine.width:,} are drawn at "
                f"once while {engine.most_waiting:,} wait; try again soon"
            )
            raise retry_later(429, message, "queue_full") from error
        late = Part("", [], 0)
        self.timer = asyncio.get_running_loop().call_later(seconds, self.queue.put_nowait, (LATE, late))

    def _deliver(self, index: int) -> Any:
        return lambda part: self.queue.put_nowait((index, part))

    def end(self) -> None:
        """Give up what has not been drawn."""
        self.timer.cancel()
        for job in self.jobs:
            job.is_cancelled = True

    async def whole(self) -> dict[str, Any]:
        """Return the body of the response.

        Raises:
            ApiError: the time is up, or the answers cannot be drawn.
        """
        parts: dict[int, Part] = {}
        while len(parts) < len(self.jobs):
            index, part = await self.queue.get()
            parts[index] = self._checked(index, part)
        return self.bodies.whole([parts[i] for i in range(len(self.jobs))])

    async def events(self) -> AsyncIterator[str]:
        """Yield the chunks of the response as server-sent events.

        What has been drawn while the last chunk was sent comes in one.
        """
        left = len(self.jobs)
        try:
            while left:
                new = [await self.queue.get()]
                while not self.queue.empty():
                    new.append(self.queue.get_nowait())
                for index, part in merged([(index, self._checked(index, part)) for index, part in new]):
                    left -= part.finish is not None
                    yield event(self.bodies.chunk(index, part))
        except ApiError as error:
            yield event(error.body)
            return
        if self.request.include_usage:
            yield event(self.bodies.last())
        yield "data: [DONE]\n\n"

    def _checked(self, index: int, part: Part) -> Part:
        if index == LATE:
            raise do_not_retry(
                408,
                f"the answer was not there after {self.seconds:g} seconds; ask for fewer tokens or answers, or start "
                f"the server with a longer --timeout",
                "timeout",
            )
        if part.error is not None and self.engine.is_stopped:
            raise retry_later(503, STOPPING, "stopping")
        if part.error is not None:
            raise do_not_retry(500, part.error, "generation_failed")
        return part


def merged(new: list[tuple[int, Part]]) -> list[tuple[int, Part]]:
    """Return parts with those of the same choice joined, in the order in which the choices come first."""
    found: dict[int, Part] = {}
    for index, part in new:
        if index in found:
            before = found[index]
            part = part._replace(text=before.text + part.text, tokens=before.tokens + part.tokens)
        found[index] = part
    return [*found.items()]


def event(body: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"
