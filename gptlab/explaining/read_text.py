"""The text that is explained, as the model reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gptlab.data.tokenizers import Tokenizer
from gptlab.formats.opened import OpenedModel
from gptlab.generation.answers import check_prompt, check_special
from gptlab.generation.decoding import prompt_ids
from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.system.errors import UserError, amount

MOST_TOKENS = 1024  # of a text; more would be no help in a picture


@dataclass(frozen=True)
class ReadText:
    """A text and its tokens."""

    text: str
    """The part that is explained."""
    ids: np.ndarray
    """Its tokens, after the tokenizer's beginning of text, (T,) int64."""
    dropped: int
    """The tokens before these, which are not explained."""
    limit: int
    """The most tokens that can be explained."""

    @property
    def notes(self) -> list[str]:
        """What of the text was left out, in words."""
        if not self.dropped:
            return []
        return [
            f"Of the text the last {len(self.ids):,} tokens are explained, and {self.dropped:,} before them left out: "
            f"{self.limit:,} is the most that the model and this page see at once."
        ]


def read_text(opened: OpenedModel[Model], text: str, special: bool = False) -> ReadText:
    """Encode a text; of one that is longer than the model's block, or than `MOST_TOKENS`, the end is taken.

    Args:
        opened: the model.
        text: the text.
        special: read names of special tokens in it as those tokens.

    Raises:
        UserError: the model has no token for some characters, or no special tokens, or no token that
            can be predicted stands for text.
    """
    if special:
        check_special(opened)
    check_prompt(opened, text, special)
    model, tokenizer = opened.model, opened.tokenizer
    limit = min(model.config.block_size, MOST_TOKENS) if isinstance(model, GPT) else MOST_TOKENS
    all_ids = prompt_ids(tokenizer, text, special)
    ids = np.array(all_ids[-limit:], dtype=np.int64)
    if not tokenizer.token_bytes()[ids[1:]].any():
        raise UserError(
            f"the text is too short: it has {amount(len(ids), 'token')}, and the first is not predicted; give more text"
        )
    dropped = len(all_ids) - len(ids)
    return ReadText(tokenizer.decode(ids.tolist()) if dropped else text, ids, dropped, limit)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token alone; bytes that are no UTF-8, such as half a character, as \\x.."""
    return tokenizer.tokens[token].decode("utf-8", "backslashreplace")
