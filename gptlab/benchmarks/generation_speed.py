"""Time the generation by a checkpoint of ours, opened as `generate` opens it: without torch where that is not needed.

`python -m gptlab.benchmarks.generation_speed` takes turns with the processes of `generation_peers`, and answers alike.
"""

from __future__ import annotations

from gptlab.benchmarks.alternation import Parent, Stopwatch, about_here, memory
from gptlab.benchmarks.generation_peers import random_prompts
from gptlab.generation.context import Context, open_context
from gptlab.generation.decoding import generate
from gptlab.generation.opening import open_to_generate
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.sampling import Sampling
from gptlab.system import machine, threads
from gptlab.system.arguments import BITS
from gptlab.system.errors import UserError


def generate_in_turn(parent: Parent) -> None:
    """Open what the first order says, by `checkpoint`, `weights`, `device` and `backend`; then generate, and answer.

    An order has `batch`, `prompt` and `vocabulary`, from which prompts are drawn, and `steps`, the tokens of a text.
    With `greedy`, tokens are not drawn at random; `room` is the most `steps` to come.
    """
    first = parent.receive()
    if first is None:
        return
    backend = first["backend"]  # of torch.compile
    try:
        opened = open_to_generate(first["checkpoint"], first["device"], first["weights"], is_compiled=bool(backend))
    except UserError as error:
        parent.send(error=str(error))
        return
    device = None
    if first["device"] != "cpu":
        import torch

        device = torch.device(first["device"])
    parent.send(**about_here(device))
    contexts = dict[int, Context]()
    while (order := parent.receive()) is not None:
        prompts = random_prompts(order)
        context = contexts.get(len(prompts))
        if context is None:  # kept, since the compiled pass belongs to it
            contexts.clear()
            bf16_cache = first["weights"] in BITS
            context = open_context(opened.model, prompts, order["room"], backend=backend, bf16_cache=bf16_cache)
            contexts[len(prompts)] = context
        else:
            context.take_back(len(context.rows[0]))
            for row, prompt in zip(context.rows, prompts, strict=True):
                row.extend(prompt)
        numbers = [RandomNumbers(row) for row in range(len(prompts))]
        sampling = Sampling(temperature=0) if order["greedy"] else Sampling(temperature=0.8, top_k=200)
        watch = Stopwatch()  # tokens are drawn on the CPU, which waits for the device
        for _ in generate(context, order["steps"], sampling, numbers):
            watch.mark()
        more = {"memory": memory(device), "resident": machine.resident_bytes()}
        parent.send(**watch.read(), tokens=order["steps"], **more)


if __name__ == "__main__":
    threads.prepare()
    generate_in_turn(Parent())
