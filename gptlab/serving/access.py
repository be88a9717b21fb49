"""Who may call the server."""

from __future__ import annotations

import hmac
import ipaddress
import json
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gptlab.serving.errors import ApiError


def answer(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response; in ASCII, so that any text can be in it."""
    return Response(json.dumps(body, separators=(",", ":")), status, headers, "application/json")


class KeyCheck:
    """Lets only those call /v1 who have the key.

    Args:
        app: what they call.
        key: the key.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            given = dict(scope["headers"]).get(b"authorization", b"")
            kind, _, key = given.partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.key):
                message = "the key is missing or wrong; send the header Authorization: Bearer KEY"
                error = ApiError(401, message, None, "invalid_api_key", {"WWW-Authenticate": "Bearer"})
                await answer(error.body, 401, error.headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class HostCheck:
    """Lets only those call who name this machine by its address or as localhost.

    A web page from elsewhere can let its own name point to this machine, and a browser then takes the server for the
    page's own; but what it asks for has that name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1") if scope["type"] == "http" else ""
        if host and not is_own(host):
            message = f"the header host is {host[:99]}; call localhost, or start the server with --api-key"
            await answer(ApiError(403, message, None, "wrong_host").body, 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def is_own(host: str) -> bool:
    """Return whether the header "host" names a machine by its address, or as localhost."""
    name = host[1 : host.find("]")] if host.startswith("[") else host.rpartition(":")[0] or host
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() == "localhost"
    return True
