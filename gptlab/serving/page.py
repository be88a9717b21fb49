"""The page at `/`: that of an exported file (docs/html.md), with the server as its backend."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gptlab.formats.html.shared import HERE, PAGE_SCRIPTS
from gptlab.system.html_page import base_style, linked_page

STYLE = "style.css"
OWN_SCRIPTS = ("vote.js", "views.js", "server.js")
SCRIPTS = (*PAGE_SCRIPTS, *OWN_SCRIPTS)
FILES: dict[str, tuple[str, str]] = {
    "": (linked_page((HERE / "index.html").read_text("utf-8"), STYLE, SCRIPTS), "text/html"),
    STYLE: (base_style() + (HERE / STYLE).read_text("utf-8"), "text/css"),
    **{name: ((HERE / name).read_text("utf-8"), "text/javascript") for name in PAGE_SCRIPTS},
    **{name: ((Path(__file__).parent / name).read_text("utf-8"), "text/javascript") for name in OWN_SCRIPTS},
}
"""What the server gives, by its address, and nothing else: its content, and its type."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def page_routes() -> list[Route]:
    """Return the routes of the page's files."""
    return [_route(name, content, kind) for name, (content, kind) in FILES.items()]


def _route(name: str, content: str, kind: str) -> Route:
    async def give(http: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=kind)

    return Route(f"/{name}", give)
