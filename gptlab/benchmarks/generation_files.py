"""Write a run's model into files: our own, from which its generation is timed, and those that other programs read."""

from __future__ import annotations

from pathlib import Path

from gptlab import models
from gptlab.benchmarks.alternation import Parent, in_another_process
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats import checkpoint, gguf, onnx, onnx_cached, open_model, writing
from gptlab.formats.description import KEY, PREFIX, ModelInfo
from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.system.arguments import BITS
from gptlab.system.errors import UserError
from gptlab.training import placement
from gptlab.training.loading import load
from gptlab.training.run import seed_torch
from gptlab.training.settings import Settings

QUANTS = {"fp32": "f32", "bf16": "f16", "int8": "q8_0", "int4": "q4_0"}  # the nearest in GGUF


def write_model(settings: Settings, parent: Parent) -> None:
    """Tell what a run's model is, and write it by the only order, as our own checkpoint and for another program.

    The order has `checkpoint`, our file; `weights`, of how many bits they are to be; and `folder`, where the model is
    written as `format` for another program; None: nowhere.
    """
    place = placement.decide(settings)
    loaded = load(settings)
    tokenizer = loaded.tokenizer
    seed_torch(settings)
    model = loaded.model or models.build(settings.model_config(tokenizer.vocab_size))
    parent.send(
        device=place.device_name,
        precision=place.precision,
        parameters=model.num_parameters(),
        block_size=model.config.block_size,
        vocabulary=tokenizer.vocab_size,
        backend=settings.compile.backend,
        plain={"model": models.to_dict(model.config), "device": place.kind},
    )
    order = parent.receive()
    if order is None:
        return
    check_weights(order["weights"], model, place.kind)
    if order["folder"]:
        write_for(order["format"], model, tokenizer, Path(order["folder"]), order["weights"])
    described = checkpoint.describe(model, tokenizer, {}, None, None, {})
    state = {PREFIX + name: value for name, value in model.state_dict().items()}
    checkpoint.save_checkpoint({KEY: described, "state_dict": state}, Path(order["checkpoint"]))
    parent.send()


def check_weights(weights: str, model: Model, kind: str) -> None:
    """Check that a model can have weights of fp32, bf16, int8 or int4 on a device.

    Args:
        kind: the device's: cpu, cuda, ...

    Raises:
        UserError: it cannot.
    """
    if weights in BITS and (kind != "cpu" or not isinstance(model, GPT)):
        raise UserError(f"--weights {weights}: is for GPTs on a CPU; use --weights bf16, or trainer=cpu")


def write_for(form: str, model: Model, tokenizer: Tokenizer, folder: Path, weights: str) -> None:
    """Write a model for another program, as a Hugging Face folder (hf), as GGUF or as ONNX with keys and values.

    Raises:
        UserError: the format has no such model.
    """
    if form == "gguf":
        gguf.require_gguf()
    if form == "onnx" and (reasons := onnx_cached.why_not(model)):
        raise UserError(f"no graph with keys and values: {'; '.join(reasons)}; use --against loop")
    folder.mkdir()
    info = ModelInfo(folder, None, {}, {}, None, "gptlab run")
    if form == "gguf":
        gguf.write_gguf(model, tokenizer, info, folder, QUANTS[weights])
    elif form == "onnx":
        writing.write_safetensors(model, tokenizer, info, folder)
        in_another_process(write_graph, folder)  # the exporter takes hundreds of MB
    else:
        writing.write_hf(model, tokenizer, info, folder)


def write_graph(folder: Path) -> None:
    """Write a graph with keys and values beside the model.safetensors of ours.

    Raises:
        UserError: see `onnx_cached.write_cached_onnx`.
    """
    onnx.require_onnx()
    onnx_cached.write_cached_onnx(*open_model.load_model(folder / "model.safetensors"), folder)
