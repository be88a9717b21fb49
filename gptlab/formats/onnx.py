"""Exports a model as an ONNX graph, and checks it with onnxruntime."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gptlab.data.tokenizers import Tokenizer
from gptlab.formats.description import ModelInfo
from gptlab.formats.writing import write_tokenizer
from gptlab.models import Model
from gptlab.system.errors import UserError

IN_ONE_FILE = 2**30  # bytes of weights; one file holds 2 GB at most
TOLERANCE = 1e-3  # the largest difference of a logit between onnxruntime and torch


def require_onnx() -> None:
    """Check that the optional packages are installed.

    Raises:
        UserError: one of them is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"--format onnx needs {package}: pip install 'gptlab[onnx]'") from error


def write_onnx(model: Model, tokenizer: Tokenizer, info: ModelInfo, folder: Path) -> str:
    """Write model.onnx and the tokenizer's files, and compare the graph's logits with ours.

    Returns:
        The name of the format, with the largest difference.

    Raises:
        UserError: torch cannot export the model, or the logits differ.
    """
    write_tokenizer(tokenizer, model.config.block_size, folder, model.config.vocab_size)
    with quiet_exporter():
        export_graph(model, folder / "model.onnx")
    difference = largest_difference(model, folder / "model.onnx")
    if not difference <= TOLERANCE:
        raise UserError(
            f"onnxruntime's logits differ from ours by {difference:.1e}, more than {TOLERANCE:.0e}: torch exports this "
            f"architecture wrongly; use --format safetensors, or another version of torch or onnxruntime"
        )
    return f"ONNX, logits within {difference:.1e} of ours"


def export_graph(model: Model, path: Path) -> None:
    """Export the graph from input_ids (B, T) int64 to logits (B, T, V), for any B and any T up to block_size.

    Raises:
        UserError: torch cannot export the model.
    """
    block_size = model.config.block_size
    idx = torch.zeros(2, block_size, dtype=torch.int64)  # full length, so that an attention window takes effect
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if block_size > 1:
        axes[1] = torch.export.Dim("time", max=block_size)
    export(model, (idx,), path, ["input_ids"], ["logits"], (axes,))


def export(
    module: nn.Module, arguments: tuple[Any, ...], path: Path, inputs: list[str], outputs: list[str], axes: Any
) -> None:
    """Export a module as an ONNX graph.

    Args:
        module: what is exported.
        arguments: what it is called with, of any sizes along the axes that are free.
        path: the file; weights of more than `IN_ONE_FILE` bytes lie in another one beside it, named .onnx.data.
        inputs: the names of the arguments.
        outputs: the names of the results.
        axes: for each argument the names of its free axes.

    Raises:
        UserError: torch cannot export the module.
    """
    from torch.onnx.errors import OnnxExporterError

    try:
        torch.onnx.export(
            module,
            arguments,
            path,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=axes,
            dynamo=True,
            verbose=False,
            external_data=sum(each.numel() for each in module.parameters()) * 4 > IN_ONE_FILE,
        )
    except OnnxExporterError as error:
        raise UserError(
            f"torch {torch.__version__} cannot write this model as ONNX ({error.__cause__ or error}); "
            f"use --format safetensors, or another version of torch"
        ) from error


def largest_difference(model: Model, path: Path) -> float:
    """Return the largest difference of a logit between onnxruntime and torch, over sequences of several shapes."""
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
def quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings about missing libraries and future changes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
