"""`python -m gptlab.export MODEL DIR`: a model for the ecosystem: transformers, safetensors, ONNX."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gptlab.system.arguments import some_name, some_path
from gptlab.system.errors import UserError, command_line
from gptlab.system.files import whole_folder


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.export", description=__doc__)
    p.add_argument(
        "model",
        metavar="MODEL",
        type=some_name,
        help="a run directory, a checkpoint file, a Hugging Face folder or hub name, ...",
    )
    p.add_argument(
        "dir", metavar="DIR", type=some_path, help="the folder to make; it must not be there yet, or be empty"
    )
    p.add_argument(
        "--format",
        default="hf",
        choices=("hf", "safetensors", "onnx"),
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

    from gptlab.formats import onnx
    from gptlab.formats.model_card import model_card
    from gptlab.formats.open_model import load_model
    from gptlab.formats.writing import write_hf, write_safetensors

    if args.format == "onnx":
        onnx.require_onnx()
    write = {"hf": write_hf, "safetensors": write_safetensors, "onnx": onnx.write_onnx}[args.format]
    model, tokenizer, info = load_model(args.model)
    with whole_folder(args.dir) as folder:
        kind = write(model, tokenizer, info, folder)
        text = model_card(model, tokenizer, info, args.format, args.dir.resolve().name)
        (folder / "README.md").write_text(text, "utf-8")
        sizes = ", ".join(f"{path.name} {size_in_words(path.stat().st_size)}" for path in sorted(folder.iterdir()))
    print(f"{args.dir}: {kind} ({sizes})")


def refuse_taken(folder: Path) -> None:
    """Check that a folder does not exist, or is empty.

    Raises:
        UserError: it has files in it, it is a file, or it cannot be read.
    """
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; choose another folder") from error
    raise UserError(f"{folder} is there already; choose another name, or remove it first")


def size_in_words(size: float) -> str:
    """Return a number of bytes in words: 12 B, 3.4 kB, 498 MB."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 1 after a `UserError`, 2 for wrong flags and 130 after Ctrl-C."""
    with command_line():
        run(parser().parse_args(argv))


if __name__ == "__main__":
    main()
