"""`python -m gptlab.generate MODEL "PROMPT"`: the model goes on with the prompt, streamed to the terminal."""

from __future__ import annotations

import argparse
import codecs
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gptlab.errors import UserError, command_line, quoted


def at_least(low: float, kind: Callable[[str], Any], below: float = float("inf")) -> Callable[[str], Any]:
    """An argparse type: `kind`, from `low` up to `below`."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value <= below:
            limit = f"at least {low:g}" + (f" and at most {below:g}" if below < float("inf") else "")
            raise argparse.ArgumentTypeError(f"{text}: must be {limit}")
        return value

    parse.__name__ = kind.__name__
    return parse


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.generate", description=__doc__)
    p.add_argument(
        "model", metavar="MODEL", type=Path, help="a run directory (its best checkpoint) or a checkpoint file"
    )
    p.add_argument("prompt", metavar="PROMPT", nargs="?", default="\n", help="text to go on with (default: a new line)")
    p.add_argument("--max-new-tokens", type=at_least(0, int), default=500, metavar="N", help="(default: 500)")
    p.add_argument(
        "--temperature", type=at_least(0, float), default=0.8, metavar="T", help="0 is greedy (default: 0.8)"
    )
    p.add_argument("--top-k", type=at_least(1, int), metavar="K", help="draw among the K most probable tokens")
    p.add_argument(
        "--top-p",
        type=at_least(1e-9, float, 1),
        metavar="P",
        help="draw among the fewest tokens of probability P",
    )
    p.add_argument("--num-samples", type=at_least(1, int), default=1, metavar="N", help="(default: 1)")
    p.add_argument("--seed", type=at_least(0, int, 2**63 - 2**32), metavar="S", help="the same text for the same seed")
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"), help="(default: cpu)")
    return p


def run(args: argparse.Namespace) -> None:
    """Write the prompt and what follows to stdout, as it is drawn.

    Raises:
        UserError: the checkpoint cannot be read, or its tokenizer lacks a character of the prompt.
    """
    import torch

    from gptlab import checkpoint
    from gptlab.sampling import generate, prompt_ids
    from gptlab.texts import harmless

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[args.device]:
        raise UserError(f"--device {args.device}: there is none here; use --device cpu")
    model, tokenizer, info = checkpoint.load(args.model)
    unknown = tokenizer.unknown(args.prompt)
    if unknown:
        raise UserError(f"the prompt has characters that the model has never seen: {quoted(unknown)}; leave them out")
    loss = f", val/loss {info.metrics['val/loss']:.4f}" if "val/loss" in info.metrics else ""
    print(f"{info.path}, step {info.step}{loss}", file=sys.stderr)

    model.to(args.device)
    block_size = model.config.block_size
    if len(tokenizer.encode(args.prompt)) > block_size:
        print(f"the model sees the last {block_size} tokens of the prompt only", file=sys.stderr)
    seed = torch.seed() % 2**32 if args.seed is None else args.seed
    idx = torch.tensor([prompt_ids(tokenizer, args.prompt)], device=args.device)
    for sample in range(args.num_samples):
        if args.num_samples > 1:
            print(f"--- sample {sample + 1} of {args.num_samples}, --seed {seed + sample}")
        print(args.prompt, end="", flush=True)
        text = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end within a character
        tokens = generate(
            model,
            idx,
            args.max_new_tokens,
            block_size=block_size,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            generator=torch.Generator().manual_seed(seed + sample),
        )
        for token in tokens:
            piece = text.decode(tokenizer.tokens[int(token)])
            print(harmless(piece) if sys.stdout.isatty() else piece, end="", flush=True)
        print(text.decode(b"", final=True))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: a mistake is one message and exit code 1 (2 for flags); Ctrl-C is 130."""
    args = parser().parse_args(argv)
    with command_line():
        run(args)


if __name__ == "__main__":
    main()
