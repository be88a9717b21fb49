"""Time the generation by a run's model."""

from __future__ import annotations

from pathlib import Path

import torch

from gptlab import models
from gptlab.benchmarks.alternation import Parent, Stopwatch, about_here, in_another_process, memory
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats import gguf, onnx, onnx_cached, open_model, writing
from gptlab.formats.description import ModelInfo
from gptlab.generation.context import Context, open_context
from gptlab.generation.decoding import generate
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.sampling import Sampling
from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.models.quantised import quantise
from gptlab.system import machine
from gptlab.system.arguments import BITS
from gptlab.system.errors import UserError
from gptlab.training import placement
from gptlab.training.loading import load
from gptlab.training.run import seed_torch
from gptlab.training.settings import Settings

QUANTS = {"fp32": "f32", "bf16": "f16", "int8": "q8_0", "int4": "q4_0"}  # the nearest in GGUF


def generate_in_turn(settings: Settings, parent: Parent) -> None:
    """Answer orders with `batch`, `prompt` and `steps`: generate `steps` tokens after random prompts of that size.

    The first order has `weights`, of how many bits they are, and `folder`: where they are written as `format` for
    another program; None: nowhere. With `greedy`, tokens are not drawn at random; `room` is the most `steps` to come.
    """
    place = placement.decide(settings)
    device = torch.device(place.kind)
    loaded = load(settings)
    tokenizer = loaded.tokenizer
    seed_torch(settings)
    model = loaded.model or models.build(settings.model_config(tokenizer.vocab_size))
    parent.send(
        **about_here(device),
        device=place.device_name,
        precision=place.precision,
        parameters=model.num_parameters(),
        block_size=model.config.block_size,
        vocabulary=tokenizer.vocab_size,
        plain={"model": models.to_dict(model.config), "device": str(device)},
    )
    first = parent.receive()
    if first is None:
        return
    if first["folder"]:
        write_for(first["format"], model, tokenizer, Path(first["folder"]), first["weights"])
    model = with_weights(model, first["weights"], device)
    parent.send()
    contexts = dict[int, Context]()
    while (order := parent.receive()) is not None:
        B, count = order["batch"], order["steps"]
        prompts = torch.randint(tokenizer.vocab_size, (B, order["prompt"])).tolist()
        context = contexts.get(B)
        if context is None:  # kept, since the compiled pass belongs to it
            contexts.clear()
            backend, bf16_cache = settings.compile.backend, first["weights"] in BITS
            context = open_context(model, prompts, order["room"], backend=backend, bf16_cache=bf16_cache)
            contexts[B] = context
        else:
            context.take_back(len(context.rows[0]))
            for row, prompt in zip(context.rows, prompts, strict=True):
                row.extend(prompt)
        numbers = [RandomNumbers(settings.seed + row) for row in range(B)]
        sampling = Sampling(temperature=0) if order["greedy"] else Sampling(temperature=0.8, top_k=200)
        watch = Stopwatch(torch.device("cpu"))  # tokens are drawn on the CPU, which waits for the device
        for _ in generate(context, count, sampling, numbers):
            watch.mark()
        parent.send(**watch.read(), tokens=count, memory=memory(device), resident=machine.resident_bytes())


def with_weights(model: Model, weights: str, device: torch.device) -> Model:
    """Return the model with weights of fp32, bf16, int8 or int4.

    Raises:
        UserError: it cannot have them there.
    """
    if (bits := BITS.get(weights)) is None:
        return model.eval().to(device, torch.float32 if weights == "fp32" else torch.bfloat16)
    if device.type != "cpu" or not isinstance(model, GPT):
        raise UserError(f"--weights {weights}: is for GPTs on a CPU; use --weights bf16, or trainer=cpu")
    return quantise(model, bits)


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
