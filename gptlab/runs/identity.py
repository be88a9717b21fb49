"""Which keys of a config decide what a run computes, and the hash that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from gptlab.runs import upgrades

KEPT = ("checkpoint_every", "checkpoint_minutes", "keep_checkpoints")  # of the trainer: what is kept, not computed
PLACES = ("data.path", "data.dir", "data.cache_dir")  # where things lie, which changes nothing that a run computes


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"n_head": 4}} -> {"model.n_head": 4}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """model.n_head -> n_head, optim.name -> optim, where no two keys become the same."""

    def short(key: str) -> str:
        head, _, last = key.lstrip("+").rpartition(".")
        return head if last == "name" and head else last

    ends = {key: short(key) for key in keys}
    return {key: end if list(ends.values()).count(end) == 1 else key.lstrip("+") for key, end in ends.items()}


def config_hash(config: dict[str, Any], data_sha256: str) -> str:
    """12 hex digits that name what a run computes: its config and its text, without names and places on a machine."""
    data = {k: v for k, v in config["data"].items() if f"data.{k}" not in PLACES}
    what = {k: v for k, v in config.items() if k not in ("name", "resume") and v is not None}
    what["data"] = data | {"sha256": data_sha256}
    for group, new in upgrades.NEW.items():  # what older versions did
        values = what.get(group, {}).items()
        what[group] = {k: v for k, v in values if k not in KEPT and (k, v) not in new.items()}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
