"""Read the chat template of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptlab.data.chat.chat_format import ChatFormat, Format, has_chat_tokens
from gptlab.data.chat.template import ChatTemplate
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats.added_tokens import NAMED
from gptlab.formats.huggingface_tokenizer import about_folder, named_token
from gptlab.system.errors import UserError

FILE = "chat_template.jinja"


def read_chat_format(folder: Path, tokenizer: Tokenizer) -> Format | None:
    """Return the format in which the model in a folder is asked: gptlab's, if its template is that; None: it has none.

    Args:
        tokenizer: the one of the folder.

    Raises:
        UserError: see `read_chat_template`.
    """
    ours = ChatFormat(tokenizer) if has_chat_tokens(tokenizer) else None
    if ours is not None and _source(folder, about_folder(folder)) == ours.as_template():
        return ours
    return read_chat_template(folder, tokenizer)


def read_chat_template(folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Return the chat template in chat_template.jinja, or else in tokenizer_config.json; None if there is none.

    Several tokens may end a turn: the one that the template writes, the tokenizer's eos_token, and all of eos_token_id
    in generation_config.json.

    Args:
        tokenizer: the one of the folder.

    Raises:
        UserError: there are several templates, and none is the default; it is no text; or see `ChatTemplate.encode`.
    """
    about = about_folder(folder)
    source = _source(folder, about)
    if source is None:
        return None
    tokens = {name: named_token(about, name.removesuffix("_token")) for name in NAMED}
    eos, of_model = tokenizer.special_tokens.get(tokens["eos_token"] or ""), about.get("eos_token_id")
    ends = [tokenizer.end_of_text, eos, *(of_model if isinstance(of_model, list) else [of_model])]
    known = dict.fromkeys(i for i in ends if type(i) is int and 0 <= i < tokenizer.vocab_size)
    variables = {name: token for name, token in tokens.items() if token}
    return ChatTemplate(tokenizer, source, variables, tuple(known), where=str(folder)).with_own_end()


def _source(folder: Path, about: dict[str, Any]) -> str | None:
    """Return the template in a folder, whose tokenizer's files say `about`; None if there is none.

    Raises:
        UserError: see `read_chat_template`.
    """
    file = folder / FILE
    if file.is_file():
        try:
            return file.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read as a chat template ({error})") from error
    source = about.get("chat_template")
    if isinstance(source, list):  # several, for several uses
        named = {
            str(each["name"]): each["template"]
            for each in source
            if isinstance(each, dict) and each.keys() == {"name", "template"}
        }
        if "default" not in named:
            raise UserError(f"{folder}: it has the chat templates {', '.join(named):.99}; one must be called default")
        source = named["default"]
    if not isinstance(source, str | None):
        raise UserError(f"{folder / 'tokenizer_config.json'}: its chat_template is no text")
    return source
