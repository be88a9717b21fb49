"""What older versions wrote, in the words of this one."""

from __future__ import annotations

from typing import Any

# What a run's config did not say before there was a choice.
TOKENIZER = {"name": "char", "vocab_size": None}
DATA = {
    **{"text_key": "text", "subset": None, "revision": None, "max_documents": None},
    **{"split": "position", "test_fraction": 0.0},
}
NEW: dict[str, dict[str, Any]] = {
    "model": {"conv": None, "attn_dropout": None, "embed_norm": False},
    "data": {"order": "random"},
    "trainer": {"ema": 0, "val_first": True, "baseline": None},
}
"""Keys that configs of this format have got since, with what runs did before; they do not change `runs.config_hash`."""


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a run, with what is `NEW`."""
    groups = [group for group in NEW if group != "model" or "norm" in config["model"]]  # a bigram has no such switches
    return {**config, **{group: config[group] | NEW[group] | config[group] for group in groups}}  # in its order


def from_format_1(about: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint of format 1 says of itself (see `checkpoint.describe`), as this version would say it.

    Raises:
        AttributeError, KeyError, TypeError: it is no such dict.
    """
    config, tokenizer = about["config"], about["tokenizer"]
    if tokenizer.get("name") == "char":
        tokenizer = {"end_of_text": False, **tokenizer}
    if config:  # else it is an exported model that was never gptlab's run
        data = {key: value for key, value in config["data"].items() if key != "block_size"}  # is the model's
        config = {"tokenizer": TOKENIZER, **config, "data": DATA | data, "model": _model(config["model"])}
    return {"data_sha256": None, **about, "tokenizer": tokenizer, "config": config, "model": _model(about["model"])}


def _model(model: dict[str, Any]) -> dict[str, Any]:
    """A feed-forward was called by its activation alone when there was one kind of it."""
    return {{"activation": "mlp"}.get(key, key): value for key, value in model.items()}
