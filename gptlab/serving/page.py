"""The page at `/`: that of an exported file (docs/html.md), with the server as its backend."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gptlab.formats.html.shared import HERE, PAGE_SCRIPTS
from gptlab.system.html_page import SCRIPT

SCRIPTS = (*PAGE_SCRIPTS, "server.js")
FILES: dict[str, tuple[Path, str]] = {
    "": (HERE / "index.html", "text/html"),
    "style.css": (HERE / "style.css", "text/css"),
    **{name: (HERE / name, "text/javascript") for name in PAGE_SCRIPTS},
    "server.js": (Path(__file__).parent / "server.js", "text/javascript"),
}
"""What the server gives, by its address, and nothing else: a file, and its type."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def page_routes() -> list[Route]:
    """Return the routes of the page's files, which are read once."""
    return [_route(name, path.read_text("utf-8"), kind) for name, (path, kind) in FILES.items()]


def _route(name: str, content: str, kind: str) -> Route:
    if not name:
        assert content.count(SCRIPT) == 1
        content = content.replace(SCRIPT, "\n".join(f'<script src="{script}"></script>' for script in SCRIPTS))

    async def give(http: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=kind)

    return Route(f"/{name}", give)
