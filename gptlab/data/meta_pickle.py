"""nanoGPT's meta.pkl, which tells the characters of its ids: read without executing anything in it, and written."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path

from gptlab.data.tokenizers import END_OF_TEXT, CharTokenizer
from gptlab.system.errors import UserError, error_line
from gptlab.system.files import read_bytes

FILE = "meta.pkl"
PROTOCOL = 4
MAX_BYTES = 1 << 23  # all of Unicode takes less

# The operations of a pickle of dicts of strings and integers; a pickle with any other is refused.
ALLOWED_OPERATIONS = {
    "PROTO",
    "FRAME",
    "STOP",
    "MARK",
    "EMPTY_DICT",
    "SETITEM",
    "SETITEMS",
    "MEMOIZE",
    "BINPUT",
    "LONG_BINPUT",
}
ALLOWED_OPERATIONS |= {"BINGET", "LONG_BINGET", "SHORT_BINUNICODE", "BINUNICODE", "BININT", "BININT1", "BININT2"}


def read_meta(file: Path) -> CharTokenizer:
    """Read the characters in nanoGPT's meta.pkl; nothing in it is executed.

    Raises:
        UserError: it is broken, or holds something else.
    """
    try:
        content = read_bytes(file, MAX_BYTES)
        for operation, argument, place in pickletools.genops(content):
            if operation.name not in ALLOWED_OPERATIONS or (
                operation.name.endswith("PUT") and (argument or 0) > (place or 0)
            ):
                raise ValueError(f"it would do more than read: {operation.name} {str(argument or '')[:99]}")
        meta = pickle.loads(content)
        texts = [meta["itos"][i] for i in range(len(meta["itos"]))]
        if meta.get("vocab_size", len(texts)) != len(texts):
            raise ValueError(f"it has {len(texts):,} characters, and its vocab_size is {meta['vocab_size']!r:.99}")
        ended = texts[-1:] == [END_OF_TEXT]
        characters = texts[:-1] if ended else texts
        if not all(len(character) == 1 for character in characters):
            raise ValueError("it has texts that are no single characters")
        return CharTokenizer("".join(characters), ended)
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{file} is no meta.pkl of nanoGPT's characters: {error_line(error)}") from error


def meta_of(tokenizer: CharTokenizer) -> bytes:
    """Return the content of a meta.pkl that tells the characters of a tokenizer, and its end of text if it has one."""
    texts = [*tokenizer.chars] + [END_OF_TEXT] * (tokenizer.end_of_text is not None)
    itos = dict(enumerate(texts))
    stoi = {text: i for i, text in itos.items()}
    return pickle.dumps({"vocab_size": len(texts), "itos": itos, "stoi": stoi}, PROTOCOL)
