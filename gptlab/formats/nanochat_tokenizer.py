"""nanochat's tokenizer.pkl, a pickled encoding of tiktoken: read without executing anything in it."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from gptlab.data.meta_pickle import ALLOWED_OPERATIONS
from gptlab.data.tokenizers import BPETokenizer, JsonTokenizer, Tokenizer
from gptlab.formats.huggingface_backend import NANOCHAT_PATTERN, byte_level, letters_of, merges_of, with_begin
from gptlab.system.errors import UserError, error_line
from gptlab.system.files import read_bytes

FILE = "tokenizer.pkl"
MAX_BYTES = 1 << 24  # of a pickle; one of 65,536 tokens has a megabyte
LONGEST = 4096  # bytes of a token
BEGIN = ("<|bos|>", "<|endoftext|>")  # what begins each document; the second in OpenAI's vocabularies
# The operations of a pickle of one object with dicts of bytes, strings and integers.
OPERATIONS = ALLOWED_OPERATIONS | {"SHORT_BINBYTES", "BINBYTES", "EMPTY_TUPLE", "NEWOBJ", "BUILD", "STACK_GLOBAL"}


class _Encoding:
    """Stands for tiktoken.Encoding, of which it keeps what would have been its state."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != ("tiktoken.core", "Encoding"):
            raise pickle.UnpicklingError(f"it would do more than read: {module:.99}.{name:.99}")
        return _Encoding


def read_tokenizer(file: Path, raw_dir: Path) -> Tokenizer:
    """Read nanochat's tokenizer; nothing in it is executed.

    It puts <|bos|> before each text, which is also what ends one.

    Args:
        file: tokenizer.pkl.
        raw_dir: where OpenAI's vocabularies are looked for, if it is one of those.

    Raises:
        UserError: it is broken, or holds something else.
    """
    try:
        content = read_bytes(file, MAX_BYTES)
        for operation, argument, place in pickletools.genops(content):
            if operation.name not in OPERATIONS or (operation.name.endswith("PUT") and (argument or 0) > (place or 0)):
                raise ValueError(f"it would do more than read: {operation.name} {str(argument or '')[:99]}")
        state = _Reader(io.BytesIO(content)).load().state
        if isinstance(state, str):  # one of tiktoken's own goes by its name
            known = {"gpt2": BPETokenizer.gpt2, "cl100k_base": BPETokenizer.cl100k_base}
            if state not in known:
                raise ValueError(f"it names the vocabulary {state:.99}; gptlab has {', '.join(known)}")
            return known[state](raw_dir)
        return _from_state(state["mergeable_ranks"], state["special_tokens"], state["pat_str"])
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{file} is no tokenizer of nanochat: {error_line(error)}") from error


def _from_state(ranks: dict[bytes, int], special: dict[str, int], pattern: str) -> JsonTokenizer:
    """Return the tokenizer for what a tiktoken.Encoding consists of.

    Raises:
        ValueError, TypeError, AttributeError: it is damaged, or cuts texts by another pattern than nanochat's.
    """
    tokens = sorted(ranks, key=ranks.__getitem__)
    if [ranks[token] for token in tokens] != list(range(len(tokens))) or not all(map(bytes, tokens)):
        raise ValueError("its ranks are not 0, 1, 2, ...")
    if max(map(len, tokens), default=0) > LONGEST:
        raise ValueError(f"it has a token of {max(map(len, tokens)):,} bytes; at most {LONGEST:,} can be read")
    if not {bytes([i]) for i in range(256)} <= set(tokens):
        raise ValueError("it lacks some of the 256 bytes")
    if sorted(special.values()) != list(range(len(tokens), len(tokens) + len(special))):
        raise ValueError("its special tokens do not follow the others")
    if pattern != NANOCHAT_PATTERN:
        raise ValueError(f"its pattern is not nanochat's: {pattern:.99}")
    begin = next((name for name in BEGIN if name in special), None)
    if begin is None:
        raise ValueError(f"it has no {' or '.join(BEGIN)}")
    vocab = {letters_of(token): i for i, token in enumerate(tokens)}
    backend = byte_level(vocab, merges_of(tokens), pattern)
    backend.add_special_tokens(sorted(special, key=special.__getitem__))
    return JsonTokenizer(with_begin(backend.to_str(), begin, special[begin]), special[begin])
