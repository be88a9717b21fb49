"""`python -m gptlab.export MODEL DIR`: a model for transformers, llama.cpp, llama2.c, ONNX or a browser, or alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from gptlab.system.arguments import some_name, some_path
from gptlab.system.errors import UserError, command_line
from gptlab.system.files import refuse_taken, whole_folder

if TYPE_CHECKING:
    from pathlib import Path

    from gptlab.data.tokenizers import Tokenizer
    from gptlab.formats.description import ModelInfo
    from gptlab.models import Model

QUANTS = ("f32", "f16", "q8_0", "q4_0")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.export", description=__doc__)
    p.add_argument(
        "model",
        metavar="MODEL",
        type=some_name,
        help="a run directory, a checkpoint file, a Hugging Face folder or hub name, ...",
    )
    p.add_argument(
        "dir",
        metavar="DIR",
        type=some_path,
        help="the folder to make; it must not be there yet, or be empty; with --format html a file, such as page.html",
    )
    p.add_argument(
        "--format",
        default="hf",
        choices=("hf", "safetensors", "onnx", "peft", "gguf", "llama2c", "html"),
        help="hf: for AutoModelForCausalLM and AutoTokenizer; safetensors: weights in GPT-2's names, with all that "
        "gptlab needs; onnx: logits of input_ids, checked with onnxruntime; peft: adapters for Hugging Face's PEFT in "
        "DIR/adapter, and the model without them in DIR/base; gguf: for llama.cpp; llama2c: for run.c of llama2.c; "
        "html: one page that runs the model in any browser, without a network (default: hf)",
    )
    p.add_argument(
        "--quant",
        choices=QUANTS,
        help="with --format gguf, how matrices are held: in 32, 16, 8.5 or 4.5 bits for each weight (default: f32, the "
        "model as it is; f16 is llama.cpp's custom)",
    )
    p.add_argument(
        "--kv-cache",
        action="store_true",
        help="with --format onnx: keys and values come in and go out, so that a token costs the work of one; with what "
        "transformers.js and onnxruntime-genai read beside it",
    )
    return p


def run(args: argparse.Namespace) -> None:
    """Write the model, its tokenizer and its card.

    Raises:
        UserError: DIR is taken, MODEL cannot be read, or the format has no such model, --quant or --kv-cache.
    """
    refuse_taken(args.dir)
    if args.quant is not None and args.format != "gguf":
        raise UserError(f"--quant {args.quant}: --format {args.format} has none; add --format gguf, or leave it out")
    if args.kv_cache and args.format != "onnx":
        raise UserError(f"--kv-cache: --format {args.format} has none of its own; add --format onnx, or leave it out")

    from gptlab.formats import gguf, onnx, onnx_cached
    from gptlab.formats.html.page import check_path, write_html
    from gptlab.formats.llama2c import write_llama2c
    from gptlab.formats.model_card import model_card
    from gptlab.formats.open_model import load_with_adapters
    from gptlab.formats.peft_folder import write_base_and_adapter
    from gptlab.formats.writing import write_hf, write_safetensors

    if args.format == "onnx":
        onnx.require_onnx()
    if args.format == "gguf":
        gguf.require_gguf()
    if args.format == "html":
        check_path(args.dir)
    opened, tokenizer, info = load_with_adapters(args.model)
    if args.format == "peft":
        with whole_folder(args.dir) as folder:
            write_base_and_adapter(opened, tokenizer, info, folder, args.dir)
        print(f"{args.dir}: a PEFT adapter, and its base")
        return
    if args.format == "html":
        kind = write_html(merged_with_words(opened), tokenizer, info, args.dir)
        print(f"{args.dir}: {kind} ({size_in_words(args.dir.stat().st_size)}); open it in a browser")
        return
    writers: dict[str, Callable[[Model, Tokenizer, ModelInfo, Path], str]] = {
        "hf": write_hf,
        "safetensors": write_safetensors,
        "onnx": onnx_cached.write_cached_onnx if args.kv_cache else onnx.write_onnx,
        "gguf": partial(gguf.write_gguf, quant=args.quant or "f32"),
        "llama2c": write_llama2c,
    }
    model, form = merged_with_words(opened), "onnx_cached" if args.kv_cache else args.format
    with whole_folder(args.dir) as folder:
        kind = writers[args.format](model, tokenizer, info, folder)
        for_genai = (folder / "genai_config.json").exists()
        text = model_card(model, tokenizer, info, form, args.dir.resolve().name, for_genai)
        (folder / "README.md").write_text(text, "utf-8")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sizes = ", ".join(f"{path.relative_to(folder)} {size_in_words(path.stat().st_size)}" for path in files)
    print(f"{args.dir}: {kind} ({sizes})")


def merged_with_words(model: Model) -> Model:
    """Return the model with its adapters merged, if it has any, and print what that changes."""
    from gptlab.models.gpt import GPT
    from gptlab.models.lora import largest_change, merged, probe

    if not isinstance(model, GPT):
        return model
    plain = merged(model)
    if plain is not model:
        change = largest_change(model, plain, probe(model))
        print(f"adapters merged in fp32: logits change by at most {change:.2g}")
    return plain


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
