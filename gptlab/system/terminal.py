"""Format output for a terminal: tables, JSON, durations, text without control characters."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

KEYWORDS = ("null", "true", "false", "inf", "nan")  # of Hydra's grammar


def duration(seconds: float) -> str:
    """Format seconds as 12.3s, 4m 10s or 1h 05m; NaN as -."""
    if seconds != seconds:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h {minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m {rest:02d}s"


def single_quoted(text: str) -> str:
    """Return `text` in single quotes, as Hydra's grammar reads it."""
    return "'" + escaped(text, "'") + "'"


def escaped(text: str, quote: str) -> str:
    """Return `text` as Hydra's grammar reads it between two quotes: a backslash escapes a quote, or one before it."""
    return re.sub(rf"(\\*)({quote}|$)", lambda found: found[1] * 2 + f"\\{quote}" * bool(found[2]), text)


def pasteable(key: str, value: str) -> str:
    """Return key=value as it can be pasted into a shell: in the quotes that Hydra's grammar and the shell need."""
    plain = re.fullmatch(r"(?:[A-Za-z_]|\.{0,2}/)[\w./+-]*", value, re.ASCII) and value.lower() not in KEYWORDS
    return shell_quoted(f"{key}={value if plain else single_quoted(value)}")


def shell_quoted(text: str) -> str:
    """Return `text` as one word of a shell's command line, in quotes if it needs some."""
    quoted = shlex.quote(text)
    return quoted if quoted == text or re.search(r'["$`\\!]', text) else f'"{text}"'


def harmless(text: str) -> str:
    """Return `text` with U+FFFD for control characters, which a byte model or a file may have and a terminal obeys."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\ufffd", text)


def table(columns: dict[str, list[str]], title: str | None = None) -> Table:
    """Return a table of these columns, by heading; a column without a heading, or headed A or B, may be folded."""
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
    """Return how many terminal columns the table needs if nothing is folded."""
    return console.measure(shown, options=console.options.update(width=10_000)).maximum


def print_table(shown: Table, console: Console) -> None:
    """Print a table; in a file or a pipe nothing is folded."""
    if not console.is_terminal:
        console.width = max(console.width, width(shown, console))
    console.print(shown)


def as_json(content: Any) -> str:
    """Return `content` as indented JSON; see `jsonable`."""
    return json.dumps(jsonable(content), indent=2, ensure_ascii=False) + "\n"


def jsonable(content: Any) -> Any:
    """Return `content` in a form that JSON can hold: NaN and pandas' NA become None, paths strings."""
    if isinstance(content, dict):
        return {key: jsonable(each) for key, each in content.items()}
    if isinstance(content, list | tuple):
        return [jsonable(each) for each in content]
    if isinstance(content, Path):
        return str(content)
    try:
        unknown = bool(content != content)
    except TypeError:  # pandas' NA, whose comparison is NA again
        unknown = True
    return None if unknown else content
