"""Tokens that were added to a tokenizer: declared in files beside it, or without a row in the model's embedding."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from gptlab.data.tokenizers.json import added_token, with_added
from gptlab.formats.reading import read_json_object
from gptlab.system.errors import UserError
from gptlab.system.terminal import harmless

log = logging.getLogger(__name__)

DECLARING = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SHOWN = 5  # in one warning


def token_ids(spec: dict[str, Any]) -> dict[str, int]:
    """Return the ids of all tokens in the content of a tokenizer.json."""
    vocab = spec["model"]["vocab"]
    ids = dict(vocab) if isinstance(vocab, dict) else {token: i for i, (token, _) in enumerate(vocab)}  # Unigram
    return ids | {token["content"]: token["id"] for token in spec.get("added_tokens") or []}


def with_declared(spec: dict[str, Any], folder: Path, rows: int | None) -> dict[str, Any]:
    """Return the content of a tokenizer.json with the tokens that only the files beside it declare.

    As in `transformers` they are those of `added_tokens_decoder` in tokenizer_config.json, or of added_tokens.json if
    there is none, then the named ones (bos_token, ...), then the extra special ones. A token that the vocabulary lacks
    gets the id that is declared, if the model has a row for it, else the next free one.

    Args:
        spec: the content of tokenizer.json.
        folder: the folder with the files.
        rows: the number of embeddings of the model; None if it is not known.

    Raises:
        UserError: added_tokens.json is broken, or an id is no number.
    """
    config, special, listed = (_content_if_there(folder / name) for name in DECLARING)
    by_id = config.get("added_tokens_decoder")
    named = _named_tokens(config if by_id is not None else config | special)
    if by_id is not None:
        pairs = list(by_id.items())
    else:
        pairs = [
            (i, {"content": text, "special": text in named, "normalized": text not in named})
            for text, i in listed.items()
        ]
    for i, token in pairs:
        if not str(i).isdecimal():
            raise UserError(f"beside it {token['content']:.99} is declared with the id {i!s:.99}")
    ids = token_ids(spec)
    present = {token["content"]: token for token in spec.get("added_tokens") or []}
    declared: dict[str, tuple[int | None, dict[str, Any]]] = {
        token["content"]: (int(i), token) for i, token in sorted(pairs, key=lambda pair: int(pair[0]))
    }
    declared |= {text: (None, flags) for text, flags in named.items() if text not in declared.keys() | present.keys()}
    found: dict[str, dict[str, Any]] = {}
    homeless = []
    for text, (i, flags) in declared.items():
        own = ids.get(text)
        if own is None and i is not None and rows is not None and i < rows and i not in ids.values():
            own = ids[text] = i
        if own is None:
            homeless.append((text, flags))
        else:
            flags = flags | {"special": flags.get("special") or present.get(text, {}).get("special")}
            found[text] = added_token(text, own, flags)
    free = 1 + max(ids.values())
    found |= {text: added_token(text, i, flags) for i, (text, flags) in enumerate(homeless, free)}
    kept = [found.pop(text, token) for text, token in present.items()]
    return with_added(spec, [*kept, *sorted(found.values(), key=lambda token: token["id"])])


def _named_tokens(about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the special tokens that a folder's files name, and their flags, in the order of `transformers`."""
    extra = about.get("extra_special_tokens") or about.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        about, extra = about | extra, []
    names = dict.fromkeys((*NAMED, *(name for name in about if name.endswith("_token"))))
    given = ({"content": each} if isinstance(each, str) else each for each in map(about.get, names))
    tokens: list[dict[str, Any]] = [each | {"special": True} for each in given if isinstance(each, dict)]
    tokens += [{"content": each, "special": True} if isinstance(each, str) else each for each in extra]
    return {each["content"]: each for each in tokens if isinstance(each.get("content"), str) and each["content"]}


def _content_if_there(file: Path) -> dict[str, Any]:
    return read_json_object(file) if file.is_file() else {}


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
        harmless(", ".join(shown[:SHOWN] + more)),
    )
    return spec | {"added_tokens": kept, "model": model}
