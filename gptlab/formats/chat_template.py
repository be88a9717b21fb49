"""Read the chat template of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from gptlab.data.chat.template import ChatTemplate
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats.added_tokens import NAMED
from gptlab.formats.huggingface_tokenizer import about_folder, named_token
from gptlab.system.errors import UserError


def read_chat_template(folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Return the chat template in chat_template.jinja, or else in tokenizer_config.json; None if there is none.

    Several tokens may end a turn: the one that the template writes, the tokenizer's eos_token, and all of eos_token_id
    in generation_config.json.

    Args:
        tokenizer: the one of the folder.

    Raises:
        UserError: there are several templates, and none is the default; or see `ChatTemplate.encode`.
    """
    about, file = about_folder(folder), folder / "chat_template.jinja"
    source = file.read_text("utf-8") if file.is_file() else about.get("chat_template")
    if isinstance(source, list):  # several, for several uses
        named = {each["name"]: each["template"] for each in source}
        if "default" not in named:
            raise UserError(f"{folder}: it has the chat templates {', '.join(named)}; one must be called default")
        source = named["default"]
    if source is None:
        return None
    tokens = {name: named_token(about, name.removesuffix("_token")) for name in NAMED}
    eos, of_model = tokenizer.special_tokens.get(tokens["eos_token"] or ""), about.get("eos_token_id")
    ends = [tokenizer.end_of_text, eos, *(of_model if isinstance(of_model, list) else [of_model])]
    known = dict.fromkeys(i for i in ends if isinstance(i, int) and i < tokenizer.vocab_size)
    variables = {name: token for name, token in tokens.items() if token}
    return ChatTemplate(tokenizer, source, variables, tuple(known)).with_own_end()
