"""What a page that is a model and the page of a server share: files, and words about a chat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptlab.data.chat.chat_format import ChatFormat, Format

HERE = Path(__file__).parent
PAGE_SCRIPTS = ("tokens.js", "charts.js", "page.js")


def chat_of(chat: Format | None) -> dict[str, Any] | None:
    """Return gptlab's chat format as the page reads it; None: the model continues texts, or has another template."""
    if not isinstance(chat, ChatFormat):
        return None
    turns = {role: chat.turn(role) for role in ("user", "assistant")}
    return {"begin": [*chat.begin], "turns": turns, "end": chat.end}
