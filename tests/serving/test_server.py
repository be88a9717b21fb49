"""Connections: which of them the server closes by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gptlab.serving.app import Options, build_app
from gptlab.serving.server import Server, listen

GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
POST = b"POST /v1/tokens HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"


class Client:
    """A connection to the server."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.close()

    async def answer(self, sent: bytes) -> bytes:
        """Send something, and return the answer to it, headers and body."""
        self.writer.write(sent)
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 60)
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await asyncio.wait_for(self.reader.readexactly(length), 60)

    async def rest(self, sent: bytes) -> bytes:
        """Send something, and return all that comes until the server closes the connection."""
        self.writer.write(sent)
        return await asyncio.wait_for(self.reader.read(), 60)


def serving(body: Callable[[int], Any], header_seconds: float, **options: Any) -> None:
    """Run `body(port)` beside a server without models."""

    async def run() -> None:
        with listen("127.0.0.1", 0) as bound:
            server = Server(build_app({}, Options(**options)), grace=0, header_seconds=header_seconds)
            task = asyncio.ensure_future(server.serve(sockets=[bound]))
            await body(bound.getsockname()[1])
            server.service.is_stopping = True
            await asyncio.wait_for(task, 60)

    asyncio.run(run())


@pytest.mark.parametrize("begin", [b"", b"GET /hea", GET[:-2], GET[:-2] + b"x: " + b"y" * 999], ids=len)
def test_headers_that_never_end_are_given_up(begin: bytes) -> None:
    async def body(port: int) -> None:
        async with Client(port) as client:
            assert await client.rest(begin) == b""
        async with Client(port) as client:  # behind a request that was answered
            assert b'"status":"ok"' in await client.answer(GET)
            assert await client.rest(begin) == b""

    serving(body, header_seconds=0.2)


def test_headers_that_come_in_pieces_are_read() -> None:
    async def body(port: int) -> None:
        async with Client(port) as client:
            for _ in range(2):
                for byte in GET[:-1]:
                    client.writer.write(bytes([byte]))
                    await client.writer.drain()
                assert b'"status":"ok"' in await client.answer(GET[-1:])

    serving(body, header_seconds=60)


def test_the_time_for_headers_is_none_for_a_body() -> None:
    async def body(port: int) -> None:
        async with Client(port) as client:
            assert b"408" in (await client.answer(POST)).partition(b"\r\n")[0]  # after 0.6 seconds, not 0.2
            assert await client.rest(b"{") == b""  # it is too late for the rest

    serving(body, header_seconds=0.2, timeout=0.6)
