"""Writes a model as one page of HTML that runs it in a browser, without a network and without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptlab.data.tokenizers import Tokenizer
from gptlab.formats.description import ModelInfo
from gptlab.formats.html.content import OTHERWISE, card_of, described, tokenizer_of
from gptlab.formats.html.shared import HERE, PAGE_SCRIPTS
from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.models.lora import merged
from gptlab.models.torch_arrays import arrays_of
from gptlab.system.errors import UserError
from gptlab.system.files import write_atomically
from gptlab.system.html_page import one_file

MODEL_SCRIPTS = ("products.js", "model.js", "tokenizer.js", "sampling.js", "local.js")  # what a server does itself


def check_path(path: Path) -> None:
    """Check the name of a page.

    Raises:
        UserError: a browser would not know the file by it, or it is a folder.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"{path}: --format html writes one file, which browsers know by its ending; name it {path}.html"
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder, and --format html writes one file; choose another name")


def write_html(model: Model, tokenizer: Tokenizer, info: ModelInfo, path: Path) -> str:
    """Write a page that is the model.

    Args:
        model: a GPT; its matrices are written in 8 bits.
        tokenizer: its tokenizer.
        info: its info.
        path: the file.

    Returns:
        The name of the format.

    Raises:
        UserError: the page cannot have such a model or tokenizer, or the file cannot be written.
    """
    content = page(model, tokenizer, info, path.stem).encode()
    write_atomically(path, lambda file: file.write(content))
    return "a page of HTML with weights of 8 bits"


def page(model: Model, tokenizer: Tokenizer, info: ModelInfo, name: str) -> str:
    """Return the text of a page; arguments and errors as in `write_html`.

    Args:
        name: of a model without a name of its own.
    """
    if not isinstance(model, GPT):
        raise UserError(f"--format html: a page has GPTs, and this is a {type(model).__name__}; use --format onnx")
    plain = merged(model).to("cpu").float().eval().requires_grad_(False)
    arrays = arrays_of(plain)
    if arrays is None:
        raise UserError(f"--format html: its weights are of several types; {OTHERWISE} for this model")
    described_model, weights = described(arrays)
    data = {
        "card": card_of(model.config, model.num_parameters(), tokenizer, info, name),
        "tokenizer": tokenizer_of(tokenizer),
        "model": described_model,
    }
    return assembled(data, weights)


def assembled(data: dict[str, Any], weights: str) -> str:
    """Return index.html with all that it links to in it, and a policy that lets nothing else run."""
    style = (HERE / "style.css").read_text("utf-8")
    script = '"use strict";\n' + "\n".join((HERE / name).read_text("utf-8") for name in (*PAGE_SCRIPTS, *MODEL_SCRIPTS))
    page = (HERE / "index.html").read_text("utf-8")
    name = data["card"]["name"]
    return one_file(page, name, style, script, {"model": data}, {"weights": weights}, "'wasm-unsafe-eval'")
