"""Which of two answers somebody prefers: a line each, as task=reward and task=dpo read them."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gptlab.data.chat.conversations import FORMS, example, form_of
from gptlab.serving.errors import ApiError, do_not_retry
from gptlab.serving.fields import Fields
from gptlab.system.errors import UserError
from gptlab.system.files import append_line, check_writable, cut_unfinished_line

PAIR = FORMS[3]
FACTS = ("model", "seed", "temperature")  # of an answer
MOST_LINE = 1 << 20  # characters
MOST_BYTES = 1 << 30  # of a file


def vote_of(body: dict[str, Any], model_name: Callable[[Any], str]) -> tuple[dict[str, Any], bool]:
    """Return the row for what a body of /v1/votes says, and whether an answer was preferred.

    Args:
        model_name: returns the name of the model that a body names, or raises an ApiError.

    Raises:
        ApiError: a field is wrong, there is no such model, or training could not read the row.
    """
    fields = Fields(body)
    prompt, better, answers = fields.text("prompt"), fields.whole("better", 0, 1), fields.value("answers")
    if not isinstance(answers, list) or len(answers) != 2 or not all(isinstance(each, dict) for each in answers):
        raise fields.refuse("answers", answers, f"must be two objects, each with text, {', '.join(FACTS)}")
    fields.end()
    texts, facts = [], []
    for i, each in enumerate(answers):
        inner = Fields(each, f"answers[{i}].")
        text, name = inner.text("text"), model_name(inner.value("model"))
        seed, temperature = inner.whole("seed", -(2**63), 2**63 - 1), inner.number("temperature", 1, 0, 100)
        inner.end()
        if not text:
            raise inner.refuse("text", text, "must be a text that is not empty")
        texts.append(text)
        facts.append(dict(zip(FACTS, (name, seed, temperature), strict=True)))
    if not prompt:
        raise fields.refuse("prompt", prompt, "must be a text that is not empty")
    row: dict[str, Any]
    if better is None:
        row = {"prompt": prompt, "tie": texts, **{f"{name}s": [each[name] for each in facts] for name in FACTS}}
    else:
        pairs = [("chosen", better), ("rejected", 1 - better)]
        row = {"prompt": prompt, **{name: texts[at] for name, at in pairs}}
        row |= {f"{name}_{fact}": facts[at][fact] for name, at in pairs for fact in FACTS}
        try:
            example(PAIR, row, "the vote")
        except UserError as error:
            raise ApiError(400, str(error), "answers") from error
    row["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    if len(json.dumps(row, ensure_ascii=False)) > MOST_LINE:
        raise ApiError(413, f"the vote has more than {MOST_LINE:,} characters; vote on shorter answers", "answers")
    return row, better is not None


class Votes:
    """A file of votes, and beside it one of those without a preferred answer, NAME.unranked.jsonl.

    Each line is written whole, and to the disk. A line that a killed process has left half written is removed.

    Args:
        path: a file of such lines, which need not be there yet.

    Raises:
        UserError: it has something else, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        way_out = "give a file of votes, which need not be there yet"
        if path.is_dir():
            raise UserError(f"--votes {path}: {os.strerror(errno.EISDIR)}; {way_out}")
        self.path, self.unranked = path, path.with_name(f"{path.stem}.unranked.jsonl")
        self.lock = threading.Lock()
        for file in (self.path, self.unranked):
            try:
                if file.exists() and not file.is_file():  # which could wait for ever, or keep nothing
                    raise UserError(f"--votes {file}: it is no file")
                check_writable(file)
                if file.exists():
                    _check_lines(file, is_ranked=file == path)
            except OSError as error:
                raise UserError(f"--votes {file}: {error.strerror}; {way_out}") from error
            except UserError as error:
                raise UserError(f"{error}; {way_out}") from error

    def add(self, row: dict[str, Any], is_ranked: bool) -> None:
        """Write a vote; can be called by several threads.

        Raises:
            ApiError: the file has become too large, or it cannot be written.
        """
        file = self.path if is_ranked else self.unranked
        try:
            with self.lock:
                if file.exists() and file.stat().st_size > MOST_BYTES:
                    raise do_not_retry(
                        507, f"{file.name} is full; let the server be started with another --votes", "votes_full"
                    )
                append_line(file, json.dumps(row, ensure_ascii=False))
        except OSError as error:
            message = f"{file.name} cannot be written: {error.strerror}; nothing was kept of this vote"
            raise do_not_retry(507, message, "votes_not_written") from error


def _check_lines(file: Path, is_ranked: bool) -> None:
    """Check that a file has votes, and end its last line or, where only half of it was written, remove that.

    Raises:
        UserError: it has something else.
    """
    *lines, last = file.read_bytes().split(b"\n")
    is_whole = bool(last) and _is_json(last)
    for number, line in enumerate([*lines, *([last] if is_whole or not lines else [])], 1):
        where = f"--votes {file}, line {number}"
        if not line and number > len(lines):
            return  # the file is empty
        if not _is_json(line):
            raise UserError(f"{where}: it is no JSON")
        row = json.loads(line)
        if is_ranked and form_of(row, where) != PAIR:
            raise UserError(f"{where}: it has no chosen and rejected answer")
        if not is_ranked and not (isinstance(row, dict) and "prompt" in row):
            raise UserError(f"{where}: it has no prompt")
    if is_whole:
        append_line(file, "")
    else:
        cut_unfinished_line(file)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError):
        return False
    return True
