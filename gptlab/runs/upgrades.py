"""Upgrade what older versions wrote to the format of this one."""

from __future__ import annotations

from typing import Any

# The values of keys that older configs lack, since there was no choice.
TOKENIZER = {"name": "char", "vocab_size": None}
DATA = {
    **{"text_key": "text", "subset": None, "revision": None, "max_documents": None},
    **{"split": "position", "test_fraction": 0.0},
}
NEW: dict[str, dict[str, Any]] = {
    "model": {
        **{"conv": None, "attn_dropout": None, "embed_norm": False, "head_dim": None, "rope_scaling": None},
        **{"rope_factor": 1.0, "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0, "rope_original_size": None},
        **{"rope_fraction": 1.0, "rope_beta_slow": 1.0, "rope_beta_fast": 32.0, "rope_attention_factor": None},
        "parallel_norms": False,
    },
    "task": {
        "name": "pretrain",
        "loss_on": "answers",
        "too_long": "cut",
        "pack": True,
        "check": 500,
        "answer_tokens": 100,
        "train": "all",
        "samples": 0,
        "enough": None,
        "chat_template": "auto",
        "text_loss": None,
    },
    "reward": {"name": "exact", "argument": None, "model": None, "shuffle": False, "unended": 0.0},
    "lora": {"rank": 0, "alpha": 16.0, "dropout": 0.0, "targets": ["q", "v"], "rslora": False, "untie": False},
    "data": {
        "problems": None,
        "order": "random",
        "format": "auto",
        "separator": None,
        "named_parts": False,
        "line_ends": "kept",
    },
    "trainer": {"ema": 0, "val_first": True, "baseline": None, "threads": "auto"},
}
"""Keys added to configs of this format, with the behaviour before; they do not change `identity.config_hash`."""


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a run, completed with the keys in `NEW`."""
    groups = [group for group in NEW if group != "model" or "norm" in config["model"]]  # a bigram has no such switches
    return {
        **config,
        **{group: config.get(group, {}) | NEW[group] | config.get(group, {}) for group in groups},
    }  # in its order


def from_format_1(about: dict[str, Any]) -> dict[str, Any]:
    """Convert the description in a checkpoint of format 1 (see `checkpoint.describe`) to the current format.

    Raises:
        AttributeError, KeyError, TypeError: `about` is not such a description.
    """
    config, tokenizer = about["config"], about["tokenizer"]
    if tokenizer.get("name") == "char":
        tokenizer = {"end_of_text": False, **tokenizer}
    if config:  # an exported model from elsewhere has none
        data = {key: value for key, value in config["data"].items() if key != "block_size"}  # is the model's
        config = {"tokenizer": TOKENIZER, **config, "data": DATA | data, "model": _model(config["model"])}
    return {"data_sha256": None, **about, "tokenizer": tokenizer, "config": config, "model": _model(about["model"])}


def _model(model: dict[str, Any]) -> dict[str, Any]:
    """Rename the key activation to mlp: format 1 named a feed-forward layer by its activation."""
    return {{"activation": "mlp"}.get(key, key): value for key, value in model.items()}
