"""Another program that generates text with a run's weights: `python -m gptlab.benchmarks.generation_peers NAME`.

It may run by a Python of its own: of gptlab it imports only what needs no package. Draws are greedy, no token ends a
text, and after the prompt a pass reads one token of each row.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gptlab.benchmarks import graph_peers
from gptlab.benchmarks.alternation import Parent, in_another_process
from gptlab.system import machine
from gptlab.system.errors import UserError

MOST = 2048  # tokens of a batch of llama.cpp, its default
Prompts = list[list[int]]
Draw = Callable[[Prompts, int], Prompts]
"""Draws so many tokens after each prompt, and returns them; all prompts have one length."""


def transformers(folder: Path, weights: str, threads: int) -> Draw:
    """`generate` with its cache, eager."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[weights]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def draw(prompts: Prompts, count: int) -> Prompts:
        idx = torch.tensor(prompts)
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        return model.generate(idx, attention_mask=torch.ones_like(idx), **options)[:, idx.shape[1] :].tolist()

    return draw


def ctranslate2(folder: Path, weights: str, threads: int) -> Draw:
    """Its Generator, of the folder that its own converter makes."""
    import ctranslate2 as ct

    made = in_another_process(write_for_ctranslate2, folder)
    kind = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}[weights]
    generator = ct.Generator(str(made), device="cpu", compute_type=kind, intra_threads=threads)
    tokens: list[str] = json.loads((made / "vocabulary.json").read_text("utf-8"))

    def draw(prompts: Prompts, count: int) -> Prompts:
        begin = [[tokens[i] for i in prompt] for prompt in prompts]
        options = {"max_length": count, "min_length": count, "sampling_topk": 1, "include_prompt_in_result": False}
        return [result.sequences_ids[0] for result in generator.generate_batch(begin, **options)]

    return draw


def write_for_ctranslate2(folder: Path) -> Path:
    from ctranslate2.converters import TransformersConverter

    return Path(TransformersConverter(str(folder)).convert(str(folder / "ctranslate2")))


def llama_cpp(folder: Path, weights: str, threads: int) -> Draw:
    """llama.cpp by its C interface, with its defaults for everything but threads and lengths."""
    import ctypes

    import llama_cpp as lib
    import numpy as np

    silent = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(folder / "model.gguf").encode(), lib.llama_model_default_params())
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    contexts: dict[tuple[int, int], Any] = {}

    def context(rows: int, length: int) -> Any:
        if (rows, length) not in contexts:
            c = lib.llama_context_default_params()
            c.n_ctx, c.n_seq_max, c.n_batch = rows * max(256, length), rows, MOST
            c.n_threads = c.n_threads_batch = threads
            for old in contexts.values():
                lib.llama_free(old)
            contexts.clear()
            contexts[rows, length] = lib.llama_init_from_model(model, c)
        return contexts[rows, length]

    def decode(ctx: Any, tokens: list[tuple[int, int, int, bool]]) -> None:
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, place, row, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, place, 1
            batch.seq_id[i][0], batch.logits[i] = row, wanted
        if code := lib.llama_decode(ctx, batch):
            raise RuntimeError(f"llama_decode: {code}")
        lib.llama_batch_free(batch)

    def best(ctx: Any, i: int) -> int:
        return int(np.ctypeslib.as_array(lib.llama_get_logits_ith(ctx, i), (vocabulary,)).argmax())

    def draw(prompts: Prompts, count: int) -> Prompts:
        length, rows = len(prompts[0]), range(len(prompts))
        ctx = context(len(prompts), length + count)
        lib.llama_memory_clear(lib.llama_get_memory(ctx), True)
        drawn, together = [], MOST // length  # as many prompts as a batch of its holds
        for first in range(0, len(prompts), together):
            some = [*enumerate(prompts)][first : first + together]
            decode(ctx, [(token, i, row, i == length - 1) for row, prompt in some for i, token in enumerate(prompt)])
            drawn += [best(ctx, (i + 1) * length - 1) for i in range(len(some))]
        texts = [[token] for token in drawn]
        for step in range(count - 1):
            decode(ctx, [(texts[row][-1], length + step, row, True) for row in rows])
            for row in rows:
                texts[row].append(best(ctx, row))
        return texts

    draw.silent = silent  # type: ignore[attr-defined]  # which must live as long as the library logs
    return draw


class Peer(NamedTuple):
    """Another program that generates text."""

    load: Callable[[Path, str, int], Draw]
    """By a folder, the precision of the weights and the number of threads."""
    format: str
    """What it reads."""
    weights: tuple[str, ...]
    """The precisions that it has on a CPU."""


PEERS = {
    "transformers": Peer(transformers, "hf", ("fp32", "bf16")),
    "ctranslate2": Peer(ctranslate2, "hf", ("fp32", "bf16", "int8")),
    "llama.cpp": Peer(llama_cpp, "gguf", ("fp32", "bf16", "int8", "int4")),
    "onnxruntime": Peer(graph_peers.onnxruntime, "onnx", ("fp32", "int8")),
    "openvino": Peer(graph_peers.openvino, "onnx", ("fp32", "bf16", "int8")),
}


def random_prompts(order: dict[str, Any]) -> Prompts:
    """Return the prompts of an order, the same for each program; for what it has, see `main`."""
    numbers, length = random.Random(order["batch"]), order["prompt"]
    return [numbers.choices(range(order["vocabulary"]), k=length) for _ in range(order["batch"])]


def main(name: str) -> None:
    """Load what the first order says, by `folder`, `weights` and `threads`; then draw, and answer with the seconds.

    An order has `batch`, `prompt` and `vocabulary`, from which prompts are drawn, and `steps`, the tokens of a text.
    """
    parent = Parent()
    order = parent.receive()
    assert order is not None
    try:
        draw = PEERS[name].load(Path(order["folder"]), order["weights"], order["threads"])
    except ImportError as error:
        parent.send(error=f"--against {name}: {error}; install it, or name the Python that has it with --python")
        return
    except UserError as error:
        parent.send(error=str(error))
        return
    parent.send(threads=order["threads"], processes=1, memory_before=machine.peak_memory_bytes())
    while (order := parent.receive()) is not None:
        prompts = random_prompts(order)
        begin = time.perf_counter()
        draw(prompts, order["steps"])
        seconds = time.perf_counter() - begin
        memory = {"memory": machine.peak_memory_bytes(), "resident": machine.resident_bytes()}
        parent.send(total=seconds, seconds=[], tokens=order["steps"], **memory)


if __name__ == "__main__":
    main(sys.argv[1])
