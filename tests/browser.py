"""A page in headless Chromium, as somebody uses it; who imports this is skipped where playwright is not installed."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'gptlab[browser]'"
)
expect = sync_api.expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
NAMED = "button, input, select, textarea, svg, canvas, [role=group], [role=button], [role=img], fieldset"
"""What must have a name for those who do not see it."""
SECONDS = 20_000  # milliseconds, on a busy machine
expect.set_options(timeout=SECONDS)


class Page:
    """The page as somebody uses it."""

    def __init__(self, chromium: Any, address: str, width: int = 1200) -> None:
        self.context = chromium.new_context(
            offline=address.startswith("file:"), viewport={"width": width, "height": 900}
        )
        self.context.set_default_timeout(SECONDS)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)

    def find(self, what: str) -> Any:
        return self.page.locator(what)

    def fill(self, **values: Any) -> None:
        if not self.page.evaluate("document.getElementById('sampling').open"):
            self.find("#sampling summary").click()
        for name, value in values.items():
            self.find(f"#{name.replace('_', '-')}").fill(str(value))

    def write(self, **values: Any) -> str:
        """Type a prompt and the controls, and return the text once it is finished."""
        self.fill(**values)
        self.find("#write").click()
        return self.finished()

    def finished(self) -> str:
        expect(self.find(".status")).to_contain_text("a second")
        return self.text

    @property
    def text(self) -> str:
        return str(self.find(".text").text_content())

    @property
    def tokens(self) -> Any:
        return self.find(".text .token")
