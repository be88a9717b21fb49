"""The baseline of the benchmarks: a nanoGPT user's eager PyTorch loop, and generation without a KV cache.

It does what nanoGPT does (https://github.com/karpathy/nanoGPT): random crops from a memory map that is reopened for
each batch, AdamW that is fused only on a GPU, the learning rate set by hand, the loss read every 10 steps; on a GPU
TF32, autocast and pinned memory. The model is ours with torch's dropout. It imports neither Lightning nor Hydra, so
that its memory is that user's, too.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptlab import models
from gptlab.benchmarks.alternation import Parent, Stopwatch, about_here, make_steps, memory
from gptlab.models import Model, ModelConfig
from gptlab.models.attention import sdpa_attention
from gptlab.models.dropout import Drop
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from gptlab.models.layers import CausalSelfAttention, PassContext
from gptlab.training.schedules import ScheduleConfig, lr_scale

LOG_EVERY = 10
TEMPERATURE, TOP_K = 0.8, 200


class TorchDrop(Drop):
    """Dropout drawn by torch."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, drop: Drop) -> Tensor:
    """Compute `sdpa_attention` with fused kernels that draw their own dropout, on a CPU as well; (B, H, T, D)."""
    how: dict[str, Any] = {"scale": scale, "dropout_p": drop.p, "enable_gqa": q.shape[1] != k.shape[1]}
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None, **how)  # (B, H, T, D)


class PlainGPT(GPT):
    """GPT with torch's own dropout."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(replace(config, dropout=0.0, attn_dropout=None))
        self.rates = config.drop_rates
        for block in self.h:
            block.register_forward_pre_hook(self.given)
        for module in self.modules():
            if isinstance(module, CausalSelfAttention) and module.attention is sdpa_attention:
                module.attention = attend

    def drops(self) -> list[Drop]:
        """Return the dropouts of the embeddings and of a block's three places, which are the same in all blocks."""
        return [TorchDrop(p if self.training else 0.0) for p in self.rates[:4]]

    def embed(self, idx: Tensor, t: Tensor | None = None) -> Tensor:
        return self.drops()[0](super().embed(idx, t))

    def given(self, block: nn.Module, inputs: tuple[Tensor, PassContext]) -> tuple[Tensor, PassContext]:
        """Replace the dropouts in a block's arguments, features (B, T, C) and places, by torch's."""
        x, places = inputs
        return x, places._replace(dropouts=tuple(self.drops()[1:]))


def build_plain_model(config: ModelConfig) -> Model:
    """Build a model whose dropout is torch's."""
    return PlainGPT(config) if isinstance(config, GPTConfig) else models.build(config)


class PlainLoop:
    """A nanoGPT user's training loop, one `step` at a time.

    Args:
        model: the model's config, as `models.to_dict` returns it.
        ids, id_type: the file of the training ids, and their numpy dtype.
        offset: bytes of the file before the first id.
        batch_size: rows of one optimizer step, divided into `accumulation` micro-batches.
        optim: lr, weight_decay, beta1, beta2 and grad_clip of AdamW.
        schedule: the fields of ScheduleConfig.
    """

    def __init__(
        self,
        model: dict[str, Any],
        ids: str,
        id_type: str,
        batch_size: int,
        accumulation: int,
        optim: dict[str, float],
        schedule: dict[str, Any],
        seed: int,
        device: str,
        offset: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        self.ids, self.id_type, self.offset = ids, np.dtype(id_type), offset
        self.rows, self.accumulation = batch_size // accumulation, accumulation
        config = models.from_dict(model)
        self.block_size = config.block_size
        self.model = build_plain_model(config).to(self.device)
        self.optim, self.schedule = optim, ScheduleConfig(**schedule)
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": optim["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}],
            betas=(optim["beta1"], optim["beta2"]),
            fused=True if on_gpu else None,
        )
        self.autocast, half = autocast(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half == torch.float16)
        self.number = 0
        self.following = self.batch()

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return random crops and their targets, (b, T) int64 each."""
        # Reopened: else its pages would count as memory in use.
        ids = np.memmap(self.ids, dtype=self.id_type, mode="r", offset=self.offset)
        T = self.block_size
        starts = torch.randint(len(ids) - T, (self.rows,)).tolist()

        def crops(shift: int) -> Tensor:
            rows = [torch.from_numpy(ids[i + shift : i + shift + T].astype(np.int64)) for i in starts]
            stacked = torch.stack(rows)
            if self.device.type != "cuda":
                return stacked.to(self.device)
            return stacked.pin_memory().to(self.device, non_blocking=True)

        return crops(0), crops(1)

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim["lr"] * lr_scale(self.number, self.schedule)
        for _ in range(self.accumulation):
            idx, targets = self.following
            with self.autocast:
                logits = self.model(idx)  # (b, T, V)
                loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / self.accumulation
            self.following = self.batch()  # while the GPU works
            self.scaler.scale(loss).backward()
        if self.optim["grad_clip"]:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optim["grad_clip"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.number % LOG_EVERY == 0:
            print(f"step {self.number}: loss {loss.item() * self.accumulation:.4f}")
        self.number += 1


def autocast(device: torch.device) -> tuple[Any, torch.dtype]:
    """Return the context of a forward pass on `device`, and the dtype that it computes in."""
    if device.type != "cuda":
        return nullcontext(), torch.float32
    torch.set_float32_matmul_precision("high")  # TF32 for the products that autocast leaves in fp32
    half = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.autocast("cuda", half), half


@torch.no_grad()
def generate_without_cache(model: Model, idx: Tensor, count: int) -> Tensor:
    """Return idx (B, T) with `count` more tokens, (B, T + count); each reads the last block_size tokens again."""
    for _ in range(count):
        logits = model.head(model.features(idx[:, -model.config.block_size :])[:, -1])  # (B, V)
        best = (logits.float() / TEMPERATURE).topk(min(TOP_K, logits.shape[-1]))
        choice = torch.multinomial(best.values.softmax(dim=-1), 1)  # (B, 1)
        idx = torch.cat((idx, best.indices.gather(1, choice)), dim=1)
    return idx


def train(parent: Parent, order: dict[str, Any]) -> None:
    """Make steps of the loop that `order` describes, whenever the parent asks for them."""
    loop = PlainLoop(**order)
    make_steps(parent, loop.step, loop.device)


def sample(parent: Parent, model: dict[str, Any], device: str) -> None:
    """Answer orders with `batch`, `prompt` and `steps`: generate `steps` tokens after random prompts of that size."""
    where = torch.device(device)
    config = models.from_dict(model)
    built = build_plain_model(config).eval().to(where)
    half, _ = autocast(where)
    parent.send(**about_here(where))
    while (order := parent.receive()) is not None:
        idx = torch.randint(config.vocab_size, (order["batch"], order["prompt"]), device=where)
        watch = Stopwatch(where)
        with half:
            generate_without_cache(built, idx, order["steps"])
        parent.send(**watch.read(), tokens=order["steps"], memory=memory(where))


def main() -> None:
    """Run as a child of `bench`; the first order says whether to train or to generate."""
    parent = Parent()
    order = parent.receive()
    if order is None:
        sys.exit(1)
    if "optim" in order:
        train(parent, order)
    else:
        sample(parent, **order)


if __name__ == "__main__":
    main()
