"""Tokens that were added to a tokenizer: declared in files beside it, or without a row in the model's embedding."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from gptlab.formats.reading import read_json_object
from gptlab.system.errors import UserError

log = logging.getLogger(__name__)

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")
SHOWN = 5  # in one warning


def token_ids(spec: dict[str, Any]) -> dict[str, int]:
    """Return the ids of all tokens in the content of a tokenizer.json."""
    vocab = spec["model"]["vocab"]
    ids = dict(vocab) if isinstance(vocab, dict) else {token: i for i, (token, _) in enumerate(vocab)}  # Unigram
    return ids | {token["content"]: token["id"] for token in spec.get("added_tokens") or []}


def with_declared(spec: dict[str, Any], folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a tokenizer.json with the tokens that only the files beside it declare.

    Those are tokenizer_config.json (added_tokens_decoder), added_tokens.json, and the special tokens that
    tokenizer_config.json and special_tokens_map.json name. One without an id of its own gets the next free one.

    Args:
        spec: the content of tokenizer.json.
        folder: the folder with the files.
        about: the merged contents of the files beside the tokenizer.

    Raises:
        UserError: added_tokens.json is broken, or an id is no number.
    """
    file = folder / "added_tokens.json"
    ids, special = token_ids(spec), _special_names(about)
    declared = {name: (None, {"special": True}) for name in special}
    if file.is_file():
        declared |= {name: (i, {"special": name in special}) for name, i in read_json_object(file).items()}
    declared |= {token["content"]: (int(i), token) for i, token in (about.get("added_tokens_decoder") or {}).items()}
    added: dict[int, dict[str, Any]] = {}
    homeless = []
    for name, (i, flags) in declared.items():
        if name in ids:
            continue
        if i is not None and (type(i) is not int or i < 0):
            raise UserError(f"beside it {name:.99} is declared with the id {i!s:.99}")
        if i is None or i in added or i in ids.values():
            homeless.append((name, flags))
        else:
            added[i] = _entry(name, i, flags)
    free = 1 + max([*ids.values(), *added])
    added |= {i: _entry(name, i, flags) for i, (name, flags) in enumerate(homeless, free)}
    return _with_added(spec, [added[i] for i in sorted(added)])


def _special_names(about: dict[str, Any]) -> list[str]:
    """Return the texts of the special tokens that a folder's files name, each once, in a fixed order."""
    listed: list[Any] = [about.get(key) for key in NAMED]
    for key in LISTED:
        tokens = about.get(key) or []
        listed += tokens.values() if isinstance(tokens, dict) else tokens
    texts = [token.get("content") if isinstance(token, dict) else token for token in listed]
    return list(dict.fromkeys(text for text in texts if isinstance(text, str) and text))


def _entry(content: str, i: int, flags: dict[str, Any]) -> dict[str, Any]:
    special = bool(flags.get("special"))
    switches = {name: bool(flags.get(name)) for name in ("single_word", "lstrip", "rstrip")}
    normalized = bool(flags.get("normalized", not special))
    return {"id": i, "content": content, **switches, "normalized": normalized, "special": special}


def _with_added(spec: dict[str, Any], new: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the spec with more added tokens.

    The library numbers added tokens from the vocabulary's size on. Where that gives other ids they stand in the
    vocabulary, too.
    """
    if not new:
        return spec
    vocab, added = spec["model"]["vocab"], [*(spec.get("added_tokens") or []), *new]
    outside = {token["content"]: token["id"] for token in added if token["content"] not in vocab}
    if isinstance(vocab, dict) and list(outside.values()) != list(range(len(vocab), len(vocab) + len(outside))):
        spec = spec | {"model": spec["model"] | {"vocab": vocab | outside}}
    return spec | {"added_tokens": added}


def with_rows(spec: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return the content of a tokenizer.json without the added tokens for which a model has no row, with a warning.

    Unchanged if other tokens have no row either: then tokenizer and model do not belong together.

    Args:
        spec: the content of tokenizer.json.
        rows: the number of embeddings of the model.
    """
    added = spec.get("added_tokens") or []
    beyond = {token: i for token, i in token_ids(spec).items() if i >= rows}
    kept = [token for token in added if token["content"] not in beyond]
    if not beyond or len(kept) + len(beyond) > len(added):
        return spec
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model = model | {"vocab": {token: i for token, i in model["vocab"].items() if token not in beyond}}
    shown = [f"{token} ({i})" for token, i in beyond.items()]
    more = [f"and {len(beyond) - SHOWN} more"] if len(beyond) > SHOWN else []
    log.warning(
        "added tokens without a row in the model's embedding are left out, and read as text: %s",
        ", ".join(shown[:SHOWN] + more),
    )
    return spec | {"added_tokens": kept, "model": model}
