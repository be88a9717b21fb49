"""The routes: what a client may ask for at which address."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gptlab.data.chat.chat_format import Format
from gptlab.formats.html.shared import chat_of
from gptlab.formats.opened import OpenedModel
from gptlab.generation.attention_reader import heads_of
from gptlab.serving.access import HostCheck, KeyCheck, answer
from gptlab.serving.answering import Answering
from gptlab.serving.engine import Engine
from gptlab.serving.errors import STOPPING, ApiError, do_not_retry, retry_later
from gptlab.serving.fields import read_object, shown
from gptlab.serving.inspection import Attention, one_prompt, tokens_body
from gptlab.serving.page import page_routes
from gptlab.serving.requests import Limits, Request, chat_request, completion_request
from gptlab.serving.votes import Votes, vote_of

if TYPE_CHECKING:
    from gptlab.models import Model
    from gptlab.models.arrays import ArrayGPT

GONE = 499  # the client has left: nobody reads this


@dataclass(frozen=True)
class Options:
    """What a server allows."""

    api_key: str | None = None
    is_local: bool = False
    """Only programs of this machine are to call it, see `HostCheck`."""
    origins: Sequence[str] = ()
    """Web pages of these origins may call it from a browser."""
    max_tokens: int | None = None
    """Of an answer."""
    timeout: float = 600.0
    """Seconds of a request."""
    votes: Votes | None = None
    """Where votes are written; None: whoever votes keeps the line."""
    body_bytes: int = 4 << 20


class Service:
    """What the routes share.

    Args:
        engines: by the names of their models.
        options: what is allowed.
    """

    def __init__(self, engines: dict[str, Engine], options: Options) -> None:
        self.engines, self.options = engines, options
        self.attention = Attention()
        self.created = int(time.time())
        self.active = 0
        """Requests that are being answered."""
        self.is_stopping = False

    def engine(self, name: Any) -> Engine:
        """Return the engine of a model.

        Raises:
            ApiError: there is no such model.
        """
        known = ", ".join(self.engines)
        if name is None and len(self.engines) == 1:
            return next(iter(self.engines.values()))
        if not isinstance(name, str):
            raise ApiError(400, f"model: {shown(name)}: must be the name of a model; there are {known}", "model")
        if name not in self.engines:
            raise ApiError(
                404, f"model: {shown(name)}: there is no such model; there are {known}", "model", "model_not_found"
            )
        return self.engines[name]

    def described(self, name: str) -> dict[str, Any]:
        """Return a model as /v1/models shows it."""
        engine = self.engines[name]
        tokenizer, chat, heads = engine.opened.tokenizer, chat_format(engine), heads_of(engine.opened.model)
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "gptlab",
            "description": engine.opened.words,
            "context_size": engine.context_size,
            "is_chat": chat is not None,
            "attention": {"layers": heads.layers, "heads": heads.per_layer} if heads else None,
            "tokens": {
                "begin": [*tokenizer.begin],
                "ends": sorted(engine.opened.ends),
                "special": tokenizer.special_tokens,
                "chat": chat_of(chat),
            },
        }

    async def models(self, http: HttpRequest) -> Response:
        return answer({"object": "list", "data": [self.described(name) for name in self.engines]})

    async def model(self, http: HttpRequest) -> Response:
        return answer(self.described(self.engine(http.path_params["name"]).opened.name))

    async def health(self, http: HttpRequest) -> Response:
        body = {
            "status": "stopping" if self.is_stopping else "ok",
            "models": {name: {"answers": engine.count} for name, engine in self.engines.items()},
        }
        return answer(body, 503 if self.is_stopping else 200)

    async def completions(self, http: HttpRequest) -> Response:
        return await self._answer(http, completion_request)

    async def chat(self, http: HttpRequest) -> Response:
        return await self._answer(http, chat_request)

    async def tokens(self, http: HttpRequest) -> Response:
        opened, ids = await self._one_prompt(http)
        return answer(tokens_body(opened, ids))

    async def attention_weights(self, http: HttpRequest) -> Response:
        opened, ids = await self._one_prompt(http)
        with self._active():
            return await whole_or_gone(http, self.attention.body(opened, ids, self.options.timeout))

    async def vote(self, http: HttpRequest) -> Response:
        row, is_ranked = vote_of(await self.read_object(http), lambda name: self.engine(name).opened.name)
        votes = self.options.votes
        if votes is not None:
            with self._active():
                await asyncio.to_thread(votes.add, row, is_ranked)
        file = None if votes is None else (votes.path if is_ranked else votes.unranked).name
        return answer({"object": "vote", "line": json.dumps(row, ensure_ascii=False), "file": file})

    async def _one_prompt(self, http: HttpRequest) -> tuple[OpenedModel[Model | ArrayGPT], list[int]]:
        body = await self.read_object(http)
        engine = self.engine(body.get("model"))
        return engine.opened, await asyncio.to_thread(one_prompt, body, engine.opened, engine.context_size)

    @contextmanager
    def _active(self) -> Iterator[None]:
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    async def _answer(self, http: HttpRequest, read: Callable[..., Request]) -> Response:
        body = await self.read_object(http)
        engine = self.engine(body.get("model"))
        limits = Limits(engine.context_size, self.options.max_tokens, engine.width + engine.most_waiting)
        request = await asyncio.to_thread(read, body, engine.opened, limits)  # tokenising may take a while
        answering = Answering(request, engine, self.options.timeout)
        self.active += 1

        def end() -> None:
            answering.end()
            self.active -= 1

        if request.stream:
            return EventStream(answering.events(), end)
        try:
            return await whole_or_gone(http, answering.whole())
        finally:
            end()

    async def read_object(self, http: HttpRequest) -> dict[str, Any]:
        """Return the body of a request.

        Raises:
            ApiError: it is no JSON object, too large, of another type, or comes too slowly; or the server stops.
        """
        if self.is_stopping:
            raise retry_later(503, STOPPING, "stopping", seconds=5)
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which no other web page's form can send
            given = f"content-type {kind[:99]}" if kind else "no content-type"
            raise ApiError(400, f"{given}: send the header content-type: application/json")

        async def read() -> bytes:
            parts, size = [], 0
            async for part in http.stream():
                parts.append(part)
                size += len(part)
                if size > most:
                    raise ApiError(
                        413, f"the body has more than {most:,} bytes; send several requests", None, "too_large"
                    )
            return b"".join(parts)

        most, seconds = self.options.body_bytes, self.options.timeout
        try:
            return read_object(await asyncio.wait_for(read(), seconds))
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise do_not_retry(408, f"the body was not there after {seconds:g} seconds", "timeout") from error


def chat_format(engine: Engine) -> Format | None:
    """Return the format in which a model answers in a chat; None if it does not."""
    try:
        return engine.opened.chat
    except ValueError:  # a broken template
        return None


class EventStream(StreamingResponse):
    """A stream of events; `end` is called once it is over, however it ends."""

    def __init__(self, events: AsyncIterator[str], end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.end()


async def whole_or_gone(http: HttpRequest, work: Awaitable[dict[str, Any]]) -> Response:
    """Return the response once its body is there; give it up when the client leaves."""

    async def leave() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return answer(await working) if working.done() else Response(status_code=GONE)
    finally:
        for task in (working, leaving):
            task.cancel()


async def explain(http: HttpRequest, error: Exception) -> Response:
    """Return the response to an error."""
    if isinstance(error, HTTPException):
        methods = f"; it takes {error.headers['Allow']}" if error.headers and "Allow" in error.headers else ""
        said = {404: "there is nothing here; see /v1/models", 405: f"the method is {http.method}{methods}"}
        message = f"{http.url.path[:99]}: {said.get(error.status_code, error.detail)}"
        headers = None if error.headers is None else dict(error.headers)
        error = ApiError(error.status_code, message, headers=headers)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=GONE)
    if not isinstance(error, ApiError):
        error = do_not_retry(500, "an error of the server; its terminal says more", "internal_error")
    return answer(error.body, error.status, error.headers)


def build_app(engines: dict[str, Engine], options: Options) -> Starlette:
    """Return the application; `app.state.service` is its `Service`.

    Args:
        engines: by the names of their models; they begin with the application and stop with it.
        options: what is allowed.
    """
    service = Service(engines, options)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        for engine in engines.values():
            engine.start(asyncio.get_running_loop().call_soon_threadsafe)
        yield
        for engine in engines.values():
            engine.stop()
        service.attention.stop()

    routes = [
        Route("/health", service.health),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.model),
        Route("/v1/completions", service.completions, methods=["POST"]),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/tokens", service.tokens, methods=["POST"]),
        Route("/v1/attention", service.attention_weights, methods=["POST"]),
        Route("/v1/votes", service.vote, methods=["POST"]),
        *page_routes(),
    ]
    middleware = []
    if options.origins:  # outermost: a browser asks without the key whether it may call
        any_header: dict[str, Any] = {"allow_origins": [*options.origins], "allow_headers": ["*"]}
        middleware.append(Middleware(CORSMiddleware, allow_methods=["GET", "POST"], **any_header))
    if options.is_local:
        middleware.append(Middleware(HostCheck))
    if options.api_key is not None:
        middleware.append(Middleware(KeyCheck, key=options.api_key))
    handlers = {ApiError: explain, HTTPException: explain, ClientDisconnect: explain, Exception: explain}
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)
    app.state.service = service
    return app
