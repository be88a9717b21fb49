"""Measure the inside of a training model for TensorBoard: norms by block, activations and attention.

Shapes are named B T C H D V as in models/; tags begin with "vitals", so that they sort after train/ and val/.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from gptlab.data.batches import IGNORED, Batch
from gptlab.data.tokenizers import Tokenizer
from gptlab.distributed.sharding import full_tensor, gathered_model, total_norm
from gptlab.evaluation.loss import cross_entropy
from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.models.heads import has_logits, language_model
from gptlab.models.watching import watch_blocks
from gptlab.models.weights import OF_GPT
from gptlab.training.loggers import TensorBoard
from gptlab.training.module import LMModule

TOKENS = 2048  # validation tokens in the batch that is measured
EMBEDDED = 1000  # tokens in the projector: in a learned vocabulary the first are the most frequent
WIDEST = 2048  # the longest embedding for the projector; a bigram's rows, one logit per token, make large files


class Diagnostics(L.Callback):
    """Measures the gradients and update of every `every`-th optimizer step, and then the model on a fixed batch.

    It draws no random numbers and leaves the model unchanged: the run is bit for bit the same with and without it. At
    the end of the run the token embeddings are written for the projector.

    Args:
        batch: what the model is measured on.
    """

    def __init__(self, every: int, batch: Batch, board: TensorBoard) -> None:
        self.every = every
        self.board = board
        self.batch = batch
        self._before: dict[str, list[Tensor]] | None = None  # the weights before a measured step
        self._values: dict[str, float] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Measure the gradients: fp16's are unscaled at this point, and Lightning clips them only afterwards."""
        if (trainer.global_step + 1) % self.every:
            return
        assert isinstance(pl_module, LMModule)
        self._before = {}
        for name, parameters in parameters_by_block(pl_module.model).items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            self._values[f"vitals_gradient_norm/{name}"] = float(total_norm(gradients))
            self._before[name] = [p.detach().clone() for p in parameters]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._before is None:
            return
        assert isinstance(pl_module, LMModule)
        with torch.no_grad():
            for name, parameters in parameters_by_block(pl_module.model).items():
                changes = [now - before for now, before in zip(parameters, self._before[name], strict=True)]
                update, weight = (float(total_norm(each)) for each in (changes, parameters))
                self._values[f"vitals_update_norm/{name}"] = update
                self._values[f"vitals_update_ratio/{name}"] = update / max(weight, 1e-12)
        with trainer.precision_plugin.val_step_context(), gathered_model(language_model(pl_module.model)) as model:
            idx, targets = (ids.to(pl_module.device) for ids in self.batch[:2])
            self._values |= look_inside(model, idx, targets, has_logits(pl_module.model))
        self.board.log_metrics(self._values, trainer.global_step)
        self._before, self._values = None, {}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LMModule)
        table: Tensor = language_model(pl_module.model).wte.weight
        if table.shape[1] <= WIDEST:
            self.board.embed(
                full_tensor(table.detach())[:EMBEDDED].float().cpu(), token_labels(pl_module.tokenizer)[:EMBEDDED]
            )


def parameters_by_block(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters by part: wte, wpe, h.0, h.1, ..., ln_f, lm_head, score; a tied head belongs to wte."""
    grouped: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parts = name.removeprefix(OF_GPT).split(".")
        grouped.setdefault(".".join(parts[: 2 if parts[0] == "h" else 1]), []).append(parameter)
    return grouped


@torch.no_grad()
def look_inside(model: Model, idx: Tensor, targets: Tensor, predicts: bool = True) -> dict[str, float]:
    """Measure loss by position, activation RMS and attention entropy in one forward pass in evaluation mode.

    Args:
        idx, targets: (B, T) int64; positions whose target is masked do not count.
        predicts: whether the model's logits are used, so that their loss says something.

    Returns:
        Means over the batch by tag: `loss_by_position`, in nats, of positions 0, 1, 2-3, 4-7, ... (position t sees
        t + 1 tokens); `activation_rms` of the residual stream after each block; `attention_entropy`, in nats, of each
        head's weights and of uniform weights.
    """
    counted, T = targets != IGNORED, idx.shape[1]  # (B, T)
    values: dict[str, Tensor] = {}
    training = model.training
    model.eval()
    try:
        # Not the compiled call: the hooks would make torch compile it again.
        with record_blocks(model, counted, values):
            logits = model.forward(idx)  # (B, T, V)
    finally:
        model.train(training)
    losses = cross_entropy(logits, targets, "none").view_as(targets)
    for first in (0, *(2**i for i in range((T - 1).bit_length()))):
        last = min(max(2 * first, 1), T) - 1
        if predicts and (here := counted[:, first : last + 1]).any():
            name = f"{first}-{last}" if last > first else f"{first}"
            values[f"loss_by_position/{name}"] = losses[:, first : last + 1][here].mean()
    if isinstance(model, GPT) and model.config.has_attention:
        visible = torch.arange(1, T + 1, device=idx.device).clamp(max=model.config.window or T)  # (T,)
        values["attention_entropy/uniform"] = visible.float().log().expand_as(targets)[counted].mean()
    return {f"vitals_{name}": float(value) for name, value in values.items()}


def record_blocks(model: Model, counted: Tensor, values: dict[str, Tensor]) -> AbstractContextManager[None]:
    """Record into `values` the activations and attention of each block, at the positions (B, T) in `counted`."""

    def activations(i: int, x: Tensor) -> None:
        values[f"activation_rms/h.{i}"] = x[counted].float().square().mean().sqrt()  # (B, T, C)

    def attention(i: int, weights: Tensor) -> None:
        entropies = torch.special.entr(weights).sum(-1).transpose(1, 2)[counted].mean(0)  # (H,)
        values.update((f"attention_entropy/h.{i}.head.{head}", entropy) for head, entropy in enumerate(entropies))

    return watch_blocks(model, activations, attention)


def token_labels(tokenizer: Tokenizer) -> list[str]:
    """Return every token as one readable line: spaces as ␣, control characters and partial characters escaped."""
    texts = (token.decode("utf-8", "backslashreplace") for token in tokenizer.tokens)
    return [repr(text)[1:-1].replace(" ", "␣") for text in texts]
