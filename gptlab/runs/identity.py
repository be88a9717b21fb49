"""Decide which config keys determine what a run computes, and hash them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from gptlab.runs import upgrades

# The effects of each config key on a run; a row that ends with a dot is for all keys below it without their own row.
#   computes  it affects what the run computes, and is part of its hash
#   changes   a resumed run may change it: that does not contradict the steps already taken
#   moved     it differs between places or machines: the run is the same up to rounding
#   tokens    it decides which tokens losses are of: nats per token do not compare runs that differ in it
#   shown     it is a column of TensorBoard's HParams tab
KEYS: dict[str, str] = {
    "name": "",
    "resume": "",
    "seed": "computes shown",
    "deterministic": "computes changes moved shown",
    "init_from": "computes tokens shown",
    "recipe.": "computes",  # other groups repeat its values
    "model.": "computes shown",
    "task.": "computes shown",
    "task.name": "computes tokens shown",
    "task.too_long": "computes tokens shown",
    "task.chat_template": "computes tokens shown",
    "task.check": "changes moved",
    "task.samples": "changes moved",
    "task.text_loss": "changes moved",
    "task.enough": "computes changes shown",
    "task.answer_tokens": "changes moved",
    "reward.": "computes shown",
    "lora.": "computes shown",
    "tokenizer.": "computes tokens shown",
    "data.": "computes tokens shown",
    "data.path": "changes tokens",
    "data.format": "changes tokens",  # of these four the text depends, whose own hash counts
    "data.separator": "changes tokens",
    "data.named_parts": "changes tokens",
    "data.line_ends": "changes tokens",
    "data.dir": "changes moved",
    "data.cache_dir": "changes moved",
    "data.batch_size": "computes shown",
    "data.order": "computes shown",
    "data.overfit_batches": "computes shown",
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
    "trainer.threads": "computes changes moved shown",
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

REWARD = ("reward.name", "reward.argument", "reward.unended")  # keys of what an answer earns
LOSS_KEYS: dict[str, tuple[str, ...]] = {  # keys that decide what a task's val/loss is
    "classify": ("task.balance",),
    "reward": ("task.centring", "task.margin"),
    "dpo": ("task.variant", "task.beta", "task.label_smoothing"),
    **dict.fromkeys(("ppo", "grpo"), ("task.kl_coef", "task.kl_reward", *REWARD, "reward.model")),
}

READING = {"format": "auto", "separator": "auto", "named_parts": "auto", "line_ends": "lf"}
"""Keys of `data` that decide what is read of the files at data.path, with their defaults."""
NUMBERS: dict[str, type] = {
    **dict.fromkeys(("data.max_documents", "data.micro_batch_size", "data.val_batch_size"), int),
    **dict.fromkeys(("tokenizer.vocab_size", "model.n_kv_head", "model.n_inner", "model.window", "model.conv"), int),
    **dict.fromkeys(("model.head_dim", "model.rope_original_size"), int),
    **dict.fromkeys(("trainer.patience",), int),
    **dict.fromkeys(("task.clip", "task.clip_high", "task.value_clip", "reward.unended", "task.enough"), float),
    **dict.fromkeys(("model.attn_dropout", "model.logit_softcap", "trainer.ema", "trainer.checkpoint_minutes"), float),
    "model.rope_attention_factor": float,
}
"""Keys of numbers whose defaults do not show their type: null, or a whole number where others are allowed."""


def row(key: str) -> str | None:
    """Return the name of the row of `KEYS` for a dotted key; None if there is no such key."""
    group = f"{key.partition('.')[0]}."
    return key if key in KEYS else group if group in KEYS and key != group[:-1] else None


def does(key: str, what: str) -> bool:
    """Return whether a dotted key has the effect `what`: computes, changes, moved or shown, see `KEYS`."""
    found = row(key)
    return found is not None and what in KEYS[found].split()


def number_type(key: str, default: Any) -> type | None:
    """Return int or float, whichever a dotted key takes, by its value in a composed config; None: no number."""
    found = NUMBERS.get(key, type(default))
    return found if found in (int, float) else None


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested dict as a flat one with dotted keys: {"model": {"n_head": 4}} -> {"model.n_head": 4}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return the shortest distinct name of each key: model.n_head -> n_head, optim.name -> optim."""

    def short(key: str) -> str:
        head, _, last = key.lstrip("+").rpartition(".")
        return head if last == "name" and head else last

    ends = {key: short(key) for key in keys}
    return {key: end if list(ends.values()).count(end) == 1 else key.lstrip("+") for key, end in ends.items()}


def text_stand_in(data: dict[str, Any]) -> str:
    """Return what stands for the hash of a text that is not read: where it is, and how it is read if not as usual."""
    choices = (f" {key}={data[key]}" for key, usual in READING.items() if data.get(key, usual) != usual)
    return str(data["path"]) + "".join(choices)


def config_hash(config: dict[str, Any], data_sha256: str) -> str:
    """Return 12 hex digits that identify what a run computes: its config and its text, without names and folders."""
    what: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            older = upgrades.NEW.get(key, {}).items()  # the behaviour before the key existed
            chosen = {k: v for k, v in value.items() if does(f"{key}.{k}", "computes") and (k, v) not in older}
            what |= {key: chosen} if chosen or key not in ("task", "reward", "lora") else {}
        elif value is not None and key not in ("name", "resume"):
            what[key] = value
    what["data"]["sha256"] = data_sha256
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
