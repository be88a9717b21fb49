"""How a text is read, and how the command at hand writes an option of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from gptlab.system.errors import UserError
from gptlab.system.terminal import pasteable, shell_quoted

AUTO = "auto"
FORMATS = (AUTO, "text", "json", "csv", "parquet")
LINE_ENDS = ("lf", "kept")


Written = Callable[[str, object], str]
"""Writes an option of a text, by its name and value, as a command takes it."""


def of_train(name: str, value: object) -> str:
    """Write an option as `train` and `bench` take it: data.path=my.txt; a separator and a way out can be pasted."""
    if name == "separator":
        return pasteable("data.separator", str(value))
    if name == "text":
        return f"data=text {pasteable('data.path', str(value))}"
    return f"{'data' if name == 'name' else f'data.{name}'}={value}"


def of_evaluate(name: str, value: object) -> str:
    """Write an option as `evaluate` takes it: --data my.txt, --text-key body."""
    if name in ("dir", "cache_dir"):  # for which it has no flags
        return str(value)
    flag = "data" if name in ("path", "name", "text") else name.replace("_", "-")
    return f"--{flag} {shell_quoted(str(value))}"


def of_sample(name: str, value: object) -> str:
    """Write an option as `evaluate --memorised` takes that of a sample: --sample my.txt."""
    return f"--{'sample' if name == 'path' else name} {value}"


def of_tokenize(name: str, value: object) -> str:
    """Write an option as `tokenize` takes it: a path alone, --text-key body."""
    return str(value) if name == "path" else of_evaluate(name, value)


@dataclass(frozen=True)
class TextOptions:
    """How the files of a text are read.

    Raises:
        UserError: a value is none of the choices.
    """

    text_key: str = "text"
    """Name of the text in a row of JSON, CSV, Parquet or Arrow."""
    format: str = AUTO
    """auto: each file by its content and its name; or text, json, csv or parquet, whatever it looks like."""
    separator: str | None = AUTO
    """What stands between documents in a file; \\n and \\t in it are a line's end and a tab. auto: <|endoftext|>, if a
    text has it; None: nothing."""
    named_parts: bool | str = AUTO
    """Whether files named train, valid and test are those parts; auto: if every file of the text is one of them."""
    line_ends: str = "lf"
    """lf: \\r\\n and \\r in a file are read as \\n; kept: as they are."""
    written: Written = of_train

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f"{self.written('format', self.format)}: must be one of {', '.join(FORMATS)}")
        if self.line_ends not in LINE_ENDS:
            raise UserError(f"{self.written('line_ends', self.line_ends)}: must be one of {', '.join(LINE_ENDS)}")
        if self.named_parts not in (True, False, AUTO):
            raise UserError(f"{self.written('named_parts', self.named_parts)}: must be true, false or auto")
        if self.separator == "":
            raise UserError(
                f"{self.written('separator', self.separator)}: nothing stands between any two characters; "
                f"give some text, or null for none"
            )

    @classmethod
    def of(cls, data: dict[str, Any], **options: Any) -> TextOptions:
        """Return the options in the node `data` of a run's config; keys that an older config lacks are as before.

        Args:
            options: what replaces the values of the config.
        """
        names = [field.name for field in fields(cls)]
        return cls(**{**BEFORE, **{name: data[name] for name in names if name in data}, **options})

    @property
    def identity(self) -> list[Any]:
        """What the text depends on beside its files."""
        return [self.text_key, self.format, self.separator, self.named_parts, self.line_ends]


DEFAULT = TextOptions()
BEFORE = {"format": AUTO, "separator": None, "named_parts": False, "line_ends": "kept"}
"""How texts were read before there was a choice."""


def read_before(data: dict[str, Any], written: Written) -> str:
    """Return in words how an older version read a file, for the text of a run of it; empty for a run of this one.

    Args:
        data: the node `data` of the run's config.
    """
    if "format" in data:
        return ""
    prose = written("format", "text")
    return f"; if its files have not, the version of then read CSV and lists of JSON as prose: {prose}"
