"""The chat template of a Hugging Face folder is read as transformers reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from gptlab.data.chat.template import ChatTemplate
from gptlab.formats.chat_template import read_chat_template
from gptlab.formats.huggingface_tokenizer import read_folder
from gptlab.system.errors import UserError
from tests.data.chat.helpers import talk
from tests.data.chat.test_template import CHATML, TOLD
from tests.data.test_special_tokens import byte_level

SAID = talk("Hello", "Hi", "Bye", "So long", system="Be brief")


def folder(path: Path, config: dict[str, Any], **files: str) -> Path:
    """A folder with a tokenizer, its config, and other files."""
    names = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
    tokenizer = byte_level(*(AddedToken(name, special=True, normalized=False) for name in names))
    (path / "tokenizer.json").write_text(tokenizer.content)
    named = {"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | named | config
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content)
    return path


def read(path: Path) -> ChatTemplate:
    found = read_chat_template(path, read_folder(path))
    assert found is not None
    return found


@pytest.mark.parametrize("place", ["config", "several", "file", "file before config"])
def test_a_template_is_found_where_transformers_finds_it(tmp_path: Path, place: str) -> None:
    source = "{{ bos_token }}" + TOLD + "{{ eos_token }}"
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": source}]
    config = {"config": source, "several": several, "file before config": CHATML}.get(place)
    files = {"chat_template__jinja": source} if place.startswith("file") else {}
    folder(tmp_path, {"chat_template": config} if config else {}, **files)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    messages = [message._asdict() for message in SAID.messages]
    expected = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    found = read(tmp_path).encode(SAID.messages)
    assert found.ids.tolist() == expected["input_ids"]
    assert found.counted.astype(int).tolist() == expected["assistant_masks"]
    assert found.ids[0] == theirs.bos_token_id
    assert found.ids[-1] == theirs.eos_token_id


def test_all_tokens_that_end_a_turn_are_known(tmp_path: Path) -> None:
    """Fault 24: generation stops at one end token where several end a turn."""
    ends = json.dumps({"eos_token_id": [258, 257, 99_999, -1, True, "258", [258]]})
    template = read(folder(tmp_path, {"chat_template": CHATML}, generation_config__json=ends))
    assert [template.tokenizer.decode([i]) for i in template.ends] == ["<|im_end|>", "</s>", "<s>"]


def test_a_folder_without_a_template_has_none(tmp_path: Path) -> None:
    folder(tmp_path, {})
    assert read_chat_template(tmp_path, read_folder(tmp_path)) is None


def test_several_templates_of_which_none_is_the_default_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, {"chat_template": [{"name": "rag", "template": "a"}, {"name": "tool_use", "template": "b"}]})
    with pytest.raises(UserError, match="it has the chat templates rag, tool_use; one must be called default"):
        read_chat_template(tmp_path, read_folder(tmp_path))


@pytest.mark.parametrize(
    "other",
    [
        {"name": ["default"], "template": "a"},
        {"name": None, "template": "a"},
        {"name": "rag", "source": "a"},
        {"title": "rag", "template": "a"},
        {"name": "rag"},
        ["name", "template"],
        "rag",
        3,
    ],
)
def test_what_is_no_template_with_a_name_is_none_of_several(tmp_path: Path, other: object) -> None:
    config = {"chat_template": [{"name": "default", "template": CHATML}, other]}
    assert read(folder(tmp_path, config)).source == CHATML
    folder(tmp_path, {"chat_template": [other]})
    with pytest.raises(UserError, match=r"it has the chat templates .*; one must be called default"):
        read_chat_template(tmp_path, read_folder(tmp_path))


def test_names_of_templates_are_quoted_as_far_as_they_fit_on_a_screen(tmp_path: Path) -> None:
    folder(tmp_path, {"chat_template": [{"name": "x" * 100_000, "template": "a"}]})
    with pytest.raises(UserError, match=r"it has the chat templates x{99}; one must be called default"):
        read_chat_template(tmp_path, read_folder(tmp_path))
