"""Run the application: listen, and stop in order when a signal comes."""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptlab.serving.app import Service
from gptlab.system.errors import UserError

BACKLOG = 2048  # connections that the system accepts before the server does
HEADER_SECONDS = 20.0  # in which the headers of a request must come
LEAVE = 3  # seconds for which connections may stay open after the last answer


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address; port 0 is any free one.

    Raises:
        UserError: the address is taken, or none of this machine.
    """
    bound: socket.socket | None = None
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # With its protocol: see findings/asyncio-delays-what-a-socket-without-protocol-sends.sh.
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        if bound is not None:
            bound.close()
        ways = {
            errno.EADDRINUSE: "something listens there already; give another --port, or 0 for any free one",
            errno.EACCES: "that is not allowed; give a --port above 1023",
        }
        code, said = (error.errno, error.strerror) if isinstance(error, OSError) else (None, "no such name")
        way_out = ways.get(code or 0, f"{said}; give a --host of this machine, e.g. 127.0.0.1")
        raise UserError(f"--host {host} --port {port}: {way_out}") from error
    return bound


def is_local(host: str) -> bool:
    """Return whether only programs of this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(bound: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Connection(H11Protocol):
    """A connection that is closed where the headers of a request do not come: uvicorn would wait for ever.

    Args:
        given: what uvicorn gives.
        header_seconds: from the beginning of the connection, or the end of the response before.
    """

    def __init__(self, *given: Any, header_seconds: float, **more: Any) -> None:
        super().__init__(*given, **more)
        self.header_seconds = header_seconds
        self.header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def _await_headers(self) -> None:
        """Let the time run while no request is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self.header_timer is None:
            self.header_timer = self.loop.call_later(self.header_seconds, self.transport.close)

    def _stop_timer(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None


class Server(uvicorn.Server):
    """Stops in order: after a signal what runs is finished, and new requests are told to go. A second one makes an end
    of what runs, too.

    Args:
        app: the application of `build_app`.
        grace: how many seconds running answers have to end.
        header_seconds: see `Connection`.
    """

    def __init__(self, app: Starlette, grace: float, header_seconds: float = HEADER_SECONDS) -> None:
        how: dict[str, Any] = {"lifespan": "on", "ws": "none", "timeout_graceful_shutdown": LEAVE}
        how["http"] = functools.partial(Connection, header_seconds=header_seconds)
        how |= {"log_level": "error", "access_log": False, "server_header": False}
        super().__init__(uvicorn.Config(app, **how))
        self.service: Service = app.state.service
        self.grace = grace
        self.told_at: float | None = None  # when it was first told to stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs; unlike uvicorn's own, it does not die of them afterwards."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.is_stopping:
            self.grace = 0.0
        self.service.is_stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; returns whether to stop now."""
        loop = asyncio.get_running_loop()
        if self.service.is_stopping:
            self.told_at = loop.time() if self.told_at is None else self.told_at
            if not self.service.active:
                self.should_exit = True
            elif loop.time() >= self.told_at + self.grace:
                for engine in self.service.engines.values():
                    engine.stop()
                self.should_exit = True
        return await super().on_tick(counter)


def serve(app: Starlette, bound: socket.socket, grace: float) -> None:
    """Serve an application until a signal comes."""
    Server(app, grace).run(sockets=[bound])
