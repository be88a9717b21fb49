"""The plain PyTorch loop that a nanoGPT user has, as a reference for speed and for the loss that it reaches.

Eager, with nanoGPT's data loading (random crops out of a memory map), optimizer (AdamW, not fused on a CPU),
schedule, clipping and logging, on our model, whose mathematics is the same. Run by itself it times both in turn,
A B A B, each in a fresh process: python -m tests.reference_loop
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from gptlab.models import GPT, GPTConfig

BATCH, BLOCK, LR, MIN_LR, WARMUP, DECAY, LOG = 12, 64, 1e-3, 1e-4, 100, 2000, 10


def train(text: str, steps: int, seed: int = 1337) -> tuple[GPT, list[float], np.ndarray]:
    """The model after `steps`, seconds of each step, and the validation ids."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    chars = sorted(set(text))
    index = {character: i for i, character in enumerate(chars)}
    ids = np.array([index[character] for character in text], dtype=np.uint16)
    data, val = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    model = GPT(GPTConfig(len(chars), BLOCK, n_layer=4, n_head=4, n_embd=128, bias=False))
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.99))

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(data) - BLOCK, (BATCH,))
        x = torch.stack([torch.from_numpy(data[i : i + BLOCK].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + BLOCK].astype(np.int64)) for i in starts])
        return x, y

    seconds = []
    x, y = batch()
    for step in range(steps):
        start = time.perf_counter()
        if step < WARMUP:
            lr = LR * (step + 1) / (WARMUP + 1)
        else:
            lr = MIN_LR + 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (DECAY - WARMUP))) * (LR - MIN_LR)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = F.cross_entropy(model(x).view(-1, len(chars)), y.reshape(-1))
        x, y = batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % LOG == 0:
            loss.item()
        seconds.append(time.perf_counter() - start)
    return model, seconds, val


def whole_split_loss(model: GPT, val: np.ndarray) -> float:
    """Nats per token over the whole split, non-overlapping windows in order."""
    ids = torch.from_numpy(val.astype(np.int64))
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, BLOCK):
            y = ids[start + 1 : start + BLOCK + 1]
            logits = model(ids[None, start : start + len(y)])[0]
            nats += F.cross_entropy(logits, y, reduction="sum").item()
    return nats / (len(ids) - 1)


def reference_step(data_dir: Path, steps: int) -> float:
    """Median seconds of the reference's steps, measured in a process of its own."""
    code = (
        "import sys, pathlib, statistics; from tests import reference_loop as r;"
        f"print(statistics.median(r.train(pathlib.Path(sys.argv[1]).read_text(), {steps})[1][{LOG}:]))"
    )
    command = [sys.executable, "-c", code, str(data_dir / "tinyshakespeare.txt")]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def gptlab_step(data_dir: Path, steps: int, *overrides: str) -> float:
    """Median seconds of gptlab's steps, from the speed that the run itself logs every 10 steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gptlab.train", "experiment=nanogpt_char_cpu", *overrides]
        command += [f"hydra.run.dir={folder}", f"data.dir={data_dir}", f"data.cache_dir={folder}/cache"]
        command += [f"trainer.max_steps={steps}", f"trainer.val_every={steps}", "trainer.sample_tokens=0"]
        subprocess.run(command, check=True, capture_output=True)
        with (Path(folder) / "metrics.csv").open(newline="") as file:
            speeds = [float(row["tokens_per_sec"]) for row in csv.DictReader(file) if row["tokens_per_sec"]]
    return BATCH * BLOCK / statistics.median(speeds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="of gptlab.train")
    args = parser.parse_args()
    data_dir = Path(os.environ["GPTLAB_DATA"])
    ratios = []
    for _ in range(args.pairs):
        reference, ours = reference_step(data_dir, args.steps), gptlab_step(data_dir, args.steps, *args.overrides)
        ratios.append(ours / reference)
        print(f"plain loop {reference * 1e3:.2f} ms, gptlab {ours * 1e3:.2f} ms, ratio {ratios[-1]:.3f}", flush=True)
    print(f"gptlab / plain loop: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
