"""Read a JSON object field by field, and refuse what cannot be honoured."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Any

from gptlab.data.tokenizers.base import replace_surrogates
from gptlab.serving.errors import ApiError
from gptlab.system.errors import did_you_mean

HARMLESS = {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
"""What describes a request and changes no answer."""

# What cannot be honoured: the values that ask for nothing, and the way out.
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "frequency_penalty": ((0,), "leave it out, or use repetition_penalty"),
    "presence_penalty": ((0,), "leave it out, or use repetition_penalty"),
    "logit_bias": (({},), "leave it out"),
    "suffix": (("",), "leave it out: the models continue a text, they do not fill a gap"),
    "tools": (([],), "leave it out: the models call no tools"),
    "tool_choice": (("none", "auto"), "leave it out: the models call no tools"),
    "parallel_tool_calls": ((True, False), "leave it out: the models call no tools"),
    "functions": (([],), "leave it out: the models call no functions"),
    "function_call": (("none", "auto"), "leave it out: the models call no functions"),
    "response_format": (({"type": "text"},), 'leave it out, or give {"type": "text"}: an answer has no other form'),
    "modalities": ((["text"],), 'leave it out, or give ["text"]'),
    "audio": ((), "leave it out: the models read and write text"),
    "prediction": ((), "leave it out"),
    "reasoning_effort": (("none",), "leave it out: the models do not reason before they answer"),
    "service_tier": (("auto", "default"), "leave it out"),
    "verbosity": ((), "leave it out, or limit max_tokens"),
    "web_search_options": ((), "leave it out: the models search nothing"),
}


def read_object(raw: bytes) -> dict[str, Any]:
    """Return a body as a JSON object.

    Raises:
        ApiError: it is none.
    """
    try:
        body = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON in UTF-8 ({str(error)[:99]}); send an object") from error
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is {shown(body)}; send a JSON object with model and prompt or messages")
    return body


def shown(value: Any) -> str:
    """Return a value for a message: a list or an object in words, and only the beginning of a long text."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value):,}"
    return f"{json.dumps(value):.99}"


class Fields:
    """The fields of a JSON object, each read once; null is as good as none.

    Args:
        body: the object.
        within: what the name of each field begins with in messages, e.g. "stream_options.".
    """

    def __init__(self, body: dict[str, Any], within: str = "") -> None:
        self.left, self.within = dict(body), within
        self.known: set[str] = set()

    def value(self, name: str) -> Any:
        """Return the value of a field, None if it is not there."""
        self.known.add(name)
        return self.left.pop(name, None)

    def refuse(self, name: str, value: Any, must: str, code: str | None = None) -> ApiError:
        """Return the error for a value; `must` says what is allowed."""
        name = self.within + name
        return ApiError(400, f"{name}: {shown(value)}: {must}", param=name, code=code)

    def number(self, name: str, default: float, low: float, high: float, above: bool = False) -> float:
        """Return a finite number between two limits; with `above` it must be above the lower one."""
        value = self.value(name)
        if value is None:
            return default
        is_number = type(value) in (int, float) and math.isfinite(value if type(value) is float else 0)
        if not is_number or not low <= value <= high or (above and value == low):
            raise self.refuse(name, value, f"must be a number {'above' if above else 'from'} {low:g} to {high:g}")
        return float(value)

    def whole(self, name: str, low: int, high: int, more: str = "") -> int | None:
        """Return a whole number between two limits, None if there is none; `more` is added to a message."""
        value = self.value(name)
        if value is not None and not (type(value) is int and low <= value <= high):
            raise self.refuse(name, value, f"must be a whole number from {low:,} to {high:,}{more}")
        return value

    def flag(self, name: str) -> bool:
        """Return true or false, false if there is neither."""
        value = self.value(name)
        if value is not None and type(value) is not bool:
            raise self.refuse(name, value, "must be true or false")
        return bool(value)

    def text(self, name: str) -> str | None:
        """Return a text, None if there is none."""
        value = self.value(name)
        if value is not None and not isinstance(value, str):
            raise self.refuse(name, value, "must be a text")
        return None if value is None else replace_surrogates(value)

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """Return the texts of a field that has one or a list of up to `most`, none of them empty."""
        value = self.value(name)
        found = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(found, list) or len(found) > most or not all(isinstance(x, str) and x for x in found):
            raise self.refuse(name, value, f"must be a text that is not empty, or a list of up to {most} of them")
        return tuple(map(replace_surrogates, found))

    def end(self) -> None:
        """Refuse the fields that were not read, but for harmless ones.

        Raises:
            ApiError: there is one that cannot be honoured.
        """
        for name, value in self.left.items():
            if value is None or name in HARMLESS:
                continue
            if name in UNSUPPORTED:
                neutral, way_out = UNSUPPORTED[name]
                if not any(value == each and (type(value) is bool) == (type(each) is bool) for each in neutral):
                    raise self.refuse(name, value, f"is not supported; {way_out}", code="unsupported_parameter")
                continue
            raise self._unknown(name)

    def _unknown(self, name: str) -> ApiError:
        known: Collection[str] = self.known
        name = replace_surrogates(name)[:99]
        whole = self.within + name
        return ApiError(
            400, f"{whole}: there is no such parameter; {did_you_mean(name, known)}", whole, "unknown_parameter"
        )
