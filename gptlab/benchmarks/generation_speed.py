"""Time the generation by a run's model."""

from __future__ import annotations

import torch

from gptlab import models
from gptlab.benchmarks.alternation import Parent, Stopwatch, about_here, memory
from gptlab.generation.context import Context
from gptlab.generation.decoding import generate
from gptlab.generation.sampling import Sampling
from gptlab.training import placement
from gptlab.training.loading import load
from gptlab.training.run import seed_torch
from gptlab.training.settings import Settings


def generate_in_turn(settings: Settings, parent: Parent) -> None:
    """Answer orders with `batch`, `prompt` and `steps`: generate `steps` tokens after random prompts of that size."""
    place = placement.decide(settings)
    device = torch.device(place.kind)
    loaded = load(settings)
    tokenizer = loaded.tokenizer
    seed_torch(settings)
    model = loaded.model or models.build(settings.model_config(tokenizer.vocab_size))
    model = model.eval().to(device, torch.float32 if place.precision == "fp32" else torch.bfloat16)
    parent.send(
        **about_here(device),
        device=place.device_name,
        precision=place.precision,
        parameters=model.num_parameters(),
        block_size=model.config.block_size,
        plain={"model": models.to_dict(model.config), "device": str(device)},
    )
    sampling, contexts = Sampling(temperature=0.8, top_k=200), dict[int, Context]()
    while (order := parent.receive()) is not None:
        B, count = order["batch"], order["steps"]
        prompts = torch.randint(tokenizer.vocab_size, (B, order["prompt"])).tolist()
        context = contexts.get(B)
        if context is None or context.cache is None:  # kept, since the compiled pass belongs to it
            context = contexts[B] = Context(model, prompts, count, backend=settings.compile.backend)
        else:
            context.take_back(len(context.rows[0]))
            for row, prompt in zip(context.rows, prompts, strict=True):
                row.extend(prompt)
        generators = [torch.Generator().manual_seed(settings.seed + row) for row in range(B)]
        watch = Stopwatch(torch.device("cpu"))  # tokens are drawn on the CPU, which waits for the device
        for _ in generate(context, count, sampling, generators):
            watch.mark()
        parent.send(**watch.read(), tokens=count, memory=memory(device))
