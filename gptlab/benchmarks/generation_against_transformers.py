"""Tokens per second beside transformers' `generate` and the loop without a cache that a nanoGPT user has.

`python -m gptlab.benchmarks.generation_against_transformers`; --help names its flags.

All of them in one process, in turn (A B C A B C ...), greedy, with random weights of the same shape; medians, and the
least and the most. Not a test: it takes minutes, and the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import transformers

from gptlab.generation.context import Context
from gptlab.generation.decoding import generate
from gptlab.generation.sampling import Sampling
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig

PROMPT = 32
SHAPES = {  # block_size holds the whole text, since transformers cannot generate beyond it
    "gpt10m": (GPTConfig(65, 532, 6, 6, n_embd=384, bias=False), 500),
    "gpt124m": (GPTConfig(50257, 1024, 12, 12, n_embd=768), 224),
}
CROP = 256  # the context of the loop without a cache, nanoGPT's block_size
TOKENS = 8  # tokens for which that loop is timed, in the middle of the text: each takes seconds


def theirs(config: GPTConfig, dtype: torch.dtype, device: str) -> transformers.GPT2LMHeadModel:
    shape = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    own = transformers.GPT2Config(vocab_size=config.vocab_size, n_positions=config.block_size, **shape, **ids)
    return transformers.GPT2LMHeadModel(own).eval().to(device, dtype)


def runners(name: str, B: int, device: str) -> dict[str, Callable[[], float]]:
    """Return for each way to generate a function that runs it and returns its tokens per second."""
    config, count = SHAPES[name]
    prompt = torch.randint(config.vocab_size, (B, PROMPT), generator=torch.Generator().manual_seed(0))

    def timed(tokens: int, run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return B * tokens / (time.perf_counter() - start)

    def ours(model: GPT) -> float:
        def run() -> None:
            context = Context(model, prompt.tolist(), room=count)
            for _ in generate(context, count, Sampling(temperature=0), [torch.Generator()] * B):
                pass

        return timed(count, run)

    def transformers_(model: transformers.GPT2LMHeadModel) -> float:
        idx = prompt.to(device)
        mask = torch.ones_like(idx)
        arguments = {"attention_mask": mask, "max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        return timed(count, lambda: model.generate(idx, use_cache=True, **arguments))

    @torch.no_grad()
    def loop(model: GPT) -> float:
        idx = torch.randint(config.vocab_size, (B, PROMPT + count // 2), device=device)

        def run() -> None:
            text = idx
            for _ in range(TOKENS):
                logits = model.head(model.features(text[:, -CROP:])[:, -1])
                text = torch.cat((text, logits.argmax(dim=-1, keepdim=True)), dim=1)

        return timed(TOKENS, run)

    sides: dict[str, Callable[[], float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        bits = "fp32" if dtype == torch.float32 else "bf16"
        model, other = GPT(config).eval().to(device, dtype), theirs(config, dtype, device)
        sides[f"gptlab {bits}"] = lambda model=model: ours(model)  # type: ignore[misc]
        sides[f"transformers {bits}"] = lambda other=other: transformers_(other)  # type: ignore[misc]
        if dtype == torch.float32:
            sides["no cache fp32"] = lambda model=model: loop(model)  # type: ignore[misc]
    return sides


def bandwidth(device: str) -> float:
    """Return the memory bandwidth in bytes per second: the best of ten reads of 1 GiB."""
    block = torch.zeros(1 << 28, device=device)
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        block.sum().item()
        best = max(best, 4 * block.numel() / (time.perf_counter() - start))
    return best


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    p.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--device", default="cpu")
    args = p.parse_args()
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {where}")
    for name in args.shapes:
        for B in args.batch_sizes:
            sides = runners(name, B, args.device)
            found: dict[str, list[float]] = {each: [] for each in sides}
            speeds = [bandwidth(args.device)]
            for run in sides.values():  # once to warm up
                run()
            for _ in range(args.rounds):
                for side, run in sides.items():
                    found[side].append(run())
                speeds.append(bandwidth(args.device))
            base = found["transformers fp32"]
            read = statistics.median(speeds)
            print(f"\n{name}, {SHAPES[name][1]} tokens, batch {B}; this machine reads {read / 1e9:.1f} GB/s")
            weights = GPT(SHAPES[name][0]).num_parameters()
            for each, values in found.items():
                ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
                share = statistics.median(values) / B * weights * (2 if "bf16" in each else 4) / read
                print(
                    f"  {each:18} {statistics.median(values):8.1f} tokens/s ({min(values):.1f} to {max(values):.1f}), "
                    f"{ratio:5.2f} x transformers fp32, {share:4.0%} of the reading",
                    flush=True,
                )


if __name__ == "__main__":
    main()
