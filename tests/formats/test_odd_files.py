"""Files that are whole and say something odd: refused in one message, or read for what they are."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from gptlab.data.saved import _inside
from gptlab.data.tokenizers import ByteTokenizer, Tokenizer
from gptlab.formats.gguf_tokenizer import tokenizer_of, vocabulary_of
from gptlab.formats.gguf_tokenizer_json import _merges
from gptlab.formats.gguf_vocabulary import BYTE_LEVEL, NO_MERGE, UNUSED, Vocabulary
from gptlab.formats.huggingface_tokenizer import named_token
from gptlab.formats.open_model import open_model
from gptlab.models import GPTConfig
from gptlab.models.weights import check_sound
from gptlab.system.errors import UserError, command_line
from gptlab.system.files import is_file, is_there


def test_a_message_that_quotes_a_file_gives_the_terminal_no_orders() -> None:
    with pytest.raises(SystemExit, match=re.escape("error: a\ufffd[2Jb")), command_line():
        raise UserError("a\x1b[2Jb")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_one_that_is_not_there(name: str) -> None:
    assert not is_file(Path(name))
    assert not is_there(Path(name))
    with pytest.raises(UserError, match="no such run directory or checkpoint file"):
        open_model(name)


@pytest.mark.parametrize("name", ["..", "a/b", "../a", "/a"])
def test_a_data_set_has_no_file_outside_of_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="is not in its folder"):
        _inside(Path("folder"), name)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.bool])
def test_weights_without_their_scale_are_no_weights(dtype: torch.dtype) -> None:
    state = {"wte.weight": torch.zeros(3, 4).to(dtype)}
    with pytest.raises(UserError, match=r"wte\.weight is no tensor of floating-point numbers of 16, 32 or 64 bits"):
        check_sound(GPTConfig(3, 4, 1, 1, n_embd=4), state)


@pytest.mark.parametrize("token", [3, ["a"], {"content": 3}])
def test_a_special_token_is_a_text(token: object) -> None:
    with pytest.raises(UserError, match=r"beside it eos_token is .*, which is no text"):
        named_token({"eos_token": token}, "eos")


def test_unused_ids_at_the_end_of_a_gguf_vocabulary_are_rows_of_the_embedding_alone() -> None:
    tokenizer: Tokenizer = ByteTokenizer()
    vocabulary = vocabulary_of(tokenizer)
    more = [f"[PAD{i}]" for i in range(5)]
    longer = dataclasses.replace(
        vocabulary, tokens=[*vocabulary.tokens, *more], types=[*vocabulary.types, *[UNUSED] * len(more)]
    )
    assert tokenizer_of(longer).to_dict() == tokenizer.to_dict()


def test_the_merge_that_stands_for_none_is_none() -> None:
    vocabulary = Vocabulary(BYTE_LEVEL, "gpt-2", ["a", "b"], [1, 1], {}, [NO_MERGE])
    assert _merges(vocabulary) == []
