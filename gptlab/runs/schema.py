"""Build a checked dataclass from a node of the composed config; an error names the key, the value and a way out."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from gptlab.system.errors import UserError, did_you_mean

T = TypeVar("T")
structured = functools.cache(OmegaConf.structured)  # merged into a copy of it


def build(cls: type[T], node: Any, key: str) -> T:
    """Build an instance of the dataclass `cls` from the config node at `key`.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    types = {f.name: f.type for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory]  # type: ignore[arg-type]
    for name in node:
        if name not in types:
            raise UserError(f"{key}.{name}={node[name]}: there is no such key; {did_you_mean(str(name), list(types))}")
        if types[name] == "bool" and not isinstance(node[name], bool):  # OmegaConf would accept any number
            raise UserError(f"{key}.{name}={node[name]}: must be true or false")
    for name in types:
        if OmegaConf.is_missing(node, name) or (name not in node and name in required):
            raise UserError(f"{key}.{name}: is missing; see python -m gptlab.train --cfg job")
    try:
        return OmegaConf.to_object(OmegaConf.merge(structured(cls), node))  # type: ignore[return-value, arg-type]
    except ValidationError as error:
        name = error.full_key or error.key
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"{key}.{name}: {reason} (see python -m gptlab.train --cfg job)") from error
