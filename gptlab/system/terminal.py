"""What is shown on a terminal: tables, JSON, durations, text without control characters."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def duration(seconds: float) -> str:
    """12.3s, 4m 10s, 1h 05m; - if it is not known."""
    if seconds != seconds:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h {minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m {rest:02d}s"


def single_quoted(text: str) -> str:
    """`text` in single quotes, as Hydra's grammar reads it: a backslash there escapes a quote or one before a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + "\\'" * bool(found[2]), text)
    return f"'{escaped}'"


def harmless(text: str) -> str:
    """`text` with U+FFFD for control characters, which a byte model draws and a terminal would obey."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\ufffd", text)


def table(columns: dict[str, list[str]], title: str | None = None) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in columns:
        fold = not heading or heading in ("A", "B")
        shown.add_column(Text(heading), justify="right" if heading else "left", no_wrap=not fold, overflow="fold")
    for row in zip(*columns.values(), strict=True):
        shown.add_row(*map(Text, row))
    return shown


def width(shown: Table, console: Console) -> int:
    """Columns of a terminal that the table needs if nothing is folded."""
    return console.measure(shown, options=console.options.update(width=10_000)).maximum


def print_table(shown: Table, console: Console) -> None:
    if not console.is_terminal:  # nothing is folded in a file or a pipe
        console.width = max(console.width, width(shown, console))
    console.print(shown)


def as_json(content: Any) -> str:
    return json.dumps(jsonable(content), indent=2, ensure_ascii=False) + "\n"


def jsonable(content: Any) -> Any:
    """`content` as JSON can hold it: unknown numbers are null."""
    if isinstance(content, dict):
        return {key: jsonable(each) for key, each in content.items()}
    if isinstance(content, list | tuple):
        return [jsonable(each) for each in content]
    if isinstance(content, Path):
        return str(content)
    try:
        unknown = bool(content != content)
    except TypeError:  # pandas' NA, which is neither equal to itself nor not
        unknown = True
    return None if unknown else content
