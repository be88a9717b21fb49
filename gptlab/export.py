"""`python -m gptlab.export MODEL DIR`: a model for the ecosystem: transformers, safetensors, ONNX."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.formats.onnx import require_onnx, to_onnx
from gptlab.formats.writing import to_hf, to_safetensors
from gptlab.system.errors import UserError, command_line
from gptlab.system.files import whole_folder

if TYPE_CHECKING:
    from gptlab.data.tokenizers import Tokenizer
    from gptlab.formats.checkpoint import Info
    from gptlab.models import Model


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.export", description=__doc__)
    p.add_argument(
        "model", metavar="MODEL", help="a run directory, a checkpoint file, a Hugging Face folder or hub name, ..."
    )
    p.add_argument("dir", metavar="DIR", type=Path, help="the folder to make; it must not be there yet, or be empty")
    p.add_argument(
        "--format",
        default="hf",
        choices=tuple(FORMATS),
        help="hf: for AutoModelForCausalLM and AutoTokenizer; safetensors: weights in GPT-2's names, with all that "
        "gptlab needs; onnx: logits of input_ids, checked with onnxruntime (default: hf)",
    )
    return p


def run(args: argparse.Namespace) -> None:
    """Write the model, its tokenizer and its card.

    Raises:
        UserError: DIR is taken, MODEL cannot be read, or the format has no such model.
    """
    refuse_taken(args.dir)
    if args.format == "onnx":
        require_onnx()
    from gptlab.formats.model_card import card
    from gptlab.formats.open_model import load

    model, tokenizer, info = load(args.model)
    with whole_folder(args.dir) as folder:
        said = FORMATS[args.format](model, tokenizer, info, folder)
        text = card(model, tokenizer, info, args.format, args.dir.resolve().name)
        (folder / "README.md").write_text(text, "utf-8")
        sizes = ", ".join(f"{path.name} {in_words(path.stat().st_size)}" for path in sorted(folder.iterdir()))
    print(f"{args.dir}: {said} ({sizes})")


def refuse_taken(folder: Path) -> None:
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; choose another folder") from error
    raise UserError(f"{folder} is there already; choose another name, or remove it first")


def in_words(size: float) -> str:
    """Of bytes: 12 B, 3.4 kB, 498 MB."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


FORMATS: dict[str, Callable[[Model, Tokenizer, Info, Path], str]] = {
    "hf": to_hf,
    "safetensors": to_safetensors,
    "onnx": to_onnx,
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: a mistake is one message and exit code 1 (2 for flags); Ctrl-C is 130."""
    args = parser().parse_args(argv)
    with command_line():
        run(args)


if __name__ == "__main__":
    main()
