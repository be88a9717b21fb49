"""`python -m gptlab.export MODEL DIR`: a model for the ecosystem: transformers, safetensors, ONNX."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.system.errors import UserError, command_line

if TYPE_CHECKING:
    from torch import Tensor

    from gptlab.checkpoint import Info
    from gptlab.data.tokenizers import Tokenizer
    from gptlab.models import Model
from gptlab.system.files import whole_folder

TOLERANCE = 1e-3  # of a logit, between ONNX's runtime and ours


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
    from gptlab.cards import card
    from gptlab.loading import load

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


def write_weights(path: Path, state: dict[str, Tensor], about: str | None = None) -> None:
    """One file of safetensors, in fp32, with a checksum; the ecosystem splits them from 5 GB (1.25 billion parameters).

    Args:
        about: what the file says of them.
    """
    import safetensors
    from safetensors.torch import save_file

    from gptlab import checkpoint, pretrained
    from gptlab.models import weights

    metadata = {"format": "pt", pretrained.DIGEST: weights.digest(state, about or "")}
    try:
        save_file(state, path, metadata=metadata | ({} if about is None else {checkpoint.KEY: about}))
    except safetensors.SafetensorError as error:  # what it makes of a refused write
        raise OSError(str(error)) from error
    path.chmod(path.parent.stat().st_mode & 0o666)  # it makes files that only their owner can read


def write_tokenizer(tokenizer: Tokenizer, block_size: int, folder: Path) -> None:
    from gptlab import hf_tokenizers

    for name, content in hf_tokenizers.files(tokenizer, block_size).items():
        (folder / name).write_text(content, "utf-8")


def to_hf(model: Model, tokenizer: Tokenizer, info: Info, folder: Path) -> str:
    """config.json, generation_config.json, model.safetensors and the tokenizer's files."""
    from gptlab.models import hf
    from gptlab.models.gpt_config import GPTConfig
    from gptlab.models.weights import parameters

    if not isinstance(model.config, GPTConfig):
        raise UserError(f"transformers has no {type(model).__name__}; use --format safetensors or --format onnx")
    config = hf.config_to_hf(model.config)
    end = tokenizer.end_of_text
    special = {
        "bos_token_id": tokenizer.begin[-1] if tokenizer.begin else end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    write_tokenizer(tokenizer, model.config.block_size, folder)
    for name, content in (("config.json", config | special), ("generation_config.json", special)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    write_weights(folder / "model.safetensors", hf.to_hf(parameters(model), model.config))
    return config["architectures"][0]


def to_safetensors(model: Model, tokenizer: Tokenizer, info: Info, folder: Path) -> str:
    """model.safetensors alone: our weights, and in its metadata what a checkpoint says of itself."""
    from gptlab import checkpoint
    from gptlab.models.weights import parameters

    about = checkpoint.describe(model, tokenizer, info.config, info.data_sha256, info.step, info.metrics)
    write_weights(folder / "model.safetensors", parameters(model), json.dumps(about))
    return "safetensors"


def require_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"--format onnx needs {package}: pip install 'gptlab[onnx]'") from error


def to_onnx(model: Model, tokenizer: Tokenizer, info: Info, folder: Path) -> str:
    """model.onnx, whose logits are compared with ours, and the tokenizer's files."""
    write_tokenizer(tokenizer, model.config.block_size, folder)
    with quiet():
        trace(model, folder / "model.onnx")
    difference = compare(model, folder / "model.onnx")
    if not difference <= TOLERANCE:
        raise UserError(
            f"onnxruntime's logits differ from ours by {difference:.1e}, more than {TOLERANCE:.0e}: torch exports this "
            f"architecture wrongly; use --format safetensors, or another version of torch or onnxruntime"
        )
    return f"ONNX, logits within {difference:.1e} of ours"


def trace(model: Model, path: Path) -> None:
    """input_ids (B, T) int64 -> logits (B, T, V), for every B and every T up to block_size.

    Raises:
        UserError: torch cannot express the model.
    """
    import torch
    from torch.onnx.errors import OnnxExporterError

    block_size = model.config.block_size
    idx = torch.zeros(2, block_size, dtype=torch.int64)  # as long as can be, so that a window is one
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if block_size > 1:
        axes[1] = torch.export.Dim("time", max=block_size)
    try:
        torch.onnx.export(
            model,
            (idx,),
            path,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes=(axes,),
            dynamo=True,
            verbose=False,
            external_data=model.num_parameters() * 4 > 2**30,  # one file holds 2 GB at most
        )
    except OnnxExporterError as error:
        raise UserError(
            f"torch {torch.__version__} cannot write this model as ONNX ({error.__cause__ or error}); "
            f"use --format safetensors, or another version of torch"
        ) from error


def compare(model: Model, path: Path) -> float:
    """The largest difference of a logit between onnxruntime and ours, for sequences of several shapes."""
    import numpy as np
    import torch

    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    draw, V, T = np.random.default_rng(0), model.config.vocab_size, model.config.block_size
    differences = []
    for shape in ((1, T), (2, T // 3 + 1), (3, 1)):
        idx = draw.integers(0, V, shape)
        (logits,) = session.run(["logits"], {"input_ids": idx})
        with torch.no_grad():
            differences.append((torch.from_numpy(logits) - model(torch.from_numpy(idx))).abs().max())
    return float(torch.stack(differences).max())  # nan if one of them is


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporter has to say of libraries that are not there and of its own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


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
