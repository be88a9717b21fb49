"""Which keys of a config decide what a run computes, and the hash that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from gptlab.runs import upgrades

# What each key of a config does to a run; a row that ends with a dot is for all keys below it that have none.
#   computes  it is part of what the run computes, and so of its hash
#   changes   a resumed run may change it: that does not contradict the steps already taken
#   moved     it is another place or machine: the same run, but for rounding
#   shown     it is a column of TensorBoard's HParams tab
KEYS: dict[str, str] = {
    "name": "",
    "resume": "",
    "seed": "computes shown",
    "deterministic": "computes changes moved shown",
    "init_from": "computes shown",
    "recipe.": "computes",  # and stands again where it is read
    "model.": "computes shown",
    "tokenizer.": "computes shown",
    "data.": "computes shown",
    "data.path": "changes",
    "data.dir": "changes moved",
    "data.cache_dir": "changes moved",
    "data.micro_batch_size": "computes changes moved shown",
    "data.val_batch_size": "computes changes moved",
    "optim.": "computes shown",
    "optim.grad_clip": "computes changes shown",
    "schedule.": "computes changes shown",
    "precision.": "computes changes shown",
    "compile.": "computes changes shown",
    "trainer.": "computes changes shown",
    "trainer.name": "computes changes moved shown",
    "trainer.accelerator": "computes changes moved shown",
    "trainer.devices": "computes changes moved shown",
    "trainer.strategy": "computes changes moved shown",
    "trainer.baseline": "changes moved",
    "trainer.log_every": "computes changes",
    "trainer.diagnose_every": "computes changes",
    "trainer.sample_prompt": "computes changes",
    "trainer.sample_tokens": "computes changes",
    "trainer.sample_temperature": "computes changes",
    "trainer.checkpoint_every": "changes moved",
    "trainer.checkpoint_minutes": "changes moved",
    "trainer.keep_checkpoints": "changes moved",
}


def row(key: str) -> str | None:
    """The row of `KEYS` that a dotted key has; None: no config has such a key."""
    group = f"{key.partition('.')[0]}."
    return key if key in KEYS else group if group in KEYS and key != group[:-1] else None


def does(key: str, what: str) -> bool:
    """Whether a dotted key of a config computes, changes, is moved or is shown, see `KEYS`."""
    found = row(key)
    return found is not None and what in KEYS[found].split()


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
    what: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            older = upgrades.NEW.get(key, {}).items()  # what runs did before there was such a key
            what[key] = {k: v for k, v in value.items() if does(f"{key}.{k}", "computes") and (k, v) not in older}
        elif value is not None and key not in ("name", "resume"):
            what[key] = value
    what["data"]["sha256"] = data_sha256
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
