"""Seconds to a loss: `experiment=speedrun_cpu` against the plain loop that a nanoGPT user has.

Both from the start of their process, in turn, A B A B: the loop makes nanoGPT's CPU run, eager, and evaluates once, at
its end; ours has no compiled kernels and no prepared text to begin with. The losses are of the whole validation split.

python -m gptlab.benchmarks.time_to_loss                               to nanoGPT's loss
python -m gptlab.benchmarks.time_to_loss --lr 4e-3 trainer.max_steps=...    to the loss of the loop at its best rate
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gptlab import models
from gptlab.benchmarks.plain_loop import PlainLoop
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from gptlab.system.files import read_json

BATCH, BLOCK, STEPS, SEED = 12, 64, 2000, 1337
RATE = 1e-3


def nanogpt_cpu_run(text: str, folder: Path, lr: float) -> tuple[PlainLoop, Tensor]:
    """Return the plain loop of nanoGPT's CPU run, and the ids of the validation split, (n,) int64.

    Args:
        folder: where the training ids are written.
        lr: the peak learning rate.
    """
    index = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = np.array([index[character] for character in text], dtype=np.uint16)
    cut = int(0.9 * len(ids))
    ids[:cut].tofile(folder / "train.bin")
    loop = PlainLoop(
        models.to_dict(GPTConfig(len(index), BLOCK, n_layer=4, n_head=4, n_embd=128, bias=False)),
        ids=str(folder / "train.bin"),
        id_type="uint16",
        batch_size=BATCH,
        accumulation=1,
        optim={"lr": lr, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "grad_clip": 1.0},
        schedule={"name": "cosine", "warmup_steps": 100, "decay_steps": STEPS, "min_ratio": 0.1},
        seed=SEED,
        device="cpu",
    )
    return loop, torch.from_numpy(ids[cut:].astype(np.int64))


def train(text: str, folder: Path, lr: float) -> float:
    """Train nanoGPT's CPU run; returns nats per token over the whole validation split."""
    loop, held_out = nanogpt_cpu_run(text, folder, lr)
    for _ in range(STEPS):
        loop.step()
    assert isinstance(loop.model, GPT)
    return whole_split_loss(loop.model, held_out)


@torch.no_grad()
def whole_split_loss(model: GPT, ids: Tensor) -> float:
    """Return nats per token of ids (n,), read in consecutive windows."""
    windows = [ids[i : i + BLOCK + 1] for i in range(0, len(ids) - 1, BLOCK)]  # the last may be shorter
    batches = (*torch.stack(windows[:-1]).split(64), windows[-1][None])
    nats = [F.cross_entropy(model(x[:, :-1]).mT, x[:, 1:], reduction="sum").item() for x in batches]
    return sum(nats) / (len(ids) - 1)


def time_plain_loop(lr: float) -> tuple[float, float]:
    """Run the plain loop in its own process; returns its seconds and loss."""
    command = [sys.executable, "-m", "gptlab.benchmarks.time_to_loss", "--alone", f"--lr={lr}"]
    start = time.perf_counter()
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - start, float(shown.split()[-1])


def train_cold(folder: str, *words: str) -> None:
    """Run gptlab.train in `folder`/run, in its own process, with nothing prepared and nothing compiled before."""
    command = [sys.executable, "-m", "gptlab.train", *words]
    command += [f"hydra.run.dir={folder}/run", f"data.cache_dir={folder}/cache"]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def time_gptlab(*overrides: str) -> tuple[float, float]:
    """Run gptlab.train in its own process; returns its seconds and loss."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train_cold(folder, "experiment=speedrun_cpu", *overrides)
        return time.perf_counter() - start, read_json(Path(folder) / "run" / "summary.json")["val/loss"]


def race(lr: float, rounds: int, *overrides: str) -> list[tuple[float, float, float]]:
    """Run both in turn; returns for each round the ratio of times, ours / the loop's, our loss and the loop's."""
    found = []
    for number in range(1, rounds + 1):
        theirs, their_loss = time_plain_loop(lr)
        seconds, loss = time_gptlab(f"seed={number}", *overrides)
        found.append((seconds / theirs, loss, their_loss))
        print(
            f"plain loop {theirs:.1f} s to {their_loss:.4f}, gptlab {seconds:.1f} s to {loss:.4f}: "
            f"1/{theirs / seconds:.2f}",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=RATE, help="of the plain loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="one run of the plain loop, and its loss")
    parser.add_argument("overrides", nargs="*", help="of gptlab.train")
    args = parser.parse_args()
    text = Path(os.environ.get("GPTLAB_DATA", "")) / "tinyshakespeare.txt"
    if not text.is_file():
        parser.error("GPTLAB_DATA must name a folder with tinyshakespeare.txt")
    if args.alone:
        with tempfile.TemporaryDirectory() as folder:
            print(train(text.read_text(), Path(folder), args.lr))
        return
    ratios, losses, theirs = zip(*race(args.lr, args.rounds, *args.overrides), strict=True)
    print(
        f"gptlab / plain loop: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}; "
        f"mean loss {statistics.mean(losses):.4f}, the loop's {statistics.mean(theirs):.4f}"
    )


if __name__ == "__main__":
    main()
